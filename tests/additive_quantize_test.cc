// Quantization to additive codebooks: what it gains, and that its bytes are the same everywhere.
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/additive_search.h"
#include "nibble/gptq.h"
#include "nibble/quantize.h"
#include "tests/gptq_inputs.h"
#include "tests/targets.h"

namespace nibble {
namespace {

Scheme Parse(const std::string& name) {
  const Result<Scheme> scheme = ParseScheme(name);
  EXPECT_TRUE(scheme.ok()) << scheme.status().message();
  return *scheme;
}

double SquareError(const std::vector<float>& w, const QuantizedTensor& q) {
  std::vector<float> decoded(w.size());
  EXPECT_TRUE(Dequantize(q, ViewOf(decoded.data(), q.rows(), q.cols())).ok());
  double error = 0;
  for (size_t i = 0; i < w.size(); ++i) error += std::pow(w[i] - decoded[i], 2);
  return error;
}

bool SameBytes(const QuantizedTensor& a, const QuantizedTensor& b) {
  for (int p = 0; p < kPlaneCount; ++p) {
    if (!std::ranges::equal(a.plane(static_cast<Plane>(p)).bytes(),
                            b.plane(static_cast<Plane>(p)).bytes())) {
      return false;
    }
  }
  return true;
}

class AdditiveSearch : public EveryTarget {};

TEST_P(AdditiveSearch, FindsTheLeastPairsTheFirstOfEquals) {
  Noise noise(3);
  const int64_t rows = 7;
  std::vector<float> first(rows * kEntries), second(first.size()), cross(kEntries * kEntries);
  // Few different values, so that many pairs are equal.
  for (auto* costs : {&first, &second, &cross}) {
    for (float& x : *costs) x = std::floor(noise.Next() * 8) / 4;
  }
  std::vector<EntryPair> pairs(rows);
  LeastPairs(rows, first.data(), second.data(), cross.data(), pairs.data());
  for (int64_t r = 0; r < rows; ++r) {
    EntryPair best = {};
    float least = INFINITY;
    for (int64_t a = 0; a < kEntries; ++a) {
      for (int64_t b = 0; b < kEntries; ++b) {
        const float cost =
            first[r * kEntries + a] + (second[r * kEntries + b] + cross[b * kEntries + a]);
        if (cost < least) {
          least = cost;
          best = {a, b};
        }
      }
    }
    EXPECT_EQ(pairs[r].first, best.first) << r;
    EXPECT_EQ(pairs[r].second, best.second) << r;
    const auto row = first.begin() + r * kEntries;
    EXPECT_EQ(LeastEntry(&*row), std::min_element(row, row + kEntries) - row);
  }
}

TEST_P(AdditiveSearch, CostsAreSumsInOrder) {
  Noise noise(4);
  const int64_t depth = 16;
  std::vector<float> columns(depth * kEntries), v(depth), base(kEntries), costs(kEntries);
  for (auto* values : {&columns, &v, &base}) {
    for (float& x : *values) x = noise.Next();
  }
  EntryCosts(columns.data(), depth, v.data(), base.data(), costs.data());
  for (int64_t e = 0; e < kEntries; ++e) {
    float sum = base[e];
    for (int64_t k = 0; k < depth; ++k) sum += v[k] * columns[k * kEntries + e];
    EXPECT_EQ(costs[e], sum) << e;
  }
}

// The bytes are those of one thread on the best target, with a Hessian and without.
TEST_P(AdditiveSearch, BytesAreTheSameOnEveryTarget) {
  const int64_t rows = 130, cols = 100;
  const std::vector<float> w = BellMatrix(rows, cols, 1);
  const Hessian hessian = HessianOf(CorrelatedInputs(200, cols, 2), cols);
  ThreadPool pool(3);
  for (const char* name : {"2x8g8 f16", "1x8g16 f32", "3x8g16 bf16"}) {
    const TensorView view = ViewOf(w.data(), rows, cols);
    QuantizeOptions options;
    GptqOptions gptq;
    gptq.sweeps = 1;
    const auto plain = Quantize(view, Parse(name), options);
    const auto fed = QuantizeGptq(view, Parse(name), hessian, gptq);
    ASSERT_TRUE(plain.ok() && fed.ok());
    options.parallel = gptq.parallel = pool.parallel_for();
    ASSERT_TRUE(ForceTarget(SupportedTargets().back()).ok());
    EXPECT_TRUE(SameBytes(*plain, *Quantize(view, Parse(name), options))) << name;
    EXPECT_TRUE(SameBytes(*fed, *QuantizeGptq(view, Parse(name), hessian, gptq))) << name;
    ASSERT_TRUE(ForceTarget(GetParam()).ok());
  }
}

NIBBLE_ON_EVERY_TARGET(AdditiveSearch);

// Two bits a weight and codebooks: better than two-bit integers by nearest rounding, and with a
// Hessian better than those by error feedback, whose groups cost more bits than a row's scale.
TEST(AdditiveQuantize, BeatsIntegersOfAsManyBits) {
  const int64_t rows = 512, cols = 256;
  const std::vector<float> w = BellMatrix(rows, cols, 1);
  const std::vector<float> inputs = CorrelatedInputs(1500, cols, 2);
  const Hessian hessian = HessianOf(inputs, cols);
  const TensorView view = ViewOf(w.data(), rows, cols);
  const Scheme integers = Parse("int2 asym g64 f16");

  const auto rounded = Quantize(view, integers);
  const auto plain = Quantize(view, Parse("2x8g8 f16"));
  ASSERT_TRUE(rounded.ok() && plain.ok());
  EXPECT_LT(SquareError(w, *plain), 0.5 * SquareError(w, *rounded));

  GptqReport report;
  const auto fed = QuantizeGptq(view, Parse("2x8g8 f16"), hessian, {}, &report);
  const auto gptq = QuantizeGptq(view, integers, hessian);
  ASSERT_TRUE(fed.ok() && gptq.ok());
  const double ours = OutputError(w, *fed, inputs);
  EXPECT_LT(ours, 0.7 * OutputError(w, *gptq, inputs));
  EXPECT_LT(ours, 0.5 * OutputError(w, *plain, inputs));
  EXPECT_NEAR(report.output_error / ours, 1, 1e-3);
  EXPECT_EQ(report.damping, GptqOptions().damping);

  GptqOptions none;
  none.sweeps = 0;
  EXPECT_LT(ours, OutputError(w, *QuantizeGptq(view, Parse("2x8g8 f16"), hessian, none), inputs));
}

// Every further codebook lowers the error.
TEST(AdditiveQuantize, MoreCodebooksAreBetter) {
  const int64_t rows = 256, cols = 96;
  const std::vector<float> w = BellMatrix(rows, cols, 5);
  const std::vector<float> inputs = CorrelatedInputs(400, cols, 6);
  const Hessian hessian = HessianOf(inputs, cols);
  double before = INFINITY;
  for (const char* name : {"1x8g16 f16", "2x8g16 f16", "3x8g16 f16", "4x8g16 f16"}) {
    const auto q = QuantizeGptq(ViewOf(w.data(), rows, cols), Parse(name), hessian);
    ASSERT_TRUE(q.ok()) << q.status().message();
    const double error = OutputError(w, *q, inputs);
    EXPECT_LT(error, 0.8 * before) << name;
    before = error;
  }
}

// Columns that count for more are kept better.
TEST(AdditiveQuantize, ImportanceIsHeeded) {
  const int64_t rows = 256, cols = 64;
  const std::vector<float> w = BellMatrix(rows, cols, 7);
  std::vector<float> importance(cols, 0.01f);
  for (int64_t j = 0; j < cols; j += 8) importance[static_cast<size_t>(j)] = 1.0f;
  const auto error = [&](const QuantizeOptions& options) {
    const auto q = Quantize(ViewOf(w.data(), rows, cols), Parse("1x8g8 f16"), options);
    std::vector<float> decoded(w.size());
    EXPECT_TRUE(Dequantize(*q, ViewOf(decoded.data(), rows, cols)).ok());
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i) {
      sum += importance[i % cols] * std::pow(w[i] - decoded[i], 2);
    }
    return sum;
  };
  QuantizeOptions weighed;
  weighed.importance = importance;
  EXPECT_LT(error(weighed), 0.5 * error({}));
}

// Shapes with tails, constant and empty rows, few rows, halves: the result decodes and is finite;
// what codebooks can hold exactly, they do.
TEST(AdditiveQuantize, TakesAnyShape) {
  for (const int64_t rows : {1, 2, 129}) {
    for (const int64_t cols : {1, 7, 8, 33, 72}) {
      std::vector<float> w = BellMatrix(rows, cols, 9);
      if (rows > 1) std::fill_n(w.begin(), cols, 0.0f);
      const auto q = Quantize(ViewOf(w.data(), rows, cols), Parse("2x8g8 f32"));
      ASSERT_TRUE(q.ok()) << q.status().message();
      const double error = SquareError(w, *q);
      ASSERT_TRUE(std::isfinite(error));
      // No more vectors than entries.
      if (rows * ((cols + 7) / 8) <= 256) {
        EXPECT_LT(error, 1e-8) << rows << " x " << cols;
      }
      const Hessian hessian = HessianOf(CorrelatedInputs(3, cols, 2), cols);
      const auto fed = QuantizeGptq(ViewOf(w.data(), rows, cols), Parse("2x8g8 f32"), hessian);
      ASSERT_TRUE(fed.ok()) << fed.status().message();
      EXPECT_TRUE(std::isfinite(SquareError(w, *fed)));
    }
  }
}

// Rows pass in slabs: many of them take no more memory beside weights and result.
TEST(AdditiveQuantize, MemoryDoesNotGrowWithTheRows) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep memory of their own";
#endif
  const int64_t rows = 32768, cols = 256;
  const int64_t weights_bytes = rows * cols * 4;
  const std::vector<float> w = BellMatrix(rows, cols, 1);
  const Hessian hessian = HessianOf(CorrelatedInputs(300, cols, 2), cols);
  const auto peak = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
  };
  GptqOptions options;
  options.sweeps = 0;
  const int64_t before = peak();
  const auto made =
      QuantizeGptq(ViewOf(w.data(), rows, cols), Parse("1x8g8 f16"), hessian, options);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_LT(peak() - before - static_cast<int64_t>(made->bytes()), weights_bytes / 3);
}

TEST(AdditiveQuantize, SaysWhatItCannotDo) {
  std::vector<float> w = BellMatrix(200, 16, 1);
  const TensorView view = ViewOf(w.data(), 200, 16);
  const Status wide = Quantize(view, Parse("1x16g8 f16")).status();
  EXPECT_EQ(wide.code(), StatusCode::kUnsupported);
  EXPECT_NE(wide.message().find("2x8g8 channel f16 can be"), std::string::npos) << wide.message();
  const float table[4] = {0, 1, 2, 3};
  EXPECT_EQ(Quantize(view, Parse("2x8g8"), {}, table).status().code(),
            StatusCode::kInvalidArgument);
  QuantizeOptions hqq;
  hqq.scales = ScaleChoice::kHalfQuadratic;
  EXPECT_EQ(Quantize(view, Parse("2x8g8"), hqq).status().code(), StatusCode::kInvalidArgument);
  w[150 * 16 + 3] = NAN;
  w[170 * 16 + 3] = INFINITY;
  const Status nan = Quantize(view, Parse("2x8g8 f16")).status();
  EXPECT_EQ(nan.message(), "NaN at row 150, column 3");
  const Hessian hessian = HessianOf(CorrelatedInputs(40, 16, 2), 16);
  EXPECT_EQ(QuantizeGptq(view, Parse("2x8g8 f16"), hessian).status().message(), nan.message());
  QuantizeOptions clamp;
  clamp.non_finite = NonFinite::kClamp;
  EXPECT_EQ(Quantize(view, Parse("2x8g8 f16"), clamp).status().code(),
            StatusCode::kInvalidArgument);  // the largest float is beyond a scale in f16
  w[170 * 16 + 3] = 1;
  EXPECT_TRUE(Quantize(view, Parse("2x8g8 f16"), clamp).ok());
  w[150 * 16 + 3] = 1;
  EXPECT_FALSE(QuantizeGptq(view, Parse("2x8g8 f16"), Hessian(16)).ok());  // saw no token
  EXPECT_FALSE(QuantizeGptq(view, Parse("2x8g8 f16"), Hessian(8)).ok());
}

}  // namespace
}  // namespace nibble
