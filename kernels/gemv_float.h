// Products of few activation rows with weights that are floats, f16 or bf16: read once, in streams.
#ifndef NIBBLE_KERNELS_GEMV_FLOAT_H_
#define NIBBLE_KERNELS_GEMV_FLOAT_H_

#include <span>

#include "kernels/gemv_blocks.h"
#include "kernels/matmul.h"

namespace nibble {

// Whether MatmulFloatRows takes weights of this format with the target in use.
bool HasGemvFloat(Format format);

// f32 products and sums of exactly decoded weights: the same promise as MatmulF32, for weights
// whose rows of numbers may lie at any address.
Status MatmulFloatRows(std::span<const Product<BlockWeights>> products,
                       const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMV_FLOAT_H_
