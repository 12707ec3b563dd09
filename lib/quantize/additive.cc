#include "lib/quantize/additive.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/convert.h"
#include "lib/quantize/additive_books.h"
#include "lib/quantize/checks.h"

namespace nibble {
namespace {

// Rows of one task.
constexpr int64_t kSlab = 128;
// Columns whose errors reach each other vector by vector; those of all others come in one product.
constexpr int64_t kPanel = 64;
// Rows whose costs lie in the first-level cache together.
constexpr int64_t kTogether = 16;
// Rounds of codebooks and of codes without regard to the codes before; with a Hessian, rounds that
// start from those follow. Feedback finds codes that such rounds alone do not reach.
constexpr int kFirstRounds = 4;

// What the codes of one vector of weights cost, in any row: x G x^T + t x^T, x the sum of their
// entries, G the vector's metric and t a row's own. Neighbouring codebooks are chosen from
// together, every pair of entries tried, under the codes of the others.
class CodeCosts {
 public:
  explicit CodeCosts(const AdditiveModel& model)
      : model_(model),
        size_(static_cast<size_t>(model.size())),
        books_(model.scheme.codebooks),
        metric_(size_ * size_),
        left_(kEntries * size_),
        norms_(static_cast<size_t>(books_) * kEntries),
        cross_(static_cast<size_t>(books_ - 1) * kEntries * kEntries),
        zeros_(kEntries),
        costs_(static_cast<size_t>(2 * kTogether * kEntries)) {}

  // [size, size], symmetric.
  void SetMetric(const std::vector<float>& metric) {
    metric_ = metric;
    for (int c = 0; c < books_; ++c) {
      for (int64_t e = 0; e < kEntries; ++e) {
        const float* entry = model_.Entry(c, e);
        float* left = left_.data() + static_cast<size_t>(e) * size_;
        float norm = 0;
        for (size_t k = 0; k < size_; ++k) {
          left[k] = 0;
          for (size_t j = 0; j < size_; ++j) left[k] += entry[j] * metric_[j * size_ + k];
        }
        for (size_t k = 0; k < size_; ++k) norm += left[k] * entry[k];
        norms_[static_cast<size_t>(c * kEntries + e)] = norm;
        for (size_t k = 0; k < size_; ++k) left[k] *= 2;
      }
      if (c == 0) continue;
      // Of the entries of this codebook with those of the one before.
      float* cross = cross_.data() + (c - 1) * kEntries * kEntries;
      for (int64_t e = 0; e < kEntries; ++e) {
        EntryCosts(model_.Columns(c - 1), model_.size(),
                   left_.data() + static_cast<size_t>(e) * size_, zeros_.data(),
                   cross + e * kEntries);
      }
    }
  }

  // `terms`: [rows, size]. `anew`: codes that were not chosen in this call yet do not count.
  void Choose(int64_t first_row, int64_t rows, int64_t v, const float* terms, bool anew) {
    for (int c = 0; c < std::max(1, books_ - 1); ++c) {
      for (int64_t done = 0; done < rows; done += kTogether) {
        ChoosePair(c, first_row + done, std::min(kTogether, rows - done), v,
                   terms + done * model_.size(), anew);
      }
    }
  }

 private:
  void ChoosePair(int c, int64_t first_row, int64_t rows, int64_t v, const float* terms,
                  bool anew) {
    const int64_t size = model_.size();
    float *first = costs_.data(), *second = first + kTogether * kEntries;
    std::vector<float> term(size_), others(size_);
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* codes = model_.CodesOf(first_row + i, v);
      std::copy_n(terms + i * size, size, term.data());
      std::ranges::fill(others, 0.0f);
      for (int o = 0; o < (anew ? c : books_); ++o) {
        if (o == c || o == c + 1) continue;
        const float* entry = model_.Entry(o, codes[o]);
        for (size_t k = 0; k < size_; ++k) others[k] += entry[k];
      }
      for (size_t k = 0; k < size_ && books_ > 2; ++k) {
        float sum = 0;
        for (size_t j = 0; j < size_; ++j) sum += others[j] * metric_[j * size_ + k];
        term[k] += 2 * sum;
      }
      EntryCosts(model_.Columns(c), size, term.data(), norms_.data() + c * kEntries,
                 first + i * kEntries);
      if (books_ == 1) continue;
      EntryCosts(model_.Columns(c + 1), size, term.data(), norms_.data() + (c + 1) * kEntries,
                 second + i * kEntries);
    }
    EntryPair pairs[kTogether];
    if (books_ > 1) {
      LeastPairs(rows, first, second, cross_.data() + c * kEntries * kEntries, pairs);
    }
    for (int64_t i = 0; i < rows; ++i) {
      uint8_t* codes = model_.CodesOf(first_row + i, v);
      if (books_ == 1) {
        codes[0] = static_cast<uint8_t>(LeastEntry(first + i * kEntries));
      } else {
        codes[c] = static_cast<uint8_t>(pairs[i].first);
        codes[c + 1] = static_cast<uint8_t>(pairs[i].second);
      }
    }
  }

  const AdditiveModel& model_;
  const size_t size_;
  const int books_;
  std::vector<float> metric_;
  std::vector<float> left_;   // entries times twice the metric
  std::vector<float> norms_;  // of each entry
  std::vector<float> cross_;  // of neighbouring codebooks: [second entry, first entry]
  const std::vector<float> zeros_;
  std::vector<float> costs_;
};

// A slab of rows under the codebooks of the moment.
class Slab {
 public:
  Slab(const ErrorMetric& metric, FiniteRows& weights, AdditiveModel& model, int64_t first_row)
      : metric_(metric),
        model_(model),
        first_row_(first_row),
        rows_(std::min(kSlab, model.rows - first_row)),
        cols_(model.cols),
        weights_(rows_, cols_),
        errors_(rows_, cols_) {
    for (int64_t r = 0; r < rows_; ++r) {
      if (!weights.Load(first_row + r, 0, cols_, weights_.row(r).data())) weights_.row(r).setZero();
    }
  }

  // Scales that fit rows of unit mean square; false where their type cannot hold one.
  bool GuessScales() {
    bool fits = true;
    for (int64_t r = 0; r < rows_; ++r) {
      double sum = 0;
      for (int64_t j = 0; j < cols_; ++j) {
        sum += static_cast<double>(weights_(r, j)) * static_cast<double>(weights_(r, j));
      }
      const double mean = std::sqrt(sum / static_cast<double>(cols_));
      Scale(r) = RoundTo(model_.scheme.scale_dtype, static_cast<float>(mean));
      fits &= std::isfinite(Scale(r));
    }
    return fits;
  }

  // Codes by feedback: each vector's error goes on to the later ones.
  void ChooseAnew() {
    errors_.setZero();
    Choose(true);
  }

  // The scales of least error under codes and codebooks.
  void FitScales() {
    RowMatrix sums(rows_, cols_), product(rows_, cols_);
    Decode(sums);
    metric_.Multiply(sums, product);
    for (int64_t r = 0; r < rows_; ++r) {
      double along = 0, square = 0;
      for (int64_t j = 0; j < cols_; ++j) {
        along += static_cast<double>(weights_(r, j)) * static_cast<double>(product(r, j));
        square += static_cast<double>(sums(r, j)) * static_cast<double>(product(r, j));
      }
      const auto error = [&](float s) { return s * (s * square - 2 * along); };
      const float best =
          RoundTo(model_.scheme.scale_dtype, static_cast<float>(square > 0 ? along / square : 0));
      if (std::isfinite(best) && best != 0 && error(best) < error(Scale(r))) Scale(r) = best;
    }
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t j = 0; j < cols_; ++j) {
        errors_(r, j) = weights_(r, j) - Scale(r) * sums(r, j);
      }
    }
  }

  // After FitScales: codes of each vector again, given the errors of all others.
  void ChooseAgain() { Choose(false); }

  // After FitScales or a choice: e H e^T summed over the rows, without what damping added; and the
  // same of the weights.
  std::pair<double, double> Errors() const { return {Energy(errors_), Energy(weights_)}; }

 private:
  float& Scale(int64_t row) { return model_.scales[static_cast<size_t>(first_row_ + row)]; }

  // The sums of entries.
  void Decode(RowMatrix& sums) const {
    std::vector<float> sum(static_cast<size_t>(model_.size()));
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t v = 0; v < model_.vectors; ++v) {
        model_.Sum(model_.CodesOf(first_row_ + r, v), sum.data());
        std::copy_n(sum.data(), model_.width(v), sums.row(r).data() + v * model_.size());
      }
    }
  }

  double Energy(const RowMatrix& x) const {
    RowMatrix product(rows_, cols_);
    metric_.Multiply(x, product);
    double sum = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t j = 0; j < cols_; ++j) {
        const double value = x(r, j);
        const double added = metric_.hessian != nullptr ? metric_.hessian->added(j) : 0.0f;
        sum += value * (static_cast<double>(product(r, j)) - added * value);
      }
    }
    return sum;
  }

  void Choose(bool anew) {
    const FactoredHessian* hessian = metric_.hessian;
    // How the errors of other columns change what is best for a column.
    const RowMatrix* coupling = hessian == nullptr ? nullptr
                                : anew             ? &hessian->factor.unit
                                                   : &hessian->damped;
    CodeCosts costs(model_);
    const int64_t step = kPanel / model_.size();
    for (int64_t v0 = 0; v0 < model_.vectors; v0 += step) {
      const int64_t first = v0 * model_.size(), end = std::min(cols_, first + kPanel);
      RowMatrix pull = RowMatrix::Zero(rows_, end - first);
      if (coupling != nullptr && (first > 0 || !anew)) {
        AddProduct(Strided(errors_.data(), cols_), Strided(coupling->data() + first, cols_), rows_,
                   end - first, anew ? first : cols_, 1.0f, pull.data(), end - first);
      }
      for (int64_t v = v0; v < std::min(model_.vectors, v0 + step); ++v) {
        ChooseVector(v, anew, coupling, first, pull, costs);
      }
    }
  }

  // The metric of a vector's own error, and what the pull of the others is to be multiplied by:
  // with feedback, H = T D T^T, the errors of the earlier columns pull by E T, and the error is (e
  // T + E T) D (e T + E T)^T; given all others, it is e H e^T + 2 e (E H)^T.
  void MetricOf(int64_t v, bool anew, std::vector<float>& metric, std::vector<float>& by) const {
    const int64_t size = model_.size(), at = v * size, width = model_.width(v);
    std::ranges::fill(metric, 0.0f);
    std::ranges::fill(by, 0.0f);
    const bool feeds_back = metric_.hessian != nullptr && anew;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const size_t to = static_cast<size_t>(i * size + j);
        if (!feeds_back) {
          metric[to] = metric_.At(at + i, at + j);
        } else if (j <= i) {
          const FeedbackFactor& factor = metric_.hessian->factor;
          by[to] = factor.diagonal(at + i) * factor.unit(at + j, at + i);
        }
      }
    }
    if (!feeds_back) return;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        float sum = 0;
        for (int64_t k = i; k < width; ++k) {
          sum +=
              metric_.hessian->factor.unit(at + i, at + k) * by[static_cast<size_t>(k * size + j)];
        }
        metric[static_cast<size_t>(i * size + j)] = metric[static_cast<size_t>(j * size + i)] = sum;
      }
    }
  }

  void ChooseVector(int64_t v, bool anew, const RowMatrix* coupling, int64_t panel, RowMatrix& pull,
                    CodeCosts& costs) {
    constexpr float kLargest = 1e30f;
    const int64_t size = model_.size(), at = v * size, width = model_.width(v);
    std::vector<float> metric(static_cast<size_t>(size * size)), by(metric.size());
    MetricOf(v, anew, metric, by);
    costs.SetMetric(metric);
    const bool feeds_back = metric_.hessian != nullptr && anew;
    std::vector<float> terms(static_cast<size_t>(rows_ * size));
    for (int64_t r = 0; r < rows_; ++r) {
      if (Scale(r) == 0) continue;
      // Where the vector would be best, times the metric.
      const float *w = weights_.row(r).data() + at, *e = errors_.row(r).data() + at;
      const float* p = pull.row(r).data() + (at - panel);
      for (int64_t k = 0; k < width; ++k) {
        float best = feeds_back ? 0 : p[k];
        for (int64_t j = 0; j < width; ++j) {
          const size_t from = static_cast<size_t>(j * size + k);
          best += (coupling != nullptr ? w[j] - e[j] : w[j]) * metric[from];
          if (feeds_back) best += p[j] * by[from];
        }
        terms[static_cast<size_t>(r * size + k)] =
            std::clamp(-2 * best / Scale(r), -kLargest, kLargest);
      }
    }
    costs.Choose(first_row_, rows_, v, terms.data(), anew);

    std::vector<float> sum(static_cast<size_t>(size)), moved(sum.size());
    for (int64_t r = 0; r < rows_; ++r) {
      model_.Sum(model_.CodesOf(first_row_ + r, v), sum.data());
      float* e = errors_.row(r).data() + at;
      for (int64_t k = 0; k < width; ++k) {
        const float error = weights_(r, at + k) - Scale(r) * sum[static_cast<size_t>(k)];
        moved[static_cast<size_t>(k)] = error - std::exchange(e[k], error);
      }
      if (coupling == nullptr) continue;
      for (int64_t k = 0; k < width; ++k) {
        const float* row = coupling->row(at + k).data() + panel;
        float* p = pull.row(r).data();
        for (int64_t j = at + width - panel; j < pull.cols(); ++j) {
          p[j] += moved[static_cast<size_t>(k)] * row[j];
        }
      }
    }
  }

  const ErrorMetric& metric_;
  AdditiveModel& model_;
  const int64_t first_row_, rows_, cols_;
  RowMatrix weights_, errors_;
};

// Codes, codebooks and scales in turn.
Result<QuantizedTensor> Quantize(const ErrorMetric& metric, TensorView weights,
                                 const Scheme& scheme, NonFinite non_finite, int sweeps,
                                 const ParallelFor& parallel, GptqReport* report) {
  const int64_t rows = weights.rows, cols = weights.cols;
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor, QuantizedTensor::Allocate(scheme, rows, cols));
  AdditiveModel model(scheme, rows, cols,
                      reinterpret_cast<uint8_t*>(tensor.plane(Plane::kCodes).data()));
  FiniteRows finite(weights, non_finite);
  const int64_t slabs = (rows + kSlab - 1) / kSlab;
  const auto for_slabs = [&](const auto& function) {
    parallel(slabs, [&](int64_t s, int) {
      Slab slab(metric, finite, model, s * kSlab);
      function(slab, s);
    });
  };
  FirstPlace bad_scale;
  for_slabs([&](Slab& slab, int64_t s) {
    if (!slab.GuessScales()) bad_scale.Report(s);
  });
  NIBBLE_RETURN_IF_ERROR(finite.Found());
  if (bad_scale.any()) {
    return InvalidArgument(SchemeName(scheme) + ": a row's scale is beyond what " +
                           DTypeName(scheme.scale_dtype) + " holds");
  }
  NIBBLE_RETURN_IF_ERROR(GuessEntries(metric, parallel, finite, model));
  for_slabs([](Slab& slab, int64_t) { slab.ChooseAnew(); });
  NIBBLE_RETURN_IF_ERROR(FitEntries(metric, parallel, finite, model));
  for (int round = 0; round < kFirstRounds + sweeps; ++round) {
    for_slabs([&](Slab& slab, int64_t) {
      slab.FitScales();
      round < kFirstRounds ? slab.ChooseAnew() : slab.ChooseAgain();
    });
    NIBBLE_RETURN_IF_ERROR(FitEntries(metric, parallel, finite, model));
  }
  std::vector<std::pair<double, double>> errors(static_cast<size_t>(slabs));
  for_slabs([&](Slab& slab, int64_t s) {
    slab.FitScales();
    if (report != nullptr) errors[static_cast<size_t>(s)] = slab.Errors();
  });
  for (const auto& [error, energy] : errors) {
    if (report == nullptr) break;
    report->output_error += error;
    report->weight_energy += energy;
  }
  ConvertFromFloat(scheme.scale_dtype, model.entries.data(),
                   static_cast<int64_t>(model.entries.size()), tensor.plane(Plane::kTable).data());
  ConvertFromFloat(scheme.scale_dtype, model.scales.data(), rows,
                   tensor.plane(Plane::kScales).data());
  return tensor;
}

}  // namespace

Status CheckCodebooks(const Scheme& scheme) {
  if (scheme.code != Code::kAdditive || scheme.bits == 8) return OkStatus();
  Scheme same_codes = scheme;
  same_codes.bits = 8;
  same_codes.codebooks = static_cast<uint8_t>(std::min(8, 2 * scheme.codebooks));
  return Unsupported(SchemeName(scheme) + ": codebooks of 2^16 entries are read, not made; " +
                     SchemeName(same_codes) + " can be");
}

Result<QuantizedTensor> QuantizeAdditive(TensorView weights, const Scheme& scheme,
                                         const QuantizeOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckCodebooks(scheme));
  ErrorMetric metric;
  metric.weight.assign(options.importance.begin(), options.importance.end());
  if (metric.weight.empty()) metric.weight.assign(static_cast<size_t>(weights.cols), 1.0f);
  return Quantize(metric, weights, scheme, options.non_finite, 0, options.parallel, nullptr);
}

Result<QuantizedTensor> QuantizeAdditive(TensorView weights, const Scheme& scheme,
                                         const Hessian& hessian, const GptqOptions& options,
                                         GptqReport* report) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_RETURN_IF_ERROR(CheckCodebooks(scheme));
  NIBBLE_ASSIGN_OR_RETURN(RowMatrix mean, MeanHessian(hessian));
  NIBBLE_ASSIGN_OR_RETURN(const FactoredHessian factored,
                          Factor(std::move(mean), options.damping, options.parallel));
  ErrorMetric metric{&factored, {}};
  metric.weight.assign(factored.factor.diagonal.begin(), factored.factor.diagonal.end());
  GptqReport said = {factored.damping, factored.raised, factored.dead_columns, 0, 0};
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor,
                          Quantize(metric, weights, scheme, NonFinite::kError, options.sweeps,
                                   options.parallel, report != nullptr ? &said : nullptr));
  if (report != nullptr) *report = said;
  return tensor;
}

}  // namespace nibble
