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
  WaitForCopies<0>();
  __syncthreads();  // no one needs the stages any more
  Sums::Store(warp, index, sums, block.SharedSums());
  const auto store_of = [&](int row) { return block.StoreOf(row); };
#if __CUDA_ARCH__ >= 900
  if (args.plan.splits > 1) {
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    const auto of_split = [&](int s) {
      return static_cast<const typename Block::Sum*>(
          cluster.map_shared_rank(block.SharedSums(), static_cast<unsigned>(s)));
    };
    Sums::Combine(thread, split, args.plan.splits, of_split, store_of);
    cluster.sync();  // no block ends while others read its sums
    return;
  }
#endif
  __syncthreads();
  const auto own = [&](int) { return static_cast<const typename Block::Sum*>(block.SharedSums()); };
  Sums::Combine(thread, 0, 1, own, store_of);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_UNIT_KERNEL_CUH_
