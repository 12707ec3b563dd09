// Products against an oracle in double precision, for every format, precision and shape with tails.
#include "nibble/matmul.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/quantize.h"
#include "tests/matmul_oracle.h"

namespace nibble {
namespace {

// What the precisions promise. Single results: with u = 2^-24, a float sum of K products in any
// order is within (K + 1) * u of the sum of magnitudes, and a much smaller multiple here, where at
// most ceil(512 / 4) additions follow one another in a block of columns and one for each block.
// bf16 operands add a relative error of 2^-8 each; int8 activations an absolute error that only
// the normalised mean square bounds.
double PromisedError(Precision precision) {
  switch (precision) {
    case Precision::kF32:
      return 1e-10;
    case Precision::kBf16:
      return 1e-5;
    case Precision::kInt8:
    case Precision::kInt8PerRow:
      return 5e-4;
  }
  return 0;
}

double PromisedRelativeError(Precision precision, int64_t cols) {
  const double sums = (128.0 + static_cast<double>(cols) / 512 + 8) * std::pow(2, -24);
  switch (precision) {
    case Precision::kF32:
      return sums;
    case Precision::kBf16:
      return sums + 2 * std::pow(2, -8) + std::pow(2, -16);
    case Precision::kInt8:
    case Precision::kInt8PerRow:
      return std::numeric_limits<double>::infinity();
  }
  return 0;
}

struct Case {
  Format format;
  Precision precision;
};

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  constexpr const char* kNames[] = {"int8", "bf16", "f32"};
  return std::string(GetFormatInfo(info.param.format).name) + "_" +
         kNames[static_cast<int>(info.param.precision)];
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    for (Precision p : {Precision::kInt8, Precision::kBf16, Precision::kF32}) {
      cases.push_back({info.format, p});
    }
  }
  return cases;
}

class EveryProduct : public testing::TestWithParam<Case> {
 protected:
  // Column counts that the format allows: short, and over a block of columns with a ragged rest.
  std::vector<int64_t> Columns() const {
    switch (GetFormatInfo(GetParam().format).block_weights) {
      case 1:
        return {1, 37, 577};
      case 32:
        return {32, 96, 544};
      default:
        return {256, 768};
    }
  }
};

TEST_P(EveryProduct, AgreesWithTheOracleForAnyShape) {
  const auto [format, precision] = GetParam();
  for (const int64_t cols : Columns()) {
    for (const int64_t n_rows : {1, 15, 50}) {
      const QuantizedTensor weights =
          RandomWeights(format, n_rows, cols, static_cast<uint32_t>(cols + n_rows));
      const std::vector<float> w = Decoded(weights);
      const std::vector<float> a = RandomValues(33 * cols, 7);
      const Oracle oracle = Multiply(a, w, 33, n_rows, cols);
      const auto packed = Pack(weights, precision);
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      std::vector<int64_t> counts = {1, 2, 3, 4, 5, 8, 16, 17, 33};
      if (n_rows == 15 && cols == Columns().back()) {
        counts.resize(17);
        std::iota(counts.begin(), counts.end(), 1);
      }
      for (const int64_t m_rows : counts) {
        MatmulOptions options;
        options.precision = precision;
        const TensorView rows = ViewOf(a.data(), m_rows, cols);
        for (const bool use_packed : {false, true}) {
          std::vector<float> out(static_cast<size_t>(m_rows * n_rows), NAN);
          const MutableTensorView view = ViewOf(out.data(), m_rows, n_rows);
          const Status status = use_packed ? Matmul(rows, *packed, view, options)
                                           : Matmul(rows, weights, view, options);
          ASSERT_TRUE(status.ok()) << status.message();
          const std::string what = std::to_string(m_rows) + " x " + std::to_string(n_rows) + " x " +
                                   std::to_string(cols) + (use_packed ? " packed" : "");
          EXPECT_LE(LargestRelativeError(oracle, out), PromisedRelativeError(precision, cols))
              << what;
          // A mean needs something to average.
          if (m_rows * n_rows >= 500) {
            Oracle part = oracle;
            part.product.resize(out.size());
            EXPECT_LE(NormalisedError(part, out), PromisedError(precision)) << what;
          }
        }
      }
    }
  }
}

TEST_P(EveryProduct, ThreadsDoNotChangeTheBits) {
  const auto [format, precision] = GetParam();
  const int64_t cols = 1280, n_rows = 203;
  const QuantizedTensor weights = RandomWeights(format, n_rows, cols, 3);
  const auto packed = Pack(weights, precision);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  ThreadPool pool(4);
  for (const int64_t m_rows : {1, 6, 70}) {
    const std::vector<float> a = RandomValues(m_rows * cols, 11);
    const TensorView rows = ViewOf(a.data(), m_rows, cols);
    for (const bool use_packed : {false, true}) {
      std::vector<float> one(static_cast<size_t>(m_rows * n_rows)), four(one.size());
      const auto multiply = [&](std::vector<float>& out, const ParallelFor& parallel) {
        MatmulOptions options;
        options.precision = precision;
        options.parallel = parallel;
        const MutableTensorView view = ViewOf(out.data(), m_rows, n_rows);
        return use_packed ? Matmul(rows, *packed, view, options)
                          : Matmul(rows, weights, view, options);
      };
      ASSERT_TRUE(multiply(one, {}).ok());
      ASSERT_TRUE(multiply(four, pool.parallel_for()).ok());
      EXPECT_EQ(0, std::memcmp(one.data(), four.data(), one.size() * sizeof(float))) << m_rows;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Matmul, EveryProduct, testing::ValuesIn(AllCases()), CaseName);

class EveryScheme : public testing::TestWithParam<std::string> {};

TEST_P(EveryScheme, AgreesWithTheOracle) {
  const auto scheme = ParseScheme(GetParam());
  ASSERT_TRUE(scheme.ok()) << scheme.status().message();
  const int64_t cols = 1100, n_rows = 37, m_most = 19;
  const std::vector<float> dense = RandomValues(n_rows * cols, 6);
  const auto weights = Quantize(ViewOf(dense.data(), n_rows, cols), *scheme);
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  const std::vector<float> a = RandomValues(m_most * cols, 7);
  const Oracle oracle = Multiply(a, Decoded(*weights), m_most, n_rows, cols);
  for (const Precision precision : {Precision::kInt8, Precision::kBf16, Precision::kF32}) {
    for (const int64_t m_rows : {int64_t{1}, int64_t{5}, m_most}) {
      std::vector<float> out(static_cast<size_t>(m_rows * n_rows), NAN);
      MatmulOptions options;
      options.precision = precision;
      const Status status = Matmul(ViewOf(a.data(), m_rows, cols), *weights,
                                   ViewOf(out.data(), m_rows, n_rows), options);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_LE(LargestRelativeError(oracle, out), PromisedRelativeError(precision, cols));
      if (m_rows == m_most) {
        EXPECT_LE(NormalisedError(oracle, out), PromisedError(precision));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Matmul, EveryScheme,
                         testing::Values("int4 sym g64 f16", "int3 asym g32 f32",
                                         "int2 asym g128 f16", "int8 sym channel f32",
                                         "int8 sym tensor f32", "nf4 g64 double", "fp4 g64 f32",
                                         "f8_e4m3 channel f32", "f8_e5m2 tensor f32"));

// Columns in any order of their groups, and an index that points beyond them.
TEST(Matmul, TakesGroupIndices) {
  const int64_t cols = 96, n_rows = 5;
  Scheme scheme;
  scheme.has_group_index = true;
  scheme.group_size = 32;
  auto weights = QuantizedTensor::Allocate(scheme, n_rows, cols);
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  std::mt19937 random(1);
  for (std::byte& b : weights->plane(Plane::kCodes).mutable_bytes()) {
    b = static_cast<std::byte>(random() & 0x77);
  }
  auto* scales = reinterpret_cast<float*>(weights->plane(Plane::kScales).data());
  for (int64_t i = 0; i < n_rows * 3; ++i) scales[i] = static_cast<float>(i + 1) / 16;
  auto* index = reinterpret_cast<int32_t*>(weights->plane(Plane::kGroupIndex).data());
  for (int64_t c = 0; c < cols; ++c) index[c] = static_cast<int32_t>(random() % 3);
  const std::vector<float> a = RandomValues(cols, 7);
  const Oracle oracle = Multiply(a, Decoded(*weights), 1, n_rows, cols);
  std::vector<float> out(n_rows, NAN);
  MatmulOptions options;
  options.precision = Precision::kF32;
  ASSERT_TRUE(
      Matmul(ViewOf(a.data(), 1, cols), *weights, ViewOf(out.data(), 1, n_rows), options).ok());
  EXPECT_LE(LargestRelativeError(oracle, out), PromisedRelativeError(Precision::kF32, cols));
  for (const int32_t beyond : {-1, 3}) {
    index[40] = beyond;
    EXPECT_EQ(Matmul(ViewOf(a.data(), 1, cols), *weights, ViewOf(out.data(), 1, n_rows)).code(),
              StatusCode::kInvalidArgument);
  }
}

// A precision, and whether the weights are packed.
class EveryPrecision : public testing::TestWithParam<std::tuple<Precision, bool>> {};

// Strides, narrow activations, bias and accumulation give what the plain product gives.
TEST_P(EveryPrecision, TakesStridesTypesBiasAndAccumulation) {
  const int64_t cols = 608, n_rows = 37, a_stride = 640, out_stride = 45;
  const auto [precision, use_packed] = GetParam();
  const QuantizedTensor weights = RandomWeights(Format::kQ4_1, n_rows, cols, 5);
  const auto packed = Pack(weights, precision);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  const std::vector<float> bias = RandomValues(n_rows, 8);
  for (const int64_t m_rows : {1, 3, 40}) {
    // Values that f16 and bf16 hold exactly.
    std::vector<float> a(static_cast<size_t>(m_rows * cols));
    std::mt19937 random(9);
    for (float& v : a) v = static_cast<float>(static_cast<int>(random() % 255) - 127) / 64;
    std::vector<float> plain(static_cast<size_t>(m_rows * n_rows));
    MatmulOptions options;
    options.precision = precision;
    const auto multiply = [&](const TensorView& x, const MutableTensorView& y) {
      return use_packed ? Matmul(x, *packed, y, options) : Matmul(x, weights, y, options);
    };
    ASSERT_TRUE(
        multiply(ViewOf(a.data(), m_rows, cols), ViewOf(plain.data(), m_rows, n_rows)).ok());

    options.bias = bias;
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const bool accumulate : {false, true}) {
        std::vector<std::byte> strided(static_cast<size_t>(m_rows * a_stride) * 4);
        TensorView view{strided.data(), type, m_rows, cols, a_stride, Device::kCpu};
        for (int64_t m = 0; m < m_rows; ++m) {
          for (int64_t k = 0; k < cols; ++k) {
            const float v = a[static_cast<size_t>(m * cols + k)];
            const size_t at = static_cast<size_t>(m * a_stride + k) * DTypeBytes(type);
            const uint16_t half = type == DType::kF16 ? ToF16(v).bits : ToBF16(v).bits;
            type == DType::kF32 ? std::memcpy(strided.data() + at, &v, 4)
                                : std::memcpy(strided.data() + at, &half, 2);
          }
        }
        std::vector<float> out(static_cast<size_t>(m_rows * out_stride), 0.5f);
        options.accumulate = accumulate;
        const Status status =
            multiply(view, {out.data(), DType::kF32, m_rows, n_rows, out_stride, Device::kCpu});
        ASSERT_TRUE(status.ok()) << status.message();
        for (int64_t m = 0; m < m_rows; ++m) {
          for (int64_t n = 0; n < out_stride; ++n) {
            const float got = out[static_cast<size_t>(m * out_stride + n)];
            if (n >= n_rows) {
              ASSERT_EQ(got, 0.5f) << "written beyond the row's end at " << n;
              continue;
            }
            const float sum =
                plain[static_cast<size_t>(m * n_rows + n)] + bias[static_cast<size_t>(n)];
            ASSERT_EQ(got, accumulate ? 0.5f + sum : sum)
                << DTypeName(type) << " m " << m << " n " << n << " of " << m_rows;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Matmul, EveryPrecision,
                         testing::Combine(testing::Values(Precision::kInt8, Precision::kBf16,
                                                          Precision::kF32),
                                          testing::Bool()));

// Members of a group: formats and schemes, packed and not, all rows or lists of rows.
class EveryGroup : public testing::TestWithParam<Precision> {
 protected:
  static constexpr int64_t kCols = 512;

  EveryGroup() {
    const std::vector<float> dense = RandomValues(37 * kCols, 6);
    planar_ = *Quantize(ViewOf(dense.data(), 37, kCols), *ParseScheme("int4 sym g64 f16"));
    q4_0_ = RandomWeights(Format::kQ4_0, 50, kCols, 1);
    q4_k_ = RandomWeights(Format::kQ4_K, 33, kCols, 2);
    packed_4_0_ = *Pack(q4_0_, GetParam());
    packed_4_k_ = *Pack(q4_k_, GetParam());
    f32_ = RandomWeights(Format::kF32, 3, kCols, 3);
  }

  QuantizedTensor planar_, q4_0_, q4_k_, f32_;
  PackedWeights packed_4_0_, packed_4_k_;
};

TEST_P(EveryGroup, GivesWhatSingleProductsGive) {
  std::vector<int32_t> few = {2, 0, 2}, many(40);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(i * 7 % 5);
  ThreadPool pool(3);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t m_rows : {5, 70}) {
      std::vector<float> a = RandomValues(m_rows * kCols, 7);
      std::vector<BF16> narrow(a.size());
      for (size_t i = 0; i < a.size(); ++i) narrow[i] = ToBF16(a[i]);
      const void* data = type == DType::kF32 ? static_cast<const void*>(a.data()) : narrow.data();
      const TensorView x = {data, type, m_rows, kCols, kCols, Device::kCpu};
      const std::vector<float> bias = RandomValues(50, 8);

      std::vector<MatmulMember> members = {
          {&packed_4_0_, {}, bias, {}},   {&packed_4_k_, {}, {}, {}},  {&planar_, {}, {}, {}},
          {&q4_0_, {}, {}, {}},           {&packed_4_0_, {}, {}, few}, {&packed_4_k_, {}, {}, few},
          {&packed_4_0_, {}, bias, many}, {&q4_k_, {}, {}, many},      {&planar_, {}, {}, few},
          {&f32_, {}, {}, many}};
      std::vector<std::vector<float>> outs, singles;
      for (MatmulMember& member : members) {
        const int64_t n_rows =
            std::visit([](const auto* weights) { return weights->rows(); }, member.weights);
        const int64_t rows =
            member.rows.empty() ? m_rows : static_cast<int64_t>(member.rows.size());
        outs.emplace_back(static_cast<size_t>(rows * n_rows), 0.25f);
        member.out = ViewOf(outs.back().data(), rows, n_rows);

        // The same from a copy of the rows, alone.
        std::vector<std::byte> taken(static_cast<size_t>(rows * kCols) * DTypeBytes(type));
        const size_t row_bytes = kCols * DTypeBytes(type);
        for (int64_t m = 0; m < rows; ++m) {
          const int64_t from = member.rows.empty() ? m : member.rows[static_cast<size_t>(m)];
          std::memcpy(taken.data() + static_cast<size_t>(m) * row_bytes, x.Row(from), row_bytes);
        }
        singles.emplace_back(outs.back().size(), 0.25f);
        MatmulOptions options;
        options.precision = GetParam();
        options.bias = member.bias;
        options.accumulate = true;
        std::visit(
            [&](const auto* weights) {
              ASSERT_TRUE(Matmul({taken.data(), type, rows, kCols, kCols, Device::kCpu}, *weights,
                                 ViewOf(singles.back().data(), rows, n_rows), options)
                              .ok());
            },
            member.weights);
      }
      members.push_back({&q4_0_, {}, {}, {}});  // nothing to do
      MatmulOptions options;
      options.precision = GetParam();
      options.accumulate = true;
      options.parallel = pool.parallel_for();
      const Status status = MatmulGroup(x, members, options);
      ASSERT_TRUE(status.ok()) << status.message();
      for (size_t i = 0; i < outs.size(); ++i) EXPECT_EQ(outs[i], singles[i]) << "member " << i;
    }
  }
}

TEST_P(EveryGroup, RefusesMembersThatDoNotFitAndWritesNothing) {
  std::vector<float> a(3 * kCols, 1.0f), good(3 * 50, 0.5f), other(3 * 50);
  const TensorView x = ViewOf(a.data(), 3, kCols);
  const std::vector<int32_t> beyond = {0, 3, 1}, negative = {0, -1, 1}, two = {0, 1};
  const MatmulMember fits = {&packed_4_0_, ViewOf(good.data(), 3, 50), {}, {}};
  const MutableTensorView out = ViewOf(other.data(), 3, 50);
  const QuantizedTensor* nothing = nullptr;
  const PackedWeights never_made;
  const std::vector<float> short_bias(49);
  MatmulOptions options;
  options.precision = GetParam();
  for (const MatmulMember& wrong :
       {MatmulMember{nothing, out, {}, {}}, MatmulMember{&never_made, out, {}, {}},
        MatmulMember{&packed_4_k_, out, {}, {}}, MatmulMember{&packed_4_0_, out, {}, two},
        MatmulMember{&packed_4_0_, out, {}, beyond}, MatmulMember{&q4_0_, out, {}, negative},
        MatmulMember{&q4_0_, out, short_bias, {}}}) {
    const std::vector<MatmulMember> members = {fits, wrong};
    const Status status = MatmulGroup(x, members, options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().find("member 1"), 0u) << status.message();
  }
  options.bias = short_bias;
  EXPECT_EQ(MatmulGroup(x, {&fits, 1}, options).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(good, std::vector<float>(good.size(), 0.5f));
  options.bias = {};
  EXPECT_TRUE(MatmulGroup(x, {}, options).ok());
}

INSTANTIATE_TEST_SUITE_P(Matmul, EveryGroup,
                         testing::Values(Precision::kInt8, Precision::kBf16, Precision::kF32));

// The order of enum Precision up to kF32 is that of exactness; kInt8PerRow is for planes alone.
TEST(Matmul, PlansAreAsExactAsAsked) {
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    const QuantizedTensor weights = RandomWeights(info.format, 20, 512, 1);
    for (const Precision precision : {Precision::kInt8, Precision::kBf16, Precision::kF32}) {
      const auto packed = Pack(weights, precision);
      ASSERT_TRUE(packed.ok()) << packed.status().message();
      for (const int64_t rows : {1, 7, 8, 16, 25, 100}) {
        for (const auto& plan :
             {PlanMatmul(weights, rows, precision), PlanMatmul(*packed, rows, precision)}) {
          ASSERT_TRUE(plan.ok()) << plan.status().message();
          EXPECT_GE(plan->precision, precision) << info.name << " " << plan->kernel;
          EXPECT_LE(plan->precision, Precision::kF32) << info.name << " " << plan->kernel;
        }
      }
    }
  }
  const QuantizedTensor blocks = RandomWeights(Format::kQ4_K, 20, 512, 1);
  EXPECT_STREQ(PlanMatmul(blocks, 1)->kernel, "int8 dots with blocks");
  EXPECT_STREQ(PlanMatmul(*Pack(blocks), 1)->kernel, "int8 dots with packed tiles");
  EXPECT_STREQ(PlanMatmul(blocks, 1, Precision::kF32)->kernel, "f32 panels of decoded weights");
  EXPECT_FALSE(PlanMatmul(PackedWeights(), 1).ok());
}

TEST(Matmul, PackedBytesAreReadAgain) {
  const int64_t cols = 256, n_rows = 19;
  for (const Format format : {Format::kQ6_K, Format::kF16}) {
    const QuantizedTensor weights = RandomWeights(format, n_rows, cols, 2);
    const auto packed = Pack(weights);
    ASSERT_TRUE(packed.ok());
    EXPECT_EQ(packed->rows(), n_rows);
    EXPECT_EQ(packed->cols(), cols);
    auto mapped = PackedWeights::FromBytes(Buffer::Borrow(packed->serialized()));
    ASSERT_TRUE(mapped.ok()) << mapped.status().message();
    EXPECT_EQ(mapped->target(), packed->target());
    EXPECT_EQ(mapped->serialized().data(), packed->serialized().data());
    const std::vector<float> a = RandomValues(cols, 4);
    std::vector<float> first(n_rows), second(n_rows);
    ASSERT_TRUE(Matmul(ViewOf(a.data(), 1, cols), *packed, ViewOf(first.data(), 1, n_rows)).ok());
    ASSERT_TRUE(Matmul(ViewOf(a.data(), 1, cols), *mapped, ViewOf(second.data(), 1, n_rows)).ok());
    EXPECT_EQ(first, second);
  }
}

TEST(Matmul, PacksFloatsInHalfTheirBytesUnlessTheyMustStay) {
  const int64_t rows = 40, cols = 1030;
  const QuantizedTensor weights = RandomWeights(Format::kF32, rows, cols, 3);
  const size_t bytes = weights.bytes();
  for (const Precision precision : {Precision::kInt8, Precision::kBf16, Precision::kF32}) {
    const auto packed = Pack(weights, precision);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const bool stays = precision == Precision::kF32;
    EXPECT_NEAR(static_cast<double>(packed->bytes()), static_cast<double>(bytes) / (stays ? 1 : 2),
                100);
  }
}

TEST(Matmul, PackedBytesOfStrangersAreRefused) {
  const auto packed = Pack(RandomWeights(Format::kQ4_K, 5, 512, 2));
  ASSERT_TRUE(packed.ok());
  const auto good = packed->serialized();
  const auto code = [&](size_t size, size_t at, uint64_t value, size_t width) {
    auto copy = Buffer::Allocate(good.size());
    std::memcpy(copy->data(), good.data(), good.size());
    std::memcpy(copy->data() + at, &value, width);
    return PackedWeights::FromBytes(Buffer::Borrow({copy->data(), size})).status().code();
  };
  // The header: magic at 0, target at 8, format at 32, rows at 40, columns at 48.
  const size_t size = good.size();
  EXPECT_EQ(code(0, 0, 0, 0), StatusCode::kCorrupt);
  EXPECT_EQ(code(63, 0, 0, 0), StatusCode::kCorrupt);
  EXPECT_EQ(code(size - 1, 0, 0, 0), StatusCode::kCorrupt);
  EXPECT_EQ(code(size, 0, 'X', 1), StatusCode::kCorrupt);
  EXPECT_EQ(code(size, 8, 'X', 1), StatusCode::kUnsupported);
  for (const uint64_t format : {9, 24, 1000}) {
    EXPECT_EQ(code(size, 32, format, 4), StatusCode::kCorrupt) << format;
  }
  for (const uint64_t count : {uint64_t{0}, uint64_t{1} << 62, ~uint64_t{0}, uint64_t{INT64_MAX}}) {
    EXPECT_EQ(code(size, 40, count, 8), StatusCode::kCorrupt) << count;
    EXPECT_EQ(code(size, 48, count, 8), StatusCode::kCorrupt) << count;
  }
  EXPECT_EQ(code(size, 48, 500, 8), StatusCode::kCorrupt);
}

// A value that is not finite makes its own row of the output not finite, and no other.
TEST(Matmul, ActivationsThatAreNotFiniteAreNotHidden) {
  const int64_t cols = 512, n_rows = 20;
  const auto packed = Pack(RandomWeights(Format::kQ8_0, n_rows, cols, 2));
  ASSERT_TRUE(packed.ok());
  for (const float value : {NAN, INFINITY}) {
    std::vector<float> a = RandomValues(3 * cols, 4), out(3 * n_rows);
    a[static_cast<size_t>(cols) + 100] = value;
    ASSERT_TRUE(Matmul(ViewOf(a.data(), 3, cols), *packed, ViewOf(out.data(), 3, n_rows)).ok());
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isfinite(out[i]), i / n_rows != 1) << i;
    }
  }
}

TEST(Matmul, RefusesOperandsThatDoNotFit) {
  const QuantizedTensor weights = RandomWeights(Format::kQ8_0, 3, 64, 1);
  std::vector<float> a(2 * 64), out(2 * 3), bias(2);
  const auto code = [&](TensorView x, const QuantizedTensor& w, MutableTensorView y,
                        MatmulOptions options = {}) { return Matmul(x, w, y, options).code(); };
  const TensorView x = ViewOf(a.data(), 2, 64);
  const MutableTensorView y = ViewOf(out.data(), 2, 3);
  EXPECT_EQ(code(x, weights, y), StatusCode::kOk);
  EXPECT_EQ(code(ViewOf(a.data(), 2, 32), weights, y), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(x, weights, ViewOf(out.data(), 1, 3)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(x, weights, ViewOf(out.data(), 2, 2)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({nullptr, DType::kF32, 2, 64, 64}, weights, y), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({a.data(), DType::kI8, 2, 64, 64}, weights, y), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(x, weights, {out.data(), DType::kF16, 2, 3, 3}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({a.data(), DType::kF32, 2, 64, 63}, weights, y), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(x, QuantizedTensor(), y), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({a.data(), DType::kF32, 2, 64, 64, Device::kCuda}, weights, y),
            StatusCode::kUnsupported);
  MatmulOptions options;
  options.bias = bias;
  EXPECT_EQ(code(x, weights, y, options), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
