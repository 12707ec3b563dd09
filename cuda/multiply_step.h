// One step of a large product: sums[kTokens / 8] += left x right, for the row tile of a warp, 16
// columns, and kTokens tokens, which lie in shared memory in the 128-byte swizzle (cuda/gemm.h).
//
// mma.sync in general; on sm_90a wgmma, by which four warps multiply their four row tiles at once,
// without waiting: an operand may be written again after WaitForLeft, sums read after
// WaitForProducts.
#ifndef NIBBLE_CUDA_MULTIPLY_STEP_H_
#define NIBBLE_CUDA_MULTIPLY_STEP_H_

#include <cstdint>
#include <type_traits>

#include "cuda/async_copy.h"
#include "cuda/warp.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_WGMMA 1
#else
#define NIBBLE_WGMMA 0
#endif

namespace nibble::cuda {

// `panel`: 64 columns of the tokens; `step`: 0 to 3 within them.
template <DType kType, int kTokens>
void MultiplyStep(const HostWarp& warp, const HostWarp::Lanes<LeftOperand>& left,
                  const uint8_t* panel, int step, HostWarp::Lanes<Sums4>* sums) {
  MultiplyTokens<kType, kTokens>(warp, left, panel, step, sums);
}
inline void WaitForLeft(const HostWarp&) {}

// Until no product is under way.
NIBBLE_HD inline void WaitForProducts() {
#if NIBBLE_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}

// Until the copies of a stage that is `ahead` behind the last one have arrived, and wgmma may read
// them.
NIBBLE_HD inline void WaitForStage(int ahead) {
  if (ahead == 0) {
    WaitForCopies<0>();
  } else if (ahead == 1) {
    WaitForCopies<1>();
  } else {
    WaitForCopies<2>();
  }
#if NIBBLE_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if defined(__CUDACC__)

// Keeps the compiler from moving what makes or reads sums across this point, which fences and waits
// alone do not: products are asynchronous.
template <int kTiles, class Sum>
__device__ inline void KeepInRegisters(DeviceWarp::Lanes<FourSums<Sum>>* sums) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<Sum, float>) {
        asm volatile("" : "+f"(sums[tile].own.v[i])::"memory");
      } else {
        asm volatile("" : "+r"(sums[tile].own.v[i])::"memory");
      }
    }
  }
}

#if NIBBLE_WGMMA
// An operand in shared memory, for wgmma: K-major, 128-byte swizzle, 1024 bytes from eight rows to
// the next eight.
__device__ inline uint64_t SharedDescriptor(const uint8_t* at) {
  return (SharedAddress(at) & 0x3FFFFu) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

#define NIBBLE_SUMS(t) \
  "+f"(sums[t].own.v[0]), "+f"(sums[t].own.v[1]), "+f"(sums[t].own.v[2]), "+f"(sums[t].own.v[3])
#define NIBBLE_SUMS_4(t) NIBBLE_SUMS(t), NIBBLE_SUMS(t + 1), NIBBLE_SUMS(t + 2), NIBBLE_SUMS(t + 3)

template <DType kType, int kTokens>
__device__ inline void Wgmma(DeviceWarp::Lanes<Sums4>* sums, const uint32_t (&a)[4],
                             uint64_t right) {
#define NIBBLE_WGMMA_64(type)                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                         \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
               "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"                                            \
               : NIBBLE_SUMS_4(0), NIBBLE_SUMS_4(4)                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right))
#define NIBBLE_WGMMA_128(type)                                                                     \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                        \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
               "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"                                            \
               : NIBBLE_SUMS_4(0), NIBBLE_SUMS_4(4), NIBBLE_SUMS_4(8), NIBBLE_SUMS_4(12)           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right))
  if constexpr (kTokens == 64) {
    if constexpr (kType == DType::kF16) {
      NIBBLE_WGMMA_64("f16");
    } else {
      NIBBLE_WGMMA_64("bf16");
    }
  } else {
    static_assert(kTokens == 128);
    if constexpr (kType == DType::kF16) {
      NIBBLE_WGMMA_128("f16");
    } else {
      NIBBLE_WGMMA_128("bf16");
    }
  }
#undef NIBBLE_WGMMA_64
#undef NIBBLE_WGMMA_128
}
#undef NIBBLE_SUMS_4
#undef NIBBLE_SUMS
#endif  // NIBBLE_WGMMA

template <DType kType, int kTokens>
NIBBLE_HD inline void MultiplyStep(const DeviceWarp& warp,
                                   const DeviceWarp::Lanes<LeftOperand>& left, const uint8_t* panel,
                                   int step, DeviceWarp::Lanes<Sums4>* sums) {
#if NIBBLE_WGMMA
  // What the product reads is in its registers before the fence.
  const uint32_t* a = left.own.v;
  asm volatile("" ::"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]) : "memory");
  KeepInRegisters<kTokens / 8>(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  Wgmma<kType, kTokens>(sums, left.own.v, SharedDescriptor(panel + 32 * step));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  MultiplyTokens<kType, kTokens>(warp, left, panel, step, sums);
#endif
}

// The operand before the last one is free.
NIBBLE_HD inline void WaitForLeft(const DeviceWarp&) {
#if NIBBLE_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
#endif
}
#endif  // __CUDACC__

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_MULTIPLY_STEP_H_
