// What the matrix products see of their operands, and the products themselves: no format, no
// scheme, only rows that decode.
#ifndef NIBBLE_KERNELS_MATMUL_H_
#define NIBBLE_KERNELS_MATMUL_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/parallel.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// Columns that all products take at a time: decoded weights of a block stay in the first-level
// cache and partial sums are added in the order of the blocks, so that results depend on no thread
// count.
inline constexpr int64_t kBlockCols = 512;
inline constexpr int64_t kPieceCols = 128;

// A weight matrix [rows, cols] as rows that decode. Columns are asked for from multiples of `unit`,
// in multiples of `unit` or up to the end of the row.
struct WeightRows {
  // Decodes weights [col, col + count) of `row` exactly, to f32.
  using Decode = void (*)(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                          float* out);
  // The same rounded to bf16, for `tile_rows` rows from a multiple of it on: chunk c of 32 columns
  // of row r at out + c * stride + r * 32, the last filled up with zeros; or, where column_pairs,
  // of 16 rows each pair of columns of one row after another: (k, k + 1) of row r at
  // out + c * stride + k % 32 * 16 + 2 * r. `count` is at most kBlockCols. Rows beyond the last are
  // zeros.
  using DecodeBf16 = void (*)(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                              uint16_t* out, int64_t stride);

  int64_t rows = 0;
  int64_t cols = 0;
  int64_t unit = 1;
  const void* source = nullptr;  // what the functions below read
  uint32_t kind = 0;
  Decode decode = nullptr;
  DecodeBf16 decode_bf16 = nullptr;
  bool column_pairs = false;
  int64_t piece_cols = kPieceCols;  // that decode_bf16 does best at a time, at most kBlockCols

  // Where the codes lie: `tile_rows` rows together, column range after column range; row_bytes for
  // each row. None: not to be asked for ahead.
  const std::byte* codes = nullptr;
  int64_t row_bytes = 0;
  int64_t tile_rows = 1;  // divides 16
};

// The activation rows (f32, f16 or bf16) of a product: those of a matrix, or some of them.
struct ActivationRows {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_bytes = 0;
  const int32_t* index = nullptr;  // the matrix's row for each of `rows`, or null: row by row

  const void* Row(int64_t m) const { return data + (index ? index[m] : m) * row_bytes; }
  friend bool operator==(const ActivationRows&, const ActivationRows&) = default;
};

// Where a product goes: out[m, n] = (accumulate ? out[m, n] : 0) + product + bias[n].
struct ProductOutput {
  float* data = nullptr;
  int64_t row_stride = 0;       // in elements
  const float* bias = nullptr;  // by column, or null
  bool accumulate = false;

  float* Row(int64_t m) const { return data + m * row_stride; }

  // The product of activation row m and weight row n arrives.
  void Put(int64_t m, int64_t n, float product) const {
    if (bias != nullptr) product += bias[n];
    float& out = Row(m)[n];
    out = accumulate ? out + product : product;
  }
};

// One product of a group. Kernels convert activations once for neighbours that have the same, and
// run the tasks of all products in one loop.
template <class Weights>
struct Product {
  ActivationRows activations;
  Weights weights;
  ProductOutput output;
};

// Whether product i uses what product i - 1 made of its activations.
template <class Weights>
bool SharesActivations(std::span<const Product<Weights>> products, size_t i) {
  return i > 0 && products[i].activations == products[i - 1].activations;
}

// Tasks of several products, numbered through.
class TaskList {
 public:
  void Add(int64_t count) { ends_.push_back(count + this->count()); }
  int64_t count() const { return ends_.empty() ? 0 : ends_.back(); }

  struct Place {
    size_t product;
    int64_t task;  // of that product
  };
  Place At(int64_t index) const {
    const auto it = std::upper_bound(ends_.begin(), ends_.end(), index);
    return {static_cast<size_t>(it - ends_.begin()), it == ends_.begin() ? index : index - it[-1]};
  }

 private:
  std::vector<int64_t> ends_;
};

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return DivideUp(a, b) * b; }

// Rows that one task takes when `rows` are shared by `workers`, a multiple of `step` and at most
// `most`: a few tasks a worker even out what the machine's other work takes away.
inline int64_t RowsPerTask(int64_t rows, int64_t step, int64_t most, int workers) {
  const int64_t tasks = workers <= 1 ? 1 : 4 * static_cast<int64_t>(workers);
  return std::clamp(RoundUp(DivideUp(rows, tasks), step), step, RoundUp(most, step));
}

// Weight rows (or tiles of rows) that products of few activation rows read at once, each from a
// quarter of its own: memory delivers four streams half as fast again as one, whose prefetchers
// start anew on every page.
inline constexpr int kStreams = 4;

// Calls function(product, items, count) with up to kStreams numbers of one product's items(product)
// rows or tiles until each was given once.
template <class Items, class Function>
void ForStreams(size_t products, const Items& items, const ParallelFor& parallel,
                const Function& function) {
  int64_t all = 0;
  for (size_t i = 0; i < products; ++i) all += items(i);
  const int64_t share = RowsPerTask(all, kStreams, all, parallel.workers);
  TaskList tasks;
  for (size_t i = 0; i < products; ++i) tasks.Add(DivideUp(items(i), share));
  parallel(tasks.count(), [&](int64_t index, int) {
    const auto [product, task] = tasks.At(index);
    const int64_t first = task * share, last = std::min(items(product), first + share);
    const int64_t quarter = DivideUp(last - first, kStreams);
    for (int64_t i = first; i < first + quarter; ++i) {
      int64_t streams[kStreams] = {};
      int count = 0;
      for (int64_t item = i; item < last; item += quarter) streams[count++] = item;
      function(product, streams, count);
    }
  });
}

// f32 products of exactly decoded weights, on any machine.
Status MatmulF32(std::span<const Product<WeightRows>> products, const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_MATMUL_H_
