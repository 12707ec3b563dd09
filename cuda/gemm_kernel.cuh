// The kernel of large products and its launch, of one packed format. Included by the sources that
// instantiate it for some formats each.
#ifndef NIBBLE_CUDA_GEMM_KERNEL_CUH_
#define NIBBLE_CUDA_GEMM_KERNEL_CUH_

#include "cuda/gemm.h"
#include "cuda/launch.cuh"
#include "cuda/products.h"
#include "cuda/status.h"
#include "cuda/unit_kernel.cuh"

namespace nibble::cuda {

template <class Format, DType kType, int kTokens>
__global__ void __launch_bounds__(kThreads, Format::kIsSuper ? 1 : 2)
    GemmKernel(const __grid_constant__ GemmArguments args) {
  RunUnits<GemmBlock<Format, kType, kTokens>>(args);
}

template <class Format>
Status GemmLauncher<Format>::Launch(const GemmArguments& args, DType type, cudaStream_t stream) {
  const GemmPlan& plan = args.plan;
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits));
  const auto launch = [&]<DType kType, int kTokens>() {
    return LaunchKernel<GemmKernel<Format, kType, kTokens>>(grid, kThreads, plan.shared_bytes,
                                                            plan.splits, stream, args);
  };
  if (type == DType::kF16) {
    return plan.tokens == 64 ? launch.template operator()<DType::kF16, 64>()
                             : launch.template operator()<DType::kF16, 128>();
  }
  return plan.tokens == 64 ? launch.template operator()<DType::kBF16, 64>()
                           : launch.template operator()<DType::kBF16, 128>();
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_GEMM_KERNEL_CUH_
