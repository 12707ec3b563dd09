#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/model/content_hash.h"
#include "lib/model/produce_tensor.h"
#include "lib/model/round_trip.h"
#include "lib/model/sample_rows.h"
#include "nibble/budget.h"
#include "nibble/evaluate.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

// Those that rows of 256 weights fit, and those for other rows. At a size with two formats the
// better one stands alone.
constexpr Format kFormats[] = {Format::kQ2_K,   Format::kQ3_K, Format::kIQ4_XS, Format::kQ4_K,
                               Format::kIQ4_NL, Format::kQ4_1, Format::kQ5_0,   Format::kQ5_K,
                               Format::kQ5_1,   Format::kQ6_K, Format::kQ8_0,   Format::kF16};

std::vector<Format> CandidatesFor(int64_t cols) {
  const auto is_wide = [](Format format) { return GetFormatInfo(format).block_weights == 256; };
  const bool wide = cols % 256 == 0;
  std::vector<Format> candidates;
  for (const Format format : kFormats) {
    const bool serves_all = format == Format::kQ8_0 || format == Format::kF16;
    const bool fits = cols % GetFormatInfo(format).block_weights == 0;
    if (fits && (serves_all || is_wide(format) == wide)) candidates.push_back(format);
  }
  return candidates;
}

// Mean squares of a tensor's inputs, over its experts where it stacks several; empty: not known.
std::vector<float> MeanSquaresOf(const ImportanceMatrix* importance, const ModelTensor& tensor) {
  const LayerStatistics* layer = importance == nullptr ? nullptr : importance->Find(tensor.name);
  if (layer == nullptr || layer->cols != tensor.cols()) return {};
  std::vector<float> means(static_cast<size_t>(layer->cols));
  float seen = 0;
  for (int64_t m = 0; m < layer->matrices(); ++m) {
    const std::vector<float> one = layer->MeanSquares(m);
    if (one.empty()) continue;
    ++seen;
    for (size_t j = 0; j < means.size(); ++j) means[j] += one[j];
  }
  if (seen == 0) return {};
  for (float& mean : means) mean /= seen;
  return means;
}

// Sum of squares of `rows`, columns weighed.
double Energy(const RowMatrix& rows, const std::vector<float>& weights) {
  double sum = 0;
  for (int64_t r = 0; r < rows.rows(); ++r) {
    for (int64_t j = 0; j < rows.cols(); ++j) {
      const double x = rows(r, j);
      sum += weights.empty() ? x * x : x * x * static_cast<double>(weights[static_cast<size_t>(j)]);
    }
  }
  return sum;
}

Result<std::vector<FormatError>> ErrorsOf(const ModelSource& source, const ModelTensor& tensor,
                                          const std::vector<float>& importance,
                                          const SensitivityOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Tensor sample, SampleRows(source, tensor, options.sample_weights));
  const TensorView view = sample.view();
  const RowMatrix exact =
      Eigen::Map<const RowMatrix>(static_cast<const float*>(view.data), view.rows, view.cols);
  const double energy = Energy(exact, importance);
  std::vector<FormatError> errors;
  for (const Format format : CandidatesFor(tensor.cols())) {
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix rounded,
                            RoundTrip(exact, format, importance, options.parallel));
    errors.push_back({format, energy > 0 ? Energy(exact - rounded, importance) / energy : 0});
  }
  return errors;
}

// The format that a matrix is rounded to for its divergence: coarse, so that it stands out, but
// not so coarse that the model breaks.
Format ProbeOf(int64_t cols) { return cols % 256 == 0 ? Format::kQ3_K : Format::kIQ4_NL; }

std::string HashOf(const ModelSource& source, const std::vector<const ModelTensor*>& tensors,
                   Status* status) {
  ContentHash hash;
  for (const ModelTensor* tensor : tensors) {
    const Result<Buffer> data = source.Read(*tensor);
    if (!data.ok()) {
      *status = data.status();
      return {};
    }
    hash.BeginTensor(*tensor);
    hash.Add(data->bytes());
    source.Release(*tensor);
  }
  return hash.Hex();
}

// Some windows of a text, at even distances.
CalibrationText Thinned(const CalibrationText& text, int64_t windows) {
  const int64_t count = std::min(windows, text.windows());
  CalibrationText thin;
  thin.context = text.context;
  for (int64_t i = 0; i < count; ++i) {
    const auto first = text.tokens.begin() + i * text.windows() / count * text.context;
    thin.tokens.insert(thin.tokens.end(), first, first + text.context);
  }
  return thin;
}

class Measurement {
 public:
  Measurement(const ModelSource& source, const SensitivityOptions& options)
      : source_(source), options_(options) {}

  Result<Sensitivity> Run(const std::optional<Sensitivity>& known) {
    NIBBLE_RETURN_IF_ERROR(Begin());
    if (known) NIBBLE_RETURN_IF_ERROR(TakeOver(*known));
    for (size_t i = 0; i < tensors_.size(); ++i) {
      MatrixSensitivity& matrix = result_.matrices[i];
      NIBBLE_RETURN_IF_ERROR(Report(0.1 * static_cast<double>(i), matrix.name));
      if (!matrix.errors.empty()) continue;
      Result<std::vector<FormatError>> errors =
          ErrorsOf(source_, *tensors_[i], importance_[i], options_);
      if (!errors.ok()) return std::move(errors).status().WithContext(matrix.name);
      matrix.errors = *std::move(errors);
    }
    if (options_.keep) NIBBLE_RETURN_IF_ERROR(options_.keep(result_));
    if (options_.text != nullptr) NIBBLE_RETURN_IF_ERROR(MeasureDivergences());
    return std::move(result_);
  }

 private:
  Status Report(double done, std::string_view matrix) const {
    if (!options_.progress) return OkStatus();
    const double fraction = done / static_cast<double>(std::max<size_t>(1, tensors_.size()));
    return options_.progress(fraction, matrix) ? OkStatus() : Cancelled("cancelled");
  }

  // What is to be measured, and of what.
  Status Begin() {
    if ((options_.model == nullptr) != (options_.text == nullptr)) {
      return InvalidArgument("divergence needs both a model and a text");
    }
    const std::vector<GgufTensorInfo> infos(source_.tensors().begin(), source_.tensors().end());
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<FormatChoice> choices,
                            ChooseFormats(source_.metadata(), infos, TypeChoice{}));
    for (size_t i = 0; i < infos.size(); ++i) {
      const ModelTensor& tensor = source_.tensors()[i];
      if (!choices[i].quantizable || tensor.rows() == 0 || tensor.cols() == 0) continue;
      tensors_.push_back(&tensor);
      importance_.push_back(MeanSquaresOf(options_.importance, tensor));
      result_.matrices.push_back({tensor.name, {}, 1, ProbeOf(tensor.cols()), {}});
    }
    const bool tied = source_.Find("output.weight") == nullptr;
    const std::string output = tied ? "token_embd.weight" : "output.weight";
    const double others = static_cast<double>(std::max<size_t>(2, tensors_.size()) - 1);
    for (MatrixSensitivity& matrix : result_.matrices) {
      if (matrix.name != output) matrix.share = 1 / others;
    }
    Status read;
    result_.source = HashOf(source_, tensors_, &read);
    NIBBLE_RETURN_IF_ERROR(read);
    if (options_.importance != nullptr) result_.importance = nibble::HashOf(*options_.importance);
    if (options_.text != nullptr) {
      text_ = Thinned(*options_.text, options_.windows);
      if (text_.windows() == 0) return InvalidArgument("a calibration text without a window");
      result_.text = text_.Note("").hash;
    }
    return OkStatus();
  }

  Status TakeOver(const Sensitivity& known) {
    const auto differs = [](const char* what) {
      return InvalidArgument(std::string("the sensitivities were measured with another ") + what);
    };
    if (known.source != result_.source) return differs("model");
    if (known.importance != result_.importance) return differs("importance matrix");
    if (!known.text.empty() && known.text != result_.text) return differs("calibration text");
    for (MatrixSensitivity& matrix : result_.matrices) {
      const MatrixSensitivity* told = known.Find(matrix.name);
      if (told == nullptr) continue;
      matrix.errors = told->errors;
      if (told->probe == matrix.probe) matrix.kl = told->kl;
    }
    return OkStatus();
  }

  Status MeasureDivergences() {
    std::vector<size_t> left;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (!result_.matrices[i].kl) left.push_back(i);
    }
    const size_t at_once = static_cast<size_t>(std::max<int64_t>(1, options_.at_once));
    for (size_t first = 0; first < left.size(); first += at_once) {
      const std::span<const size_t> some =
          std::span(left).subspan(first, std::min(at_once, left.size() - first));
      const double done = static_cast<double>(tensors_.size() - left.size() + first);
      NIBBLE_RETURN_IF_ERROR(
          Report(0.1 * static_cast<double>(tensors_.size()) + 0.9 * done, tensors_[some[0]]->name));
      NIBBLE_RETURN_IF_ERROR(Diverge(some));
      if (options_.keep) NIBBLE_RETURN_IF_ERROR(options_.keep(result_));
    }
    return OkStatus();
  }

  // The model with a matrix rounded to its probe.
  Result<Model> Probed(size_t i) const {
    const ModelTensor& tensor = *tensors_[i];
    const Format probe = result_.matrices[i].probe;
    if (tensor.name != "token_embd.weight") {
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor exact, options_.model->Matrix(tensor.name));
      NIBBLE_ASSIGN_OR_RETURN(const RowMatrix weights, DecodedMatrix(exact, options_.parallel));
      QuantizeOptions how;
      how.importance = importance_[i];
      how.parallel = options_.parallel;
      NIBBLE_ASSIGN_OR_RETURN(
          QuantizedTensor rounded,
          Quantize(ViewOf(weights.data(), weights.rows(), weights.cols()), probe, how));
      std::map<std::string, QuantizedTensor, std::less<>> one;
      one.emplace(tensor.name, std::move(rounded));
      return options_.model->With(std::move(one));
    }
    // Embeddings are looked up, too.
    ModelEdits edits;
    const auto importance = std::make_shared<std::vector<float>>(importance_[i]);
    edits.edits[tensor.name].push_back(
        [probe, importance, parallel = options_.parallel](MutableTensorView weights) -> Status {
          auto map =
              Eigen::Map<RowMatrix>(static_cast<float*>(weights.data), weights.rows, weights.cols);
          NIBBLE_ASSIGN_OR_RETURN(map, RoundTrip(map, probe, *importance, parallel));
          return OkStatus();
        });
    NIBBLE_ASSIGN_OR_RETURN(const ModelSource edited, source_.Edited(std::move(edits)));
    return Model::Load(edited);
  }

  Status Diverge(std::span<const size_t> some) {
    std::vector<Model> models;
    std::vector<const Model*> pointers;
    for (const size_t i : some) {
      Result<Model> model = Probed(i);
      if (!model.ok()) return std::move(model).status().WithContext(tensors_[i]->name);
      models.push_back(*std::move(model));
    }
    for (const Model& model : models) pointers.push_back(&model);
    PerplexityOptions run;
    run.context = text_.context;
    run.reference = options_.model;
    run.runner.precision = Precision::kF32;
    run.runner.parallel = options_.parallel;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<PerplexityResult> results,
                            Perplexities(pointers, text_.tokens, run));
    for (size_t k = 0; k < some.size(); ++k) {
      // Rounding may take a divergence of nothing below it.
      result_.matrices[some[k]].kl = std::max(0.0, results[k].divergence.kl.value);
    }
    return OkStatus();
  }

  const ModelSource& source_;
  const SensitivityOptions& options_;
  CalibrationText text_;
  std::vector<const ModelTensor*> tensors_;
  std::vector<std::vector<float>> importance_;
  Sensitivity result_;
};

}  // namespace

std::span<const Format> BudgetFormats() { return kFormats; }

std::optional<double> MatrixSensitivity::ErrorOf(Format format) const {
  for (const FormatError& error : errors) {
    if (error.format == format) return error.error;
  }
  return std::nullopt;
}

std::optional<double> MatrixSensitivity::LossOf(Format format) const {
  const std::optional<double> error = ErrorOf(format);
  if (!error) return error;
  if (!kl) return share * *error;
  const double probed = ErrorOf(probe).value_or(0);
  return probed > 0 ? *kl * *error / probed : 0.0;
}

const MatrixSensitivity* Sensitivity::Find(std::string_view name) const {
  for (const MatrixSensitivity& matrix : matrices) {
    if (matrix.name == name) return &matrix;
  }
  return nullptr;
}

Result<Sensitivity> MeasureSensitivity(const ModelSource& source, const SensitivityOptions& options,
                                       const std::optional<Sensitivity>& known) {
  return Measurement(source, options).Run(known);
}

}  // namespace nibble
