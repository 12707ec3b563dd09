// The vectorised decoders on every target against the codecs, which codec_test compares with
// others.
#include "kernels/dequantize.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/convert.h"
#include "kernels/visit_codec.h"
#include "nibble/target.h"
#include "tests/targets.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

class DequantizeTest : public EveryTarget {};

// Every byte takes every value in the blocks, most scales are finite and some are not.
TEST_P(DequantizeTest, RowsAreThoseOfTheCodecToTheBit) {
  for (const FormatInfo& info : AllFormats()) {
    VisitCodec(info.format, [&](auto codec) {
      using Codec = decltype(codec);
      constexpr int kBlocks = 700;
      const int64_t count = int64_t{kBlocks} * Codec::kWeights;
      auto bytes = RandomBytes(7, kBlocks * sizeof(typename Codec::Block) + 1);
      std::vector<float> expected;
      for (size_t n = 0; n < kBlocks; ++n) {
        typename Codec::Block block;
        std::memcpy(&block, bytes.data() + 1 + n * sizeof(block), sizeof(block));
        for (int i = 0; i < Codec::kWeights; ++i) {
          expected.push_back(DecodeWeight<Codec>(block, i));
        }
      }
      std::vector<float> decoded(expected.size() + 1, 1234.5f);
      for (int shift = 1; shift >= 0; --shift) {  // an odd address, then an even one
        if (shift == 0) bytes.erase(bytes.begin());
        DecodeRow(info.format, bytes.data() + shift, count, decoded.data());
        for (size_t i = 0; i < expected.size(); ++i) {
          if (std::isnan(expected[i]) && std::isnan(decoded[i])) continue;
          ASSERT_EQ(std::bit_cast<uint32_t>(expected[i]), std::bit_cast<uint32_t>(decoded[i]))
              << info.name << " weight " << i % Codec::kWeights << " of block "
              << i / Codec::kWeights << ": " << expected[i] << " " << decoded[i];
        }
        ASSERT_EQ(decoded.back(), 1234.5f) << info.name << " wrote beyond its end";
      }
    });
  }
}

TEST_P(DequantizeTest, EveryHalfConvertsBothWays) {
  std::vector<uint16_t> codes(65536 + 3);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint16_t>(i);
  const int64_t count = static_cast<int64_t>(codes.size());
  std::vector<float> floats(codes.size());
  std::vector<uint16_t> back(codes.size());
  for (DType type : {DType::kF16, DType::kBF16}) {
    ConvertToFloat(type, codes.data(), count, floats.data());
    ConvertFromFloat(type, floats.data(), count, back.data());
    for (size_t i = 0; i < codes.size(); ++i) {
      const float x = type == DType::kF16 ? ToFloat(F16{codes[i]}) : ToFloat(BF16{codes[i]});
      if (std::isnan(x)) {
        ASSERT_TRUE(std::isnan(floats[i]));
        ASSERT_EQ(back[i], codes[i] | (type == DType::kF16 ? 0x200 : 0x40));
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(floats[i]), std::bit_cast<uint32_t>(x)) << i;
        ASSERT_EQ(back[i], codes[i]) << DTypeName(type);
      }
    }
  }
}

TEST_P(DequantizeTest, FloatsRoundAsTheScalarConversionsDo) {
  std::vector<float> x(100003);
  Random random(3);
  for (size_t i = 0; i < x.size(); ++i) {
    // All magnitudes, with low bits that often make a tie.
    const uint64_t u = random.Next();
    const uint32_t tie = (u >> 60) & 1 ? 0xFFFFF000u : 0xFFFF8000u;
    x[i] = std::bit_cast<float>(static_cast<uint32_t>(u) & ((u >> 61) & 1 ? tie : 0xFFFFFFFFu));
  }
  const int64_t count = static_cast<int64_t>(x.size());
  std::vector<uint16_t> out(x.size());
  ConvertFromFloat(DType::kF16, x.data(), count, out.data());
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i], ToF16(x[i]).bits) << x[i];
  ConvertFromFloat(DType::kBF16, x.data(), count, out.data());
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i], ToBF16(x[i]).bits) << x[i];
}

TEST_P(DequantizeTest, FindsTheFirstValueBeyondALimit) {
  for (int count : {1, 3, 16, 64, 65, 200}) {
    std::vector<float> x(static_cast<size_t>(count), 2.0f);
    EXPECT_EQ(FirstBeyond(x.data(), count, 2.0f), count);
    for (int i = count - 1; i >= 0; i -= 3) {
      const float bad[] = {NAN, INFINITY, -INFINITY, 2.5f, -2.5f};
      x[static_cast<size_t>(i)] = bad[i % 5];
      ASSERT_EQ(FirstBeyond(x.data(), count, 2.0f), i);
    }
  }
}

TEST_P(DequantizeTest, CopiesWhatLiesWithinALimitToAnyAddress) {
  constexpr std::byte kFill{0xA5};
  for (size_t to : {0u, 1u, 4u, 12u, 62u, 64u}) {
    for (int64_t count : {1, 3, 15, 16, 64, 65, 79, 200, 1003}) {
      const size_t bytes = static_cast<size_t>(count) * sizeof(float);
      std::vector<float> x(static_cast<size_t>(count) + 1);
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 5) - 2;
      std::vector<std::byte> out(to + bytes + 8, kFill);
      ASSERT_TRUE(StreamWithin(x.data() + 1, count, 2.0f, out.data() + to));
      EXPECT_EQ(std::memcmp(out.data() + to, x.data() + 1, bytes), 0) << count << " to " << to;
      for (size_t i = 0; i < out.size(); ++i) {
        if (i < to || i >= to + bytes) {
          EXPECT_EQ(out[i], kFill) << i;
        }
      }
      for (size_t bad = 1; bad < x.size(); bad += 3) {
        const float kept = std::exchange(x[bad], bad % 2 == 0 ? NAN : -2.5f);
        EXPECT_FALSE(StreamWithin(x.data() + 1, count, 2.0f, out.data() + to)) << bad;
        x[bad] = kept;
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(DequantizeTest);

}  // namespace
}  // namespace nibble
