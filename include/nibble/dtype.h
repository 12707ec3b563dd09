// Scalar types and their exact conversions, usable on host and device and in constant expressions.
#ifndef NIBBLE_DTYPE_H_
#define NIBBLE_DTYPE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define NIBBLE_HD __host__ __device__
#else
#define NIBBLE_HD
#endif

// Begins the definition of a constant table that both index at run time.
#if defined(__CUDA_ARCH__)
#define NIBBLE_TABLE static constexpr __device__
#else
#define NIBBLE_TABLE inline constexpr
#endif

namespace nibble {

enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  // 4 exponent bits, 3 mantissa bits, no infinity, largest finite 448
  kF8E5M2,  // 5 exponent bits, 2 mantissa bits, infinities, largest finite 57344
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
};

// Bytes of one element.
constexpr size_t DTypeBytes(DType t) {
  switch (t) {
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
    case DType::kU16:
      return 2;
    default:
      return 1;
  }
}

constexpr bool IsFloat(DType t) { return t <= DType::kF8E5M2; }

// "f32", "bf16", "f8_e4m3", "i8", ...
const char* DTypeName(DType t);

// IEEE binary16 as its 16 bits: half precision in storage, arithmetic in float.
struct F16 {
  uint16_t bits;
};

// The upper half of an IEEE binary32.
struct BF16 {
  uint16_t bits;
};

namespace internal {

// Decodes `bits` = sign | exponent | mantissa of a small IEEE-like format. Codes whose exponent is
// all ones are infinities and NaNs when `ieee_specials`.
constexpr NIBBLE_HD float DecodeSmallFloat(uint32_t bits, int exponent_bits, int mantissa_bits,
                                           bool ieee_specials) {
  const uint32_t sign = (bits >> (exponent_bits + mantissa_bits)) << 31;
  const uint32_t exponent = (bits >> mantissa_bits) & ((1u << exponent_bits) - 1);
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (ieee_specials && exponent == (1u << exponent_bits) - 1) {
    return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << (23 - mantissa_bits)));
  }
  if (exponent == 0) {  // subnormal: mantissa * 2^(1 - bias - mantissa_bits), exact in float
    const float unit =
        std::bit_cast<float>(static_cast<uint32_t>(128 - bias - mantissa_bits) << 23);
    const float magnitude = static_cast<float>(mantissa) * unit;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 127 - bias) << 23) |
                              (mantissa << (23 - mantissa_bits)));
}

// Rounds the magnitude of a finite float to a grid of `mantissa_bits` with smallest normal exponent
// 1 - bias, to nearest even, and returns exponent | mantissa without clamping to a largest code.
constexpr NIBBLE_HD uint32_t RoundToSmallFloat(uint32_t magnitude_bits, int exponent_bits,
                                               int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int float_exponent = static_cast<int>(magnitude_bits >> 23);
  const int exponent = float_exponent - 127 + bias;  // of the target, normal when >= 1
  if (exponent >= 1) {
    const int shift = 23 - mantissa_bits;
    const uint32_t rebased = magnitude_bits - (static_cast<uint32_t>(127 - bias) << 23);
    return (rebased + ((1u << (shift - 1)) - 1) + ((rebased >> shift) & 1)) >> shift;
  }
  // Subnormal target: shift the full significand right; beyond 24 bits only zero remains.
  const int shift = 24 - mantissa_bits - exponent;
  if (float_exponent == 0 || shift > 24) return 0;
  const uint32_t significand = (magnitude_bits & 0x7FFFFFu) | 0x800000u;
  const uint64_t half = (uint64_t{1} << (shift - 1)) - 1;
  return static_cast<uint32_t>((significand + half + ((significand >> shift) & 1)) >> shift);
}

}  // namespace internal

constexpr NIBBLE_HD float ToFloat(F16 x) { return internal::DecodeSmallFloat(x.bits, 5, 10, true); }

constexpr NIBBLE_HD float ToFloat(BF16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Rounds to nearest even; overflow gives infinity; a NaN stays a quiet NaN.
constexpr NIBBLE_HD F16 ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude >= 0x7F800000u) {
    const uint32_t payload = magnitude > 0x7F800000u ? 0x200u | ((magnitude >> 13) & 0x3FFu) : 0u;
    return {static_cast<uint16_t>(sign | 0x7C00u | payload)};
  }
  const uint32_t rounded = internal::RoundToSmallFloat(magnitude, 5, 10);
  return {static_cast<uint16_t>(sign | (rounded > 0x7C00u ? 0x7C00u : rounded))};
}

// Rounds to nearest even; a NaN stays a quiet NaN.
constexpr NIBBLE_HD BF16 ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16)};
}

// f8_e4m3 (the OCP "FN" variant): 0x7F and 0xFF are NaN, there is no infinity.
constexpr NIBBLE_HD float F8E4M3ToFloat(uint8_t code) {
  if ((code & 0x7F) == 0x7F) return std::bit_cast<float>(0x7FC00000u | (uint32_t{code} >> 7 << 31));
  return internal::DecodeSmallFloat(code, 4, 3, false);
}

constexpr NIBBLE_HD float F8E5M2ToFloat(uint8_t code) {
  return internal::DecodeSmallFloat(code, 5, 2, true);
}

// Round to nearest even and saturate: everything beyond the largest finite value, infinities
// included, becomes that value; a NaN becomes the NaN code.
constexpr NIBBLE_HD uint8_t FloatToF8E4M3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint8_t>(sign | 0x7Fu);
  const uint32_t rounded =
      magnitude == 0x7F800000u ? 0x7Eu : internal::RoundToSmallFloat(magnitude, 4, 3);
  return static_cast<uint8_t>(sign | (rounded > 0x7Eu ? 0x7Eu : rounded));
}

constexpr NIBBLE_HD uint8_t FloatToF8E5M2(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint8_t>(sign | 0x7Fu);
  const uint32_t rounded =
      magnitude == 0x7F800000u ? 0x7Bu : internal::RoundToSmallFloat(magnitude, 5, 2);
  return static_cast<uint8_t>(sign | (rounded > 0x7Bu ? 0x7Bu : rounded));
}

// 2^(code - 127): the shared scale of the OCP microscaling formats. 255 is NaN.
constexpr NIBBLE_HD float E8M0ToFloat(uint8_t code) {
  if (code == 255) return std::bit_cast<float>(0x7FC00000u);
  return std::bit_cast<float>(code == 0 ? 0x00400000u : uint32_t{code} << 23);
}

}  // namespace nibble

#endif  // NIBBLE_DTYPE_H_
