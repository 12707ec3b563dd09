#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/feedback.h"
#include "lib/model/content_hash.h"
#include "lib/quantize/hessian.h"
#include "nibble/calibrate.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

class Quantizer {
 public:
  Quantizer(const ModelSource& source, const HessianFile& file, const LayerwiseOptions& options,
            bool allow_missing)
      : source_(source), file_(file), options_(options), allow_missing_(allow_missing) {}

  Result<CalibratedTensors> Run(const ModelPlan& plan) {
    NIBBLE_RETURN_IF_ERROR(Choose(plan));
    progress_.count = matrices_.size();
    for (const Matrix& matrix : matrices_) {
      progress_.tensor = matrix.name;
      NIBBLE_RETURN_IF_ERROR(Report());
      NIBBLE_RETURN_IF_ERROR(Use(matrix.inputs));
      NIBBLE_RETURN_IF_ERROR(Quantize(matrix).WithContext(matrix.name));
      ++progress_.index;
    }
    NIBBLE_RETURN_IF_ERROR(Report());
    return std::move(result_);
  }

 private:
  // A tensor of two dimensions, or an expert of one that stacks them.
  struct Matrix {
    std::string name;
    const TensorTask* tensor;
    int64_t first_row, rows;     // of the tensor
    const SharedInputs* inputs;  // null: not known
  };

  // A tensor some of whose matrices are done.
  struct Work {
    Buffer stored;
    QuantizedTensor made;
    int64_t rows_left;
  };

  std::vector<Matrix> MatricesOf(const TensorTask& tensor) const {
    const ModelTensor& in = *tensor.source;
    if (in.dims.size() <= 2) {
      return {{in.name, &tensor, 0, in.rows(), file_.Find(in.name)}};
    }
    std::vector<Matrix> experts;
    const int64_t rows = in.dims[1];
    for (int64_t first = 0; first < in.rows(); first += rows) {
      std::string name = ExpertName(in.name, first / rows);
      const SharedInputs* inputs = file_.Find(name);
      experts.push_back({std::move(name), &tensor, first, rows, inputs});
    }
    return experts;
  }

  Status Choose(const ModelPlan& plan) {
    std::vector<std::string> missing;
    for (const TensorTask& tensor : plan.tensors) {
      const ModelTensor& in = *tensor.source;
      if (tensor.choice.format == in.format ||
          GetFormatInfo(tensor.choice.format).use != FormatUse::kWeight) {
        continue;
      }
      std::vector<Matrix> matrices = MatricesOf(tensor);
      const auto unknown = [](const Matrix& m) { return m.inputs == nullptr; };
      if (std::ranges::all_of(matrices, unknown)) {
        if (in.name == "token_embd.weight") continue;
        missing.push_back(in.name);
        result_.reports.push_back({in.name, tensor.choice.format, false, {}, /*unseen=*/true});
        continue;
      }
      for (Matrix& matrix : matrices) {
        if (unknown(matrix)) {
          missing.push_back(matrix.name);
        } else if (matrix.inputs->cols != in.cols()) {
          return InvalidArgument(file_.path() + ": inputs of " +
                                 std::to_string(matrix.inputs->cols) + " columns for " +
                                 matrix.name + ", which has " + std::to_string(in.cols()));
        }
        progress_.weights_total += static_cast<uint64_t>(matrix.rows * in.cols());
        matrices_.push_back(std::move(matrix));
      }
    }
    if (!missing.empty() && !allow_missing_) {
      return InvalidArgument(file_.path() + ": lacks " + std::to_string(missing.size()) +
                             (missing.size() == 1 ? " matrix: " : " matrices, the first: ") +
                             missing.front());
    }
    // Those that share a Hessian one after another.
    std::ranges::stable_sort(matrices_, {}, &Matrix::inputs);
    return OkStatus();
  }

  // Makes the Hessian of these inputs ready, unless it is.
  Status Use(const SharedInputs* inputs) {
    if (inputs_ == inputs) return OkStatus();
    inputs_ = inputs;
    hessian_.reset();
    NIBBLE_ASSIGN_OR_RETURN(const Hessian sums, file_.Read(*inputs));
    importance_ = sums.MeanSquares();
    if (sums.tokens() == 0 && allow_missing_) return OkStatus();
    Result<RowMatrix> mean = MeanHessian(sums);
    if (!mean.ok()) return std::move(mean).status().WithContext(inputs->matrices.front());
    NIBBLE_ASSIGN_OR_RETURN(
        hessian_, Factor(*std::move(mean), options_.gptq.damping, options_.gptq.parallel));
    return OkStatus();
  }

  Result<Work*> WorkOn(const TensorTask& tensor) {
    const ModelTensor& in = *tensor.source;
    if (const auto known = work_.find(&tensor); known != work_.end()) return &known->second;
    NIBBLE_ASSIGN_OR_RETURN(Buffer stored, source_.Read(in));
    NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor made,
                            QuantizedTensor::Allocate(tensor.choice.format, in.rows(), in.cols()));
    return &work_.emplace(&tensor, Work{std::move(stored), std::move(made), in.rows()})
                .first->second;
  }

  Status Quantize(const Matrix& matrix) {
    constexpr int64_t kRowsAtOnce = 4096;
    const ModelTensor& in = *matrix.tensor->source;
    const Format to = matrix.tensor->choice.format;
    const int64_t cols = in.cols();
    const bool feedback = hessian_ && HasFeedback(to) && in.name != "token_embd.weight";
    NIBBLE_ASSIGN_OR_RETURN(Work * work, WorkOn(*matrix.tensor));
    const size_t in_row = work->stored.size() / static_cast<size_t>(in.rows());
    const size_t out_row = work->made.bytes() / static_cast<size_t>(in.rows());
    MatrixReport report{matrix.name, to, feedback, {}, !hessian_};
    if (hessian_) report.gptq = {hessian_->damping, hessian_->raised, hessian_->dead_columns, 0, 0};
    const int64_t end = matrix.first_row + matrix.rows;
    for (int64_t first = matrix.first_row; first < end; first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, end - first);
      RowMatrix weights(count, cols);
      NIBBLE_RETURN_IF_ERROR(
          Dequantize(in.format,
                     work->stored.bytes().subspan(static_cast<size_t>(first) * in_row,
                                                  static_cast<size_t>(count) * in_row),
                     ViewOf(weights.data(), count, cols), options_.gptq.parallel));
      GptqReport part;
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor quantized,
                              Quantized(weights, to, feedback, first, &part));
      std::ranges::copy(
          quantized.plane(Plane::kCodes).bytes(),
          work->made.plane(Plane::kCodes).data() + static_cast<size_t>(first) * out_row);
      report.gptq.output_error += part.output_error;
      report.gptq.weight_energy += part.weight_energy;
      progress_.weights_done += static_cast<uint64_t>(count * cols);
      NIBBLE_RETURN_IF_ERROR(Report());
    }
    result_.reports.push_back(std::move(report));
    work->rows_left -= matrix.rows;
    if (work->rows_left > 0) return OkStatus();
    result_.tensors.emplace(in.name, std::move(work->made));
    work_.erase(matrix.tensor);
    source_.Release(in);
    return OkStatus();
  }

  Result<QuantizedTensor> Quantized(const RowMatrix& weights, Format to, bool feedback,
                                    int64_t first_row, GptqReport* report) const {
    const TensorView view = ViewOf(weights.data(), weights.rows(), weights.cols());
    if (feedback) return QuantizeFactored(view, to, *hessian_, options_.gptq, report);
    QuantizeOptions options;
    if (hessian_) options.importance = importance_;
    options.first_row = first_row;
    options.parallel = options_.gptq.parallel;
    return nibble::Quantize(view, to, options);
  }

  Status Report() const {
    if (options_.progress && !options_.progress(progress_)) return Cancelled("cancelled");
    return OkStatus();
  }

  const ModelSource& source_;
  const HessianFile& file_;
  const LayerwiseOptions& options_;
  const bool allow_missing_;
  std::vector<Matrix> matrices_;
  std::map<const TensorTask*, Work> work_;
  const SharedInputs* inputs_ = nullptr;    // those that are ready
  std::optional<FactoredHessian> hessian_;  // of them; none where they saw no token
  std::vector<float> importance_;
  ModelProgress progress_;
  CalibratedTensors result_;
};

}  // namespace

Result<CalibratedTensors> QuantizeWithHessians(const ModelSource& source, const ModelPlan& plan,
                                               const HessianFile& hessians,
                                               const LayerwiseOptions& options,
                                               bool allow_missing) {
  return Quantizer(source, hessians, options, allow_missing).Run(plan);
}

CalibrationNote NoteOf(const HessianFile& hessians) {
  const std::span<const CalibrationNote> texts = hessians.texts();
  if (texts.size() == 1) return texts[0];
  CalibrationNote note;
  ContentHash hash;
  for (const CalibrationNote& text : texts) {
    note.text += (note.text.empty() ? "" : ", ") + text.text;
    hash.AddString(text.hash);
    if (note.context == 0) note.context = text.context;
    note.windows += text.windows;
  }
  note.hash = hash.Hex();
  return note;
}

}  // namespace nibble
