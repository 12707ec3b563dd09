#include "nibble/scheme.h"

#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/quantized_tensor.h"

namespace nibble {
namespace {

// Every scheme that CheckScheme admits, over the values of each property.
std::vector<Scheme> ValidSchemes() {
  std::vector<Scheme> schemes;
  for (const Code code :
       {Code::kUniform, Code::kNf4, Code::kFp4, Code::kF8E4M3, Code::kF8E5M2, Code::kTable}) {
    for (int bits = 1; bits <= 8; ++bits) {
      for (const bool symmetric : {true, false}) {
        for (const Granularity g :
             {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
          for (const DType scale : {DType::kF32, DType::kF16, DType::kBF16}) {
            for (const DType zero : {DType::kU8, DType::kF16, DType::kF32}) {
              for (int flags = 0; flags < 4; ++flags) {
                Scheme s;
                s.code = code;
                s.bits = static_cast<uint8_t>(bits);
                s.symmetric = symmetric;
                s.granularity = g;
                if (g == Granularity::kGroup) s.group_size = 48;
                s.scale_dtype = scale;
                if (symmetric && zero != DType::kU8) continue;
                s.zero_dtype = zero;
                s.double_quant = flags & 1;
                s.has_group_index = flags & 2;
                if (CheckScheme(s).ok()) schemes.push_back(s);
              }
            }
          }
        }
      }
    }
  }
  for (const int codebooks : {1, 2, 8}) {
    for (const int bits : {8, 16}) {
      for (const int vector : {8, 16, 32}) {
        for (const DType scale : {DType::kF32, DType::kF16, DType::kBF16}) {
          schemes.push_back({.code = Code::kAdditive,
                             .bits = static_cast<uint8_t>(bits),
                             .granularity = Granularity::kChannel,
                             .scale_dtype = scale,
                             .codebooks = static_cast<uint8_t>(codebooks),
                             .vector = static_cast<uint8_t>(vector)});
          EXPECT_TRUE(CheckScheme(schemes.back()).ok());
        }
      }
    }
  }
  return schemes;
}

TEST(Scheme, NamesRoundTrip) {
  const std::vector<Scheme> schemes = ValidSchemes();
  EXPECT_GT(schemes.size(), 400u);
  for (const Scheme& s : schemes) {
    const Result<Scheme> parsed = ParseScheme(SchemeName(s));
    ASSERT_TRUE(parsed.ok()) << SchemeName(s) << ": " << parsed.status().message();
    EXPECT_EQ(*parsed, s) << SchemeName(s);
  }
}

TEST(Scheme, NamesAreTheDocumentedOnes) {
  Scheme s;
  s.scale_dtype = DType::kF16;
  EXPECT_EQ(SchemeName(s), "int4 sym g64 f16");
  s = {.code = Code::kNf4, .double_quant = true};
  EXPECT_EQ(SchemeName(s), "nf4 g64 double");
  s = {.bits = 8, .symmetric = false, .granularity = Granularity::kChannel};
  EXPECT_EQ(SchemeName(s), "int8 asym channel");
  s = {.code = Code::kF8E4M3, .bits = 8, .granularity = Granularity::kTensor};
  EXPECT_EQ(SchemeName(s), "f8_e4m3 tensor");
  s = {.bits = 3,
       .symmetric = false,
       .group_size = 128,
       .zero_dtype = DType::kF16,
       .has_group_index = true};
  EXPECT_EQ(SchemeName(s), "int3 asym g128 zf16 act-order");
  s = {.code = Code::kAdditive,
       .bits = 8,
       .granularity = Granularity::kChannel,
       .scale_dtype = DType::kF16,
       .codebooks = 2,
       .vector = 8};
  EXPECT_EQ(SchemeName(s), "2x8g8 channel f16");
  EXPECT_EQ(*ParseScheme("F16 2x8G8"), s);
}

TEST(Scheme, ParsesAnyOrderAndCase) {
  const Result<Scheme> a = ParseScheme("  G128 F16 ASYM  INT4");
  ASSERT_TRUE(a.ok()) << a.status().message();
  const Scheme want = {
      .bits = 4, .symmetric = false, .group_size = 128, .scale_dtype = DType::kF16};
  EXPECT_EQ(*a, want);
}

TEST(Scheme, ParseRefuses) {
  for (const char* name : {"",
                           "g64",
                           "int4 int8",
                           "int9",
                           "int0",
                           "int4 sym asym",
                           "int4 g0",
                           "int4 g-3",
                           "int4 g",
                           "int4 g64x",
                           "int4 g99999999999",
                           "nf4 asym",
                           "f8_e4m3 double",
                           "int4 double",
                           "int1 sym",
                           "int4 tensor g64",
                           "int4 f16 f16",
                           "int4 sym zf16",
                           "nf4 tensor double",
                           "int4 channel act-order",
                           "nf4 double f16",
                           "table0",
                           "2x8",
                           "2x8g",
                           "2x8g8g8",
                           "x8g8",
                           "2x8g9",
                           "2x7g8",
                           "0x8g8",
                           "9x8g8",
                           "258x8g8",
                           "-2x8g8",
                           "2x8g8 g64",
                           "2x8g8 tensor",
                           "2x8g8 asym",
                           "2x8g8 double",
                           "2x8g8 1x8g8",
                           "banana"}) {
    const Result<Scheme> parsed = ParseScheme(name);
    EXPECT_FALSE(parsed.ok()) << name;
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(Scheme, CheckRefusesContradictions) {
  const auto refused = [](const Scheme& s) { return !CheckScheme(s).ok(); };
  EXPECT_TRUE(refused({.bits = 0}));
  EXPECT_TRUE(refused({.bits = 9}));
  EXPECT_TRUE(refused({.code = Code::kNf4, .bits = 3}));
  EXPECT_TRUE(refused({.code = Code::kF8E4M3, .bits = 4}));
  EXPECT_TRUE(refused({.code = static_cast<Code>(77)}));
  EXPECT_TRUE(refused({.granularity = static_cast<Granularity>(9)}));
  EXPECT_TRUE(refused({.scale_dtype = DType::kF8E4M3}));
  EXPECT_TRUE(refused({.symmetric = false, .zero_dtype = DType::kI32}));
  EXPECT_TRUE(CheckScheme({}).ok());
}

TEST(Scheme, PlaneBytesAreThoseOfTheLayout) {
  // 3 rows of 70 weights at 3 bits: ceil(210 / 8) = 27 bytes a row; groups of 32: 32 + 32 + 6.
  const Scheme s = {.bits = 3,
                    .symmetric = false,
                    .group_size = 32,
                    .scale_dtype = DType::kF16,
                    .zero_dtype = DType::kU8,
                    .has_group_index = true};
  EXPECT_EQ(GroupsPerRow(s, 70), 3);
  EXPECT_EQ(*PlaneBytes(s, Plane::kCodes, 3, 70), 81u);
  EXPECT_EQ(*PlaneBytes(s, Plane::kScales, 3, 70), 18u);
  EXPECT_EQ(*PlaneBytes(s, Plane::kZeros, 3, 70), 9u);
  EXPECT_EQ(*PlaneBytes(s, Plane::kGroupIndex, 3, 70), 280u);
  EXPECT_EQ(*PlaneBytes(s, Plane::kTable, 3, 70), 0u);
  EXPECT_EQ(*PlaneBytes(s, Plane::kSuperScales, 3, 70), 0u);
  EXPECT_DOUBLE_EQ(SchemeBitsPerWeight(s, 3, 70), 8.0 * (81 + 18 + 9 + 280) / 210);

  const Scheme nf4 = {.code = Code::kNf4, .double_quant = true};
  EXPECT_EQ(*PlaneBytes(nf4, Plane::kScales, 300, 64), 300u);
  EXPECT_EQ(*PlaneBytes(nf4, Plane::kSuperScales, 300, 64), 12u);  // two maxima and the mean
  const Scheme tensor = {.bits = 8, .granularity = Granularity::kTensor};
  EXPECT_EQ(*PlaneBytes(tensor, Plane::kScales, 300, 64), 4u);
  const Scheme table = {.code = Code::kTable, .bits = 5};
  EXPECT_EQ(*PlaneBytes(table, Plane::kTable, 1, 1), 128u);
}

TEST(Scheme, PlaneBytesCheckOverflow) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  const Scheme s = {.bits = 8,
                    .symmetric = false,
                    .group_size = 1,
                    .zero_dtype = DType::kF32,
                    .has_group_index = true};
  for (int p = 0; p < kPlaneCount; ++p) {
    const Plane plane = static_cast<Plane>(p);
    if (plane == Plane::kTable || plane == Plane::kSuperScales) continue;  // absent
    EXPECT_FALSE(PlaneBytes(s, plane, kMax, kMax).ok()) << p;
  }
  EXPECT_FALSE(PlaneBytes(s, Plane::kCodes, kMax / 2, 8).ok());
  EXPECT_FALSE(PlaneBytes(s, Plane::kCodes, 1, kMax).ok());
  EXPECT_FALSE(PlaneBytes(s, Plane::kScales, kMax / 2, 1).ok());
  const Scheme nf4 = {.code = Code::kNf4, .group_size = 1, .double_quant = true};
  EXPECT_FALSE(PlaneBytes(nf4, Plane::kSuperScales, kMax, kMax).ok());
  EXPECT_FALSE(PlaneBytes(s, Plane::kCodes, -1, 4).ok());
  EXPECT_FALSE(PlaneBytes({.bits = 0}, Plane::kCodes, 1, 4).ok());
}

}  // namespace
}  // namespace nibble
