// Products of int8 weights with one scale a row (or one in all) and int8 activations with one scale
// a row: sums stay integers to the end, so that they are the same on every machine.
#ifndef NIBBLE_KERNELS_GEMM_W8A8_H_
#define NIBBLE_KERNELS_GEMM_W8A8_H_

#include <cstdint>
#include <span>

#include "kernels/codec_planar.h"
#include "kernels/gemm_tiles.h"
#include "kernels/matmul.h"

namespace nibble {

struct W8A8Weights {
  PlanarPlanes planes;  // for which TakesW8A8
  // Of activations that are int8 already: a scale for each row of the matrix that they are rows of,
  // or one in all. Empty: activations are rounded here, scale = max|row| / 127.
  std::span<const float> activation_scales;
};

// Symmetric int8 codes with a scale for each row or for the tensor.
bool TakesW8A8(const PlanarPlanes& planes);

// The activations of all products are of one type. A row with a value that is not finite gives NaN
// throughout.
Status MatmulW8A8(std::span<const Product<W8A8Weights>> products, const ParallelFor& parallel);

// Columns whose sums of products of two bytes fit in 32 bits, with room to spare.
inline constexpr int64_t kW8A8BlockCols = 1 << 15;

// Rounded activation rows.
struct W8A8Rows {
  int64_t rows = 0;
  int64_t stride = 0;             // between rows: cols, filled up with zeros to a multiple of 64
  bool any_code = false;          // whether codes may be -128; those rounded here are not
  const int8_t* codes = nullptr;  // [rows, stride]
  const float* scales = nullptr;  // [rows]
  const int32_t* sums = nullptr;  // [rows]: of the codes
};

// The tile unit's part (kernels/gemm_tiles.h).
struct TilesW8A8 {
  TileUnit<int32_t> tiles;
  // 32 rows of activations from m0 on, missing ones as zeros, `count` chunks of 64 columns from
  // `chunk` on, into their part of a slab.
  void (*pack)(const W8A8Rows& rows, int64_t m0, int64_t chunk, int64_t count, uint8_t* slab);
  // 32 rows of weights, `row_bytes` apart, `n_count` of them there, `cols` columns, into a panel.
  // Asks for those at `next`.
  void (*decode)(const int8_t* rows, const int8_t* next, int64_t row_bytes, int64_t n_count,
                 int64_t cols, uint8_t* panel);
  // Scales totals and writes them to out[m0 + m, n0 + n] for m < m_count, n < n_count.
  void (*store)(const int32_t* totals, const W8A8Rows& rows, const float* weight_scales,
                const ProductOutput& output, int64_t m0, int64_t m_count, int64_t n0,
                int64_t n_count);
};

// Null where the processor has no tiles or the system refuses them.
const TilesW8A8* AmxW8A8();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_W8A8_H_
