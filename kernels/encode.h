// Encoders of the block formats: rows of floats to blocks. The bytes are the same on every target.
#ifndef NIBBLE_KERNELS_ENCODE_H_
#define NIBBLE_KERNELS_ENCODE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/format.h"

namespace nibble {

// Encodes rows of `cols` finite weights each, of at most LargestMagnitude(format), into
// FormatBytes(format, rows.size(), cols) bytes at `out`, of any alignment. `importance` is nullptr
// or weighs the errors of the `cols` columns (finite, >= 0). The format must be one that
// can_encode(). The bytes of a row do not depend on the rows beside it, but the searched formats
// come out fastest kBatchWeights weights at a time.
void EncodeRows(Format format, std::span<const float* const> rows, int64_t cols,
                const float* importance, std::byte* out);

inline constexpr int64_t kMaxBatchRows = 64;
inline constexpr int64_t kBatchWeights = 16384;  // a row or more, and in cache
constexpr int64_t BatchRows(int64_t cols) {
  return std::clamp(kBatchWeights / cols, int64_t{1}, kMaxBatchRows);
}

inline void EncodeRow(Format format, const float* row, int64_t cols, const float* importance,
                      std::byte* out) {
  EncodeRows(format, {&row, 1}, cols, importance, out);
}

// The largest magnitude that the format's scales can carry to a finite decoded weight.
float LargestMagnitude(Format format);

// Whether EncodeSearch, and not EncodeSimple, encodes a format: those whose scales are searched for
// (q2_K to q6_K, iq4_nl, iq4_xs), and q4_0, q4_1, q5_0, q5_1 where errors have an importance.
bool IsSearched(Format format, bool has_importance);

// The two families behind EncodeRows, with its arguments.
void EncodeSimple(Format format, const float* row, int64_t cols, std::byte* out);
void EncodeSearch(Format format, std::span<const float* const> rows, int64_t cols,
                  const float* importance, std::byte* out);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ENCODE_H_
