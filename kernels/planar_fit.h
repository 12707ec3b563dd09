// The scale and zero of a planar group from the range of its weights, and the mean of scales that
// are themselves coded, the same to the bit on host and device.
#ifndef NIBBLE_KERNELS_PLANAR_FIT_H_
#define NIBBLE_KERNELS_PLANAR_FIT_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/codec_planar.h"
#include "kernels/planar.h"
#include "nibble/dtype.h"
#include "nibble/scheme.h"

namespace nibble {

// Both exactly as the planes hold them, or a scale that is infinite: the type cannot hold it.
struct ScaleZero {
  float scale = 0;
  float zero = 0;
};

inline NIBBLE_HD float RoundTo(DType dtype, float x) {
  switch (dtype) {
    case DType::kF16:
      return ToFloat(ToF16(x));
    case DType::kBF16:
      return ToFloat(ToBF16(x));
    default:
      return x;
  }
}

// The next value of `dtype` above x >= 0, one that it holds.
inline NIBBLE_HD float NextAbove(DType dtype, float x) {
  switch (dtype) {
    case DType::kF16:
      return ToFloat(F16{static_cast<uint16_t>(ToF16(x).bits + 1)});
    case DType::kBF16:
      return ToFloat(BF16{static_cast<uint16_t>(ToBF16(x).bits + 1)});
    default:
      return std::bit_cast<float>(std::bit_cast<uint32_t>(x) + 1);
  }
}

// `ideal` as the type holds it. Where that is so coarse (subnormals) that `span`, the width to be
// covered, would lie beyond `reach` steps, the next one above.
inline NIBBLE_HD float RoundScale(DType dtype, double ideal, double span, double reach) {
  const float scale = RoundTo(dtype, static_cast<float>(ideal));
  return static_cast<double>(scale) * reach < span ? NextAbove(dtype, scale) : scale;
}

// How many steps from zero the outermost code serves: half a step more than its value.
inline NIBBLE_HD double Reach(const Scheme& scheme) {
  if (scheme.code == Code::kF8E4M3) return 448 + 16;
  if (scheme.code == Code::kF8E5M2) return 57344 + 4096;
  return MaxCode(scheme) + 0.5;
}

// The largest zero that still holds its place among the codes: beyond it, neighbouring values of
// the type are further apart than half a code.
inline NIBBLE_HD double LargestZero(DType dtype) { return dtype == DType::kF16 ? 1024 : 8388608; }

// `zero` as the scheme can hold it: rounded to its type; an integer one to a code.
inline NIBBLE_HD float RoundZero(const Scheme& s, double zero) {
  if (s.zero_dtype == DType::kU8) {
    const double top = MaxCode(s);
    return static_cast<float>(std::clamp(std::nearbyint(zero), 0.0, top)) + 0.0f;  // no -0
  }
  const double limit = LargestZero(s.zero_dtype);
  return RoundTo(s.zero_dtype, static_cast<float>(std::clamp(zero, -limit, limit))) + 0.0f;
}

inline NIBBLE_HD ScaleZero FitZeroPoint(const Scheme& s, double low, double high) {
  const int top = MaxCode(s);
  const auto scale_of = [&](double span) {
    return RoundScale(s.scale_dtype, span / top, span, top + 0.5);
  };
  // A real zero may lie anywhere.
  if (s.zero_dtype != DType::kU8 && low < high) {
    const float scale = scale_of(high - low);
    const double zero = -low / static_cast<double>(scale);
    if (std::fabs(zero) <= LargestZero(s.zero_dtype)) return {scale, RoundZero(s, zero)};
  }
  // An integer one is a code: the range must hold 0.
  low = std::min(low, 0.0);
  high = std::max(high, 0.0);
  const float scale = scale_of(high - low);
  if (scale == 0.0f || !std::isfinite(scale)) return {scale, 0};
  const double zero = -low / static_cast<double>(scale);
  return {scale, RoundZero(s, zero)};
}

// A codebook's ends, on the side or sides where it has any.
inline NIBBLE_HD ScaleZero FitCodebook(const Scheme& s, const PlanarCodebook& book, Range range) {
  const float least = book.values[book.code_of_rank[0]];
  const float greatest = book.values[book.code_of_rank[book.values_count - 1]];
  double ideal = 0;
  if (range.min < 0 && least < 0) ideal = static_cast<double>(range.min) / least;
  if (range.max > 0 && greatest > 0) {
    ideal = std::max(ideal, static_cast<double>(range.max) / greatest);
  }
  if (ideal == 0) {
    const double span = std::max(std::fabs(range.min), std::fabs(range.max));
    ideal = span / std::max(std::fabs(least), std::fabs(greatest));
  }
  return {RoundScale(s.scale_dtype, ideal, ideal, 1 + 1.0 / 128), 0};
}

// The scale and zero whose codes cover `range`, by the definitions: absmax for symmetric codes and
// codebooks, zero-point for the others.
inline NIBBLE_HD ScaleZero FitRange(const Scheme& scheme, const PlanarCodebook& book, Range range) {
  if (book.values_count > 0) return FitCodebook(scheme, book, range);
  if (!scheme.symmetric) return FitZeroPoint(scheme, range.min, range.max);
  const double span = std::max(std::fabs(range.min), std::fabs(range.max));
  const double top = scheme.code == Code::kF8E4M3   ? 448
                     : scheme.code == Code::kF8E5M2 ? 57344
                                                    : MaxCode(scheme);
  return {RoundScale(scheme.scale_dtype, span / top, span, Reach(scheme)), 0};
}

// The mean of scales: sums depend on their order, which is that of a block of kScalesPerSuperBlock
// threads on every machine: of each super-block by SumLanes; then of those sums, thread t taking t,
// t + 256, ... from the first to the last, and SumLanes again.

// One of the steps of SumLanes, 128, 64, ... 1, of one thread.
inline NIBBLE_HD void AddUpper(double* lanes, int thread, int step) {
  if (thread < step) lanes[thread] += lanes[thread + step];
}

// lanes[0] becomes the sum of all.
inline void SumLanes(double* lanes) {
  for (int step = kScalesPerSuperBlock / 2; step > 0; step /= 2) {
    for (int thread = 0; thread < step; ++thread) AddUpper(lanes, thread, step);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PLANAR_FIT_H_
