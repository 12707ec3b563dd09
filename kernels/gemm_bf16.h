// Products of bf16 operands in tiles of 16 x 16 sums: the layouts, and the functions that an
// instruction set supplies for them.
//
// Weights stay the left operand, so that their rows need no transposition: sums are [n, m], and
// only the activations, packed once for all weights, and the finished sums are transposed.
//
//   panel   32 weight rows of a block of columns, kPanelStride apart; a tile is 16 rows of 32 bf16
//           (64 bytes)
//   slab    activations of the same block of columns, 32 activation rows after another; of those,
//           chunk after chunk of 32 columns, two tiles; a tile is 16 rows of 16 (k, k + 1) pairs,
//           one pair for each activation row
//   sums    four tiles of 16 x 16 floats, (n tile, m tile) = (0, 0), (0, 1), (1, 0), (1, 1)
//
// 32 activation rows of a block of 512 columns fill two thirds of a first-level cache of 48 KiB and
// are multiplied with panel after panel, which stream past them from the second level.
#ifndef NIBBLE_KERNELS_GEMM_BF16_H_
#define NIBBLE_KERNELS_GEMM_BF16_H_

#include <cstdint>

#include "kernels/matmul.h"

namespace nibble {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kPairRows = 2 * kTileRows;
inline constexpr int64_t kChunkCols = 32;
inline constexpr int64_t kTileElements = kTileRows * kChunkCols;  // bf16 of an operand
inline constexpr int64_t kChunkElements = 2 * kTileElements;      // both tiles of a chunk
// From one row of a panel to the next: a line more than a block of columns, so that rows lie in
// different sets of the first-level cache.
inline constexpr int64_t kPanelStride = kBlockCols + 32;
inline constexpr int64_t kPanelElements = kPairRows * kPanelStride;
inline constexpr int64_t kTileSums = kTileRows * kTileRows;
inline constexpr int64_t kSumElements = 4 * kTileSums;

// totals = (first ? 0 : totals) + sums, of kSumElements each; nothing where sums is null.
struct Addition {
  const float* sums = nullptr;
  float* totals = nullptr;
  bool first = false;
};

struct GemmBf16 {
  // Around the use of the others on a thread.
  void (*enter)();
  void (*leave)();

  // Packs activation rows [m0, m0 + m_count), m_count <= 32, columns [col, col + count) into their
  // part of a slab; rows and columns that are missing become zeros.
  void (*pack)(const ActivationRows& activations, int64_t m0, int64_t m_count, int64_t col,
               int64_t count, uint16_t* slab);

  // sums = panel x slab^T over `chunks`, for n_tiles x m_tiles of the tiles, and meanwhile the
  // addition of the product before.
  void (*multiply)(const uint16_t* panel, const uint16_t* slab, int64_t chunks, int n_tiles,
                   int m_tiles, float* sums, const Addition& before);
  void (*add)(const Addition& addition);

  // Writes totals to out[m0 + m, n0 + n] for m < m_count, n < n_count.
  void (*store)(const float* totals, const ProductOutput& output, int64_t m0, int64_t m_count,
                int64_t n0, int64_t n_count);
};

// The functions of the AMX tile unit; null where the processor has none or the system refuses it.
const GemmBf16* AmxGemmBf16();

// Products of bf16-rounded operands with the given functions.
Status MatmulBf16(const GemmBf16& gemm, std::span<const Product<WeightRows>> products,
                  const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_BF16_H_
