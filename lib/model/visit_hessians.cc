#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "lib/model/layer_stream.h"
#include "lib/model/weights.h"
#include "nibble/calibrate.h"

namespace nibble {
namespace {

// One pass over the layers, which hands over what it has gathered after each half.
class HessianRun {
 public:
  using Visit = std::function<Status(const SharedInputs&, const Hessian&)>;

  HessianRun(const Model& model, const CalibrationText& text, const StatisticsOptions& options,
             const Visit& visit)
      : model_(model), text_(text), options_(options), visit_(visit), inputs_(InputsOf(model)) {
    const int64_t per_batch = std::max<int64_t>(1, options.batch_tokens / text.context);
    const int64_t passes = 2 * static_cast<int64_t>(model.weights().layers.size()) + 1;
    batches_ = (text.windows() + per_batch - 1) / per_batch * passes;
  }

  Status Go() {
    const Model::Weights& weights = model_.weights();
    NIBBLE_ASSIGN_OR_RETURN(stream_, LayerStream::Start(model_, weights.embedding, text_,
                                                        options_.activations, options_.parallel));
    for (const DecoderLayer& layer : weights.layers) {
      NIBBLE_RETURN_IF_ERROR(
          HalfALayer(layer, Half::kAttention, layer.attention_norm, layer.attention_output));
      NIBBLE_RETURN_IF_ERROR(HalfALayer(layer, Half::kFeedForward, layer.ffn_norm, layer.down));
    }
    Hessian output(model_.config().width);
    NIBBLE_RETURN_IF_ERROR(ForEachBatch([&](WindowBatch batch) {
      return Add(stream_->Normed(weights.output_norm, batch), inputs_[next_], output);
    }));
    return Hand(output);
  }

 private:
  Status HalfALayer(const DecoderLayer& layer, Half half, const std::vector<float>& norm,
                    const Linear& last) {
    Hessian first_sums(model_.config().width), last_sums(last.weight.cols());
    NIBBLE_RETURN_IF_ERROR(ForEachBatch([&](WindowBatch batch) -> Status {
      NIBBLE_RETURN_IF_ERROR(Add(stream_->Normed(norm, batch), inputs_[next_], first_sums));
      NIBBLE_ASSIGN_OR_RETURN(const TensorView seen, stream_->LastInputs(layer, half, batch));
      NIBBLE_RETURN_IF_ERROR(Add(seen, inputs_[next_ + 1], last_sums));
      return stream_->Add(last, seen, batch);
    }));
    NIBBLE_RETURN_IF_ERROR(Hand(first_sums));
    return Hand(last_sums);
  }

  Status Add(TensorView seen, const SharedInputs& inputs, Hessian& sums) const {
    return sums.Add(seen, options_.parallel).WithContext(inputs.matrices.front());
  }

  Status Hand(const Hessian& sums) { return visit_(inputs_[next_++], sums); }

  Status ForEachBatch(const std::function<Status(WindowBatch)>& function) {
    return nibble::ForEachBatch(text_, options_.batch_tokens, [&](WindowBatch batch) -> Status {
      NIBBLE_RETURN_IF_ERROR(
          function(batch).WithContext("windows from " + std::to_string(batch.first) + " on"));
      if (options_.progress && !options_.progress(++done_, batches_)) return Cancelled("cancelled");
      return OkStatus();
    });
  }

  const Model& model_;
  const CalibrationText& text_;
  const StatisticsOptions& options_;
  const Visit& visit_;
  const std::vector<SharedInputs> inputs_;
  size_t next_ = 0;  // of them
  int64_t done_ = 0, batches_ = 0;
  std::unique_ptr<LayerStream> stream_;
};

}  // namespace

std::vector<SharedInputs> InputsOf(const Model& model) {
  std::vector<SharedInputs> inputs;
  for (const DecoderLayer& layer : model.weights().layers) {
    inputs.push_back(
        {{layer.query.name, layer.key.name, layer.value.name}, layer.query.weight.cols()});
    inputs.push_back({{layer.attention_output.name}, layer.attention_output.weight.cols()});
    inputs.push_back({{layer.gate.name, layer.up.name}, layer.gate.weight.cols()});
    inputs.push_back({{layer.down.name}, layer.down.weight.cols()});
  }
  const Linear& head = model.weights().head;
  inputs.push_back({{head.name}, head.weight.cols()});
  return inputs;
}

Status VisitHessians(const Model& model, const CalibrationText& text,
                     const StatisticsOptions& options,
                     const std::function<Status(const SharedInputs&, const Hessian&)>& visit) {
  NIBBLE_RETURN_IF_ERROR(CheckText(model, text));
  return HessianRun(model, text, options, visit).Go();
}

}  // namespace nibble
