// Two 16-bit floats in a register, and the byte permutation, for device and host.
#ifndef NIBBLE_CUDA_HALF2_H_
#define NIBBLE_CUDA_HALF2_H_

#include <bit>
#include <cstdint>

#include "nibble/dtype.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#if defined(__CUDA_ARCH__)
#define NIBBLE_UNROLL _Pragma("unroll")
#define NIBBLE_NO_UNROLL _Pragma("unroll 1")
#else
#define NIBBLE_UNROLL
#define NIBBLE_NO_UNROLL
#endif

namespace nibble::cuda {

// A 16-byte load or store.
struct alignas(16) Words4 {
  uint32_t v[4];
};
struct alignas(8) Words2 {
  uint32_t v[2];
};

// Byte i of the result is the byte that nibble i of `selector` numbers, 0-3 of x and 4-7 of y: PTX
// prmt without its sign mode, so the top bits of the four nibbles must be clear.
NIBBLE_HD inline uint32_t Permute(uint32_t x, uint32_t y, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(x, y, selector);
#else
  const uint64_t pool = x | uint64_t{y} << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = (selector >> (4 * i)) & 7;
    result |= static_cast<uint32_t>((pool >> (8 * byte)) & 0xFF) << (8 * i);
  }
  return result;
#endif
}

// x & mask | bits: one instruction, where the compiler makes two of two constants.
NIBBLE_HD inline uint32_t MaskAndSet(uint32_t x, uint32_t mask, uint32_t bits) {
#if defined(__CUDA_ARCH__)
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(x), "r"(mask), "r"(bits));
  return result;
#else
  return (x & mask) | bits;
#endif
}

// Bits of a 16-bit float of kType, f16 or bf16.
template <DType kType>
NIBBLE_HD inline uint16_t FromFloat(float x) {
#if defined(__CUDA_ARCH__)
  if constexpr (kType == DType::kF16) return __half_as_ushort(__float2half_rn(x));
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  return kType == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits;
#endif
}

template <DType kType>
NIBBLE_HD inline float HalfToFloat(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  if constexpr (kType == DType::kF16) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
  }
  return __uint_as_float(bits << 16);
#else
  const uint16_t low = static_cast<uint16_t>(bits);
  return kType == DType::kF16 ? ToFloat(F16{low}) : ToFloat(BF16{low});
#endif
}

template <DType kType>
NIBBLE_HD inline uint32_t Pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  if constexpr (kType == DType::kF16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return FromFloat<kType>(low) | uint32_t{FromFloat<kType>(high)} << 16;
#endif
}

// a * b + c of both halves, with one rounding. (In the other operations on the device too: bf16 has
// no others before sm_90.)
template <DType kType>
NIBBLE_HD inline uint32_t MultiplyAdd2(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__)
  uint32_t result;
  if constexpr (kType == DType::kF16) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  }
  return result;
#else
  // The product of two 11-bit significands is exact in float.
  return Pair<kType>(
      HalfToFloat<kType>(a) * HalfToFloat<kType>(b) + HalfToFloat<kType>(c),
      HalfToFloat<kType>(a >> 16) * HalfToFloat<kType>(b >> 16) + HalfToFloat<kType>(c >> 16));
#endif
}

template <DType kType>
NIBBLE_HD inline uint32_t Subtract2(uint32_t a, uint32_t b) {
  return MultiplyAdd2<kType>(b, kType == DType::kF16 ? 0xBC00BC00u : 0xBF80BF80u, a);
}

template <DType kType>
NIBBLE_HD inline uint32_t Multiply2(uint32_t a, uint32_t b) {
  return MultiplyAdd2<kType>(a, b, 0x80008000u);
}

// Byte `index` of a word, less `bias`: 2^23 + byte is a float whose last byte is the byte.
NIBBLE_HD inline float ByteToFloat(uint32_t word, int index, float bias) {
  return std::bit_cast<float>(Permute(word, 0x4B000000u, 0x7440u | static_cast<uint32_t>(index))) -
         (8388608.0f + bias);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_HALF2_H_
