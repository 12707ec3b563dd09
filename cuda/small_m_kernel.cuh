// The small-M kernel and its launch, of one packed format. Included by the sources that instantiate
// it for some formats each.
#ifndef NIBBLE_CUDA_SMALL_M_KERNEL_CUH_
#define NIBBLE_CUDA_SMALL_M_KERNEL_CUH_

#include <cooperative_groups.h>

#include "cuda/launch.cuh"
#include "cuda/products.h"
#include "cuda/small_m.h"
#include "cuda/status.h"

namespace nibble::cuda {

template <class Format, DType kType, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, 2)
    SmallMKernel(const __grid_constant__ SmallMArguments args) {
  extern __shared__ __align__(128) uint8_t shared[];
  using Block = SmallMBlock<Format, kType, kTokenTiles>;
  const int thread = static_cast<int>(threadIdx.x), index = thread / kLanes;
  const int split = static_cast<int>(blockIdx.y);
  const DeviceWarp warp = {thread % kLanes};
  const Block block(args, blockIdx.x, split, shared);
  typename Block::template WarpState<DeviceWarp> state;

  const int segments = block.segments();
  if (segments > 0) block.StageActivations(thread, 0);
  block.Begin(warp, index, state);
  for (int segment = 0; segment < segments; ++segment) {
    if (segment > 0) {
      __syncthreads();
      block.StageActivations(thread, segment);
      WaitForCopies<0>();
    } else {
      WaitForCopies<Block::kStages - 1>();
    }
    __syncthreads();
    block.MultiplySegment(warp, index, segment, state);
  }
  __syncthreads();
  block.StoreSums(warp, state);
  __syncthreads();
  block.CombineWarps(thread);
#if __CUDA_ARCH__ >= 900
  if (args.plan.splits > 1) {
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    block.StoreOutputs(thread, split, [&](int s) {
      return static_cast<const float*>(
          cluster.map_shared_rank(block.SumsOf(0), static_cast<unsigned>(s)));
    });
    cluster.sync();  // no block ends while others read its sums
    return;
  }
#endif
  __syncthreads();
  block.StoreOutputs(thread, 0, [&](int) { return static_cast<const float*>(block.SumsOf(0)); });
}

template <class Format>
Status SmallMLauncher<Format>::Launch(const SmallMArguments& args, DType type,
                                      cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.plan.blocks), static_cast<unsigned>(args.plan.splits));
  const auto launch = [&]<DType kType, int kTokenTiles>() {
    return LaunchKernel<SmallMKernel<Format, kType, kTokenTiles>>(
        grid, kThreads, args.plan.shared_bytes, args.plan.splits, stream, args);
  };
  const bool one = args.plan.tokens <= 8;
  if (type == DType::kF16) {
    return one ? launch.template operator()<DType::kF16, 1>()
               : launch.template operator()<DType::kF16, 2>();
  }
  return one ? launch.template operator()<DType::kBF16, 1>()
             : launch.template operator()<DType::kBF16, 2>();
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_SMALL_M_KERNEL_CUH_
