#include <Eigen/Cholesky>
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/feedback.h"
#include "lib/model/runner_impl.h"
#include "lib/quantize/hessian.h"
#include "nibble/calibrate.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

using Matrices = std::map<std::string, QuantizedTensor, std::less<>>;

// Where a layer's matrices get their inputs: both of its halves norm the residual stream for their
// first matrices, and their last adds to the stream.
enum class Half { kAttention, kFeedForward };
enum class Point { kFirst, kLast };

// Some windows of equal length.
struct Batch {
  int64_t first, windows;
};

// One model, original or quantized, on its way through the layers.
class Stream {
 public:
  static Result<std::unique_ptr<Stream>> Start(const Model& model, int64_t context,
                                               std::span<const int32_t> tokens,
                                               const ParallelFor& parallel) {
    ModelConfig one_layer = model.config();
    one_layer.layers = 1;
    NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(one_layer));
    RunnerOptions options;
    options.precision = Precision::kF32;
    options.parallel = parallel;
    std::unique_ptr<Stream> stream(new Stream(model, options, std::move(cache), context));
    const int64_t rows = static_cast<int64_t>(tokens.size());
    stream->run_.x.resize(static_cast<size_t>(rows * model.config().width));
    const SequenceInput all[] = {{0, tokens, true}};
    NIBBLE_RETURN_IF_ERROR(stream->run_.Embed(all));
    stream->residual_ = stream->run_.x;
    return stream;
  }

  // The inputs of a point of `layer`, f32 [rows, cols], valid until the next call.
  Result<TensorView> Inputs(const DecoderLayer& layer, Half half, Point point, Batch batch) {
    const ModelConfig& c = run_.model.config();
    const int64_t rows = batch.windows * context_;
    std::vector<Span> spans;
    std::vector<int> sequences;
    for (int64_t w = 0; w < batch.windows; ++w) {
      sequences.push_back(cache_.AddSequence());
      spans.push_back({&cache_.impl().sequences.at(sequences.back()), w * context_, context_});
      NIBBLE_RETURN_IF_ERROR(cache_.impl().Reserve(*spans.back().sequence, context_));
    }
    run_.Prepare(spans, rows);
    std::copy_n(Residual(batch), rows * c.width, run_.x.data());
    Result<TensorView> inputs = ViewOf(std::as_const(run_.normed).data(), rows, c.width);
    if (point == Point::kFirst) {
      const auto& norm = half == Half::kAttention ? layer.attention_norm : layer.ffn_norm;
      run_.NormRows(norm, run_.x.data(), rows, run_.normed.data());
    } else if (half == Half::kAttention) {
      const Status status = run_.Attention(cache_.impl(), layer, 0, spans, rows);
      if (!status.ok()) return status;
      inputs = ViewOf(std::as_const(run_.attended).data(), rows, c.heads * c.value_dim);
    } else {
      NIBBLE_RETURN_IF_ERROR(run_.FeedForward(layer, rows));
      inputs = ViewOf(std::as_const(run_.gate).data(), rows, c.ffn_width);
    }
    for (const int sequence : sequences) NIBBLE_RETURN_IF_ERROR(cache_.Remove(sequence));
    return inputs;
  }

  // Takes the residual stream past a half.
  Status Advance(const DecoderLayer& layer, Half half, Batch batch) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView inputs, Inputs(layer, half, Point::kLast, batch));
    const Linear& last = half == Half::kAttention ? layer.attention_output : layer.down;
    return run_.Multiply(last, static_cast<const float*>(inputs.data), inputs.rows, Residual(batch),
                         /*accumulate=*/true);
  }

  float* Residual(Batch batch) {
    return residual_.data() + batch.first * context_ * run_.model.config().width;
  }

 private:
  Stream(const Model& model, RunnerOptions options, KvCache cache, int64_t context)
      : run_(model, std::move(options)), cache_(std::move(cache)), context_(context) {}

  Runner::Impl run_;
  KvCache cache_;
  int64_t context_;
  std::vector<float> residual_;  // [tokens, width]
};

// What is known of one point's inputs.
struct PointStatistics {
  Hessian hessian;     // of the quantized model's inputs Y
  RowMatrix inputs;    // (X - Y)^T Y [cols, cols], X the original's
  RowMatrix residual;  // (R - S)^T Y [width, cols], of the residual streams; or empty
};

class Layerwise {
 public:
  Layerwise(const Model& model, const ModelPlan& plan, const LayerwiseOptions& options,
            int64_t windows)
      : model_(model), options_(options), windows_(windows) {
    for (const TensorTask& task : plan.tensors) {
      if (task.choice.format != task.source->format) {
        formats_[task.source->name] = task.choice.format;
      }
    }
  }

  Result<Matrices> Run(std::span<const int32_t> tokens) {
    const ParallelFor& parallel = options_.gptq.parallel;
    NIBBLE_ASSIGN_OR_RETURN(original_, Stream::Start(model_, options_.context, tokens, parallel));
    NIBBLE_ASSIGN_OR_RETURN(quantized_, Stream::Start(model_, options_.context, tokens, parallel));
    for (const DecoderLayer& layer : model_.weights().layers) {
      DecoderLayer now = layer;  // its matrices are replaced one after another
      NIBBLE_RETURN_IF_ERROR(
          QuantizePoint(layer, now, Half::kAttention, Point::kFirst,
                        {&DecoderLayer::query, &DecoderLayer::key, &DecoderLayer::value}));
      NIBBLE_RETURN_IF_ERROR(QuantizePoint(layer, now, Half::kAttention, Point::kLast,
                                           {&DecoderLayer::attention_output}));
      NIBBLE_RETURN_IF_ERROR(Advance(layer, now, Half::kAttention));
      NIBBLE_RETURN_IF_ERROR(QuantizePoint(layer, now, Half::kFeedForward, Point::kFirst,
                                           {&DecoderLayer::gate, &DecoderLayer::up}));
      NIBBLE_RETURN_IF_ERROR(
          QuantizePoint(layer, now, Half::kFeedForward, Point::kLast, {&DecoderLayer::down}));
      NIBBLE_RETURN_IF_ERROR(Advance(layer, now, Half::kFeedForward));
    }
    return std::move(done_);
  }

 private:
  template <class Function>  // Status(Batch)
  Status ForEachBatch(const Function& function) const {
    const int64_t step = std::max<int64_t>(1, options_.batch_tokens / options_.context);
    for (int64_t first = 0; first < windows_; first += step) {
      NIBBLE_RETURN_IF_ERROR(function(Batch{first, std::min(step, windows_ - first)}));
    }
    return OkStatus();
  }

  Status Advance(const DecoderLayer& layer, const DecoderLayer& now, Half half) {
    return ForEachBatch([&](Batch batch) -> Status {
      NIBBLE_RETURN_IF_ERROR(original_->Advance(layer, half, batch));
      return quantized_->Advance(now, half, batch);
    });
  }

  Result<PointStatistics> Measure(const DecoderLayer& layer, const DecoderLayer& now, Half half,
                                  Point point, int64_t cols) {
    const int64_t width = model_.config().width;
    PointStatistics seen{Hessian(cols), RowMatrix::Zero(cols, cols), RowMatrix()};
    if (point == Point::kLast) seen.residual = RowMatrix::Zero(width, cols);
    NIBBLE_RETURN_IF_ERROR(ForEachBatch([&](Batch batch) -> Status {
      NIBBLE_ASSIGN_OR_RETURN(const TensorView before,
                              original_->Inputs(layer, half, point, batch));
      NIBBLE_ASSIGN_OR_RETURN(const TensorView after, quantized_->Inputs(now, half, point, batch));
      NIBBLE_RETURN_IF_ERROR(seen.hessian.Add(after, options_.gptq.parallel));
      using Rows = Eigen::Map<const RowMatrix>;
      const Rows y(static_cast<const float*>(after.data), after.rows, cols);
      const Rows x(static_cast<const float*>(before.data), before.rows, cols);
      AddProduct(x - y, y, seen.inputs);
      if (point == Point::kLast) {
        AddProduct(Rows(original_->Residual(batch), after.rows, width) -
                       Rows(quantized_->Residual(batch), after.rows, width),
                   y, seen.residual);
      }
      return OkStatus();
    }));
    return seen;
  }

  // sums += difference^T y
  void AddProduct(const RowMatrix& difference, const Eigen::Map<const RowMatrix>& y,
                  RowMatrix& sums) const {
    constexpr int64_t kBand = 128;
    options_.gptq.parallel((sums.rows() + kBand - 1) / kBand, [&](int64_t band, int) {
      const int64_t first = band * kBand, count = std::min<int64_t>(kBand, sums.rows() - first);
      sums.middleRows(first, count).noalias() +=
          difference.middleCols(first, count).transpose() * y;
    });
  }

  Status QuantizePoint(const DecoderLayer& layer, DecoderLayer& now, Half half, Point point,
                       std::vector<Linear DecoderLayer::*> matrices) {
    const bool any = std::ranges::any_of(
        matrices, [&](Linear DecoderLayer::*m) { return Wanted((layer.*m).name); });
    if (!any) return OkStatus();
    const int64_t cols = (layer.*matrices.front()).weight.cols();
    NIBBLE_ASSIGN_OR_RETURN(const PointStatistics seen, Measure(layer, now, half, point, cols));
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix correction, InverseHessian(seen.hessian));
    for (Linear DecoderLayer::*m : matrices) {
      const Linear& linear = layer.*m;
      if (!Wanted(linear.name)) continue;
      RowMatrix weights(linear.weight.rows(), cols);
      NIBBLE_RETURN_IF_ERROR(Dequantize(linear.weight, ViewOf(weights.data(), weights.rows(), cols),
                                        options_.gptq.parallel));
      RowMatrix asked = options_.input_correction * weights * seen.inputs;
      if (point == Point::kLast) asked += options_.residual_correction * seen.residual;
      weights += asked * correction;
      Result<QuantizedTensor> quantized = Quantized(linear.name, weights, seen.hessian);
      if (!quantized.ok()) return std::move(quantized).status().WithContext(linear.name);
      (now.*m).weight = *std::move(quantized);
      done_.emplace(linear.name, (now.*m).weight);
    }
    return OkStatus();
  }

  bool Wanted(const std::string& name) const {
    const auto it = formats_.find(name);
    return it != formats_.end() && GetFormatInfo(it->second).use == FormatUse::kWeight;
  }

  // (Y^T Y + damping)^-1
  Result<RowMatrix> InverseHessian(const Hessian& hessian) const {
    FeedbackFactor factor;
    GptqReport report;
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix damped,
                            DampedHessian(hessian, options_.gptq.damping, &factor, &report));
    const int64_t n = hessian.cols();
    const Eigen::MatrixXd inverse =
        damped.cast<double>().llt().solve(Eigen::MatrixXd::Identity(n, n));
    return RowMatrix((inverse / static_cast<double>(hessian.tokens())).cast<float>());
  }

  Result<QuantizedTensor> Quantized(const std::string& name, const RowMatrix& weights,
                                    const Hessian& hessian) {
    const TensorView view = ViewOf(weights.data(), weights.rows(), weights.cols());
    const Format format = formats_.at(name);
    GptqReport report;
    if (!HasFeedback(format)) {
      const std::vector<float> importance = hessian.MeanSquares();
      QuantizeOptions options;
      options.importance = importance;
      options.parallel = options_.gptq.parallel;
      return Quantize(view, format, options);
    }
    Result<QuantizedTensor> result = QuantizeGptq(view, format, hessian, options_.gptq, &report);
    if (result.ok() && options_.progress && !options_.progress(name, report)) {
      return Cancelled("cancelled");
    }
    return result;
  }

  const Model& model_;
  const LayerwiseOptions& options_;
  int64_t windows_;
  std::map<std::string, Format> formats_;
  std::unique_ptr<Stream> original_, quantized_;
  Matrices done_;
};

}  // namespace

Result<Matrices> QuantizeLayerwise(const Model& model, const ModelPlan& plan,
                                   std::span<const int32_t> tokens,
                                   const LayerwiseOptions& options) {
  if (options.context < 1 || options.context > model.config().context) {
    return InvalidArgument("windows of " + std::to_string(options.context) +
                           " tokens: the model sees 1 to " +
                           std::to_string(model.config().context));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || token >= model.config().vocab_size) {
      return InvalidArgument("token " + std::to_string(token) + " is not one of " +
                             std::to_string(model.config().vocab_size));
    }
  }
  int64_t windows = static_cast<int64_t>(tokens.size()) / options.context;
  if (options.max_windows > 0) windows = std::min(windows, options.max_windows);
  if (windows == 0) {
    return InvalidArgument("the calibration text has " + std::to_string(tokens.size()) +
                           " tokens, less than a window of " + std::to_string(options.context));
  }
  std::vector<int32_t> text(tokens.begin(), tokens.begin() + windows * options.context);
  if (model.tokenizer().adds_bos()) {  // as models are used, and as Perplexity does
    for (size_t i = 0; i < text.size(); i += static_cast<size_t>(options.context)) {
      text[i] = model.tokenizer().bos();
    }
  }
  Layerwise work(model, plan, options, windows);
  return work.Run(text);
}

}  // namespace nibble
