// Planar schemes where they may go wrong: degenerate groups, extreme values, refused arguments; and
// whether importance does what it is for.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/quantize/planar.h"
#include "nibble/quantize.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kInf = std::numeric_limits<float>::infinity();

const char* const kNames[] = {
    "int4 sym g8",          "int8 sym channel f16",   "int2 sym tensor bf16",
    "int4 asym g8",         "int8 asym tensor f16",   "int1 asym g8",
    "int3 asym g8 zf16",    "int8 asym channel zf32", "nf4 g8",
    "fp4 g8 f16",           "nf4 g8 double",          "f8_e4m3 tensor",
    "f8_e5m2 channel bf16", "int4 sym g8 f16",        "int5 asym g8 bf16"};

Scheme Parse(const std::string& name) { return *ParseScheme(name); }

Result<std::vector<float>> RoundTrip(const std::vector<float>& w, int64_t rows, const Scheme& s) {
  const int64_t cols = static_cast<int64_t>(w.size()) / rows;
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor q, Quantize(ViewOf(w.data(), rows, cols), s));
  std::vector<float> out(w.size());
  NIBBLE_RETURN_IF_ERROR(Dequantize(q, ViewOf(out.data(), rows, cols)));
  return out;
}

TEST(PlanarEdges, ZerosStayZero) {
  for (const char* name : kNames) {
    const auto out = RoundTrip(std::vector<float>(40, 0.0f), 2, Parse(name));
    ASSERT_TRUE(out.ok()) << name;
    for (const float x : *out) EXPECT_EQ(x, 0.0f) << name;
    // One group of zeros among others.
    std::vector<float> w(40, 1.0f);
    std::fill(w.begin() + 8, w.begin() + 16, -0.0f);
    const auto mixed = RoundTrip(w, 1, Parse(name));
    ASSERT_TRUE(mixed.ok()) << name;
    const Scheme s = Parse(name);
    if (s.double_quant) continue;  // its scales are approximate, zero is not
    for (size_t i = 8; i < 16; ++i) {
      EXPECT_EQ((*mixed)[i], 0.0f) << name;
    }
  }
}

TEST(PlanarEdges, ConstantGroupsAreExactUpToTheScale) {
  for (const float value : {3.0f, -3.0f, 0.1f, -1e-3f, 1000.0f}) {
    for (const char* name : kNames) {
      const Scheme s = Parse(name);
      const auto out = RoundTrip(std::vector<float>(24, value), 3, s);
      ASSERT_TRUE(out.ok()) << name;
      const float roundoff = s.scale_dtype == DType::kBF16  ? 0x1p-8f
                             : s.scale_dtype == DType::kF16 ? 0x1p-11f
                                                            : 0x1p-22f;
      const float scale_is_tiny =
          s.scale_dtype == DType::kF16 ? 255 * 0x1p-25f : 0.0f;  // subnormal
      for (const float x : *out) {
        EXPECT_NEAR(x, value, std::fabs(value) * roundoff * 1.001f + scale_is_tiny) << name;
      }
    }
  }
}

TEST(PlanarEdges, DenormalsAndTinyScalesStayWithinAStep) {
  std::vector<float> w;
  for (int i = -8; i < 8; ++i) w.push_back(static_cast<float>(i) * 0x1.8p-145f);  // denormal
  for (int i = -8; i < 8; ++i) w.push_back(static_cast<float>(i) * 0x1.7p-27f);  // below f16's unit
  for (const char* name : kNames) {
    const Scheme s = Parse(name);
    const auto q = Quantize(ViewOf(w.data(), 4, 8), s);
    ASSERT_TRUE(q.ok()) << name;
    const PlanarPlanes p = PlanesOf(*q);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 8; ++c) {
        const float x = w[static_cast<size_t>(8 * r + c)];
        const float decoded = DecodePlanarWeight(p, r, c);
        ASSERT_TRUE(std::isfinite(decoded)) << name;
        // Even where the scale's type is coarse, no weight is clipped: a step, at most, of integers
        // (half for symmetric ones); of codebooks, half their widest gap, which is below half a
        // scale.
        const float step = p.Scale(p.ScaleAt(r, p.Group(c)));
        if (s.double_quant || s.code == Code::kF8E4M3 || s.code == Code::kF8E5M2) continue;
        if (step < 1e-38f && s.code != Code::kUniform) continue;  // 1 / scale is bounded there
        const float bound = s.symmetric ? 0.5f : 1.0f;
        EXPECT_LE(std::fabs(decoded - x), step * bound * 1.0001f + 3e-45f) << name << " " << x;
      }
    }
  }
}

TEST(PlanarEdges, HugeValues) {
  const std::vector<float> w = {kMax, -kMax, kMax / 2, 0.0f, 1.0f, -kMax / 3, 1e30f, -1e-30f};
  for (const char* name : kNames) {
    const Scheme s = Parse(name);
    const auto out = RoundTrip(w, 1, s);
    // Where one step, or the maximum itself, is beyond the scale's type, that is an error.
    const bool too_large =
        s.scale_dtype == DType::kF16 || s.bits == 1 ||
        (s.scale_dtype == DType::kBF16 && s.code == Code::kUniform && s.bits == 2);
    if (too_large) {
      ASSERT_FALSE(out.ok()) << name;
      EXPECT_NE(out.status().message().find("is beyond what"), std::string::npos)
          << out.status().message();
      continue;
    }
    ASSERT_TRUE(out.ok()) << name << ": " << out.status().message();
    EXPECT_FALSE(std::isnan((*out)[0])) << name;
    if (s.bits == 8 && s.scale_dtype == DType::kF32 && s.symmetric) {
      EXPECT_NEAR((*out)[2] / kMax, 0.5f, 0.04f) << name;
      EXPECT_NEAR((*out)[5] / kMax, -1.0f / 3, 0.04f) << name;
    }
  }
}

TEST(PlanarEdges, OneSidedRanges) {
  std::vector<float> w;
  for (int i = 0; i < 16; ++i) w.push_back(100.0f + static_cast<float>(i));
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> x(w);
    for (float& v : x) v *= sign;
    // A real zero spends its 16 codes on the 16 values; an integer one on [0, 115].
    const auto real = RoundTrip(x, 1, Parse("int4 asym channel zf32"));
    const auto integer = RoundTrip(x, 1, Parse("int4 asym channel"));
    ASSERT_TRUE(real.ok() && integer.ok());
    for (size_t i = 0; i < 16; ++i) {
      EXPECT_NEAR((*real)[i], x[i], 1e-4f);
      EXPECT_NEAR((*integer)[i], x[i], 115.0f / 15 / 2 + 1e-4f);
    }
  }
  // Where a half-precision zero could not be told from its neighbours, the range takes in 0.
  std::vector<float> far(16, 10000.0f);
  far[3] = 10001.0f;
  const auto out = RoundTrip(far, 1, Parse("int8 asym channel zf16"));
  ASSERT_TRUE(out.ok());
  for (size_t i = 0; i < 16; ++i) EXPECT_NEAR((*out)[i], far[i], 10001.0f / 255 / 2 + 1);
}

TEST(PlanarEdges, NonFiniteWeightsAreNamedOrClamped) {
  ThreadPool pool(2);
  QuantizeOptions options;
  options.parallel = pool.parallel_for();
  for (const char* name : kNames) {
    for (const float bad : {std::nanf(""), kInf, -kInf}) {
      std::vector<float> w(3 * 21, 0.5f);
      w[2 * 21 + 20] = kInf;
      w[1 * 21 + 9] = bad;  // the first in the order of rows
      const auto q = Quantize(ViewOf(w.data(), 3, 21), Parse(name), options);
      ASSERT_FALSE(q.ok()) << name;
      EXPECT_EQ(q.status().code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(q.status().message(),
                std::string(std::isnan(bad) ? "NaN" : "infinity") + " at row 1, column 9");
    }
  }
  // Clamped: NaN is 0, infinity the largest of the input's type.
  const uint16_t halves[] = {0x7C00, 0xFC00, 0x7E00, 0x3C00};  // inf, -inf, NaN, 1
  QuantizeOptions clamp;
  clamp.non_finite = NonFinite::kClamp;
  const auto q = Quantize({halves, DType::kF16, 1, 4, 4}, Parse("int8 sym tensor"), clamp);
  ASSERT_TRUE(q.ok()) << q.status().message();
  const PlanarPlanes p = PlanesOf(*q);
  EXPECT_EQ(p.Scale(0), 65504.0f / 127);
  EXPECT_EQ(SignExtend(p.codes[0], 8), 127);
  EXPECT_EQ(SignExtend(p.codes[1], 8), -127);
  EXPECT_EQ(p.codes[2], 0);
}

TEST(PlanarEdges, ArgumentsAreRefused) {
  const std::vector<float> w(64, 1.0f);
  const TensorView view = ViewOf(w.data(), 2, 32);
  const Scheme int4 = Parse("int4 sym g16");
  const std::vector<float> table = {0.0f, 1.0f, 2.0f, 3.0f};
  const Scheme with_table = {.code = Code::kTable, .bits = 2, .group_size = 16};
  const auto refused = [](const Result<QuantizedTensor>& q) {
    return !q.ok() && !q.status().message().empty();
  };
  EXPECT_TRUE(refused(Quantize(view, Scheme{.bits = 9})));
  EXPECT_TRUE(refused(Quantize({nullptr, DType::kF32, 2, 32, 32}, int4)));
  EXPECT_TRUE(refused(Quantize({w.data(), DType::kI32, 2, 32, 32}, int4)));
  EXPECT_TRUE(refused(Quantize({w.data(), DType::kF32, 0, 32, 32}, int4)));
  EXPECT_TRUE(refused(Quantize(view, int4, {}, table)));
  EXPECT_TRUE(refused(Quantize(view, with_table)));
  EXPECT_TRUE(refused(Quantize(view, with_table, {}, std::vector<float>{0.0f, 1.0f, 1.0f, 2.0f})));
  EXPECT_TRUE(refused(Quantize(view, with_table, {}, std::vector<float>{0.0f, 1.0f, 2.0f, kInf})));
  EXPECT_TRUE(Quantize(view, with_table, {}, table).ok());
  const std::vector<float> importance(31, 1.0f), negative(32, -1.0f);
  EXPECT_TRUE(refused(Quantize(view, int4, {.importance = importance})));
  EXPECT_TRUE(refused(Quantize(view, int4, {.importance = negative})));
  std::vector<int32_t> index(32, 0);
  const Scheme indexed = Parse("int4 sym g16 act-order");
  EXPECT_TRUE(refused(Quantize(view, int4, {.group_index = index})));
  EXPECT_TRUE(refused(Quantize(view, indexed)));
  EXPECT_TRUE(Quantize(view, indexed, {.group_index = index}).ok());  // group 1 has no column
  for (const int32_t bad : {-1, 2, std::numeric_limits<int32_t>::max()}) {
    index[7] = bad;
    EXPECT_TRUE(refused(Quantize(view, indexed, {.group_index = index})));
  }
}

TEST(PlanarEdges, HostileGroupIndexIsRefusedWhenDecoding) {
  const std::vector<float> w(64, 1.0f);
  const std::vector<int32_t> index(32, 1);
  auto q =
      Quantize(ViewOf(w.data(), 2, 32), Parse("int4 sym g16 act-order"), {.group_index = index});
  ASSERT_TRUE(q.ok());
  std::vector<float> out(64);
  EXPECT_TRUE(Dequantize(*q, ViewOf(out.data(), 2, 32)).ok());
  const int32_t bad = 2;
  std::memcpy(q->plane(Plane::kGroupIndex).data() + 4 * 5, &bad, 4);
  const Status status = Dequantize(*q, ViewOf(out.data(), 2, 32));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("column 5"), std::string::npos) << status.message();
  EXPECT_FALSE(DequantizePlanar(*q, ViewOf(out.data(), 1, 64), {}).ok());
}

// --- Importance ----------------------------------------------------------------------------------

double WeightedError(const std::vector<float>& w, const std::vector<float>& importance,
                     const Scheme& s, bool use, const std::vector<float>& table) {
  const int64_t cols = static_cast<int64_t>(importance.size());
  const int64_t rows = static_cast<int64_t>(w.size()) / cols;
  QuantizeOptions options;
  if (use) options.importance = importance;
  const auto q = Quantize(ViewOf(w.data(), rows, cols), s, options, table);
  std::vector<float> out(w.size());
  EXPECT_TRUE(q.ok() && Dequantize(*q, ViewOf(out.data(), rows, cols)).ok());
  double sum = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double e = static_cast<double>(w[i]) - static_cast<double>(out[i]);
    sum += static_cast<double>(importance[i % importance.size()]) * e * e;
  }
  return sum;
}

TEST(PlanarImportance, LowersTheWeightedError) {
  const int64_t rows = 8, cols = 256;
  std::vector<float> w, importance;
  Random random(11);
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float u = static_cast<float>(random.Next() >> 40) * 0x1p-23f - 1.0f;
    w.push_back(u * std::fabs(u) + 0.1f);
  }
  for (int64_t c = 0; c < cols; ++c) {
    const float u = static_cast<float>(random.Next() >> 40) * 0x1p-24f;
    importance.push_back(u * u * u * 10.0f);
  }
  importance[17] = 0.0f;
  // The factor that each has to gain: what its search was seen to give, and some room.
  const struct {
    const char* name;
    double most;
  } cases[] = {
      {"int2 sym g64", 0.75},      {"int3 sym g64 f16", 0.75},  {"int4 sym g64 f16", 0.8},
      {"int8 sym channel", 0.999}, {"int2 asym g64 f16", 0.75}, {"int3 asym g64 zf16", 0.75},
      {"int4 asym g64 zf32", 0.8}, {"int4 asym channel", 0.95}, {"nf4 g64", 0.9},
      {"fp4 g64 f16", 0.9},        {"nf4 g64 double", 0.95},    {"table2 g64", 0.8}};
  for (const auto& c : cases) {
    const Scheme s = Parse(c.name);
    std::vector<float> table;
    if (s.code == Code::kTable) table = {-1.0f, -0.25f, 0.3f, 1.0f};
    const double plain = WeightedError(w, importance, s, false, table);
    const double searched = WeightedError(w, importance, s, true, table);
    EXPECT_LT(searched, c.most * plain) << c.name << " " << searched / plain;
  }
  // What the header says it leaves alone.
  for (const char* name : {"f8_e4m3 channel", "int4 sym tensor"}) {
    EXPECT_EQ(WeightedError(w, importance, Parse(name), true, {}),
              WeightedError(w, importance, Parse(name), false, {}));
  }
  // No importance at all: as without.
  const std::vector<float> none(static_cast<size_t>(cols), 0.0f);
  const Scheme s = Parse("int4 asym g32");
  const auto a = Quantize(ViewOf(w.data(), rows, cols), s, {.importance = none});
  const auto b = Quantize(ViewOf(w.data(), rows, cols), s);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_TRUE(std::ranges::equal(a->plane(Plane::kCodes).bytes(), b->plane(Plane::kCodes).bytes()));
}

}  // namespace
}  // namespace nibble
