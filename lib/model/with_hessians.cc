#include <algorithm>
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
    progress_.count = tasks_.size();
    for (const Task& task : tasks_) {
      const ModelTensor& in = *task.tensor->source;
      progress_.tensor = in.name;
      NIBBLE_RETURN_IF_ERROR(Report());
      NIBBLE_RETURN_IF_ERROR(Use(*task.inputs));
      NIBBLE_RETURN_IF_ERROR(Quantize(*task.tensor).WithContext(in.name));
      source_.Release(in);
      ++progress_.index;
    }
    NIBBLE_RETURN_IF_ERROR(Report());
    return std::move(result_);
  }

 private:
  struct Task {
    const TensorTask* tensor;
    const SharedInputs* inputs;
  };

  Status Choose(const ModelPlan& plan) {
    std::vector<std::string> missing;
    for (const TensorTask& tensor : plan.tensors) {
      const ModelTensor& in = *tensor.source;
      if (tensor.choice.format == in.format ||
          GetFormatInfo(tensor.choice.format).use != FormatUse::kWeight) {
        continue;
      }
      const SharedInputs* inputs = file_.Find(in.name);
      if (inputs == nullptr) {
        if (in.name != "token_embd.weight") missing.push_back(in.name);
        continue;
      }
      if (inputs->cols != in.cols() || in.dims.size() > 2) {
        return InvalidArgument(file_.path() + ": inputs of " + std::to_string(inputs->cols) +
                               " columns for " + in.name + ", which has " +
                               std::to_string(in.cols()));
      }
      tasks_.push_back({&tensor, inputs});
      progress_.weights_total += static_cast<uint64_t>(in.rows() * in.cols());
    }
    if (!missing.empty() && !allow_missing_) {
      return InvalidArgument(file_.path() + ": lacks " + std::to_string(missing.size()) +
                             (missing.size() == 1 ? " matrix: " : " matrices, the first: ") +
                             missing.front());
    }
    // Those that share a Hessian one after another.
    std::ranges::stable_sort(tasks_, {}, &Task::inputs);
    return OkStatus();
  }

  // Makes the Hessian of these inputs ready, unless it is.
  Status Use(const SharedInputs& inputs) {
    if (inputs_ == &inputs) return OkStatus();
    inputs_ = &inputs;
    hessian_.reset();
    NIBBLE_ASSIGN_OR_RETURN(const Hessian sums, file_.Read(inputs));
    importance_ = sums.MeanSquares();
    if (sums.tokens() == 0 && allow_missing_) return OkStatus();
    Result<RowMatrix> mean = MeanHessian(sums);
    if (!mean.ok()) return std::move(mean).status().WithContext(inputs.matrices.front());
    NIBBLE_ASSIGN_OR_RETURN(
        hessian_, Factor(*std::move(mean), options_.gptq.damping, options_.gptq.parallel));
    return OkStatus();
  }

  Status Quantize(const TensorTask& task) {
    if (!hessian_) return OkStatus();  // saw no token
    constexpr int64_t kRowsAtOnce = 4096;
    const ModelTensor& in = *task.source;
    const Format to = task.choice.format;
    const int64_t rows = in.rows(), cols = in.cols();
    const bool feedback = HasFeedback(to) && in.name != "token_embd.weight";
    NIBBLE_ASSIGN_OR_RETURN(const Buffer stored, source_.Read(in));
    NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor made, QuantizedTensor::Allocate(to, rows, cols));
    const size_t in_row = stored.size() / static_cast<size_t>(rows);
    const size_t out_row = made.bytes() / static_cast<size_t>(rows);
    MatrixReport report{in.name, to, feedback, {}};
    report.gptq = {hessian_->damping, hessian_->raised, hessian_->dead_columns, 0, 0};
    for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, rows - first);
      RowMatrix weights(count, cols);
      NIBBLE_RETURN_IF_ERROR(Dequantize(in.format,
                                        stored.bytes().subspan(static_cast<size_t>(first) * in_row,
                                                               static_cast<size_t>(count) * in_row),
                                        ViewOf(weights.data(), count, cols),
                                        options_.gptq.parallel));
      GptqReport part;
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor quantized,
                              Quantized(weights, to, feedback, first, &part));
      std::ranges::copy(quantized.plane(Plane::kCodes).bytes(),
                        made.plane(Plane::kCodes).data() + static_cast<size_t>(first) * out_row);
      report.gptq.output_error += part.output_error;
      report.gptq.weight_energy += part.weight_energy;
      progress_.weights_done += static_cast<uint64_t>(count * cols);
      NIBBLE_RETURN_IF_ERROR(Report());
    }
    result_.tensors.emplace(in.name, std::move(made));
    result_.reports.push_back(std::move(report));
    return OkStatus();
  }

  Result<QuantizedTensor> Quantized(const RowMatrix& weights, Format to, bool feedback,
                                    int64_t first_row, GptqReport* report) const {
    const TensorView view = ViewOf(weights.data(), weights.rows(), weights.cols());
    if (feedback) return QuantizeFactored(view, to, *hessian_, options_.gptq, report);
    QuantizeOptions options;
    options.importance = importance_;
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
  std::vector<Task> tasks_;
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
