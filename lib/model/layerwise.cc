#include "lib/model/layerwise.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/feedback.h"
#include "lib/model/layer_stream.h"
#include "lib/quantize/hessian.h"
#include "nibble/calibrate.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

// What is known of the inputs of some matrices. Where they are added to the residual stream, tokens
// have the ErrorWeights() of the stream behind them.
struct InputStatistics {
  Hessian hessian;     // of the quantized model's inputs Y
  RowMatrix inputs;    // (X - Y)^T Y [cols, cols], X the original's
  RowMatrix residual;  // (R - S)^T Y [width, cols], of the residual streams; or empty
};

// The same, ready for use.
struct Fit {
  FactoredHessian hessian;
  std::vector<float> importance;
  InputStatistics seen;  // its Hessian only where a ReplaceMatrix wants it
};

Status CheckFinite(TensorView inputs, WindowBatch batch, int64_t context) {
  for (int64_t r = 0; r < inputs.rows; ++r) {
    const float* row = static_cast<const float*>(inputs.Row(r));
    for (int64_t c = 0; c < inputs.cols; ++c) {
      if (std::isfinite(row[c])) continue;
      return InvalidArgument("an input that is not finite: window " +
                             std::to_string(batch.first + r / context) + ", token " +
                             std::to_string(r % context) + ", column " + std::to_string(c));
    }
  }
  return OkStatus();
}

Eigen::Map<const RowMatrix> MapOf(TensorView view) {
  return {static_cast<const float*>(view.data), view.rows, view.cols};
}

class Layerwise {
 public:
  Layerwise(const Model& model, const ModelPlan& plan, const CalibrationText& text,
            const LayerwiseOptions& options)
      : Layerwise(model, text, options) {
    for (const TensorTask& task : plan.tensors) {
      if (task.choice.format == task.source->format ||
          GetFormatInfo(task.choice.format).use != FormatUse::kWeight) {
        continue;
      }
      formats_[task.source->name] = task.choice.format;
    }
    const Model::Weights& weights = model_.weights();
    Count("token_embd.weight", weights.embedding);
    ForEachMatrix([&](const Linear& linear) { Count(linear.name, linear.weight); });
    if (!Tied()) Count(weights.head.name, weights.head.weight);
  }

  // All matrices of the layers by `replace`.
  Layerwise(const Model& model, const CalibrationText& text, const LayerwiseOptions& options,
            const ReplaceMatrix& replace)
      : Layerwise(model, text, options) {
    replace_ = &replace;
    ForEachMatrix([&](const Linear& linear) {
      formats_[linear.name] = Format::kF32;
      Count(linear.name, linear.weight);
    });
  }

  Result<CalibratedTensors> Run() {
    const Model::Weights& weights = model_.weights();
    QuantizedTensor embedding = weights.embedding;
    if (Wanted("token_embd.weight")) {
      NIBBLE_RETURN_IF_ERROR(QuantizeEmbedding(&embedding));
    }
    const ActivationMemory& memory = options_.activations;
    NIBBLE_ASSIGN_OR_RETURN(
        original_, LayerStream::Start(model_, weights.embedding, text_, memory, parallel_));
    NIBBLE_ASSIGN_OR_RETURN(quantized_,
                            LayerStream::Start(model_, embedding, text_, memory, parallel_));
    const ModelConfig& c = model_.config();
    NIBBLE_ASSIGN_OR_RETURN(
        last_inputs_, Activations::Create(static_cast<int64_t>(text_.tokens.size()),
                                          std::max(c.heads * c.value_dim, c.ffn_width), memory));
    for (const DecoderLayer& layer : weights.layers) {
      DecoderLayer now = layer;  // its matrices are replaced one after another
      NIBBLE_RETURN_IF_ERROR(FirstMatrices(
          layer.attention_norm,
          {{&layer.query, &now.query}, {&layer.key, &now.key}, {&layer.value, &now.value}}));
      NIBBLE_RETURN_IF_ERROR(LastMatrix(layer, now, Half::kAttention, layer.attention_output));
      NIBBLE_RETURN_IF_ERROR(
          FirstMatrices(layer.ffn_norm, {{&layer.gate, &now.gate}, {&layer.up, &now.up}}));
      NIBBLE_RETURN_IF_ERROR(LastMatrix(layer, now, Half::kFeedForward, layer.down));
    }
    if (!Tied()) {
      Linear head;
      NIBBLE_RETURN_IF_ERROR(FirstMatrices(weights.output_norm, {{&weights.head, &head}}));
    }
    return std::move(result_);
  }

 private:
  struct Replacement {
    const Linear* from;
    Linear* to;
  };

  Layerwise(const Model& model, const CalibrationText& text, const LayerwiseOptions& options)
      : model_(model), text_(text), options_(options), parallel_(options.gptq.parallel) {}

  void ForEachMatrix(const std::function<void(const Linear&)>& function) const {
    for (const DecoderLayer& layer : model_.weights().layers) {
      for (const Linear* linear : {&layer.query, &layer.key, &layer.value, &layer.attention_output,
                                   &layer.gate, &layer.up, &layer.down}) {
        function(*linear);
      }
    }
  }

  bool Tied() const { return model_.weights().head.name == "token_embd.weight"; }
  bool Wanted(const std::string& name) const { return formats_.contains(name); }

  void Count(const std::string& name, const QuantizedTensor& weight) {
    if (!Wanted(name)) return;
    ++progress_.count;
    progress_.weights_total += static_cast<uint64_t>(weight.rows() * weight.cols());
  }

  Status Report() const {
    if (options_.progress && !options_.progress(progress_)) return Cancelled("cancelled");
    return OkStatus();
  }

  Status ForEachBatch(const std::function<Status(WindowBatch)>& function) {
    return nibble::ForEachBatch(text_, options_.batch_tokens, [&](WindowBatch batch) -> Status {
      NIBBLE_RETURN_IF_ERROR(function(batch));
      return Report();
    });
  }

  // Matrices that see the residual stream behind a norm.
  Status FirstMatrices(const std::vector<float>& norm, const std::vector<Replacement>& matrices) {
    const bool any =
        std::ranges::any_of(matrices, [&](const Replacement& m) { return Wanted(m.from->name); });
    if (!any) return OkStatus();
    const int64_t cols = model_.config().width;
    progress_.tensor = matrices[0].from->name;
    InputStatistics seen{Hessian(cols), RowMatrix::Zero(cols, cols), RowMatrix()};
    const Status measured = ForEachBatch([&](WindowBatch batch) -> Status {
      const TensorView before = original_->Normed(norm, batch);
      const TensorView after = quantized_->Normed(norm, batch);
      NIBBLE_ASSIGN_OR_RETURN(const RowMatrix error, ErrorOf(before, after, batch));
      return Add(error, after, seen);
    });
    if (!measured.ok()) return Status(measured).WithContext(matrices[0].from->name);
    NIBBLE_ASSIGN_OR_RETURN(const Fit fit, Prepare(std::move(seen)));
    for (const Replacement& m : matrices) NIBBLE_RETURN_IF_ERROR(Replace(*m.from, fit, m.to));
    return OkStatus();
  }

  // The last matrix of a half; takes both residual streams past it.
  Status LastMatrix(const DecoderLayer& layer, DecoderLayer& now, Half half, const Linear& last) {
    const bool wanted = Wanted(last.name);
    const int64_t cols = last.weight.cols(), width = model_.config().width;
    progress_.tensor = last.name;
    InputStatistics seen;
    if (wanted) {
      seen = {Hessian(cols), RowMatrix::Zero(cols, cols), RowMatrix::Zero(width, cols)};
    }
    const auto kept = [&](WindowBatch batch) {
      return ViewOf(last_inputs_.data() + batch.first * text_.context * cols,
                    batch.windows * text_.context, cols);
    };
    const Status measured = ForEachBatch([&](WindowBatch batch) -> Status {
      NIBBLE_ASSIGN_OR_RETURN(const TensorView before, original_->LastInputs(layer, half, batch));
      NIBBLE_ASSIGN_OR_RETURN(const TensorView after, quantized_->LastInputs(now, half, batch));
      std::copy_n(static_cast<const float*>(after.data), after.rows * cols,
                  static_cast<float*>(kept(batch).data));
      if (!wanted) return original_->Add(last, before, batch);
      NIBBLE_ASSIGN_OR_RETURN(RowMatrix inputs_error, ErrorOf(before, after, batch));
      RowMatrix inputs = MapOf(after);
      RowMatrix residual_error =
          MapOf(ViewOf(std::as_const(*original_).Residual(batch), after.rows, width)) -
          MapOf(ViewOf(std::as_const(*quantized_).Residual(batch), after.rows, width));
      NIBBLE_RETURN_IF_ERROR(original_->Add(last, before, batch));
      const std::vector<float> weights = original_->ErrorWeights(batch);
      for (RowMatrix* rows : {&inputs, &inputs_error, &residual_error}) ScaleRows(weights, *rows);
      const TensorView scaled = ViewOf(std::as_const(inputs).data(), after.rows, cols);
      AddProducts(residual_error, scaled, seen.residual);
      return Add(inputs_error, scaled, seen);
    });
    if (!measured.ok()) return Status(measured).WithContext(last.name);
    Linear fresh = last;
    if (wanted) {
      NIBBLE_ASSIGN_OR_RETURN(const Fit fit, Prepare(std::move(seen)));
      NIBBLE_RETURN_IF_ERROR(Replace(last, fit, &fresh));
    }
    return ForEachBatch(
        [&](WindowBatch batch) { return quantized_->Add(fresh, kept(batch), batch); });
  }

  // X - Y of the inputs that the original and the quantized model give.
  Result<RowMatrix> ErrorOf(TensorView before, TensorView after, WindowBatch batch) const {
    NIBBLE_RETURN_IF_ERROR(CheckFinite(before, batch, text_.context));
    NIBBLE_RETURN_IF_ERROR(CheckFinite(after, batch, text_.context));
    return RowMatrix(MapOf(before) - MapOf(after));
  }

  Status Add(const RowMatrix& error, TensorView inputs, InputStatistics& seen) const {
    NIBBLE_RETURN_IF_ERROR(seen.hessian.Add(inputs, parallel_));
    AddProducts(error, inputs, seen.inputs);
    return OkStatus();
  }

  // sums += errors^T inputs
  void AddProducts(const RowMatrix& errors, TensorView inputs, RowMatrix& sums) const {
    constexpr int64_t kBand = 120;
    const float* y = static_cast<const float*>(inputs.data);
    parallel_((errors.cols() + kBand - 1) / kBand, [&](int64_t band, int) {
      const int64_t first = band * kBand, count = std::min<int64_t>(kBand, errors.cols() - first);
      AddProduct(Transposed(errors.data() + first, errors.cols()), Strided(y, inputs.cols), count,
                 inputs.cols, inputs.rows, 1.0f, sums.data() + first * inputs.cols, inputs.cols);
    });
  }

  Result<Fit> Prepare(InputStatistics seen) const {
    Fit fit;
    NIBBLE_ASSIGN_OR_RETURN(RowMatrix mean, MeanHessian(seen.hessian));
    fit.importance = seen.hessian.MeanSquares();
    const float tokens = static_cast<float>(seen.hessian.tokens());
    if (replace_ == nullptr) seen.hessian = Hessian();  // no longer needed: its memory
    NIBBLE_ASSIGN_OR_RETURN(fit.hessian, Factor(std::move(mean), options_.gptq.damping, parallel_));
    seen.inputs *= options_.input_correction / tokens;
    seen.residual *= options_.residual_correction / tokens;
    fit.seen = std::move(seen);
    return fit;
  }

  // Quantizes a matrix, some rows at a time: the largest would be large in f32.
  Status Replace(const Linear& from, const Fit& fit, Linear* to) {
    if (!Wanted(from.name)) return OkStatus();
    if (replace_ != nullptr) return ReplaceBy(*replace_, from, fit, to);
    constexpr int64_t kRowsAtOnce = 4096;
    const Format format = formats_.at(from.name);
    const QuantizedTensor& source = from.weight;
    const int64_t cols = source.cols();
    NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor made,
                            QuantizedTensor::Allocate(format, source.rows(), cols));
    const size_t from_row = source.bytes() / static_cast<size_t>(source.rows());
    const size_t to_row = made.bytes() / static_cast<size_t>(source.rows());
    MatrixReport report{from.name, format, HasFeedback(format), {}};
    progress_.tensor = from.name;
    for (int64_t first = 0; first < source.rows(); first += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, source.rows() - first);
      const auto piece =
          source.plane(Plane::kCodes)
              .bytes()
              .subspan(static_cast<size_t>(first) * from_row, static_cast<size_t>(rows) * from_row);
      RowMatrix weights(rows, cols);
      NIBBLE_RETURN_IF_ERROR(
          Dequantize(source.format(), piece, ViewOf(weights.data(), rows, cols), parallel_)
              .WithContext(from.name));
      Correct(fit, first, weights);
      GptqReport part;
      Result<QuantizedTensor> quantized = Quantized(weights, format, fit, &part);
      if (!quantized.ok()) return std::move(quantized).status().WithContext(from.name);
      std::ranges::copy(quantized->plane(Plane::kCodes).bytes(),
                        made.plane(Plane::kCodes).data() + static_cast<size_t>(first) * to_row);
      report.gptq.damping = fit.hessian.damping;
      report.gptq.damping_raised = fit.hessian.raised;
      report.gptq.dead_columns = fit.hessian.dead_columns;
      report.gptq.output_error += part.output_error;
      report.gptq.weight_energy += part.weight_energy;
      progress_.weights_done += static_cast<uint64_t>(rows * cols);
      NIBBLE_RETURN_IF_ERROR(Report());
    }
    *to = from;
    to->weight = made;
    return Keep(std::move(made), std::move(report));
  }

  Status ReplaceBy(const ReplaceMatrix& replace, const Linear& from, const Fit& fit, Linear* to) {
    const int64_t rows = from.weight.rows(), cols = from.weight.cols();
    progress_.tensor = from.name;
    RowMatrix weights(rows, cols);
    NIBBLE_RETURN_IF_ERROR(Dequantize(from.weight, ViewOf(weights.data(), rows, cols), parallel_)
                               .WithContext(from.name));
    Correct(fit, 0, weights);
    Result<QuantizedTensor> made = replace(from.name, weights, fit.seen.hessian);
    if (!made.ok()) return std::move(made).status().WithContext(from.name);
    *to = from;
    to->weight = *std::move(made);
    progress_.weights_done += static_cast<uint64_t>(rows * cols);
    ++progress_.index;
    return Report();
  }

  // What the errors so far ask of rows from `first` on: weights += (weights E + residual) H^-1.
  void Correct(const Fit& fit, int64_t first, RowMatrix& weights) const {
    const int64_t rows = weights.rows(), cols = weights.cols();
    RowMatrix asked = RowMatrix::Zero(rows, cols);
    if (fit.seen.residual.size() > 0) asked = fit.seen.residual.middleRows(first, rows);
    constexpr int64_t kBand = 120;
    parallel_((rows + kBand - 1) / kBand, [&](int64_t band, int) {
      const int64_t row = band * kBand, count = std::min(kBand, rows - row);
      AddProduct(Strided(weights.data() + row * cols, cols), Strided(fit.seen.inputs.data(), cols),
                 count, cols, cols, 1.0f, asked.data() + row * cols, cols);
    });
    SolveRows(fit.hessian.factor, asked, parallel_);
    weights += asked;
  }

  Result<QuantizedTensor> Quantized(const RowMatrix& weights, Format format, const Fit& fit,
                                    GptqReport* report) const {
    const TensorView view = ViewOf(weights.data(), weights.rows(), weights.cols());
    if (HasFeedback(format)) {
      return QuantizeFactored(view, format, fit.hessian, options_.gptq, report);
    }
    QuantizeOptions options;
    options.importance = fit.importance;
    options.parallel = parallel_;
    return Quantize(view, format, options);
  }

  // A row of embeddings is looked up: its errors count alike in all columns but where the same
  // matrix is multiplied with the last hidden state, too.
  Status QuantizeEmbedding(QuantizedTensor* embedding) {
    const QuantizedTensor& source = model_.weights().embedding;
    const Format format = formats_.at("token_embd.weight");
    progress_.tensor = "token_embd.weight";
    QuantizeOptions options;
    options.parallel = parallel_;
    std::vector<float> importance;
    if (Tied()) {
      NIBBLE_ASSIGN_OR_RETURN(importance, HeadImportance());
      options.importance = importance;
    }
    RowMatrix weights(source.rows(), source.cols());
    NIBBLE_RETURN_IF_ERROR(
        Dequantize(source, ViewOf(weights.data(), weights.rows(), weights.cols()), parallel_)
            .WithContext("token_embd.weight"));
    Result<QuantizedTensor> made = Quantize(
        ViewOf(std::as_const(weights).data(), weights.rows(), weights.cols()), format, options);
    if (!made.ok()) return std::move(made).status().WithContext("token_embd.weight");
    *embedding = *made;
    progress_.weights_done += static_cast<uint64_t>(weights.size());
    return Keep(*std::move(made), {"token_embd.weight", format, false, {}});
  }

  // Mean squares of the inputs of the output matrix, of the original model.
  Result<std::vector<float>> HeadImportance() {
    LayerStatistics seen(model_.config().width, /*matrices=*/1);
    NIBBLE_RETURN_IF_ERROR(RunText(model_, text_, options_.batch_tokens, parallel_, nullptr,
                                   [&](WindowBatch batch, TensorView hidden) -> Status {
                                     NIBBLE_RETURN_IF_ERROR(
                                         CheckFinite(hidden, batch, text_.context));
                                     NIBBLE_RETURN_IF_ERROR(seen.Add(hidden));
                                     return Report();
                                   })
                               .WithContext(model_.weights().head.name));
    return seen.MeanSquares();
  }

  Status Keep(QuantizedTensor made, MatrixReport report) {
    result_.tensors.emplace(report.name, std::move(made));
    result_.reports.push_back(std::move(report));
    ++progress_.index;
    return Report();
  }

  const Model& model_;
  const CalibrationText& text_;
  const LayerwiseOptions& options_;
  const ParallelFor& parallel_;
  const ReplaceMatrix* replace_ = nullptr;
  std::map<std::string, Format> formats_;  // of the matrices to be quantized
  std::unique_ptr<LayerStream> original_, quantized_;
  Activations last_inputs_;  // of the quantized model [tokens, cols of the matrix]
  ModelProgress progress_;
  CalibratedTensors result_;
};

}  // namespace

Result<CalibratedTensors> QuantizeLayerwise(const Model& model, const ModelPlan& plan,
                                            const CalibrationText& text,
                                            const LayerwiseOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckText(model, text));
  return Layerwise(model, plan, text, options).Run();
}

Status ReplaceLayerwise(const Model& model, const CalibrationText& text,
                        const LayerwiseOptions& options, const ReplaceMatrix& replace) {
  NIBBLE_RETURN_IF_ERROR(CheckText(model, text));
  return Layerwise(model, text, options, replace).Run().status();
}

}  // namespace nibble
