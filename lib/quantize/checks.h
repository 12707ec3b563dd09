// What the quantizers ask of their arguments.
#ifndef NIBBLE_LIB_QUANTIZE_CHECKS_H_
#define NIBBLE_LIB_QUANTIZE_CHECKS_H_

#include <cstdint>
#include <span>

#include "nibble/dtype.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// A matrix that kernels may read or write: what CheckView asks, f32, f16 or bf16, in host memory.
Status CheckMatrix(const TensorView& view, const char* what);

// One finite value >= 0 for each of `cols` columns, or none at all.
Status CheckImportance(std::span<const float> importance, int64_t cols);

// Of f32, f16 or bf16.
float LargestFinite(DType t);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_CHECKS_H_
