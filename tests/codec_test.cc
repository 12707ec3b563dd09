// The codecs against what the `gguf` package and ggml decode (tests/reference/gguf_vectors.py).
#include "kernels/codec.h"

#include "gtest/gtest.h"
#include "kernels/visit_codec.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

template <class Codec>
std::vector<float> Decode(const std::vector<std::byte>& bytes) {
  std::vector<float> out;
  for (size_t at = 0; at + sizeof(typename Codec::Block) <= bytes.size();
       at += sizeof(typename Codec::Block)) {
    typename Codec::Block block;
    std::memcpy(&block, bytes.data() + at, sizeof(block));
    for (int i = 0; i < Codec::kWeights; ++i) out.push_back(DecodeWeight<Codec>(block, i));
  }
  return out;
}

TEST(CodecTest, EveryFormatDecodesRandomBytesAsGgufDoes) {
  const auto expected = ReadReference("gguf_vectors.json")["decode"];
  int formats = 0;
  for (const FormatInfo& info : AllFormats()) {
    formats += VisitCodec(info.format, [&](auto codec) {
      using Codec = decltype(codec);
      const auto bytes = RandomBytes(static_cast<uint64_t>(info.format), 512 * info.block_bytes);
      EXPECT_EQ(Digest(Decode<Codec>(bytes)), expected[LowerCase(info.name)]) << info.name;
      EXPECT_EQ(sizeof(typename Codec::Block), info.block_bytes);
      EXPECT_EQ(Codec::kWeights, static_cast<int>(info.block_weights));
    });
  }
  EXPECT_EQ(formats, static_cast<int>(expected.size()));
}

TEST(CodecTest, EveryFormatDecodesWhatGgmlQuantized) {
  const auto expected = ReadReference("gguf_vectors.json")["ggml"];
  const std::vector<float> original = CaseFloats("uniform", 512);
  for (const FormatInfo& info : AllFormats()) {
    VisitCodec(info.format, [&](auto codec) {
      const auto& entry = expected[LowerCase(info.name)];
      const std::vector<float> decoded =
          Decode<decltype(codec)>(FromHex(std::string(entry["bytes"])));
      ASSERT_EQ(decoded.size(), original.size());
      EXPECT_EQ(Digest(decoded), entry["floats"]) << info.name;
      // And it is indeed that matrix: a codec and a vector wrong in the same way would not be.
      double dot = 0, aa = 0, bb = 0;
      for (size_t i = 0; i < original.size(); ++i) {
        dot += static_cast<double>(original[i]) * decoded[i];
        aa += static_cast<double>(original[i]) * original[i];
        bb += static_cast<double>(decoded[i]) * decoded[i];
      }
      EXPECT_GT(dot / std::sqrt(aa * bb), 0.8) << info.name;
    });
  }
}

}  // namespace
}  // namespace nibble
