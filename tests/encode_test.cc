// Encoders of the formats with one scale for a block: on every target the bytes of the scalar
// oracle, and those of the `gguf` package (tests/reference/gguf_vectors.py).
#include "kernels/encode.h"

#include "gtest/gtest.h"
#include "kernels/codec.h"
#include "kernels/encode_oracle.h"
#include "tests/targets.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

std::vector<std::byte> Encode(Format format, const std::vector<float>& x) {
  std::vector<std::byte> out(*FormatBytes(format, 1, static_cast<int64_t>(x.size())));
  EncodeRow(format, x.data(), static_cast<int64_t>(x.size()), nullptr, out.data());
  return out;
}

template <class Block>
std::vector<std::byte> OracleEncode(Format format, const std::vector<float>& x) {
  std::vector<std::byte> out;
  for (size_t i = 0; i < x.size(); i += GetFormatInfo(format).block_weights) {
    Block block;
    oracle::Encode(x.data() + i, block);
    const std::byte* bytes = reinterpret_cast<const std::byte*>(&block);
    out.insert(out.end(), bytes, bytes + sizeof(block));
  }
  return out;
}

class EncodeTest : public EveryTarget {};

TEST_P(EncodeTest, SimpleFormatsHaveTheBytesOfGguf) {
  const auto expected = ReadReference("gguf_vectors.json")["encode"];
  int compared = 0;
  for (const FormatInfo& info : AllFormats()) {
    for (const char* name : kCases) {
      const auto found = expected.find(std::string(info.name) + "/" + name);
      if (found == expected.end()) continue;
      EXPECT_EQ(Digest(Encode(info.format, CaseFloats(name))), *found) << info.name << " " << name;
      ++compared;
    }
  }
  EXPECT_EQ(compared, static_cast<int>(expected.size()));
}

TEST_P(EncodeTest, ActivationsHaveTheBytesOfGgml) {
  const auto expected = ReadReference("gguf_vectors.json")["activations"];
  ASSERT_EQ(expected.size(), 6u);
  for (const auto& [key, digest] : expected.items()) {
    const size_t slash = key.find('/');
    const FormatInfo* info = FindFormat(std::string_view(key).substr(0, slash));
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(Digest(Encode(info->format, CaseFloats(key.substr(slash + 1)))), digest) << key;
  }
}

// And decode to what was encoded, within half a step.
template <class Codec>
void ExpectRoundTrip(Format format) {
  const std::vector<float> x = CaseFloats("uniform");
  const std::vector<std::byte> bytes = Encode(format, x);
  for (size_t i = 0; i < x.size(); ++i) {
    typename Codec::Block block;
    std::memcpy(&block, bytes.data() + i / Codec::kWeights * sizeof(block), sizeof(block));
    const float step = std::fabs(Codec::Scale(block, 0));
    ASSERT_NEAR(DecodeWeight<Codec>(block, static_cast<int>(i % Codec::kWeights)), x[i],
                0.563f * step);  // half a step, and 127 steps of the 2^-11 that q8_1's scale rounds
  }
}

TEST_P(EncodeTest, ActivationsRoundTrip) {
  ExpectRoundTrip<CodecQ8_1>(Format::kQ8_1);
  ExpectRoundTrip<CodecQ8_K>(Format::kQ8_K);
}

template <class Block>
void ExpectOracleBytes(Format format) {
  for (const char* name : kCases) {
    EXPECT_EQ(Encode(format, CaseFloats(name)), OracleEncode<Block>(format, CaseFloats(name)))
        << GetFormatInfo(format).name << " " << name;
  }
  // Blocks around a single scale, so that more weights fall beside a boundary between codes.
  std::vector<float> x = CaseFloats("uniform");
  for (size_t i = 0; i < x.size(); ++i) {
    const float step = std::ldexp(1.0f, static_cast<int>(i / 256 % 24) - 12);
    x[i] = i % 256 == 0
               ? 127 * step
               : std::nextafter(std::round(x[i] * 2032) * 0.5f * step, i % 2 ? 1e9f : -1e9f);
  }
  EXPECT_EQ(Encode(format, x), OracleEncode<Block>(format, x)) << GetFormatInfo(format).name;
}

TEST_P(EncodeTest, EqualsTheOracle) {
  ExpectOracleBytes<F16>(Format::kF16);
  ExpectOracleBytes<BF16>(Format::kBF16);
  ExpectOracleBytes<BlockQ4_0>(Format::kQ4_0);
  ExpectOracleBytes<BlockQ4_1>(Format::kQ4_1);
  ExpectOracleBytes<BlockQ5_0>(Format::kQ5_0);
  ExpectOracleBytes<BlockQ5_1>(Format::kQ5_1);
  ExpectOracleBytes<BlockQ8_0>(Format::kQ8_0);
  ExpectOracleBytes<BlockQ8_1>(Format::kQ8_1);
  ExpectOracleBytes<BlockQ8_K>(Format::kQ8_K);
  ExpectOracleBytes<BlockTQ1_0>(Format::kTQ1_0);
  ExpectOracleBytes<BlockTQ2_0>(Format::kTQ2_0);
  ExpectOracleBytes<BlockMXFP4>(Format::kMXFP4);
}

NIBBLE_ON_EVERY_TARGET(EncodeTest);

}  // namespace
}  // namespace nibble
