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

// Two 16-bit floats of f16 or bf16.
__device__ inline uint32_t PairBits(DType dtype, float low, float high) {
  return dtype == DType::kF16 ? F16Bits(low) | uint32_t{F16Bits(high)} << 16
                              : BF16Bits(low) | uint32_t{BF16Bits(high)} << 16;
}

// Eight neighbours, by stores of 16 bytes where `aligned`: i is a multiple of eight, and the view
// is aligned to 16 bytes.
__device__ inline void StoreEight(void* data, DType dtype, int64_t i, const float (&x)[8],
                                  bool aligned) {
  if (!aligned) {
#pragma unroll
    for (int j = 0; j < 8; ++j) StoreElement(data, dtype, i + j, x[j]);
  } else if (dtype == DType::kF32) {
    float4* to = reinterpret_cast<float4*>(static_cast<float*>(data) + i);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(data) + i) =
        make_uint4(PairBits(dtype, x[0], x[1]), PairBits(dtype, x[2], x[3]),
                   PairBits(dtype, x[4], x[5]), PairBits(dtype, x[6], x[7]));
  }
}

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

#endif  // NIBBLE_CUDA_ELEMENT_CUH_
