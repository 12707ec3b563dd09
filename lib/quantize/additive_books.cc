#include "lib/quantize/additive_books.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// Vectors that k-means sees, and how often it moves the entries.
constexpr int64_t kMostSamples = 1 << 15;
constexpr int kMoves = 10;
// Rows that the least-squares fit sees, those of one task, and its steps.
constexpr int64_t kMostFitted = 1024;
constexpr int64_t kFittedRows = 64;
constexpr int kSteps = 10;

// A number in [0, count) that depends on `seed` alone (splitmix64).
int64_t Hashed(uint64_t seed, int64_t count) {
  uint64_t x = (seed + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<int64_t>((x ^ (x >> 31)) % static_cast<uint64_t>(count));
}

// Vectors [count, size] and what the error of each element counts.
struct Samples {
  int64_t count, size;
  std::vector<float> x, weight;
};

// One of each stretch of equal length, so that rows and columns are all represented.
Samples Draw(const ErrorMetric& metric, FiniteRows& weights, const AdditiveModel& model) {
  const int64_t total = model.rows * model.vectors, size = model.size();
  Samples samples = {std::min(total, kMostSamples), size, {}, {}};
  samples.x.resize(static_cast<size_t>(samples.count * size));
  samples.weight.resize(samples.x.size());
  for (int64_t i = 0; i < samples.count; ++i) {
    const int64_t begin = total / samples.count * i + total % samples.count * i / samples.count;
    const int64_t next =
        total / samples.count * (i + 1) + total % samples.count * (i + 1) / samples.count;
    const int64_t at = begin + Hashed(static_cast<uint64_t>(i), next - begin);
    const int64_t row = at / model.vectors, v = at % model.vectors, width = model.width(v);
    float* x = samples.x.data() + i * size;
    weights.Load(row, v * size, width, x);
    const float scale = model.scales[static_cast<size_t>(row)];
    for (int64_t k = 0; k < width; ++k) {
      x[k] = scale != 0 ? x[k] / scale : 0;
      // Errors of a row count by the square of its scale, relative to the others.
      samples.weight[static_cast<size_t>(i * size + k)] =
          scale * scale * metric.weight[static_cast<size_t>(v * size + k)];
    }
  }
  return samples;
}

// Entries [kEntries, size] by k-means; takes those chosen off the samples.
void Cluster(const ParallelFor& parallel, uint64_t seed, Samples& samples, float* entries) {
  const int64_t size = samples.size;
  constexpr int64_t kPerTask = 512;
  for (int64_t e = 0; e < kEntries; ++e) {
    const int64_t begin = samples.count * e / kEntries;
    const int64_t next = std::max(samples.count * (e + 1) / kEntries, begin + 1);
    const int64_t from = begin + Hashed(seed + static_cast<uint64_t>(e), next - begin);
    std::copy_n(samples.x.data() + from * size, size, entries + e * size);
  }
  std::vector<float> columns(static_cast<size_t>(2 * kEntries * size));
  std::vector<uint8_t> nearest(static_cast<size_t>(samples.count));
  const auto assign = [&] {
    for (int64_t e = 0; e < kEntries; ++e) {
      for (int64_t k = 0; k < size; ++k) {
        const float value = entries[e * size + k];
        columns[static_cast<size_t>(k * kEntries + e)] = value * value;
        columns[static_cast<size_t>((size + k) * kEntries + e)] = value;
      }
    }
    parallel((samples.count + kPerTask - 1) / kPerTask, [&](int64_t task, int) {
      const std::vector<float> zeros(kEntries);
      std::vector<float> costs(kEntries), v(static_cast<size_t>(2 * size));
      for (int64_t i = task * kPerTask; i < std::min(samples.count, (task + 1) * kPerTask); ++i) {
        // weight * (x - entry)^2, less what no choice changes.
        const float *x = samples.x.data() + i * size, *weight = samples.weight.data() + i * size;
        for (int64_t k = 0; k < size; ++k) {
          v[static_cast<size_t>(k)] = weight[k];
          v[static_cast<size_t>(size + k)] = -2 * weight[k] * x[k];
        }
        EntryCosts(columns.data(), 2 * size, v.data(), zeros.data(), costs.data());
        nearest[static_cast<size_t>(i)] = static_cast<uint8_t>(LeastEntry(costs.data()));
      }
    });
  };
  std::vector<double> sums(static_cast<size_t>(kEntries * size)), masses(sums.size());
  for (int move = 0; move < kMoves; ++move) {
    assign();
    std::ranges::fill(sums, 0.0);
    std::ranges::fill(masses, 0.0);
    for (int64_t i = 0; i < samples.count; ++i) {
      const size_t from = static_cast<size_t>(i * size);
      const size_t to = static_cast<size_t>(nearest[static_cast<size_t>(i)] * size);
      for (size_t k = 0; k < static_cast<size_t>(size); ++k) {
        const double weight = samples.weight[from + k];
        sums[to + k] += weight * samples.x[from + k];
        masses[to + k] += weight;
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      if (masses[i] > 0) entries[i] = static_cast<float>(sums[i] / masses[i]);
    }
  }
  assign();
  for (int64_t i = 0; i < samples.count; ++i) {
    const float* entry = entries + nearest[static_cast<size_t>(i)] * size;
    for (int64_t k = 0; k < size; ++k) samples.x[static_cast<size_t>(i * size + k)] -= entry[k];
  }
}

// The normal equations of the entries over a sample of rows, a task's rows at a time.
class EntryEquations {
 public:
  EntryEquations(const ErrorMetric& metric, const ParallelFor& parallel, FiniteRows& weights,
                 const AdditiveModel& model)
      : metric_(metric),
        parallel_(parallel),
        weights_(weights),
        model_(model),
        step_((model.rows + kMostFitted - 1) / kMostFitted),
        rows_((model.rows + step_ - 1) / step_) {}

  // How fast the error falls as each entry rises, halved: sums of scale * (error H) over the
  // vectors that have it.
  std::vector<double> Slope() {
    return Gather([&](int64_t row, float* error) {
      weights_.Load(row, 0, model_.cols, error);
      const float scale = model_.scales[static_cast<size_t>(row)];
      std::vector<float> sum(static_cast<size_t>(model_.size()));
      for (int64_t v = 0; v < model_.vectors; ++v) {
        model_.Sum(model_.CodesOf(row, v), sum.data());
        for (int64_t k = 0; k < model_.width(v); ++k) {
          error[v * model_.size() + k] -= scale * sum[static_cast<size_t>(k)];
        }
      }
    });
  }

  // What entries that move by `change` take off the slope.
  std::vector<double> Curve(const std::vector<double>& change) {
    return Gather([&](int64_t row, float* moved) {
      const double scale = model_.scales[static_cast<size_t>(row)];
      for (int64_t v = 0; v < model_.vectors; ++v) {
        const uint8_t* codes = model_.CodesOf(row, v);
        for (int64_t k = 0; k < model_.width(v); ++k) {
          double sum = 0;
          for (int c = 0; c < model_.scheme.codebooks; ++c) sum += change[At(c, codes[c], k)];
          moved[v * model_.size() + k] = static_cast<float>(scale * sum);
        }
      }
    });
  }

  // The diagonal of the equations; 0 where no vector has the entry.
  std::vector<double> Diagonal() const {
    std::vector<double> diagonal(model_.entries.size());
    for (int64_t i = 0; i < rows_; ++i) {
      const double scale = model_.scales[static_cast<size_t>(i * step_)];
      for (int64_t v = 0; v < model_.vectors; ++v) {
        const uint8_t* codes = model_.CodesOf(i * step_, v);
        for (int64_t k = 0; k < model_.width(v); ++k) {
          const int64_t col = v * model_.size() + k;
          const double term = scale * scale * metric_.At(col, col);
          for (int c = 0; c < model_.scheme.codebooks; ++c) diagonal[At(c, codes[c], k)] += term;
        }
      }
    }
    return diagonal;
  }

 private:
  size_t At(int codebook, uint8_t code, int64_t k) const {
    return static_cast<size_t>((codebook * kEntries + code) * model_.size() + k);
  }

  // Sums of scale * (x H) over the vectors that have each entry, where fill(row, x) makes x.
  template <class Fill>
  std::vector<double> Gather(const Fill& fill) {
    const int64_t tasks = (rows_ + kFittedRows - 1) / kFittedRows;
    std::vector<std::vector<double>> parts(static_cast<size_t>(tasks));
    parallel_(tasks, [&](int64_t task, int) {
      const int64_t first = task * kFittedRows, count = std::min(kFittedRows, rows_ - first);
      RowMatrix x(count, model_.cols), product(count, model_.cols);
      for (int64_t i = 0; i < count; ++i) fill((first + i) * step_, x.row(i).data());
      metric_.Multiply(x, product);
      std::vector<double>& part = parts[static_cast<size_t>(task)];
      part.assign(model_.entries.size(), 0.0);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = (first + i) * step_;
        const double scale = model_.scales[static_cast<size_t>(row)];
        for (int64_t v = 0; v < model_.vectors; ++v) {
          const uint8_t* codes = model_.CodesOf(row, v);
          for (int64_t k = 0; k < model_.width(v); ++k) {
            const double term = scale * product(i, v * model_.size() + k);
            for (int c = 0; c < model_.scheme.codebooks; ++c) part[At(c, codes[c], k)] += term;
          }
        }
      }
    });
    std::vector<double> sums = std::move(parts[0]);
    for (size_t t = 1; t < parts.size(); ++t) {
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += parts[t][i];
    }
    return sums;
  }

  const ErrorMetric& metric_;
  const ParallelFor& parallel_;
  FiniteRows& weights_;
  const AdditiveModel& model_;
  const int64_t step_, rows_;
};

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void ErrorMetric::Multiply(const RowMatrix& errors, RowMatrix& out) const {
  const int64_t rows = errors.rows(), cols = errors.cols();
  if (hessian == nullptr) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < cols; ++j) out(r, j) = errors(r, j) * weight[static_cast<size_t>(j)];
    }
    return;
  }
  out.setZero();
  AddProduct(Strided(errors.data(), cols), Strided(hessian->damped.data(), cols), rows, cols, cols,
             1.0f, out.data(), cols);
}

AdditiveModel::AdditiveModel(const Scheme& scheme, int64_t rows, int64_t cols, uint8_t* codes)
    : scheme(scheme),
      rows(rows),
      cols(cols),
      vectors((cols + scheme.vector - 1) / scheme.vector),
      entries(static_cast<size_t>(scheme.codebooks * kEntries * scheme.vector)),
      columns(entries.size()),
      scales(static_cast<size_t>(rows)),
      codes(codes) {}

void AdditiveModel::Sum(const uint8_t* vector_codes, float* out) const {
  std::copy_n(Entry(0, vector_codes[0]), size(), out);
  for (int c = 1; c < scheme.codebooks; ++c) {
    const float* entry = Entry(c, vector_codes[c]);
    for (int64_t k = 0; k < size(); ++k) out[k] += entry[k];
  }
}

void AdditiveModel::EntriesChanged() {
  for (int c = 0; c < scheme.codebooks; ++c) {
    for (int64_t e = 0; e < kEntries; ++e) {
      for (int64_t k = 0; k < size(); ++k) {
        float& value = entries[static_cast<size_t>((c * kEntries + e) * size() + k)];
        value = RoundTo(scheme.scale_dtype, value);
        columns[static_cast<size_t>((c * size() + k) * kEntries + e)] = value;
      }
    }
  }
}

float RoundTo(DType dtype, float x) {
  return dtype == DType::kF16 ? ToFloat(ToF16(x)) : dtype == DType::kBF16 ? ToFloat(ToBF16(x)) : x;
}

Status GuessEntries(const ErrorMetric& metric, const ParallelFor& parallel, FiniteRows& weights,
                    AdditiveModel& model) {
  Samples samples = Draw(metric, weights, model);
  NIBBLE_RETURN_IF_ERROR(weights.Found());
  for (int c = 0; c < model.scheme.codebooks; ++c) {
    Cluster(parallel, static_cast<uint64_t>(c + 1) << 32, samples,
            model.entries.data() + c * kEntries * model.size());
  }
  model.EntriesChanged();
  return OkStatus();
}

Status FitEntries(const ErrorMetric& metric, const ParallelFor& parallel, FiniteRows& weights,
                  AdditiveModel& model) {
  EntryEquations equations(metric, parallel, weights, model);
  const std::vector<double> diagonal = equations.Diagonal();
  std::vector<double> rest = equations.Slope();
  NIBBLE_RETURN_IF_ERROR(weights.Found());
  std::vector<double> change(rest.size()), scaled(rest.size());
  const auto precondition = [&] {
    for (size_t i = 0; i < rest.size(); ++i) {
      scaled[i] = diagonal[i] > 0 ? rest[i] / diagonal[i] : 0.0;
    }
  };
  precondition();
  std::vector<double> direction = scaled;
  double progress = Dot(rest, scaled);
  const double enough = 1e-6 * progress;
  for (int step = 0; step < kSteps && progress > enough; ++step) {
    const std::vector<double> taken = equations.Curve(direction);
    const double curvature = Dot(direction, taken);
    if (!(curvature > 0)) break;
    const double length = progress / curvature;
    for (size_t i = 0; i < rest.size(); ++i) {
      change[i] += length * direction[i];
      rest[i] -= length * taken[i];
    }
    precondition();
    const double before = std::exchange(progress, Dot(rest, scaled));
    for (size_t i = 0; i < rest.size(); ++i) {
      direction[i] = scaled[i] + progress / before * direction[i];
    }
  }
  for (const double x : change) {
    if (!std::isfinite(x)) return OkStatus();  // sums that were too large: the entries stay
  }
  for (size_t i = 0; i < change.size(); ++i) {
    model.entries[i] = static_cast<float>(model.entries[i] + change[i]);
  }
  model.EntriesChanged();
  return OkStatus();
}

}  // namespace nibble
