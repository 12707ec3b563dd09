// Products of few activation rows with canonical blocks: int8 activations, integer dots, bound by
// the speed at which the weights arrive from memory.
#ifndef NIBBLE_KERNELS_GEMV_BLOCKS_H_
#define NIBBLE_KERNELS_GEMV_BLOCKS_H_

#include <cstddef>
#include <cstdint>

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
  const int8_t* codes = nullptr;  // [M, cols]
  const float* scales = nullptr;  // [M, cols / group]
  const float* sums = nullptr;    // [M, cols / group]: scale * sum of the group's codes
};

// Weight rows that are multiplied at once, each a stream from a quarter of its own: memory delivers
// four streams half as fast again as one, whose prefetchers start anew on every page.
inline constexpr int kStreams = 4;

// Activation rows that are multiplied with while weights are in the first-level cache.
inline constexpr int kMostGemvRows = 8;

// A weight row of each stream.
struct RowStreams {
  const std::byte* row[kStreams] = {};
  int count = 0;
  int64_t row_bytes = 0;
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
