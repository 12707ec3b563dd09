#include "nibble/awq.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "lib/model/round_trip.h"
#include "nibble/equivalent.h"

namespace nibble {
namespace {

constexpr int kClips = 10;              // limits tried: 1, 0.95, ... of a group's largest weight
constexpr float kLargestFactor = 1e4f;  // and least its inverse: what f16 carries with ease

// The matrices that see one pair's channels.
struct Consumer {
  std::string name;
  QuantizationTarget target;
  RowMatrix weights;
};

class Search {
 public:
  Search(const ChannelPair& pair, const LayerInputs& inputs, const AwqOptions& options)
      : pair_(pair), options_(options), parallel_(options.inputs.parallel) {
    const int64_t n = inputs.hessian.cols();
    hessian_ = Eigen::Map<const RowMatrix>(inputs.hessian.sums().data(), n, n) /
               static_cast<float>(inputs.hessian.tokens());
    mean_squares_ = inputs.hessian.MeanSquares();
  }

  Status Load(const Model& model) {
    for (const std::string& name : pair_.consumers) {
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor matrix, model.Matrix(name));
      NIBBLE_ASSIGN_OR_RETURN(RowMatrix weights, DecodedMatrix(matrix, parallel_));
      energy_ += OutputEnergy(weights, hessian_, parallel_);
      consumers_.push_back({name, options_.target(name), std::move(weights)});
    }
    return OkStatus();
  }

  // The best factors of all channels.
  Result<std::vector<float>> FindFactors(AwqReport& report) {
    std::vector<float> best(static_cast<size_t>(pair_.channels), 1.0f);
    NIBBLE_ASSIGN_OR_RETURN(double least, Error(best));
    report.error_before = Relative(least);
    const Sizes sizes = ChannelSizes();
    for (const bool by_weights : {false, true}) {
      for (int step = by_weights ? 0 : 1; step <= options_.steps; ++step) {
        const float exponent = static_cast<float>(step) / static_cast<float>(options_.steps);
        const std::vector<float> factors = Factors(sizes, exponent, by_weights);
        NIBBLE_ASSIGN_OR_RETURN(const double error, Error(factors));
        if (error < least) {
          least = error;
          best = factors;
          report.exponent = exponent;
          report.by_weights = by_weights;
        }
      }
    }
    report.error_scaled = report.error_clipped = Relative(least);
    return best;
  }

  // Clips each group of each consumer at the limit that serves its own error best.
  Status Clip(std::span<const float> factors, ModelEdits& edits, AwqReport& report) const {
    double total = 0;
    for (const Consumer& consumer : consumers_) {
      const Scheme* scheme = std::get_if<Scheme>(&consumer.target);
      if (scheme == nullptr || scheme->granularity == Granularity::kTensor || options_.importance) {
        return OkStatus();
      }
      NIBBLE_ASSIGN_OR_RETURN(const double error, ClipMatrix(consumer, *scheme, factors, edits));
      total += error;
    }
    report.error_clipped = Relative(total);
    return OkStatus();
  }

 private:
  struct Sizes {
    std::vector<float> inputs;   // root mean square, by channel
    std::vector<float> weights;  // largest magnitude, by channel
  };

  double Relative(double error) const { return energy_ > 0 ? error / energy_ : 0; }

  Sizes ChannelSizes() const {
    const size_t n = static_cast<size_t>(pair_.channels);
    Sizes sizes{std::vector<float>(n), std::vector<float>(n)};
    std::vector<float> columns(n);
    for (size_t c = 0; c < mean_squares_.size(); ++c) {
      const size_t channel = static_cast<size_t>(pair_.Channel(static_cast<int64_t>(c)));
      sizes.inputs[channel] += mean_squares_[c];
      columns[channel] += 1;
      for (const Consumer& consumer : consumers_) {
        sizes.weights[channel] =
            std::max(sizes.weights[channel],
                     consumer.weights.col(static_cast<int64_t>(c)).cwiseAbs().maxCoeff());
      }
    }
    for (size_t i = 0; i < n; ++i) {
      sizes.inputs[i] = std::sqrt(sizes.inputs[i] / std::max(1.0f, columns[i]));
    }
    return sizes;
  }

  // Centred so that the largest and the least are each other's inverse. Channels that carry nothing
  // keep 1.
  std::vector<float> Factors(const Sizes& sizes, float exponent, bool by_weights) const {
    std::vector<float> factors(sizes.inputs.size(), 1.0f);
    float least = INFINITY, greatest = 0;
    const auto is_used = [&](size_t i) { return sizes.inputs[i] > 0 && sizes.weights[i] > 0; };
    for (size_t i = 0; i < factors.size(); ++i) {
      if (!is_used(i)) continue;
      factors[i] = std::pow(sizes.inputs[i], exponent);
      if (by_weights) factors[i] /= std::pow(sizes.weights[i], 1 - exponent);
      least = std::min(least, factors[i]);
      greatest = std::max(greatest, factors[i]);
    }
    if (!(least > 0) || !std::isfinite(greatest)) return std::vector<float>(factors.size(), 1.0f);
    const float centre = std::sqrt(least) * std::sqrt(greatest);
    for (size_t i = 0; i < factors.size(); ++i) {
      if (is_used(i)) {
        factors[i] = std::clamp(factors[i] / centre, 1 / kLargestFactor, kLargestFactor);
      }
    }
    return factors;
  }

  // Factors by column.
  Eigen::RowVectorXf Columns(std::span<const float> factors) const {
    Eigen::RowVectorXf columns(hessian_.cols());
    for (int64_t c = 0; c < columns.size(); ++c) {
      columns[c] = factors[static_cast<size_t>(pair_.Channel(c))];
    }
    return columns;
  }

  // Of all consumers, rounded behind the factors.
  Result<double> Error(std::span<const float> factors) const {
    const Eigen::RowVectorXf columns = Columns(factors);
    std::vector<float> importance;
    if (options_.importance) {
      for (int64_t c = 0; c < columns.size(); ++c) {
        importance.push_back(mean_squares_[static_cast<size_t>(c)] / (columns[c] * columns[c]));
      }
    }
    double error = 0;
    for (const Consumer& consumer : consumers_) {
      const RowMatrix scaled = consumer.weights * columns.asDiagonal();
      NIBBLE_ASSIGN_OR_RETURN(const RowMatrix rounded,
                              RoundTrip(scaled, consumer.target, importance, parallel_));
      const RowMatrix difference = (scaled - rounded) * columns.cwiseInverse().asDiagonal();
      error += OutputEnergy(difference, hessian_, parallel_);
    }
    return error;
  }

  Result<double> ClipMatrix(const Consumer& consumer, const Scheme& scheme,
                            std::span<const float> factors, ModelEdits& edits) const {
    const Eigen::RowVectorXf columns = Columns(factors);
    const RowMatrix scaled = consumer.weights * columns.asDiagonal();
    const RowMatrix hessian =
        columns.cwiseInverse().asDiagonal() * hessian_ * columns.cwiseInverse().asDiagonal();
    const int64_t rows = scaled.rows(), cols = scaled.cols();
    const int64_t group = scheme.granularity == Granularity::kGroup ? scheme.group_size : cols;
    const int64_t groups = (cols + group - 1) / group;
    RowMatrix largest(rows, groups);
    for (int64_t g = 0; g < groups; ++g) {
      largest.col(g) = scaled.middleCols(g * group, std::min(group, cols - g * group))
                           .cwiseAbs()
                           .rowwise()
                           .maxCoeff();
    }
    const auto limits = std::make_shared<RowMatrix>(largest);
    const auto clamp = [group](RowMatrix& w, const RowMatrix& at) {
      for (int64_t r = 0; r < w.rows(); ++r) {
        for (int64_t c = 0; c < w.cols(); ++c) {
          w(r, c) = std::clamp(w(r, c), -at(r, c / group), at(r, c / group));
        }
      }
    };
    RowMatrix least = RowMatrix::Constant(rows, groups, INFINITY);
    for (int k = 0; k < kClips; ++k) {
      const RowMatrix at = largest * (1.0f - 0.05f * static_cast<float>(k));
      RowMatrix clipped = scaled;
      clamp(clipped, at);
      NIBBLE_ASSIGN_OR_RETURN(const RowMatrix rounded,
                              RoundTrip(clipped, consumer.target, {}, parallel_));
      const RowMatrix error = scaled - rounded;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group, count = std::min(group, cols - first);
        const RowMatrix part = error.middleCols(first, count);
        const Eigen::VectorXf energy =
            (part * hessian.block(first, first, count, count)).cwiseProduct(part).rowwise().sum();
        for (int64_t r = 0; r < rows; ++r) {
          if (energy[r] < least(r, g)) {
            least(r, g) = energy[r];
            (*limits)(r, g) = at(r, g);
          }
        }
      }
    }
    RowMatrix clipped = scaled;
    clamp(clipped, *limits);
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix rounded,
                            RoundTrip(clipped, consumer.target, {}, parallel_));
    const double error = OutputEnergy(scaled - rounded, hessian, parallel_);
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix unclipped,
                            RoundTrip(scaled, consumer.target, {}, parallel_));
    const double before = OutputEnergy(scaled - unclipped, hessian, parallel_);
    if (!(error < before)) return before;  // groups that help alone may hurt together
    edits.edits[consumer.name].push_back([limits, group](MutableTensorView weights) -> Status {
      for (int64_t r = 0; r < weights.rows; ++r) {
        float* row = static_cast<float*>(weights.Row(r));
        for (int64_t c = 0; c < weights.cols; ++c) {
          row[c] = std::clamp(row[c], -(*limits)(r, c / group), (*limits)(r, c / group));
        }
      }
      return OkStatus();
    });
    return error;
  }

  const ChannelPair& pair_;
  const AwqOptions& options_;
  const ParallelFor& parallel_;
  RowMatrix hessian_;
  std::vector<float> mean_squares_;
  std::vector<Consumer> consumers_;
  double energy_ = 0;  // of the outputs
};

}  // namespace

Result<ModelEdits> Awq(const ModelSource& source, const Model& model, const CalibrationText& text,
                       const AwqOptions& options, std::vector<AwqReport>* reports) {
  if (!options.target) return InvalidArgument("what the matrices will be quantized to is not told");
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<ChannelPair> pairs, ChannelPairs(source));
  std::map<std::string, const ChannelPair*, std::less<>> by_first;
  std::vector<std::string> names;
  for (const ChannelPair& pair : pairs) {
    by_first[pair.consumers.front()] = &pair;
    names.push_back(pair.consumers.front());
  }
  ModelEdits edits;
  edits.label = "awq";
  const auto visit = [&](std::string_view name, const LayerInputs& inputs) -> Status {
    const ChannelPair& pair = *by_first.find(name)->second;
    AwqReport report{.producer = pair.producer};
    Search search(pair, inputs, options);
    NIBBLE_RETURN_IF_ERROR(search.Load(model));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> factors, search.FindFactors(report));
    NIBBLE_RETURN_IF_ERROR(MoveFactors(pair, factors, edits));
    if (options.clip) NIBBLE_RETURN_IF_ERROR(search.Clip(factors, edits, report));
    if (reports != nullptr) reports->push_back(report);
    return OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(VisitLayerInputs(model, text, names, options.inputs, visit));
  return edits;
}

}  // namespace nibble
