#include "lib/quantize/planar_scales.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

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
    return {scale, RoundZero(scheme_, best_zero)};
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

// In the order that kernels/planar_fit.h says.
float MeanOfScales(const float* scales, int64_t count) {
  std::array<double, kScalesPerSuperBlock> lanes, sums = {};
  for (int64_t begin = 0; begin < count; begin += kScalesPerSuperBlock) {
    const int64_t end = std::min(count, begin + kScalesPerSuperBlock);
    lanes.fill(0);
    std::copy(scales + begin, scales + end, lanes.begin());
    SumLanes(lanes.data());
    sums[static_cast<size_t>(begin / kScalesPerSuperBlock) % sums.size()] += lanes[0];
  }
  SumLanes(sums.data());
  return static_cast<float>(sums[0] / static_cast<double>(count));
}

}  // namespace

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
  const float mean = MeanOfScales(scales, count);
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
