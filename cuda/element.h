// Elements of f32, f16 and bf16 matrices, for device and host.
#ifndef NIBBLE_CUDA_ELEMENT_H_
#define NIBBLE_CUDA_ELEMENT_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/half2.h"
#include "nibble/dtype.h"
#include "nibble/tensor.h"

namespace nibble::cuda {

// The bits of ToF16 and ToBF16, those of a NaN too, which the hardware's conversions change.
template <DType kType>
NIBBLE_HD inline uint16_t HalfBits(float x) {
  if (x == x) return FromFloat<kType>(x);
  return kType == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits;
}
NIBBLE_HD inline uint16_t HalfBits(DType dtype, float x) {
  return dtype == DType::kF16 ? HalfBits<DType::kF16>(x) : HalfBits<DType::kBF16>(x);
}

NIBBLE_HD inline float LoadElement(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return dtype == DType::kF16 ? HalfToFloat<DType::kF16>(bits) : HalfToFloat<DType::kBF16>(bits);
}

NIBBLE_HD inline void StoreElement(void* data, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = HalfBits(dtype, x);
  }
}

// Eight neighbours, by stores of 16 bytes where `aligned`: i is a multiple of eight, and the view
// is aligned to 16 bytes.
NIBBLE_HD inline void StoreEight(void* data, DType dtype, int64_t i, const float (&x)[8],
                                 bool aligned) {
  if (!aligned) {
    NIBBLE_UNROLL
    for (int j = 0; j < 8; ++j) StoreElement(data, dtype, i + j, x[j]);
  } else if (dtype == DType::kF32) {
    auto* to = reinterpret_cast<Words4*>(static_cast<float*>(data) + i);
    NIBBLE_UNROLL
    for (int part = 0; part < 2; ++part) {
      Words4 words;
      NIBBLE_UNROLL
      for (int j = 0; j < 4; ++j) words.v[j] = std::bit_cast<uint32_t>(x[4 * part + j]);
      to[part] = words;
    }
  } else {
    Words4 words;
    NIBBLE_UNROLL
    for (int j = 0; j < 4; ++j) {
      words.v[j] = HalfBits(dtype, x[2 * j]) | uint32_t{HalfBits(dtype, x[2 * j + 1])} << 16;
    }
    *reinterpret_cast<Words4*>(static_cast<uint16_t*>(data) + i) = words;
  }
}

// 1 / d, or 0 for none; and whether no code can be had under it.
NIBBLE_HD inline float ReciprocalOf(float d) { return d == 0.0f ? 0.0f : 1.0f / d; }
NIBBLE_HD inline bool IsInfinite(float x) { return fabsf(x) == __builtin_huge_valf(); }

// Whether every row begins at a multiple of 16 bytes.
inline bool IsAlignedTo16Bytes(const TensorView& view) {
  return static_cast<size_t>(view.row_stride) * DTypeBytes(view.dtype) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// Blocks of `threads` that give every one of `count` items a thread.
inline unsigned BlocksFor(int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_ELEMENT_H_
