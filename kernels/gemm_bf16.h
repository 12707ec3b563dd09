// Products of bf16 operands in tiles (kernels/gemm_tiles.h): what an instruction set supplies, and
// the products with it. AMX alone does: the vectors' vdpbf16ps has half the rate of f32 products on
// Intel's processors with AMX (108 GFLOP/s where those reach 215).
#ifndef NIBBLE_KERNELS_GEMM_BF16_H_
#define NIBBLE_KERNELS_GEMM_BF16_H_

#include <cstdint>

#include "kernels/gemm_tiles.h"
#include "kernels/matmul.h"

namespace nibble {

inline constexpr int64_t kChunkCols = kChunkBytes / 2;
static_assert(kBlockChunks * kChunkCols == kBlockCols);

struct GemmBf16 {
  TileUnit<float> tiles;

  // Packs activation rows [m0, m0 + m_count), m_count <= 32, columns [col, col + count) into their
  // part of a slab; rows and columns that are missing become zeros.
  void (*pack)(const ActivationRows& activations, int64_t m0, int64_t m_count, int64_t col,
               int64_t count, uint8_t* slab);

  // Writes totals to out[m0 + m, n0 + n] for m < m_count, n < n_count.
  void (*store)(const float* totals, const ProductOutput& output, int64_t m0, int64_t m_count,
                int64_t n0, int64_t n_count);
};

// The functions of the AMX tile unit, for weights that decode to rows or to pairs of columns; null
// where the processor has none or the system refuses it.
const GemmBf16* AmxGemmBf16(bool column_pairs = false);

// Products of bf16-rounded operands with the given functions, for weights that decode as those
// need.
Status MatmulBf16(const GemmBf16& gemm, std::span<const Product<WeightRows>> products,
                  const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_BF16_H_
