#include <cstring>

#include "kernels/encode.h"
#include "kernels/encode_oracle.h"

namespace nibble {
namespace {

template <class Block, int kWeights>
void EncodeBlocks(const float* row, int64_t cols, std::byte* out) {
  for (int64_t i = 0; i < cols; i += kWeights) {
    Block block;
    oracle::Encode(row + i, block);
    std::memcpy(out, &block, sizeof(block));
    out += sizeof(block);
  }
}

}  // namespace

void EncodeSimple(Format format, const float* row, int64_t cols, std::byte* out) {
  switch (format) {
    case Format::kF32:
      return EncodeBlocks<float, 1>(row, cols, out);
    case Format::kF16:
      return EncodeBlocks<F16, 1>(row, cols, out);
    case Format::kBF16:
      return EncodeBlocks<BF16, 1>(row, cols, out);
    case Format::kQ4_0:
      return EncodeBlocks<BlockQ4_0, 32>(row, cols, out);
    case Format::kQ4_1:
      return EncodeBlocks<BlockQ4_1, 32>(row, cols, out);
    case Format::kQ5_0:
      return EncodeBlocks<BlockQ5_0, 32>(row, cols, out);
    case Format::kQ5_1:
      return EncodeBlocks<BlockQ5_1, 32>(row, cols, out);
    case Format::kQ8_0:
      return EncodeBlocks<BlockQ8_0, 32>(row, cols, out);
    case Format::kTQ1_0:
      return EncodeBlocks<BlockTQ1_0, 256>(row, cols, out);
    case Format::kTQ2_0:
      return EncodeBlocks<BlockTQ2_0, 256>(row, cols, out);
    case Format::kMXFP4:
      return EncodeBlocks<BlockMXFP4, 32>(row, cols, out);
    default:
      return;
  }
}

}  // namespace nibble
