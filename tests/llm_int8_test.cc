// LLM.int8(): outlier columns in f16 beside int8.
#include "nibble/llm_int8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nibble/quantize.h"
#include "tests/gptq_inputs.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 48, kCols = 320, kTokens = 37;

// Inputs of which some columns are 40 times as large.
std::vector<float> OutlierInputs(const std::vector<int32_t>& columns) {
  std::vector<float> x = BellMatrix(kTokens, kCols, 3);
  for (float& v : x) v *= 10;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (const int32_t c : columns) x[static_cast<size_t>(t * kCols + c)] *= 40;
  }
  return x;
}

std::vector<float> Maxima(const std::vector<float>& x) {
  std::vector<float> maxima(static_cast<size_t>(kCols));
  for (size_t i = 0; i < x.size(); ++i) {
    maxima[i % maxima.size()] = std::max(maxima[i % maxima.size()], std::fabs(x[i]));
  }
  return maxima;
}

// |y - x w^T|^2 / |x w^T|^2 in double.
double RelativeError(const std::vector<float>& x, const std::vector<float>& w,
                     const std::vector<float>& y) {
  double error = 0, energy = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      double sum = 0;
      for (int64_t k = 0; k < kCols; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(t * kCols + k)]) *
               w[static_cast<size_t>(r * kCols + k)];
      }
      const double e = sum - y[static_cast<size_t>(t * kRows + r)];
      error += e * e;
      energy += sum * sum;
    }
  }
  return error / energy;
}

std::vector<float> Product(const std::vector<float>& x, const SplitInt8& split,
                           const MatmulOptions& options = {}) {
  std::vector<float> y(static_cast<size_t>(kTokens * kRows), 0.5f);
  const Status status =
      Matmul(ViewOf(x.data(), kTokens, kCols), split, ViewOf(y.data(), kTokens, kRows), options);
  EXPECT_TRUE(status.ok()) << status.message();
  return y;
}

TEST(LlmInt8, KeepsOutliersApart) {
  const std::vector<int32_t> planted = {0, 17, 200, 319};
  const std::vector<float> x = OutlierInputs(planted), w = BellMatrix(kRows, kCols, 4);
  const std::vector<float> maxima = Maxima(x);
  const std::vector<int32_t> columns = OutlierColumns(maxima);
  EXPECT_EQ(columns, planted);
  const TensorView weights = ViewOf(w.data(), kRows, kCols);
  const auto split = SplitOutliers(weights, columns);
  const auto whole = SplitOutliers(weights, {});
  ASSERT_TRUE(split.ok() && whole.ok());
  const double with = RelativeError(x, w, Product(x, *split));
  const double without = RelativeError(x, w, Product(x, *whole));
  EXPECT_LT(with, 1e-4);
  EXPECT_LT(with, 0.05 * without);
  EXPECT_LT(split->bytes(), whole->bytes() + 2 * kRows * 4 + 4 * 4 + 64);

  // The weights of outlier columns are f16, the others within half a step.
  std::vector<float> decoded(w.size());
  ASSERT_TRUE(Dequantize(*split, ViewOf(decoded.data(), kRows, kCols)).ok());
  for (int64_t r = 0; r < kRows; ++r) {
    float largest = 0;
    for (int64_t c = 0; c < kCols; ++c) {
      if (std::ranges::find(columns, c) == columns.end()) {
        largest = std::max(largest, std::fabs(w[static_cast<size_t>(r * kCols + c)]));
      }
    }
    for (int64_t c = 0; c < kCols; ++c) {
      const size_t at = static_cast<size_t>(r * kCols + c);
      const bool outlier = std::ranges::find(columns, c) != columns.end();
      EXPECT_NEAR(decoded[at], w[at],
                  outlier ? std::fabs(w[at]) * 0x1p-11f : largest / 127 * 0.5001f);
    }
  }
}

TEST(LlmInt8, TakesBiasAccumulationAndThreads) {
  const std::vector<float> x = OutlierInputs({5}), w = BellMatrix(kRows, kCols, 6);
  const auto split = SplitOutliers(ViewOf(w.data(), kRows, kCols), std::vector<int32_t>{5});
  ASSERT_TRUE(split.ok());
  const std::vector<float> plain = Product(x, *split);
  std::vector<float> bias(static_cast<size_t>(kRows));
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i);
  ThreadPool pool(2);
  MatmulOptions options;
  options.bias = bias;
  options.accumulate = true;
  options.parallel = pool.parallel_for();
  const std::vector<float> all = Product(x, *split, options);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_NEAR(all[i], plain[i] + 0.5f + bias[i % bias.size()], 1e-4);
  }
}

TEST(LlmInt8, RefusesWhatItCannotDo) {
  std::vector<float> w = BellMatrix(kRows, kCols, 7);
  const auto code = [&](std::vector<int32_t> columns) {
    return SplitOutliers(ViewOf(std::as_const(w).data(), kRows, kCols), columns).status().code();
  };
  EXPECT_EQ(code({3, 3}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({-1}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({320}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1, 2}), StatusCode::kOk);
  w[1] = 1e6f;
  EXPECT_EQ(code({1, 2}), StatusCode::kInvalidArgument);  // beyond f16
  EXPECT_EQ(code({2}), StatusCode::kOk);
  w[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(code({2}), StatusCode::kInvalidArgument);
  const std::vector<float> maxima = {1, std::numeric_limits<float>::quiet_NaN(), 7};
  EXPECT_EQ(OutlierColumns(maxima), (std::vector<int32_t>{1, 2}));
}

}  // namespace
}  // namespace nibble
