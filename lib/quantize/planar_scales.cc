#include "lib/quantize/planar_scales.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

float RoundTo(DType dtype, float x) {
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
float NextAbove(DType dtype, float x) {
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
float RoundScale(DType dtype, double ideal, double span, double reach) {
  const float scale = RoundTo(dtype, static_cast<float>(ideal));
  return static_cast<double>(scale) * reach < span ? NextAbove(dtype, scale) : scale;
}

// How many steps from zero the outermost code serves: half a step more than its value.
double Reach(const Scheme& scheme) {
  if (scheme.code == Code::kF8E4M3) return 448 + 16;
  if (scheme.code == Code::kF8E5M2) return 57344 + 4096;
  return MaxCode(scheme) + 0.5;
}

// The largest zero that still holds its place among the codes: beyond it, neighbouring values of
// the type are further apart than half a code.
double LargestZero(DType dtype) { return dtype == DType::kF16 ? 1024 : 8388608; }

ScaleZero FitZeroPoint(const Scheme& s, double low, double high) {
  const int top = MaxCode(s);
  const auto scale_of = [&](double span) {
    return RoundScale(s.scale_dtype, span / top, span, top + 0.5);
  };
  // A real zero may lie anywhere.
  if (s.zero_dtype != DType::kU8 && low < high) {
    const float scale = scale_of(high - low);
    const double zero = -low / static_cast<double>(scale);
    if (std::fabs(zero) <= LargestZero(s.zero_dtype)) {
      return {scale, RoundTo(s.zero_dtype, static_cast<float>(zero)) + 0.0f};  // no -0
    }
  }
  // An integer one is a code: the range must hold 0.
  low = std::min(low, 0.0);
  high = std::max(high, 0.0);
  const float scale = scale_of(high - low);
  if (scale == 0.0f || !std::isfinite(scale)) return {scale, 0};
  const double zero = -low / static_cast<double>(scale);
  if (s.zero_dtype == DType::kU8) {
    return {scale, static_cast<float>(std::clamp(std::nearbyint(zero), 0.0, double(top))) + 0.0f};
  }
  return {scale, RoundTo(s.zero_dtype, static_cast<float>(zero)) + 0.0f};
}

// A codebook's ends, on the side or sides where it has any.
ScaleZero FitCodebook(const Scheme& s, const PlanarCodebook& book, Range range) {
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

// A candidate and its error.
struct Fit {
  ScaleZero at;
  double error;
};

// Tries scales and zeros of one group and keeps the best.
class Search {
 public:
  Search(const Scheme& scheme, const PlanarCodebook& book, const float* x, const float* importance,
         int64_t count, ScaleZero start, uint8_t* codes, float* decoded)
      : scheme_(scheme),
        book_(book),
        x_(x),
        importance_(importance),
        count_(count),
        codes_(codes),
        decoded_(decoded),
        best_{start, Error(start)} {}

  const ScaleZero& best() const { return best_.at; }

  // Takes the candidate where it is better; then what least squares gives for its codes, for as
  // long as that helps.
  void Try(ScaleZero candidate) {
    for (int round = 0; round < 3; ++round) {
      if (!(candidate.scale > 0) || !std::isfinite(candidate.scale)) return;
      const double error = Error(candidate);
      if (error < best_.error) {
        best_ = {candidate, error};
      } else if (round > 0) {
        return;
      }
      candidate = scheme_.symmetric ? RefitScale() : RefitScaleAndZero(candidate.zero);
    }
  }

 private:
  // The weighted error under a scale and zero; leaves the codes in codes_.
  double Error(ScaleZero at) {
    const PlanarGroup group = {count_, at.scale, at.zero};
    ChooseCodes(book_, {&group, 1}, x_, codes_);
    DecodeCodes(book_, {&group, 1}, codes_, decoded_);
    double sum = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const double e = static_cast<double>(x_[i]) - static_cast<double>(decoded_[i]);
      sum += static_cast<double>(importance_[i]) * e * e;
    }
    return sum;
  }

  // The scale that fits codes_ best: sum(w x v) / sum(w v^2) with v the value of each code.
  ScaleZero RefitScale() {
    const PlanarGroup unit = {count_, 1.0f, 0.0f};
    DecodeCodes(book_, {&unit, 1}, codes_, decoded_);
    double xv = 0, vv = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const double v = decoded_[i], weighted = static_cast<double>(importance_[i]) * v;
      xv += weighted * static_cast<double>(x_[i]);
      vv += weighted * v;
    }
    if (!(vv > 0)) return {};
    return {RoundTo(scheme_.scale_dtype, static_cast<float>(xv / vv)), 0};
  }

  // The line scale * q + offset that fits codes_ best; with an integer zero, the scale under
  // `zero`.
  ScaleZero RefitScaleAndZero(float zero) {
    double w = 0, q1 = 0, q2 = 0, x1 = 0, xq = 0;
    const double shift = scheme_.zero_dtype == DType::kU8 ? static_cast<double>(zero) : 0.0;
    for (int64_t i = 0; i < count_; ++i) {
      const double q = codes_[i] - shift, x = x_[i], importance = importance_[i];
      w += importance;
      q1 += importance * q;
      q2 += importance * q * q;
      x1 += importance * x;
      xq += importance * x * q;
    }
    if (scheme_.zero_dtype == DType::kU8) {
      if (!(q2 > 0)) return {};
      return {RoundTo(scheme_.scale_dtype, static_cast<float>(xq / q2)), zero};
    }
    const double determinant = w * q2 - q1 * q1;
    if (!(determinant > 0)) return {};
    const float scale =
        RoundTo(scheme_.scale_dtype, static_cast<float>((w * xq - q1 * x1) / determinant));
    if (!(scale > 0)) return {};
    const double offset = (q2 * x1 - q1 * xq) / determinant;
    const double best_zero = -offset / static_cast<double>(scale);
    if (!(std::fabs(best_zero) <= LargestZero(scheme_.zero_dtype))) return {};
    return {scale, RoundTo(scheme_.zero_dtype, static_cast<float>(best_zero)) + 0.0f};
  }

  const Scheme& scheme_;
  const PlanarCodebook& book_;
  const float* x_;
  const float* importance_;
  int64_t count_;
  uint8_t* codes_;
  float* decoded_;
  Fit best_;
};

}  // namespace

ScaleZero FitRange(const Scheme& scheme, const PlanarCodebook& book, Range range) {
  if (book.values_count > 0) return FitCodebook(scheme, book, range);
  if (!scheme.symmetric) return FitZeroPoint(scheme, range.min, range.max);
  const double span = std::max(std::fabs(range.min), std::fabs(range.max));
  const double top = scheme.code == Code::kF8E4M3   ? 448
                     : scheme.code == Code::kF8E5M2 ? 57344
                                                    : MaxCode(scheme);
  return {RoundScale(scheme.scale_dtype, span / top, span, Reach(scheme)), 0};
}

ScaleZero SearchScale(const Scheme& scheme, const PlanarCodebook& book, const float* x,
                      const float* importance, int64_t count, ScaleZero start, uint8_t* codes,
                      float* decoded) {
  if (scheme.code == Code::kF8E4M3 || scheme.code == Code::kF8E5M2 || !(start.scale > 0)) {
    return start;
  }
  Search search(scheme, book, x, importance, count, start, codes, decoded);
  if (scheme.symmetric) {
    // Clipping the largest weights pays where few codes serve many small ones.
    for (int step = 0; step <= 16; ++step) {
      const float factor = 1.05f - 0.03125f * static_cast<float>(step);
      search.Try({RoundTo(scheme.scale_dtype, start.scale * factor), 0});
    }
    return search.best();
  }
  const Range range = FindRange(x, count);
  for (int low = 0; low < 5; ++low) {
    for (int high = 0; high < 5; ++high) {
      // Each end moves towards the other.
      const double width = static_cast<double>(range.max) - static_cast<double>(range.min);
      search.Try(FitZeroPoint(scheme, range.min + width * (0.06 * low),
                              range.max - width * (0.06 * high)));
    }
  }
  return search.best();
}

void StorePlaneFloat(uint8_t* plane, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::kU8:
      plane[i] = static_cast<uint8_t>(value);
      return;
    case DType::kF16: {
      const uint16_t bits = ToF16(value).bits;
      std::memcpy(plane + 2 * i, &bits, sizeof(bits));
      return;
    }
    case DType::kBF16: {
      const uint16_t bits = ToBF16(value).bits;
      std::memcpy(plane + 2 * i, &bits, sizeof(bits));
      return;
    }
    default:
      std::memcpy(plane + 4 * i, &value, sizeof(value));
  }
}

void QuantizeScales(const float* scales, int64_t count, uint8_t* codes, uint8_t* super_scales) {
  std::array<float, 255> midpoints;
  for (uint32_t i = 0; i < 255; ++i) {
    midpoints[i] = (DynamicMapValue(i) + DynamicMapValue(i + 1)) / 2.0f;
  }
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(scales[i]);
  const float mean = static_cast<float>(sum / static_cast<double>(count));
  int64_t block = 0;
  for (int64_t begin = 0; begin < count; begin += kScalesPerSuperBlock, ++block) {
    const int64_t end = std::min(count, begin + kScalesPerSuperBlock);
    float maximum = 0;
    for (int64_t i = begin; i < end; ++i) maximum = std::max(maximum, std::fabs(scales[i] - mean));
    const float inverse = InverseScale(maximum);
    for (int64_t i = begin; i < end; ++i) {
      codes[i] =
          static_cast<uint8_t>(NearestRank(midpoints.data(), 256, (scales[i] - mean) * inverse));
    }
    StorePlaneFloat(super_scales, DType::kF32, block, maximum);
  }
  StorePlaneFloat(super_scales, DType::kF32, block, mean);
}

}  // namespace nibble
