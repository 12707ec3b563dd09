// Scalar encoders of the formats with one scale for a block: what the vectorised ones must equal to
// the byte. They take the choices of the `gguf` Python package, whose order of operations is
// written out here: one rounding an operation, reciprocals instead of divisions, halves away from
// zero.
#ifndef NIBBLE_KERNELS_ENCODE_ORACLE_H_
#define NIBBLE_KERNELS_ENCODE_ORACLE_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/codec_simple.h"
#include "nibble/blocks.h"

namespace nibble::oracle {

// 1 / d, or 0 where d is zero or so small that the reciprocal overflows: all codes are then those
// of a zero or, below the reciprocal's range, 0.
inline float Reciprocal(float d) { return d == 0 ? 0 : 1 / d; }

inline bool Overflows(float reciprocal) {
  return std::fabs(reciprocal) == std::numeric_limits<float>::infinity();
}

// The first of the values with the largest magnitude, with its sign.
inline float SignedMax(const float* w, int count) {
  float best = w[0];
  for (int i = 1; i < count; ++i) {
    if (std::fabs(w[i]) > std::fabs(best)) best = w[i];
  }
  return best;
}

inline float MaxMagnitude(const float* w, int count) { return std::fabs(SignedMax(w, count)); }

// round(w * id): halves away from zero.
inline int RoundAway(float x) { return static_cast<int>(std::round(x)); }

// Codes of 4 or 5 bits around an offset: the value of largest magnitude becomes code 0.
inline float SymmetricCodes(const float* w, int offset, uint8_t* codes) {
  const float d = SignedMax(w, 32) / static_cast<float>(-offset);
  const float id = Reciprocal(d);
  for (int i = 0; i < 32; ++i) {
    const int q =
        Overflows(id) ? 0 : static_cast<int>(w[i] * id + (static_cast<float>(offset) + 0.5f));
    codes[i] = static_cast<uint8_t>(std::min(q, 2 * offset - 1));
  }
  return d;
}

// Codes of [0, largest] between the minimum and the maximum.
inline float AffineCodes(const float* w, int largest, uint8_t* codes, float* min) {
  float max = w[0];
  *min = w[0];
  for (int i = 1; i < 32; ++i) {
    max = std::max(max, w[i]);
    *min = std::min(*min, w[i]);
  }
  *min += 0.0f;  // one zero, whichever came first
  max += 0.0f;
  const float d = (max - *min) / static_cast<float>(largest);
  const float id = Reciprocal(d);
  for (int i = 0; i < 32; ++i) {
    const int q = Overflows(id) ? 0 : static_cast<int>((w[i] - *min) * id + 0.5f);
    codes[i] = static_cast<uint8_t>(std::min(q, largest));
  }
  return d;
}

inline void PackNibbles(const uint8_t* codes, uint8_t* qs) {
  for (int i = 0; i < 16; ++i) {
    qs[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
  }
}

inline void PackFifthBits(const uint8_t* codes, uint8_t* qh) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
  std::memcpy(qh, &bits, sizeof(bits));
}

inline void Encode(const float* w, BlockQ4_0& b) {
  uint8_t codes[32];
  b.d = ToF16(SymmetricCodes(w, 8, codes));
  PackNibbles(codes, b.qs);
}

inline void Encode(const float* w, BlockQ5_0& b) {
  uint8_t codes[32];
  b.d = ToF16(SymmetricCodes(w, 16, codes));
  PackNibbles(codes, b.qs);
  PackFifthBits(codes, b.qh);
}

inline void Encode(const float* w, BlockQ4_1& b) {
  uint8_t codes[32];
  float min;
  b.d = ToF16(AffineCodes(w, 15, codes, &min));
  b.m = ToF16(min);
  PackNibbles(codes, b.qs);
}

inline void Encode(const float* w, BlockQ5_1& b) {
  uint8_t codes[32];
  float min;
  b.d = ToF16(AffineCodes(w, 31, codes, &min));
  b.m = ToF16(min);
  PackNibbles(codes, b.qs);
  PackFifthBits(codes, b.qh);
}

inline void Encode(const float* w, BlockQ8_0& b) {
  const float d = MaxMagnitude(w, 32) / 127;
  const float id = Reciprocal(d);
  b.d = ToF16(d);
  for (int i = 0; i < 32; ++i) {
    b.qs[i] = static_cast<int8_t>(Overflows(id) ? 0 : RoundAway(w[i] * id));
  }
}

inline void Encode(const float* w, BlockQ8_1& b) {
  const float d = MaxMagnitude(w, 32) / 127;
  const float id = Reciprocal(d);
  int sum = 0;
  for (int i = 0; i < 32; ++i) {
    b.qs[i] = static_cast<int8_t>(Overflows(id) ? 0 : RoundAway(w[i] * id));
    sum += b.qs[i];
  }
  b.d = ToF16(d);
  b.s = ToF16(static_cast<float>(sum) * d);
}

// The value of largest magnitude becomes code -127; halves go to even.
inline void Encode(const float* w, BlockQ8_K& b) {
  const float factor = -127 / SignedMax(w, 256);
  const bool zeros = Overflows(factor);
  b.d = zeros ? 0 : 1 / factor;
  for (int g = 0; g < 16; ++g) {
    int sum = 0;
    for (int i = 16 * g; i < 16 * (g + 1); ++i) {
      b.qs[i] = static_cast<int8_t>(zeros ? 0 : std::nearbyint(w[i] * factor));
      sum += b.qs[i];
    }
    b.bsums[g] = static_cast<int16_t>(sum);
  }
}

// Ternary digits 0, 1, 2 of 256 weights.
inline float TernaryCodes(const float* w, uint8_t* codes) {
  const float d = MaxMagnitude(w, 256);
  const float id = Reciprocal(d);
  for (int i = 0; i < 256; ++i) {
    codes[i] = static_cast<uint8_t>((Overflows(id) ? 0 : RoundAway(w[i] * id)) + 1);
  }
  return d;
}

// Five digits of base 3 as the rounded-up fraction of 243 in 256.
constexpr uint8_t TernaryByte(int value) { return static_cast<uint8_t>((value * 256 + 242) / 243); }

// The digits of `count` weights `stride` apart, first digit most significant.
inline uint8_t PackTernary(const uint8_t* codes, int count, int stride) {
  int value = 0;
  for (int n = 0; n < 5; ++n) value = value * 3 + (n < count ? codes[n * stride] : 0);
  return TernaryByte(value);
}

inline void Encode(const float* w, BlockTQ1_0& b) {
  uint8_t codes[256];
  b.d = ToF16(TernaryCodes(w, codes));
  for (int m = 0; m < 32; ++m) b.qs[m] = PackTernary(codes + m, 5, 32);
  for (int m = 0; m < 16; ++m) b.qs[32 + m] = PackTernary(codes + 160 + m, 5, 16);
  for (int m = 0; m < 4; ++m) b.qh[m] = PackTernary(codes + 240 + m, 4, 4);
}

inline void Encode(const float* w, BlockTQ2_0& b) {
  uint8_t codes[256];
  b.d = ToF16(TernaryCodes(w, codes));
  for (int i = 0; i < 64; ++i) {
    const uint8_t* c = codes + 128 * (i / 32) + i % 32;
    b.qs[i] = static_cast<uint8_t>(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
  }
}

// floor(log2f(max)) - 2 + 127, with log2f rounded to the nearest float as the reference does: close
// below 2^v the logarithm rounds up to v. By how many units in the last place depends on the
// spacing of floats at v: half of it times ln 2.
inline uint8_t MxExponent(float max) {
  const uint32_t bits = std::bit_cast<uint32_t>(max);
  const int v = static_cast<int>(bits >> 23) - 126;  // max < 2^v
  constexpr uint8_t kUnits[8] = {0, 0, 1, 2, 5, 11, 22, 44};
  const unsigned spacing = static_cast<unsigned>(v > 0 ? v - 1 : -v);
  const uint32_t from_top = 0x800000u - (bits & 0x7FFFFFu);
  const int exponent = v - 1 + (from_top <= kUnits[std::bit_width(spacing)] ? 1 : 0) - 2 + 127;
  return static_cast<uint8_t>(std::max(exponent, 0));
}

// Between the magnitudes 0 1 2 3 4 6 8 12 of the doubled codebook; a tie goes to the smaller one.
inline constexpr float kMxBounds[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};

inline void Encode(const float* w, BlockMXFP4& b) {
  b.e = MxExponent(MaxMagnitude(w, 32));
  const float unit = CodecMXFP4::Scale(b, 0);
  uint8_t codes[32];
  for (int i = 0; i < 32; ++i) {
    int code = 0;
    for (float bound : kMxBounds) code += std::fabs(w[i]) > bound * unit;
    codes[i] = static_cast<uint8_t>(code | (code > 0 && w[i] < 0 ? 8 : 0));
  }
  PackNibbles(codes, b.qs);
}

inline void Encode(const float* w, float& b) { b = *w; }
inline void Encode(const float* w, F16& b) { b = ToF16(*w); }
inline void Encode(const float* w, BF16& b) { b = ToBF16(*w); }

}  // namespace nibble::oracle

#endif  // NIBBLE_KERNELS_ENCODE_ORACLE_H_
