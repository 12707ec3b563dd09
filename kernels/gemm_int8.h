// Products of many activation rows with int8 activations, in vectors: for processors without tiles,
// and for as many rows as do not repay decoding for tiles.
//
// Sixteen weight rows of 32 columns are unpacked to bytes, which then stay in registers while the
// activation rows pass by: one integer dot product of four columns for sixteen rows after another,
// and the sum of a group is scaled and added to the rows' float sums.
#ifndef NIBBLE_KERNELS_GEMM_INT8_H_
#define NIBBLE_KERNELS_GEMM_INT8_H_

#include <span>

#include "kernels/gemv_blocks.h"
#include "kernels/gemv_int8.h"
#include "kernels/matmul.h"

namespace nibble {

// Whether weights of the format can be multiplied so: those that have a packed form.
bool HasGemmInt8(Format format);

// From so many activation rows on it pays to unpack weights once and to keep them in registers
// while activation rows pass by: packed ones, under the target in use, and canonical ones.
int64_t FewestGemmInt8Rows();
inline constexpr int64_t kFewestGemmInt8RowsOfBlocks = 8;

Status GemmInt8(std::span<const Product<PackedTiles>> products, const ParallelFor& parallel);
Status GemmInt8(std::span<const Product<BlockWeights>> products, const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_INT8_H_
