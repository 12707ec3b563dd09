// Weights decoded to bf16, as WeightRows::decode_bf16.
#ifndef NIBBLE_KERNELS_PACK_BF16_H_
#define NIBBLE_KERNELS_PACK_BF16_H_

#include "kernels/matmul.h"
#include "nibble/format.h"

namespace nibble {

// For blocks of `format` at weights.source, aligned as their struct is. Null where the format has
// no such blocks: scalars decode by DecodeBf16ByFloat.
WeightRows::DecodeBf16 FindDecodeBf16(Format format);

// The same for packed tiles (kernels/pack_layout.h).
WeightRows::DecodeBf16 FindDecodePackedBf16(Format format);

// For any weights: through weights.decode.
void DecodeBf16ByFloat(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                       uint16_t* out, int64_t stride);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PACK_BF16_H_
