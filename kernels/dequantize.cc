#include "kernels/dequantize.h"

#include <cstring>

#include "kernels/codec.h"
#include "kernels/convert.h"

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
    case Format::kQ4_0:
      return DecodeBlocks<CodecQ4_0>(blocks, count, out);
    case Format::kQ4_1:
      return DecodeBlocks<CodecQ4_1>(blocks, count, out);
    case Format::kQ5_0:
      return DecodeBlocks<CodecQ5_0>(blocks, count, out);
    case Format::kQ5_1:
      return DecodeBlocks<CodecQ5_1>(blocks, count, out);
    case Format::kQ8_0:
      return DecodeBlocks<CodecQ8_0>(blocks, count, out);
    case Format::kQ2_K:
      return DecodeBlocks<CodecQ2_K>(blocks, count, out);
    case Format::kQ3_K:
      return DecodeBlocks<CodecQ3_K>(blocks, count, out);
    case Format::kQ4_K:
      return DecodeBlocks<CodecQ4_K>(blocks, count, out);
    case Format::kQ5_K:
      return DecodeBlocks<CodecQ5_K>(blocks, count, out);
    case Format::kQ6_K:
      return DecodeBlocks<CodecQ6_K>(blocks, count, out);
    case Format::kIQ4_NL:
      return DecodeBlocks<CodecIQ4_NL>(blocks, count, out);
    case Format::kIQ4_XS:
      return DecodeBlocks<CodecIQ4_XS>(blocks, count, out);
    case Format::kMXFP4:
      return DecodeBlocks<CodecMXFP4>(blocks, count, out);
    case Format::kTQ1_0:
      return DecodeBlocks<CodecTQ1_0>(blocks, count, out);
    case Format::kTQ2_0:
      return DecodeBlocks<CodecTQ2_0>(blocks, count, out);
    default:
      return;
  }
}

}  // namespace nibble
