#include "kernels/dequantize.h"

#include <cstring>

#include "kernels/convert.h"
#include "kernels/visit_codec.h"

namespace nibble {
namespace {

template <class Codec>
void DecodeBlocks(const std::byte* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += Codec::kWeights) {
    typename Codec::Block block;
    std::memcpy(&block, blocks, sizeof(block));
    blocks += sizeof(block);
    for (int j = 0; j < Codec::kWeights; ++j) out[i + j] = DecodeWeight<Codec>(block, j);
  }
}

}  // namespace

void DecodeRow(Format format, const std::byte* blocks, int64_t count, float* out) {
  switch (format) {
    case Format::kF32:
      return ConvertToFloat(DType::kF32, blocks, count, out);
    case Format::kF16:
      return ConvertToFloat(DType::kF16, blocks, count, out);
    case Format::kBF16:
      return ConvertToFloat(DType::kBF16, blocks, count, out);
    default:
      VisitCodec(format, [&](auto codec) { DecodeBlocks<decltype(codec)>(blocks, count, out); });
  }
}

}  // namespace nibble
