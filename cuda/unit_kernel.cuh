// The body of the kernels of many tokens, whose blocks go through their columns unit by unit
// (cuda/gemm.h, cuda/bytes.h): blocks along x are the plan's, those along y split the columns.
#ifndef NIBBLE_CUDA_UNIT_KERNEL_CUH_
#define NIBBLE_CUDA_UNIT_KERNEL_CUH_

#include <cooperative_groups.h>

#include "cuda/async_copy.h"
#include "cuda/multiply_step.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"

namespace nibble::cuda {

template <class Block, class Arguments>
__device__ __forceinline__ void RunUnits(const Arguments& args) {
  extern __shared__ uint8_t unaligned[];
  uint8_t* shared = unaligned + (1024 - SharedAddress(unaligned) % 1024) % 1024;
  const int thread = static_cast<int>(threadIdx.x);
  const int index = __shfl_sync(0xFFFFFFFFu, thread / kLanes, 0);
  const int split = static_cast<int>(blockIdx.y);
  const DeviceWarp warp = {thread % kLanes};
  const Block block(args, blockIdx.x, split, shared);
  using Sums = typename Block::Sums;
  typename Sums::template Registers<DeviceWarp> sums;
  Sums::Clear(warp, sums);
  const auto store = [&](int row, int token, typename Block::Sum sum) {
    block.StoreOutput(row, token, sum);
  };

  const int ahead = args.plan.stages - Block::kStagesInUse;
  for (int unit = 0; unit < ahead; ++unit) block.StageUnit(thread, unit);
  for (int unit = 0; unit < block.units(); ++unit) {
    WaitForStage(ahead - 1);
    __syncthreads();  // the unit is there for all, and the stage of the next to come is free
    block.StageUnit(thread, unit + ahead);
    SyncWarp();  // what a warp does together needs all its lanes
    block.MultiplyUnit(warp, index, unit, sums);
  }
  WaitForProducts();
  KeepInRegisters<Sums::kTiles>(sums);
#if __CUDA_ARCH__ >= 900
  if (args.plan.splits > 1) {
    WaitForCopies<0>();
    __syncthreads();
    Sums::Store(warp, index, sums, block.SharedSums());
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    const auto of_split = [&](int s) {
      return static_cast<const typename Block::Sum*>(
          cluster.map_shared_rank(block.SharedSums(), static_cast<unsigned>(s)));
    };
    Sums::Combine(thread, split, args.plan.splits, of_split, store);
    cluster.sync();  // no block ends while others read its sums
    return;
  }
#endif
  Sums::ForEach(warp, index, sums, store);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_UNIT_KERNEL_CUH_
