// The sums of a block of the kernels of many tokens (cuda/gemm.h, cuda/bytes.h), for device and
// host: eight warps have 16 rows of weights each, and all kTokens tokens, in the registers of their
// lanes, as mma.sync and wgmma leave them.
#ifndef NIBBLE_CUDA_BLOCK_SUMS_H_
#define NIBBLE_CUDA_BLOCK_SUMS_H_

#include "cuda/decode_record.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"

namespace nibble::cuda {

inline constexpr int kBlockRows = kWarps * 16;

template <class Sum, int kTokens>
struct BlockSums {
  static constexpr int kTiles = kTokens / 8;
  template <class Warp>
  using Registers = typename Warp::template Lanes<FourSums<Sum>>[kTiles];

  template <class Warp>
  NIBBLE_HD static void Clear(const Warp& warp, Registers<Warp>& sums) {
    warp.Each([&](int lane) {
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) sums[tile][lane] = FourSums<Sum>{};
    });
  }

  // A warp: visit(row and token of the block, sum) for all that it has.
  template <class Warp, class Visit>
  NIBBLE_HD static void ForEach(const Warp& warp, int index, const Registers<Warp>& sums,
                                const Visit& visit) {
    warp.Each([&](int lane) {
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        NIBBLE_UNROLL
        for (int i = 0; i < 4; ++i) {
          visit(index * 16 + lane / 4 + 8 * (i / 2), 8 * tile + 2 * (lane % 4) + i % 2,
                sums[tile][lane].v[i]);
        }
      }
    });
  }

  // A warp: its sums to shared memory, token by token.
  template <class Warp>
  NIBBLE_HD static void Store(const Warp& warp, int index, const Registers<Warp>& sums,
                              Sum* shared) {
    ForEach(warp, index, sums,
            [&](int row, int token, Sum sum) { shared[token * kBlockRows + row] = sum; });
  }

  // All threads of block `split` of a cluster of `splits`, of_split(s) being the stored sums of
  // block s: visit(row, token, sum of all) for this block's part, always added in the same order.
  template <class OfSplit, class Visit>
  NIBBLE_HD static void Combine(int thread, int split, int splits, const OfSplit& of_split,
                                const Visit& visit) {
    for (int i = split * kThreads + thread; i < kTokens * kBlockRows; i += splits * kThreads) {
      Sum sum = of_split(0)[i];
      for (int s = 1; s < splits; ++s) sum += of_split(s)[i];
      visit(i % kBlockRows, i / kBlockRows, sum);
    }
  }
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_BLOCK_SUMS_H_
