// Decoders of the block formats: blocks to rows of floats, to the bit as kernels/codec.h says.
#ifndef NIBBLE_KERNELS_DEQUANTIZE_H_
#define NIBBLE_KERNELS_DEQUANTIZE_H_

#include <cstddef>
#include <cstdint>

#include "nibble/format.h"

namespace nibble {

// Decodes `count` weights, a multiple of the format's block, from blocks of any alignment. The
// format must be one that can_decode().
void DecodeRow(Format format, const std::byte* blocks, int64_t count, float* out);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_DEQUANTIZE_H_
