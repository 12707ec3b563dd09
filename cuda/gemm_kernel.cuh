// The kernel of large products and its launch, of one packed format. Included by the sources that
// instantiate it for some formats each.
#ifndef NIBBLE_CUDA_GEMM_KERNEL_CUH_
#define NIBBLE_CUDA_GEMM_KERNEL_CUH_

#include <cooperative_groups.h>

#include "cuda/gemm.h"
#include "cuda/launch.cuh"
#include "cuda/products.h"
#include "cuda/status.h"

namespace nibble::cuda {

template <class Format, DType kType, int kTokens>
__global__ void __launch_bounds__(kThreads, Format::kIsSuper ? 1 : 2)
    GemmKernel(const __grid_constant__ GemmArguments args) {
  extern __shared__ uint8_t unaligned[];
  uint8_t* shared = unaligned + (1024 - SharedAddress(unaligned) % 1024) % 1024;
  using Block = GemmBlock<Format, kType, kTokens>;
  const int thread = static_cast<int>(threadIdx.x);
  const int index = __shfl_sync(0xFFFFFFFFu, thread / kLanes, 0);
  const int split = static_cast<int>(blockIdx.y);
  const DeviceWarp warp = {thread % kLanes};
  const Block block(args, blockIdx.x, split, blockIdx.z, shared);
  typename Block::template WarpState<DeviceWarp> state;
  block.Begin(warp, state);

  const int ahead = args.plan.stages - 1;
  for (int unit = 0; unit < ahead; ++unit) block.StageUnit(thread, unit);
  for (int unit = 0; unit < block.units(); ++unit) {
    WaitForStage(ahead - 1);
    __syncthreads();  // the unit is there for all, and the stage of the one before is free
    block.StageUnit(thread, unit + ahead);
    block.MultiplyUnit(warp, index, unit, state);
  }
#if __CUDA_ARCH__ >= 900
  if (args.plan.splits > 1) {
    WaitForCopies<0>();
    __syncthreads();
    block.StoreSums(warp, index, state);
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    block.CombineSplits(thread, split, [&](int s) {
      return static_cast<const float*>(
          cluster.map_shared_rank(block.Sums(), static_cast<unsigned>(s)));
    });
    cluster.sync();  // no block ends while others read its sums
    return;
  }
#endif
  block.StoreOutputs(warp, index, state);
}

template <class Format>
Status GemmLauncher<Format>::Launch(const GemmArguments& args, DType type, cudaStream_t stream) {
  const GemmPlan& plan = args.plan;
  const dim3 grid(static_cast<unsigned>(plan.row_blocks), static_cast<unsigned>(plan.splits),
                  static_cast<unsigned>(plan.token_blocks));
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
