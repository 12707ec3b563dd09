#include "lib/quantize/hqq.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr int kIterations = 20;
constexpr double kFirstBeta = 10, kBetaGrowth = 1.01;  // the published ones

struct Errors {
  double norm;     // sum of |e|^p
  double squares;  // sum of e^2
};

// The proximal step of the norm: what is left of an error, in codes, when the part that the
// quadratic may keep is taken off: sign(e) * max(0, |e| - |e|^(p-1) / beta).
double Shrink(double e, double beta) {
  const double size = std::fabs(e);
  if (size == 0) return 0;
  const double left = size - HalfQuadraticNorm(size) / size / beta;
  return left > 0 ? std::copysign(left, e) : 0;
}

}  // namespace

double HalfQuadraticNorm(double e) {
  const double half = std::sqrt(e);
  const double eighth = std::sqrt(std::sqrt(half));
  return half * eighth * std::sqrt(eighth);
}

ScaleZero FitHalfQuadratic(const Scheme& scheme, const PlanarCodebook& book, const float* x,
                           int64_t count, uint8_t* codes, float* decoded) {
  const Range range = FindRange(x, count);
  const ScaleZero nearest = FitRange(scheme, book, range);
  if (!(nearest.scale > 0)) return nearest;

  // Leaves the codes of a candidate in `codes`.
  const auto errors_of = [&](ScaleZero at) {
    const PlanarGroup group = {count, at.scale, at.zero};
    ChooseCodes(book, {&group, 1}, x, codes);
    DecodeCodes(book, {&group, 1}, codes, decoded);
    Errors errors = {0, 0};
    for (int64_t i = 0; i < count; ++i) {
      const double e = std::fabs(static_cast<double>(x[i]) - static_cast<double>(decoded[i]));
      errors.norm += HalfQuadraticNorm(e);
      errors.squares += e * e;
    }
    return errors;
  };
  const Errors start = errors_of(nearest);
  ScaleZero best = nearest;
  double best_norm = start.norm;

  for (int clip = 0; clip < 8; ++clip) {
    const float keep = 1.0f - 0.05f * static_cast<float>(clip);
    ScaleZero at =
        clip == 0 ? nearest : FitRange(scheme, book, {range.min * keep, range.max * keep});
    if (!(at.scale > 0)) break;
    double beta = kFirstBeta, last_norm = 0;
    for (int i = 0; i <= kIterations; ++i) {
      const Errors errors = errors_of(at);
      if (i > 0 && !(errors.norm < last_norm)) break;  // descended as far as it goes
      last_norm = errors.norm;
      if (errors.norm < best_norm && errors.squares <= start.squares) {
        best = at;
        best_norm = errors.norm;
      }
      // The zero that serves the weights less their shrunken errors best: a mean, in codes.
      double sum = 0;
      for (int64_t k = 0; k < count; ++k) {
        const double place = static_cast<double>(x[k]) / static_cast<double>(at.scale);
        const double e = place - (codes[k] - static_cast<double>(at.zero));
        sum += codes[k] - (place - Shrink(e, beta));
      }
      at.zero = RoundZero(scheme, sum / static_cast<double>(count));
      beta *= kBetaGrowth;
    }
  }
  return best;
}

}  // namespace nibble
