// Rows of scalars to and from float, and the search for what cannot be quantized.
#ifndef NIBBLE_KERNELS_CONVERT_H_
#define NIBBLE_KERNELS_CONVERT_H_

#include <cstddef>
#include <cstdint>

#include "nibble/dtype.h"

namespace nibble {

// f32, f16 or bf16 to f32, exactly.
void ConvertToFloat(DType from, const void* in, int64_t count, float* out);

// f32 to f32, f16 or bf16, to nearest even.
void ConvertFromFloat(DType to, const float* in, int64_t count, void* out);

// out[i] = in[i], past the caches, to an address of any alignment: for copies that are not read at
// once. False, with some of it copied, where a value is NaN or larger than `limit` in magnitude.
bool StreamWithin(const float* in, int64_t count, float limit, std::byte* out);

// Index of the first value that is NaN or larger than `limit` in magnitude; `count` where none is.
int64_t FirstBeyond(const float* values, int64_t count, float limit);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CONVERT_H_
