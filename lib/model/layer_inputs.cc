#include "nibble/layer_inputs.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace nibble {
namespace {

using Statistics = std::map<std::string, LayerInputs, std::less<>>;

size_t BytesOf(int64_t cols, const LayerInputsOptions& options) {
  return static_cast<size_t>(cols) * static_cast<size_t>(cols + options.samples + 1) *
         sizeof(float);
}

// One run of the text for some matrices.
class Run {
 public:
  Run(const Model& model, const LayerInputsOptions& options, const CalibrationText& text,
      Statistics& seen)
      : model_(model), options_(options), text_(text), seen_(seen) {
    const int64_t total = static_cast<int64_t>(text.tokens.size());
    stride_ =
        std::max<int64_t>(1, (total + options.samples - 1) / std::max<int64_t>(1, options.samples));
  }

  int64_t per_batch() const { return std::max<int64_t>(1, options_.batch_tokens / text_.context); }
  int64_t batches() const { return (text_.windows() + per_batch() - 1) / per_batch(); }

  Status Go(const std::function<Status()>& after_batch) {
    NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model_.config()));
    RunnerOptions run;
    run.precision = Precision::kF32;
    run.parallel = options_.parallel;
    Status status;
    int64_t first_token = 0;
    run.observer = [&](std::string_view name, TensorView inputs) {
      const auto it = seen_.find(name);
      if (it == seen_.end() || !status.ok()) return;
      status = See(it->second, inputs, first_token).WithContext(it->first);
    };
    Runner runner(model_, run);
    std::vector<float> hidden;
    for (int64_t first = 0; first < text_.windows(); first += per_batch()) {
      const int64_t count = std::min(per_batch(), text_.windows() - first);
      first_token = first * text_.context;
      std::vector<SequenceInput> inputs;
      for (int64_t w = first; w < first + count; ++w) {
        inputs.push_back({cache.AddSequence(),
                          std::span(text_.tokens)
                              .subspan(static_cast<size_t>(w * text_.context),
                                       static_cast<size_t>(text_.context)),
                          true});
      }
      NIBBLE_RETURN_IF_ERROR(runner.Forward(cache, inputs, &hidden));
      NIBBLE_RETURN_IF_ERROR(status);
      for (const SequenceInput& input : inputs) {
        NIBBLE_RETURN_IF_ERROR(cache.Remove(input.sequence));
      }
      NIBBLE_RETURN_IF_ERROR(after_batch());
    }
    return OkStatus();
  }

 private:
  Status See(LayerInputs& layer, TensorView inputs, int64_t first_token) const {
    NIBBLE_RETURN_IF_ERROR(layer.hessian.Add(inputs, options_.parallel));
    for (int64_t r = 0; r < inputs.rows; ++r) {
      const float* row = static_cast<const float*>(inputs.Row(r));
      for (int64_t j = 0; j < inputs.cols; ++j) {
        float& maximum = layer.maxima[static_cast<size_t>(j)];
        maximum = std::max(maximum, std::fabs(row[j]));
      }
      if ((first_token + r) % stride_ == 0) {
        layer.samples.insert(layer.samples.end(), row, row + inputs.cols);
      }
    }
    return OkStatus();
  }

  const Model& model_;
  const LayerInputsOptions& options_;
  const CalibrationText& text_;
  Statistics& seen_;
  int64_t stride_;
};

}  // namespace

Status VisitLayerInputs(
    const Model& model, const CalibrationText& text, std::span<const std::string> names,
    const LayerInputsOptions& options,
    const std::function<Status(std::string_view name, const LayerInputs& inputs)>& visit) {
  if (text.windows() == 0) return InvalidArgument("a calibration text of no windows");
  std::map<std::string, int64_t> cols;
  std::vector<std::vector<std::string>> runs;
  size_t bytes = 0;
  for (const std::string& name : names) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor matrix, model.Matrix(name));
    cols[name] = matrix.cols();
    const size_t more = BytesOf(matrix.cols(), options);
    if (runs.empty() || bytes + more > options.memory_bytes) {
      runs.emplace_back();
      bytes = 0;
    }
    runs.back().push_back(name);
    bytes += more;
  }
  int64_t done = 0;
  for (const std::vector<std::string>& part : runs) {
    Statistics seen;
    for (const std::string& name : part) {
      const int64_t n = cols.at(name);
      seen.try_emplace(name,
                       LayerInputs{Hessian(n), std::vector<float>(static_cast<size_t>(n)), {}});
    }
    Run run(model, options, text, seen);
    const int64_t batches = run.batches() * static_cast<int64_t>(runs.size());
    NIBBLE_RETURN_IF_ERROR(run.Go([&]() -> Status {
      if (options.progress && !options.progress(++done, batches)) return Cancelled("cancelled");
      return OkStatus();
    }));
    for (const std::string& name : part) NIBBLE_RETURN_IF_ERROR(visit(name, seen.at(name)));
  }
  return OkStatus();
}

}  // namespace nibble
