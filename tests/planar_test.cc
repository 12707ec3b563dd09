// Planar schemes through the public API: definitions, bounds on the error, edges, refusals.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/pack_planar.h"
#include "lib/quantize/planar.h"
#include "nibble/quantize.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();

Scheme Parse(const std::string& name) {
  const Result<Scheme> scheme = ParseScheme(name);
  EXPECT_TRUE(scheme.ok()) << scheme.status().message();
  return *scheme;
}

// Ascending values, denser around zero, that do not reach as far below it as above.
std::vector<float> Table(const Scheme& s) {
  if (s.code != Code::kTable) return {};
  std::vector<float> table(size_t{1} << s.bits);
  for (size_t i = 0; i < table.size(); ++i) {
    const float t = 1.8f * static_cast<float>(i) / static_cast<float>(table.size() - 1) - 0.8f;
    table[i] = t * std::fabs(t) * 3.0f;
  }
  return table;
}

QuantizedTensor MustQuantize(const std::vector<float>& w, int64_t rows, int64_t cols,
                             const Scheme& s, const QuantizeOptions& options = {}) {
  const auto q = Quantize(ViewOf(w.data(), rows, cols), s, options, Table(s));
  EXPECT_TRUE(q.ok()) << SchemeName(s) << ": " << q.status().message();
  return *q;
}

std::vector<float> MustDequantize(const QuantizedTensor& q, const ParallelFor& parallel = {}) {
  std::vector<float> out(static_cast<size_t>(q.rows() * q.cols()));
  const Status status = Dequantize(q, ViewOf(out.data(), q.rows(), q.cols()), parallel);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

uint32_t CodeAt(const QuantizedTensor& q, int64_t row, int64_t col) {
  const PlanarPlanes p = PlanesOf(q);
  const int bits = p.scheme.bits;
  return PlanarCode(p.codes + row * PlanarRowBytes(bits, p.cols), bits, col);
}

std::vector<int> Codes(const QuantizedTensor& q) {
  std::vector<int> codes;
  for (int64_t r = 0; r < q.rows(); ++r) {
    for (int64_t c = 0; c < q.cols(); ++c) {
      const uint32_t code = CodeAt(q, r, c);
      const bool is_signed = q.scheme().code == Code::kUniform && q.scheme().symmetric;
      codes.push_back(is_signed ? SignExtend(code, q.scheme().bits) : static_cast<int>(code));
    }
  }
  return codes;
}

bool SameBytes(const QuantizedTensor& a, const QuantizedTensor& b) {
  for (int p = 0; p < kPlaneCount; ++p) {
    const auto x = a.plane(static_cast<Plane>(p)).bytes();
    const auto y = b.plane(static_cast<Plane>(p)).bytes();
    if (!std::equal(x.begin(), x.end(), y.begin(), y.end())) return false;
  }
  return true;
}

// Normally distributed, about: the sum of four uniform numbers, with rows of different size.
std::vector<float> Weights(int64_t rows, int64_t cols, uint64_t seed) {
  std::vector<float> w(static_cast<size_t>(rows * cols));
  Random random(seed);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const uint64_t u = random.Next();
      int sum = -2 * 65535;
      for (int k = 0; k < 4; ++k) sum += static_cast<int>(u >> (16 * k) & 65535);
      w[static_cast<size_t>(r * cols + c)] =
          static_cast<float>(sum) * 0x1p-16f * static_cast<float>(1 + r % 5) + 0.01f;
    }
  }
  return w;
}

// Relative error of rounding a scale to its type.
double Roundoff(DType t) {
  return t == DType::kF16 ? 0x1p-11 : t == DType::kBF16 ? 0x1p-8 : 0x1p-24;
}

// The largest error that a weight may have under a scale and zero, derived from the code's step.
double Bound(const PlanarPlanes& p, int64_t row, int64_t col, float x) {
  const Scheme& s = p.scheme;
  const double scale = p.Scale(p.ScaleAt(row, p.Group(col)));
  // Division, product and comparison in float: three roundings of numbers like x.
  const double floats = 3 * 0x1p-24 * std::fabs(x) + 1.5e-45;
  switch (s.code) {
    case Code::kUniform: {
      // Half a step; at the ends of the range, by how much the stored scale and zero missed it.
      const double missed = MaxCode(s) * Roundoff(s.scale_dtype);
      const double zero = s.symmetric                   ? 0.0
                          : s.zero_dtype == DType::kU8  ? 0.5
                          : s.zero_dtype == DType::kF16 ? 0.25
                                                        : 0x1p-10;
      return scale * std::max(0.5 + 0x1p-15, missed + zero) + floats;
    }
    case Code::kF8E4M3:  // half a unit in the last of 3 bits; half the subnormal unit 2^-9
      return std::max(std::fabs(x) * 0x1p-4 * (1 + 0x1p-3), scale * 0x1p-10) + floats;
    case Code::kF8E5M2:
      return std::max(std::fabs(x) * 0x1p-3 * (1 + 0x1p-2), scale * 0x1p-17) + floats;
    default: {
      // No other value of the codebook is nearer.
      double nearest = std::numeric_limits<double>::infinity();
      for (uint32_t q = 0; q < 1u << s.bits; ++q) {
        const double value = static_cast<double>(CodeValue(s, q, p.table));
        nearest = std::min(nearest, std::fabs(static_cast<double>(x) - scale * value));
      }
      return nearest + floats + scale * 0x1p-22;
    }
  }
}

std::vector<Scheme> Schemes() {
  std::vector<Scheme> schemes;
  std::vector<std::string> codes = {"nf4", "fp4", "f8_e4m3", "f8_e5m2", "table3", "table6"};
  for (int b = 1; b <= 8; ++b) {
    if (b > 1) codes.push_back("int" + std::to_string(b) + " sym");
    for (const char* zero : {"zu8", "zf16", "zf32"}) {
      codes.push_back("int" + std::to_string(b) + " asym " + zero);
    }
  }
  for (const std::string& code : codes) {
    for (const char* granularity : {"tensor", "channel", "g32", "g64", "g128", "g256", "g7"}) {
      for (const char* scale : {"f32", "f16", "bf16"}) {
        schemes.push_back(Parse(code + " " + granularity + " " + scale));
      }
    }
  }
  return schemes;
}

TEST(Planar, ErrorStaysWithinHalfAStepOfTheStoredScale) {
  const struct { int64_t rows, cols; } shapes[] = {{1, 1}, {1, 7}, {3, 70}, {2, 261}, {7, 1}};
  for (const Scheme& s : Schemes()) {
    for (const auto [rows, cols] : shapes) {
      const std::vector<float> w = Weights(rows, cols, static_cast<uint64_t>(cols));
      const QuantizedTensor q = MustQuantize(w, rows, cols, s);
      const std::vector<float> decoded = MustDequantize(q);
      const PlanarPlanes p = PlanesOf(q);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const size_t i = static_cast<size_t>(r * cols + c);
          ASSERT_EQ(std::bit_cast<uint32_t>(decoded[i]),
                    std::bit_cast<uint32_t>(DecodePlanarWeight(p, r, c)))
              << SchemeName(s) << " at " << r << ", " << c;
          ASSERT_LE(std::fabs(static_cast<double>(w[i]) - static_cast<double>(decoded[i])),
                    Bound(p, r, c, w[i]))
              << SchemeName(s) << ", " << rows << " x " << cols << ", at " << r << ", " << c;
        }
      }
    }
  }
}

TEST(Planar, LongRowsInSeveralSpans) {
  for (const char* name : {"int3 asym g96 f16", "int8 sym channel", "int5 asym tensor", "nf4 g64",
                           "nf4 g64 double", "f8_e4m3 channel bf16", "int2 sym g9000"}) {
    const Scheme s = Parse(name);
    const int64_t rows = 2, cols = 9001;
    const std::vector<float> w = Weights(rows, cols, 5);
    const QuantizedTensor q = MustQuantize(w, rows, cols, s);
    const std::vector<float> decoded = MustDequantize(q);
    const PlanarPlanes p = PlanesOf(q);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const size_t i = static_cast<size_t>(r * cols + c);
        ASSERT_EQ(decoded[i], DecodePlanarWeight(p, r, c)) << name;
        if (s.double_quant) continue;  // codes follow the scale before it was quantized
        ASSERT_LE(std::fabs(w[i] - decoded[i]), Bound(p, r, c, w[i])) << name << " " << c;
      }
    }
  }
}

// What products with bf16 tiles decode, column range after column range.
TEST(Planar, DecodesToTheNearestBf16) {
  const int64_t rows = 2, cols = 1100;
  std::vector<Scheme> schemes = Schemes();
  schemes.push_back(Parse("nf4 g64 double"));
  for (const Scheme& s : schemes) {
    const QuantizedTensor q = MustQuantize(Weights(rows, cols, 8), rows, cols, s);
    const PlanarPlanes p = PlanesOf(q);
    const PlanarRows planar(p);
    const WeightRows weights = planar.rows();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t col = 0; col < cols; col += kBlockCols) {
        const int64_t count = std::min(kBlockCols, cols - col), padded = RoundUp(count, 32);
        std::vector<uint16_t> decoded(static_cast<size_t>(padded), 0xFFFF);
        weights.decode_bf16(weights, r, col, count, decoded.data(), 32);
        for (int64_t c = 0; c < padded; ++c) {
          const float exact = c < count ? DecodePlanarWeight(p, r, col + c) : 0;
          const float found = ToFloat(BF16{decoded[static_cast<size_t>(c)]});
          // Instructions that round to bf16 make zeros of subnormal numbers.
          if (std::fabs(exact) < std::numeric_limits<float>::min() && found == 0) continue;
          ASSERT_EQ(found, ToFloat(ToBF16(exact))) << SchemeName(s) << " at " << col + c;
        }
      }
    }
  }
}

TEST(Planar, AbsmaxFollowsItsDefinition) {
  // q = round(x / 127 * 127): the step is 1; ties go to the even code.
  const std::vector<float> w = {127.0f, -127.0f, 0.5f,   1.5f,   2.5f,
                                -0.5f,  -2.5f,   63.49f, 63.51f, -0.0f};
  const QuantizedTensor q = MustQuantize(w, 1, 10, Parse("int8 sym tensor"));
  EXPECT_EQ(PlanesOf(q).Scale(0), 1.0f);
  EXPECT_EQ(Codes(q), (std::vector<int>{127, -127, 0, 2, 2, 0, -2, 63, 64, 0}));
  // Three bits: codes in [-3, 3].
  const QuantizedTensor q3 =
      MustQuantize({6.0f, -6.0f, 1.0f, 3.0f, -2.9f}, 1, 5, Parse("int3 sym g5"));
  EXPECT_EQ(PlanesOf(q3).Scale(0), 2.0f);
  EXPECT_EQ(Codes(q3), (std::vector<int>{3, -3, 0, 2, -1}));
}

TEST(Planar, ZeroPointFollowsItsDefinition) {
  // q = round((x - min) / (max - min) * 15): min -2, max 5.5, so the step is 0.5 and the zero 4.
  const std::vector<float> w = {-2.0f, 5.5f, 0.0f, 0.25f, 0.75f, 3.1f};
  for (const char* zero : {"zu8", "zf16", "zf32"}) {
    const QuantizedTensor q =
        MustQuantize(w, 1, 6, Parse(std::string("int4 asym channel ") + zero));
    EXPECT_EQ(PlanesOf(q).Scale(0), 0.5f);
    EXPECT_EQ(PlanesOf(q).Zero(0), 4.0f);
    EXPECT_EQ(Codes(q), (std::vector<int>{0, 15, 4, 4, 6, 10}));
  }
  // Away from zero a real zero keeps the step; an integer one has to widen the range to hold 0.
  const std::vector<float> high = {10.0f, 11.5f, 10.5f};
  const QuantizedTensor real = MustQuantize(high, 1, 3, Parse("int4 asym channel zf32"));
  EXPECT_NEAR(PlanesOf(real).Scale(0), 0.1f, 1e-8f);
  EXPECT_EQ(Codes(real), (std::vector<int>{0, 15, 5}));
  const QuantizedTensor integer = MustQuantize(high, 1, 3, Parse("int4 asym channel"));
  EXPECT_EQ(PlanesOf(integer).Scale(0), 11.5f / 15);
  EXPECT_EQ(PlanesOf(integer).Zero(0), 0.0f);
  EXPECT_EQ(Codes(integer), (std::vector<int>{13, 15, 14}));
}

TEST(Planar, CodebooksFollowTheirDefinition) {
  const QuantizedTensor nf4 =
      MustQuantize({2.0f, -2.0f, 0.0f, 0.16f, 0.14f, -1.3f}, 1, 6, Parse("nf4 g64"));
  EXPECT_EQ(PlanesOf(nf4).Scale(0), 2.0f);
  EXPECT_EQ(Codes(nf4), (std::vector<int>{15, 0, 7, 8, 8, 1}));
  EXPECT_EQ(MustDequantize(nf4)[3], 2.0f * 0.07958029955625534f);
  const QuantizedTensor f8 =
      MustQuantize({448.0f, -1.0f, 0.0f, 17.0f, 19.0f}, 1, 5, Parse("f8_e4m3 tensor"));
  EXPECT_EQ(PlanesOf(f8).Scale(0), 1.0f);
  EXPECT_EQ(Codes(f8), (std::vector<int>{0x7E, 0xB8, 0, 0x58, 0x5A}));  // ties to even
  const QuantizedTensor e5 = MustQuantize({57344.0f, -0.25f}, 1, 2, Parse("f8_e5m2 channel"));
  EXPECT_EQ(PlanesOf(e5).Scale(0), 1.0f);
  EXPECT_EQ(Codes(e5), (std::vector<int>{0x7B, 0xB4}));
  // A table scales so that both of its ends are reached: here the lower one decides.
  const Scheme table = {.code = Code::kTable, .bits = 2};
  const std::vector<float> values = {-1.0f, 0.0f, 1.0f, 4.0f}, w = {-2.0f, 3.0f, 1.0f, 0.9f};
  const auto q = Quantize(ViewOf(w.data(), 1, 4), table, {}, values);
  ASSERT_TRUE(q.ok());
  EXPECT_EQ(PlanesOf(*q).Scale(0), 2.0f);
  EXPECT_EQ(Codes(*q), (std::vector<int>{0, 2, 1, 1}));  // 3 is nearer to 2 than to 8; 1: a tie
}

TEST(Planar, ThreadsTypesAndStridesDoNotChangeTheBytes) {
  const int64_t rows = 37, cols = 300;
  std::vector<float> w = Weights(rows, cols, 9);
  for (float& x : w) x = ToFloat(BF16{static_cast<uint16_t>(ToBF16(x).bits & 0xFFF8)});  // f16 too
  std::vector<float> importance(static_cast<size_t>(cols), 1.0f);
  for (size_t i = 0; i < importance.size(); i += 3) importance[i] = 9.0f;
  ThreadPool pool(2);
  for (const char* name :
       {"int4 sym g32 f16", "int3 asym g64", "int8 sym tensor", "int8 asym channel",
        "nf4 g64 double", "f8_e4m3 channel", "int4 asym g128 zf16"}) {
    for (const bool weighted : {false, true}) {
      const Scheme s = Parse(name);
      QuantizeOptions one, two;
      if (weighted) one.importance = two.importance = importance;
      two.parallel = pool.parallel_for();
      const QuantizedTensor q = MustQuantize(w, rows, cols, s, one);
      EXPECT_TRUE(SameBytes(q, MustQuantize(w, rows, cols, s, two))) << name;
      EXPECT_EQ(MustDequantize(q), MustDequantize(q, pool.parallel_for())) << name;
      for (const DType type : {DType::kF16, DType::kBF16}) {
        std::vector<uint16_t> halves(static_cast<size_t>(rows * (cols + 5)),
                                     0x7FFF);  // NaN between
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            const float x = w[static_cast<size_t>(r * cols + c)];
            halves[static_cast<size_t>(r * (cols + 5) + c)] =
                type == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits;
          }
        }
        const auto h = Quantize({halves.data(), type, rows, cols, cols + 5}, s, one);
        ASSERT_TRUE(h.ok()) << h.status().message();
        EXPECT_TRUE(SameBytes(q, *h)) << name << " " << DTypeName(type);
        // And back: the float result, rounded; the gap untouched.
        const std::vector<float> decoded = MustDequantize(q);
        ASSERT_TRUE(Dequantize(*h, {halves.data(), type, rows, cols, cols + 5}).ok());
        for (int64_t r = 0; r < rows; ++r) {
          EXPECT_EQ(halves[static_cast<size_t>(r * (cols + 5) + cols)], 0x7FFF);
          for (int64_t c = 0; c < cols; ++c) {
            const float x = decoded[static_cast<size_t>(r * cols + c)];
            ASSERT_EQ(halves[static_cast<size_t>(r * (cols + 5) + c)],
                      type == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits);
          }
        }
      }
    }
  }
}

TEST(Planar, GroupIndexIsThePlainSchemeOnReorderedColumns) {
  const int64_t rows = 5, cols = 100;  // groups of 32, 32, 32 and 4, dealt out like cards
  const std::vector<float> w = Weights(rows, cols, 3);
  std::vector<int32_t> index(static_cast<size_t>(cols));
  std::vector<int64_t> order;
  std::vector<float> importance(static_cast<size_t>(cols)), ordered_importance;
  for (int64_t c = 0; c < cols; ++c) {
    index[static_cast<size_t>(c)] =
        c < 16 ? static_cast<int32_t>(c % 4) : static_cast<int32_t>(c % 3);
    importance[static_cast<size_t>(c)] = static_cast<float>(c % 11);
  }
  // Make the sizes those of the plain scheme: 4 columns of group 3, and 32 of each other.
  for (int32_t g = 0; g < 4; ++g) {
    for (int64_t c = 0; c < cols; ++c) {
      if (index[static_cast<size_t>(c)] != g) continue;
      order.push_back(c);
      ordered_importance.push_back(importance[static_cast<size_t>(c)]);
    }
  }
  ASSERT_EQ(std::count(index.begin(), index.end(), 3), 4);
  ASSERT_EQ(std::count(index.begin(), index.end(), 0), 32);
  std::vector<float> ordered(w.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      ordered[static_cast<size_t>(r * cols + k)] =
          w[static_cast<size_t>(r * cols + order[static_cast<size_t>(k)])];
    }
  }
  for (const char* name : {"int4 sym g32 f16", "int3 asym g32", "nf4 g32"}) {
    for (const bool weighted : {false, true}) {
      const Scheme plain = Parse(name), indexed = Parse(std::string(name) + " act-order");
      QuantizeOptions plain_options, options;
      options.group_index = index;
      if (weighted) {
        plain_options.importance = ordered_importance;
        options.importance = importance;
      }
      const QuantizedTensor a = MustQuantize(ordered, rows, cols, plain, plain_options);
      const QuantizedTensor b = MustQuantize(w, rows, cols, indexed, options);
      const std::vector<float> x = MustDequantize(a), y = MustDequantize(b);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < cols; ++k) {
          const int64_t c = order[static_cast<size_t>(k)];
          ASSERT_EQ(CodeAt(a, r, k), CodeAt(b, r, c)) << name;
          ASSERT_EQ(x[static_cast<size_t>(r * cols + k)], y[static_cast<size_t>(r * cols + c)]);
          ASSERT_EQ(y[static_cast<size_t>(r * cols + c)], DecodePlanarWeight(PlanesOf(b), r, c));
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
