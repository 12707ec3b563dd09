// One unit of a product of bytes: sums[kTokens / 8] += left x right, for the 16 rows of a warp, 128
// columns, and kTokens tokens; both operands lie in shared memory in the 128-byte swizzle, 128
// bytes a row (cuda/bytes.h).
//
// mma.sync in general; on sm_90a wgmma, by which four warps multiply their 64 rows at once.
#ifndef NIBBLE_CUDA_MULTIPLY_BYTES_H_
#define NIBBLE_CUDA_MULTIPLY_BYTES_H_

#include <cstdint>

#include "cuda/multiply_step.h"
#include "cuda/warp.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

// Sums of products of int8 are integers, which do not overflow for fewer than 2^17 columns.
inline constexpr int64_t kMostByteCols = (int64_t{1} << 17) - 1;

// `left`: the block's rows, of which the warp has 16 from 16 `index` on; `right`: the tokens.
template <DType kType, int kTokens, class Warp>
NIBBLE_HD inline void MultiplyBytesByMma(
    const Warp& warp, int index, const uint8_t* left, const uint8_t* right,
    typename Warp::template Lanes<FourSums<SumOf<kType>>>* sums) {
  NIBBLE_UNROLL
  for (int step = 0; step < 4; ++step) {
    typename Warp::template Lanes<const uint8_t*> rows;
    typename Warp::template Lanes<LeftOperand> operand;
    warp.Each([&](int lane) {
      const int row = 16 * index + 8 * (lane / 8 % 2) + lane % 8;
      rows[lane] = left + SwizzledPart(row, 2 * step + lane / 16);
    });
    LoadMatrices(warp, rows, operand);
    MultiplyTokens<kType, kTokens>(warp, operand, right, step, sums);
  }
}

template <DType kType, int kTokens>
void MultiplyBytes(const HostWarp& warp, int index, const uint8_t* left, const uint8_t* right,
                   HostWarp::Lanes<FourSums<SumOf<kType>>>* sums) {
  MultiplyBytesByMma<kType, kTokens>(warp, index, left, right, sums);
}

#if defined(__CUDACC__)

#if NIBBLE_WGMMA
#define NIBBLE_SUMS(t, constraint)                                                          \
  constraint(sums[t].own.v[0]), constraint(sums[t].own.v[1]), constraint(sums[t].own.v[2]), \
      constraint(sums[t].own.v[3])
#define NIBBLE_SUMS_4(t, constraint)                                                          \
  NIBBLE_SUMS(t, constraint), NIBBLE_SUMS(t + 1, constraint), NIBBLE_SUMS(t + 2, constraint), \
      NIBBLE_SUMS(t + 3, constraint)
#define NIBBLE_SUMS_8(t, constraint) NIBBLE_SUMS_4(t, constraint), NIBBLE_SUMS_4(t + 4, constraint)
// clang-format off
#define NIBBLE_WGMMA_BYTES_64(shape_types, constraint, tail)                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k32." shape_types " {"                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"    \
               "}, %32, %33, 1" tail ";"                                                           \
               : NIBBLE_SUMS_8(0, constraint)                                                      \
               : "l"(left), "l"(right))
#define NIBBLE_WGMMA_BYTES_128(shape_types, constraint, tail)                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k32." shape_types " {"                         \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"    \
               "}, %64, %65, 1" tail ";"                                                           \
               : NIBBLE_SUMS_8(0, constraint), NIBBLE_SUMS_8(8, constraint)                        \
               : "l"(left), "l"(right))
#define NIBBLE_WGMMA_BYTES_256(shape_types, constraint, tail)                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k32." shape_types " {"                         \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "  \
               "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "  \
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "  \
               "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
               "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127" \
               "}, %128, %129, 1" tail ";"                                                         \
               : NIBBLE_SUMS_8(0, constraint), NIBBLE_SUMS_8(8, constraint), NIBBLE_SUMS_8(16, constraint), NIBBLE_SUMS_8(24, constraint) \
               : "l"(left), "l"(right))
// clang-format on

template <DType kType, int kTokens>
__device__ inline void WgmmaBytes(DeviceWarp::Lanes<FourSums<SumOf<kType>>>* sums, uint64_t left,
                                  uint64_t right) {
  constexpr bool kIsInt = kType == DType::kI8;
  if constexpr (kTokens == 64 && kIsInt) NIBBLE_WGMMA_BYTES_64("s32.s8.s8", "+r", "");
  if constexpr (kTokens == 128 && kIsInt) NIBBLE_WGMMA_BYTES_128("s32.s8.s8", "+r", "");
  if constexpr (kTokens == 256 && kIsInt) NIBBLE_WGMMA_BYTES_256("s32.s8.s8", "+r", "");
  if constexpr (kTokens == 64 && !kIsInt) NIBBLE_WGMMA_BYTES_64("f32.e4m3.e4m3", "+f", ", 1, 1");
  if constexpr (kTokens == 128 && !kIsInt) NIBBLE_WGMMA_BYTES_128("f32.e4m3.e4m3", "+f", ", 1, 1");
  if constexpr (kTokens == 256 && !kIsInt) NIBBLE_WGMMA_BYTES_256("f32.e4m3.e4m3", "+f", ", 1, 1");
}
#undef NIBBLE_WGMMA_BYTES_64
#undef NIBBLE_WGMMA_BYTES_128
#undef NIBBLE_WGMMA_BYTES_256
#undef NIBBLE_SUMS_8
#undef NIBBLE_SUMS_4
#undef NIBBLE_SUMS
#endif  // NIBBLE_WGMMA

template <DType kType, int kTokens>
NIBBLE_HD inline void MultiplyBytes(const DeviceWarp& warp, int index, const uint8_t* left,
                                    const uint8_t* right,
                                    DeviceWarp::Lanes<FourSums<SumOf<kType>>>* sums) {
#if NIBBLE_WGMMA
  const uint8_t* rows = left + index / 4 * (64 * 128);
  KeepInRegisters<kTokens / 8>(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    WgmmaBytes<kType, kTokens>(sums, SharedDescriptor(rows + 32 * step),
                               SharedDescriptor(right + 32 * step));
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
#else
  MultiplyBytesByMma<kType, kTokens>(warp, index, left, right, sums);
#endif
}

#endif  // __CUDACC__

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_MULTIPLY_BYTES_H_
