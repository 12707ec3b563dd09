#include "nibble/smoothquant.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "lib/model/round_trip.h"
#include "nibble/equivalent.h"

namespace nibble {
namespace {

constexpr float kLargestFactor = 1e5f;

// int8 with a scale for each row: a matrix's outputs, or the tokens of inputs.
constexpr Scheme kInt8 = {.bits = 8, .granularity = Granularity::kChannel};

class Smoother {
 public:
  Smoother(const ChannelPair& pair, const LayerInputs& inputs, const ParallelFor& parallel)
      : pair_(pair),
        parallel_(parallel),
        samples_(Eigen::Map<const RowMatrix>(inputs.samples.data(), inputs.sample_count(),
                                             inputs.hessian.cols())),
        input_maxima_(static_cast<size_t>(pair.channels)),
        weight_maxima_(static_cast<size_t>(pair.channels)) {
    for (size_t c = 0; c < inputs.maxima.size(); ++c) Raise(input_maxima_, c, inputs.maxima[c]);
  }

  Status Load(const Model& model) {
    for (const std::string& name : pair_.consumers) {
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor matrix, model.Matrix(name));
      NIBBLE_ASSIGN_OR_RETURN(RowMatrix weights, DecodedMatrix(matrix, parallel_));
      for (int64_t c = 0; c < weights.cols(); ++c) {
        Raise(weight_maxima_, static_cast<size_t>(c), weights.col(c).cwiseAbs().maxCoeff());
      }
      exact_.push_back(Product(samples_, weights));
      energy_ += exact_.back().cast<double>().squaredNorm();
      weights_.push_back(std::move(weights));
    }
    return OkStatus();
  }

  // Channels that carry nothing keep 1.
  std::vector<float> Factors(float alpha) const {
    std::vector<float> factors(input_maxima_.size(), 1.0f);
    if (alpha < 0) return factors;
    for (size_t i = 0; i < factors.size(); ++i) {
      if (!(input_maxima_[i] > 0) || !(weight_maxima_[i] > 0)) continue;
      const float factor =
          std::pow(input_maxima_[i], alpha) / std::pow(weight_maxima_[i], 1 - alpha);
      factors[i] = std::clamp(factor, 1 / kLargestFactor, kLargestFactor);
    }
    return factors;
  }

  // Of all consumers, behind the factors.
  Result<double> Error(std::span<const float> factors) const {
    Eigen::RowVectorXf columns(samples_.cols());
    for (int64_t c = 0; c < columns.size(); ++c) {
      columns[c] = factors[static_cast<size_t>(pair_.Channel(c))];
    }
    const RowMatrix x = samples_ * columns.cwiseInverse().asDiagonal();
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix inputs, RoundTrip(x, kInt8, {}, parallel_));
    double error = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const RowMatrix w = weights_[i] * columns.asDiagonal();
      NIBBLE_ASSIGN_OR_RETURN(const RowMatrix rounded, RoundTrip(w, kInt8, {}, parallel_));
      error += (Product(inputs, rounded) - exact_[i]).cast<double>().squaredNorm();
    }
    return energy_ > 0 ? error / energy_ : 0;
  }

 private:
  void Raise(std::vector<float>& maxima, size_t column, float value) const {
    float& maximum = maxima[static_cast<size_t>(pair_.Channel(static_cast<int64_t>(column)))];
    maximum = std::max(maximum, value);
  }

  // x w^T
  RowMatrix Product(const RowMatrix& x, const RowMatrix& w) const {
    constexpr int64_t kRows = 64;
    RowMatrix out(x.rows(), w.rows());
    parallel_((w.rows() + kRows - 1) / kRows, [&](int64_t task, int) {
      const int64_t first = task * kRows, count = std::min(kRows, w.rows() - first);
      out.middleCols(first, count).noalias() = x * w.middleRows(first, count).transpose();
    });
    return out;
  }

  const ChannelPair& pair_;
  const ParallelFor& parallel_;
  const RowMatrix samples_;  // [tokens, cols]
  std::vector<float> input_maxima_, weight_maxima_;
  std::vector<RowMatrix> weights_, exact_;  // of the consumers
  double energy_ = 0;
};

}  // namespace

Result<ModelEdits> SmoothQuant(const ModelSource& source, const Model& model,
                               const CalibrationText& text, const SmoothQuantOptions& options,
                               std::vector<SmoothQuantReport>* reports) {
  if (!(options.alpha >= 0 && options.alpha <= 1)) {
    return InvalidArgument("a migration strength that is not between 0 and 1");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<ChannelPair> pairs, ChannelPairs(source));
  std::map<std::string, const ChannelPair*, std::less<>> by_first;
  std::vector<std::string> names;
  for (const ChannelPair& pair : pairs) {
    if (!pair.is_norm && !options.between_matrices) continue;
    by_first[pair.consumers.front()] = &pair;
    names.push_back(pair.consumers.front());
  }
  ModelEdits edits;
  edits.label = "smoothquant";
  const auto visit = [&](std::string_view name, const LayerInputs& inputs) -> Status {
    const ChannelPair& pair = *by_first.find(name)->second;
    SmoothQuantReport report{.producer = pair.producer};
    Smoother smoother(pair, inputs, options.inputs.parallel);
    NIBBLE_RETURN_IF_ERROR(smoother.Load(model));
    NIBBLE_ASSIGN_OR_RETURN(report.error_before, smoother.Error(smoother.Factors(-1)));
    report.error_after = report.error_before;
    for (int step = 0; step <= (options.search ? options.steps : 0); ++step) {
      const float alpha = options.search
                              ? static_cast<float>(step) / static_cast<float>(options.steps)
                              : options.alpha;
      NIBBLE_ASSIGN_OR_RETURN(const double error, smoother.Error(smoother.Factors(alpha)));
      if (options.search && !(error < report.error_after)) continue;
      report.error_after = error;
      report.alpha = alpha;
    }
    NIBBLE_RETURN_IF_ERROR(MoveFactors(pair, smoother.Factors(report.alpha), edits));
    if (reports != nullptr) reports->push_back(report);
    return OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(VisitLayerInputs(model, text, names, options.inputs, visit));
  return edits;
}

}  // namespace nibble
