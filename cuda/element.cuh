// Elements of f32, f16 and bf16 matrices on the device.
#ifndef NIBBLE_CUDA_ELEMENT_CUH_
#define NIBBLE_CUDA_ELEMENT_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "nibble/dtype.h"
#include "nibble/tensor.h"

namespace nibble::cuda {

// The same bits as ToF16 and ToBF16, by the hardware's conversions, whose NaNs alone differ.
__device__ inline uint16_t F16Bits(float x) {
  return x != x ? ToF16(x).bits : __half_as_ushort(__float2half_rn(x));
}
__device__ inline uint16_t BF16Bits(float x) {
  return x != x ? ToBF16(x).bits : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ inline float LoadElement(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return dtype == DType::kF16 ? __half2float(__ushort_as_half(bits)) : ToFloat(BF16{bits});
}

__device__ inline void StoreElement(void* data, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = dtype == DType::kF16 ? F16Bits(x) : BF16Bits(x);
  }
}

// Four neighbours at once, where `aligned`: i and the base are at multiples of four elements.
__device__ inline void StoreFour(void* data, DType dtype, int64_t i, float4 x, bool aligned) {
  if (!aligned) {
    StoreElement(data, dtype, i, x.x);
    StoreElement(data, dtype, i + 1, x.y);
    StoreElement(data, dtype, i + 2, x.z);
    StoreElement(data, dtype, i + 3, x.w);
  } else if (dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + i) = x;
  } else {
    const ushort4 bits =
        dtype == DType::kF16
            ? make_ushort4(F16Bits(x.x), F16Bits(x.y), F16Bits(x.z), F16Bits(x.w))
            : make_ushort4(BF16Bits(x.x), BF16Bits(x.y), BF16Bits(x.z), BF16Bits(x.w));
    *reinterpret_cast<ushort4*>(static_cast<uint16_t*>(data) + i) = bits;
  }
}

inline bool IsAlignedToFour(const TensorView& view) {
  return view.row_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % (4 * DTypeBytes(view.dtype)) == 0;
}

// Blocks of `threads` that give every one of `count` items a thread.
inline unsigned BlocksFor(int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_ELEMENT_CUH_
