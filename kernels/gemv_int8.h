// Products of few activation rows with packed weights: int8 activations, integer dots, bound by the
// speed at which the weights arrive from memory.
#ifndef NIBBLE_KERNELS_GEMV_INT8_H_
#define NIBBLE_KERNELS_GEMV_INT8_H_

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"
#include "nibble/format.h"

namespace nibble {

// Activation rows in int8: for each 32 columns scale = max|a| / 127 and codes = round(a / scale).
// A column of weights that is not finite where an activation is not makes the sum NaN.
struct Int8Activations {
  int64_t cols = 0;               // a multiple of 32
  const int8_t* codes = nullptr;  // [M, cols]
  const float* scales = nullptr;  // [M, cols / 32]
  // What each sum of 16 columns (the first of two, where groups are larger: of 32) begins with:
  // -offset * sum(codes), which takes the offset off the stored codes of the weights.
  const int32_t* starts = nullptr;  // [M, cols / 16]
  const float* sums = nullptr;      // [M, cols / 16]: scale * sum of 16 codes
};

// Tiles that are multiplied at once, each a stream of its own.
struct TileStreams {
  const std::byte* tile[kStreams] = {};
  int count = 0;
};

// Activation rows that a kernel may multiply with at once.
inline constexpr int kMostTileRows = 8;

// The kernel of a format with the target in use.
struct TilesKernel {
  // sums[(s * kMostTileRows + m) * 16 + r] = activation row m0 + m times row r of tile s, for m <
  // m_count <= most_rows. Of more than four activation rows it reads `most_rows`, which must exist.
  void (*multiply)(const TileStreams& tiles, const Int8Activations& a, int64_t m0, int64_t m_count,
                   float* sums) = nullptr;
  int64_t most_rows = 4;
  int group = 0;   // columns of a weight scale
  int offset = 0;  // what the bytes that are multiplied stand above the codes

  bool RoundsLike(const TilesKernel& other) const {
    return group == other.group && offset == other.offset;
  }
};

// Rounds one row. `group` is the number of columns that share a weight scale, `offset` what
// the kernel's bytes stand above the weights' codes.
void QuantizeActivations(const float* row, int64_t cols, int group, int offset, int8_t* codes,
                         float* scales, int32_t* starts, float* sums);

// Weights packed in tiles (kernels/pack_layout.h).
struct PackedTiles {
  Format format;
  const std::byte* tiles;
  int64_t rows;
  int64_t cols;
};

// Products of packed weights with int8 activations, for any M.
Status MatmulInt8(std::span<const Product<PackedTiles>> products, const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMV_INT8_H_
