// What the matrix products see of their operands, and the products themselves: no format, no
// scheme, only rows that decode.
#ifndef NIBBLE_KERNELS_MATMUL_H_
#define NIBBLE_KERNELS_MATMUL_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "nibble/parallel.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// A weight matrix [rows, cols] as rows that decode. Columns are asked for from multiples of `unit`,
// in multiples of `unit` or up to the end of the row.
struct WeightRows {
  // Decodes weights [col, col + count) of `row` exactly, to f32.
  using Decode = void (*)(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                          float* out);
  // The same rounded to bf16, in chunks of 32 weights (the last filled up with zeros), chunk i at
  // out + i * chunk_stride.
  using DecodeBf16 = void (*)(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                              uint16_t* out, int64_t chunk_stride);

  int64_t rows = 0;
  int64_t cols = 0;
  int64_t unit = 1;
  const void* source = nullptr;  // what the functions below read
  uint32_t kind = 0;
  Decode decode = nullptr;
  DecodeBf16 decode_bf16 = nullptr;

  // Where the codes lie: `tile_rows` rows together, column range after column range; row_bytes for
  // each row.
  const std::byte* codes = nullptr;
  int64_t row_bytes = 0;
  int64_t tile_rows = 1;
};

// Where a product goes: out[m, n] = (accumulate ? out[m, n] : 0) + product + bias[n].
struct ProductOutput {
  float* data = nullptr;
  int64_t row_stride = 0;       // in elements
  const float* bias = nullptr;  // by column, or null
  bool accumulate = false;

  float* Row(int64_t m) const { return data + m * row_stride; }
};

// Columns that all products take at a time: decoded weights of a block stay in the first-level
// cache and partial sums are added in the order of the blocks, so that results depend on no thread
// count.
inline constexpr int64_t kBlockCols = 512;

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return DivideUp(a, b) * b; }

// Rows that one task takes when `rows` are shared by `workers`, a multiple of `step` and at most
// `most`: a few tasks a worker even out what the machine's other work takes away.
inline int64_t RowsPerTask(int64_t rows, int64_t step, int64_t most, int workers) {
  const int64_t tasks = workers <= 1 ? 1 : 4 * static_cast<int64_t>(workers);
  return std::clamp(RoundUp(DivideUp(rows, tasks), step), step, RoundUp(most, step));
}

// f32 products of exactly decoded weights, on any machine. `activations` is f32, f16 or bf16.
Status MatmulF32(const TensorView& activations, const WeightRows& weights,
                 const ProductOutput& output, const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_MATMUL_H_
