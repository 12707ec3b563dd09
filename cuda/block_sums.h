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
// Sums of a token in shared memory, and four places that keep the lanes of a warp, each at one of
// eight rows and four tokens, to banks of their own.
inline constexpr int kTokenSums = kBlockRows + 4;

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

  // A warp: its sums to shared memory, token by token.
  template <class Warp>
  NIBBLE_HD static void Store(const Warp& warp, int index, const Registers<Warp>& sums,
                              Sum* shared) {
    warp.Each([&](int lane) {
      Sum* const to = shared + index * 16 + lane / 4;
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        NIBBLE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int token = 8 * tile + 2 * (lane % 4) + i % 2;
          to[token * kTokenSums + 8 * (i / 2)] = sums[tile][lane].v[i];
        }
      }
    });
  }

  // All threads of block `split` of a cluster of `splits`, of_split(s) being the stored sums of
  // block s: this block's part of the outputs, always added in the same order. A thread has one
  // row: store_of(row) gives what takes (token, sum of all) of it.
  template <class OfSplit, class StoreOf>
  NIBBLE_HD static void Combine(int thread, int split, int splits, const OfSplit& of_split,
                                const StoreOf& store_of) {
    constexpr int kAtOnce = kThreads / kBlockRows;
    const int row = thread % kBlockRows;
    const auto store = store_of(row);
    for (int token = split * kAtOnce + thread / kBlockRows; token < kTokens;
         token += splits * kAtOnce) {
      const int at = token * kTokenSums + row;
      Sum sum = of_split(0)[at];
      for (int s = 1; s < splits; ++s) sum += of_split(s)[at];
      store(token, sum);
    }
  }
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_BLOCK_SUMS_H_
