#include "kernels/encode.h"

#include <limits>

namespace nibble {

bool IsSearched(Format format, bool has_importance) {
  switch (format) {
    case Format::kQ2_K:
    case Format::kQ3_K:
    case Format::kQ4_K:
    case Format::kQ5_K:
    case Format::kQ6_K:
    case Format::kIQ4_NL:
    case Format::kIQ4_XS:
      return true;
    case Format::kQ4_0:
    case Format::kQ4_1:
    case Format::kQ5_0:
    case Format::kQ5_1:
      return has_importance;
    default:
      return false;
  }
}

float LargestMagnitude(Format format) {
  switch (format) {
    case Format::kF32:
      return std::numeric_limits<float>::max();
    case Format::kMXFP4:
      return 0x1.8p127f;  // the codebook's largest value is 1.5 times a power of two
    case Format::kBF16:
      return ToFloat(BF16{0x7F7F});
    default:
      return ToFloat(F16{0x7BFF});  // a half-precision scale, minimum or value
  }
}

void EncodeRows(Format format, std::span<const float* const> rows, int64_t cols,
                const float* importance, std::byte* out) {
  if (IsSearched(format, importance != nullptr)) {
    return EncodeSearch(format, rows, cols, importance, out);
  }
  const FormatInfo& info = GetFormatInfo(format);
  for (const float* row : rows) {
    EncodeSimple(format, row, cols, out);
    out += static_cast<size_t>(cols / info.block_weights) * info.block_bytes;
  }
}

}  // namespace nibble
