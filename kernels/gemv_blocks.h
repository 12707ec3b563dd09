// Products of few activation rows with canonical blocks: int8 activations, integer dots, bound by
// the speed at which the weights arrive from memory.
#ifndef NIBBLE_KERNELS_GEMV_BLOCKS_H_
#define NIBBLE_KERNELS_GEMV_BLOCKS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/code_order.h"
#include "kernels/matmul.h"
#include "nibble/format.h"

namespace nibble {

// Columns that the kernels take at a time: a super-block, or eight blocks of 32.
inline constexpr int kUnitCols = 256;

// Activation rows in int8, filled up with zeros to whole units: for each 32 columns
// scale = max|a| / 127 and codes = round(a / scale). Where one of 32 activations is not finite,
// their scale is NaN.
struct RoundedActivations {
  int64_t cols = 0;               // a multiple of kUnitCols
  int group = 32;                 // columns of one weight scale: 16 or 32
  const int8_t* codes = nullptr;  // [M, cols], within a unit in the kernel's order
  const float* scales = nullptr;  // [M, cols / group]
  const float* sums = nullptr;    // [M, cols / group]: scale * sum of the group's codes
};

// Activation rows that are multiplied with while weights are in the first-level cache.
inline constexpr int kMostGemvRows = 8;

// A weight row of each stream.
struct RowStreams {
  const std::byte* row[kStreams] = {};
  int count = 0;
  int64_t row_bytes = 0;
};

// The kernel of a format with the target in use.
struct BlockKernel {
  // out[m * kStreams + s] = activation row m0 + m times row s of the streams, for m < m_count.
  void (*multiply)(const RowStreams& streams, bool aligned, const RoundedActivations& a, int64_t m0,
                   int m_count, float* out) = nullptr;
  int group = 32;
  CodeOrder order = CodeOrder::kNatural;

  bool RoundsLike(const BlockKernel& other) const {
    return group == other.group && order == other.order;
  }
};

// Rows of canonical blocks, at any address.
struct BlockWeights {
  Format format;
  const std::byte* blocks;
  int64_t rows;
  int64_t cols;
};

// The number of activation rows is best kept below a dozen: each is multiplied with by itself.
// Unsupported for formats without blocks.
Status MatmulInt8Blocks(std::span<const Product<BlockWeights>> products,
                        const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMV_BLOCKS_H_
