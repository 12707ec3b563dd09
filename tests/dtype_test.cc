// Conversions of small floats: every code against arithmetic in double, every boundary between two
// codes, and the 8-bit floats against ml_dtypes (tests/reference/dtype_vectors.py).
#include "nibble/dtype.h"

#include <algorithm>
#include <limits>

#include "gtest/gtest.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

// A float type, described by numbers alone.
struct Type {
  int exponent_bits, mantissa_bits;
  bool has_infinity;  // all ones in the exponent mean infinity or NaN
  double largest;     // finite
  bool saturates;     // what lies beyond becomes the largest; else infinity
  float (*decode)(uint32_t code);
  uint32_t (*encode)(float x);

  int bits() const { return 1 + exponent_bits + mantissa_bits; }
  uint32_t sign() const { return 1u << (bits() - 1); }
};

const Type kHalf = {5,
                    10,
                    true,
                    65504,
                    false,
                    [](uint32_t c) { return ToFloat(F16{static_cast<uint16_t>(c)}); },
                    [](float x) { return uint32_t{ToF16(x).bits}; }};
const Type kBFloat = {8,
                      7,
                      true,
                      0x1.FEp127,
                      false,
                      [](uint32_t c) { return ToFloat(BF16{static_cast<uint16_t>(c)}); },
                      [](float x) { return uint32_t{ToBF16(x).bits}; }};
const Type kE4M3 = {4,
                    3,
                    false,
                    448,
                    true,
                    [](uint32_t c) { return F8E4M3ToFloat(static_cast<uint8_t>(c)); },
                    [](float x) { return uint32_t{FloatToF8E4M3(x)}; }};
const Type kE5M2 = {5,
                    2,
                    true,
                    57344,
                    true,
                    [](uint32_t c) { return F8E5M2ToFloat(static_cast<uint8_t>(c)); },
                    [](float x) { return uint32_t{FloatToF8E5M2(x)}; }};

// The value of a code by the definition; infinite or NaN where it is.
double Value(const Type& t, uint32_t code) {
  const uint32_t exponent = (code >> t.mantissa_bits) & ((1u << t.exponent_bits) - 1);
  const uint32_t mantissa = code & ((1u << t.mantissa_bits) - 1);
  const uint32_t all_ones = (1u << t.exponent_bits) - 1;
  const double sign = code & t.sign() ? -1 : 1;
  if (exponent == all_ones && t.has_infinity) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == all_ones && mantissa == (1u << t.mantissa_bits) - 1) return NAN;
  const int bias = (1 << (t.exponent_bits - 1)) - 1;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - t.mantissa_bits);
  return sign * std::ldexp(mantissa + (1u << t.mantissa_bits),
                           static_cast<int>(exponent) - bias - t.mantissa_bits);
}

// x rounded to the type's grid, halves to even, by arithmetic in double.
double Rounded(const Type& t, float x) {
  if (x == 0 || !std::isfinite(x))
    return t.saturates && std::isinf(x) ? std::copysign(t.largest, x) : x;
  const int bias = (1 << (t.exponent_bits - 1)) - 1;
  const int exponent = std::max(std::ilogb(x), 1 - bias);
  const double unit = std::ldexp(1.0, exponent - t.mantissa_bits);
  const double rounded = std::nearbyint(x / unit) * unit;
  if (std::fabs(rounded) <= t.largest) return rounded;
  return std::copysign(t.saturates ? t.largest : INFINITY, x);
}

class SmallFloatTest : public testing::TestWithParam<const Type*> {};

TEST_P(SmallFloatTest, EveryCodeHasItsValue) {
  const Type& t = *GetParam();
  for (uint32_t code = 0; code < 1u << t.bits(); ++code) {
    const double value = Value(t, code);
    const float decoded = t.decode(code);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(decoded)) << code;
      ASSERT_TRUE(std::isnan(t.decode(t.encode(decoded)))) << code;
      continue;
    }
    ASSERT_EQ(static_cast<double>(decoded), value) << code;
    ASSERT_EQ(std::signbit(decoded), std::signbit(value)) << code;
    const bool infinite = std::isinf(value);
    if (!(infinite && t.saturates)) {
      ASSERT_EQ(t.encode(decoded), code);
    }
  }
}

// Between two neighbouring codes: the middle, and the floats beside it.
TEST_P(SmallFloatTest, RoundsToNearestAndTiesToEven) {
  const Type& t = *GetParam();
  int checked = 0;
  for (uint32_t code = 0; code + 1 < t.sign(); ++code) {
    const double low = Value(t, code), high = Value(t, code + 1);
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(t.encode(middle), code + (code & 1)) << middle;
    ASSERT_EQ(t.encode(-middle), t.sign() | (code + (code & 1)));
    const float below = std::nextafterf(middle, 0), above = std::nextafterf(middle, INFINITY);
    ASSERT_EQ(t.encode(below), code) << below;
    ASSERT_EQ(t.encode(above), code + 1) << above;
    ++checked;
  }
  EXPECT_GE(checked, (1 << (t.bits() - 1)) - (1 << (t.mantissa_bits + 1)));
}

TEST_P(SmallFloatTest, AnyFloatRoundsAsInDouble) {
  const Type& t = *GetParam();
  Random random(11);
  for (int i = 0; i < 300000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(random.Next()));
    const float got = t.decode(t.encode(x));
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(got));
      continue;
    }
    ASSERT_EQ(static_cast<double>(got), Rounded(t, x)) << x;
    ASSERT_EQ(std::signbit(got), std::signbit(x)) << x;
  }
}

TEST_P(SmallFloatTest, BeyondTheLargest) {
  const Type& t = *GetParam();
  const float largest = static_cast<float>(t.largest);
  const float beyond = t.saturates ? largest : INFINITY;
  EXPECT_EQ(t.decode(t.encode(largest)), largest);
  for (float x : {std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(t.decode(t.encode(x)), beyond);
    EXPECT_EQ(t.decode(t.encode(-x)), -beyond);
  }
  // Half a unit over the largest is where infinity begins.
  const float unit = largest - static_cast<float>(Value(t, t.encode(largest) - 1));
  EXPECT_EQ(t.decode(t.encode(std::nextafterf(largest + unit / 2, 0))), largest);
  EXPECT_EQ(t.decode(t.encode(largest + unit / 2)), beyond);
}

const char* NameOf(const Type* t) {
  return t == &kHalf ? "f16" : t == &kBFloat ? "bf16" : t == &kE4M3 ? "f8_e4m3" : "f8_e5m2";
}
INSTANTIATE_TEST_SUITE_P(Types, SmallFloatTest, testing::Values(&kHalf, &kBFloat, &kE4M3, &kE5M2),
                         [](const auto& info) { return NameOf(info.param); });

TEST(DtypeTest, EightBitFloatsAreThoseOfMlDtypes) {
  const auto vectors = ReadReference("dtype_vectors.json");
  for (const Type* t : {&kE4M3, &kE5M2}) {
    const auto& expected = vectors[NameOf(t)];
    EXPECT_EQ(expected["largest"], t->largest);
    for (uint32_t code = 0; code < 256; ++code) {
      const float decoded = t->decode(code);
      if (expected["decode"][code].is_null()) {
        EXPECT_TRUE(std::isnan(decoded));
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(decoded), expected["decode"][code]) << code;
      }
    }
    uint32_t half = 0;
    for (const auto& run : expected["encode"]) {
      for (int n = 0; n < run[1]; ++n, ++half) {
        const float x = kHalf.decode(half);
        if (!std::isnan(x)) {
          ASSERT_EQ(t->encode(x), run[0]) << x;
        }
      }
    }
    EXPECT_EQ(half, 65536u);
  }
}

TEST(DtypeTest, SharedExponents) {
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(static_cast<double>(E8M0ToFloat(static_cast<uint8_t>(code))),
              std::ldexp(1.0, code - 127));
  }
  EXPECT_TRUE(std::isnan(E8M0ToFloat(255)));
}

TEST(DtypeTest, ConstantExpressions) {
  static_assert(ToF16(1.0f).bits == 0x3C00);
  static_assert(ToFloat(F16{0x0001}) == 0x1p-24f);
  static_assert(ToBF16(1.0f).bits == 0x3F80);
  static_assert(FloatToF8E4M3(1e9f) == 0x7E);
  static_assert(FloatToF8E5M2(-1e9f) == 0xFB);
}

}  // namespace
}  // namespace nibble
