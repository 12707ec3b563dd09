// Encoders of the block formats: rows of floats to blocks. The bytes are the same on every target.
#ifndef NIBBLE_KERNELS_ENCODE_H_
#define NIBBLE_KERNELS_ENCODE_H_

#include <cstddef>
#include <cstdint>

#include "nibble/format.h"

namespace nibble {

// Encodes one row of `cols` finite weights of at most LargestMagnitude(format) into
// FormatBytes(format, 1, cols) bytes at `out`, of any alignment. `importance` is nullptr or weighs
// the errors of the `cols` columns (finite, >= 0). The format must be one that can_encode().
void EncodeRow(Format format, const float* row, int64_t cols, const float* importance,
               std::byte* out);

// The largest magnitude that the format's scales can carry to a finite decoded weight.
float LargestMagnitude(Format format);

// Whether EncodeSearch, and not EncodeSimple, encodes a format: those whose scales are searched for
// (q2_K to q6_K, iq4_nl, iq4_xs), and q4_0, q4_1, q5_0, q5_1 where errors have an importance.
bool IsSearched(Format format, bool has_importance);

// The two families behind EncodeRow, with its arguments.
void EncodeSimple(Format format, const float* row, int64_t cols, std::byte* out);
void EncodeSearch(Format format, const float* row, int64_t cols, const float* importance,
                  std::byte* out);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ENCODE_H_
