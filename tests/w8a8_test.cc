// int8 weights by int8 activations, on every target: integers to the end.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/llm_int8.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"
#include "tests/matmul_oracle.h"
#include "tests/targets.h"

namespace nibble {
namespace {

// Every code, -128 among them, and scales that differ by row.
QuantizedTensor RandomInt8(const char* name, int64_t rows, int64_t cols) {
  auto tensor = QuantizedTensor::Allocate(*ParseScheme(name), rows, cols);
  EXPECT_TRUE(tensor.ok());
  std::mt19937 random(static_cast<uint32_t>(rows + cols));
  for (std::byte& b : tensor->plane(Plane::kCodes).mutable_bytes()) {
    b = static_cast<std::byte>(random());
  }
  auto* scales = reinterpret_cast<float*>(tensor->plane(Plane::kScales).data());
  const size_t count = tensor->plane(Plane::kScales).size() / sizeof(float);
  for (size_t i = 0; i < count; ++i) scales[i] = static_cast<float>(i + 3) / 1024;
  return *std::move(tensor);
}

std::vector<int8_t> RandomCodes(int64_t count) {
  std::mt19937 random(3);
  std::vector<int8_t> codes(static_cast<size_t>(count));
  for (int8_t& c : codes) c = static_cast<int8_t>(random());
  return codes;
}

float ScaleOf(const QuantizedTensor& weights, int64_t n) {
  const auto* scales = reinterpret_cast<const float*>(weights.plane(Plane::kScales).data());
  return scales[weights.plane(Plane::kScales).size() > sizeof(float) ? n : 0];
}

// The definition: the sum of products of codes, rounded to float, times the product of the scales.
std::vector<float> Expected(const std::vector<int8_t>& codes, const std::vector<float>& a_scales,
                            const QuantizedTensor& weights, int64_t m_rows) {
  const int64_t cols = weights.cols();
  const auto* w = reinterpret_cast<const int8_t*>(weights.plane(Plane::kCodes).data());
  std::vector<float> out;
  for (int64_t m = 0; m < m_rows; ++m) {
    for (int64_t n = 0; n < weights.rows(); ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += codes[static_cast<size_t>(m * cols + k)] * w[n * cols + k];
      }
      const float a_scale = a_scales[a_scales.size() == 1 ? 0 : static_cast<size_t>(m)];
      out.push_back(static_cast<float>(sum) * (ScaleOf(weights, n) * a_scale));
    }
  }
  return out;
}

TensorView Int8View(const std::vector<int8_t>& codes, int64_t rows, int64_t cols) {
  return {codes.data(), DType::kI8, rows, cols, cols, Device::kCpu};
}

class W8A8 : public EveryTarget {};

TEST_P(W8A8, GivesTheDefinedBitsForAnyShape) {
  for (const char* name : {"int8 sym channel f32", "int8 sym tensor f32"}) {
    for (const int64_t cols : {1, 63, 64, 200, 1030, 8390}) {
      for (const int64_t n_rows : {1, 7, 50}) {
        const QuantizedTensor weights = RandomInt8(name, n_rows, cols);
        for (const int64_t m_rows : {1, 2, 3, 4, 5, 11, 12, 17, 33, 70, 140}) {
          const std::vector<int8_t> codes = RandomCodes(m_rows * cols);
          std::vector<float> scales(static_cast<size_t>(m_rows), 0.25f);
          for (size_t i = 0; i < scales.size(); ++i) scales[i] += static_cast<float>(i) / 64;
          if (m_rows == 5) scales = {0.5f};
          std::vector<float> out(static_cast<size_t>(m_rows * n_rows), NAN);
          MatmulOptions options;
          options.activation_scales = scales;
          const Status status = Matmul(Int8View(codes, m_rows, cols), weights,
                                       ViewOf(out.data(), m_rows, n_rows), options);
          ASSERT_TRUE(status.ok()) << status.message();
          ASSERT_EQ(out, Expected(codes, scales, weights, m_rows))
              << name << " " << m_rows << " x " << n_rows << " x " << cols;
        }
      }
    }
  }
}

// Rounded here: to the nearest of 127 steps of the row's largest magnitude.
TEST_P(W8A8, RoundsActivationsByRow) {
  const int64_t cols = 515, n_rows = 40;
  const QuantizedTensor weights = RandomInt8("int8 sym channel f32", n_rows, cols);
  for (const int64_t m_rows : {1, 5, 40}) {
    const std::vector<float> a = RandomValues(m_rows * cols, 4);
    std::vector<int8_t> codes;
    std::vector<float> scales;
    for (int64_t m = 0; m < m_rows; ++m) {
      float largest = 0;
      for (int64_t k = 0; k < cols; ++k) {
        largest = std::max(largest, std::fabs(a[static_cast<size_t>(m * cols + k)]));
      }
      scales.push_back(largest / 127.0f);
      for (int64_t k = 0; k < cols; ++k) {
        const float position = a[static_cast<size_t>(m * cols + k)] * (127.0f / largest);
        codes.push_back(static_cast<int8_t>(std::nearbyint(position)));
      }
    }
    std::vector<float> out(static_cast<size_t>(m_rows * n_rows));
    MatmulOptions options;
    options.precision = Precision::kInt8PerRow;
    ASSERT_TRUE(
        Matmul(ViewOf(a.data(), m_rows, cols), weights, ViewOf(out.data(), m_rows, n_rows), options)
            .ok());
    EXPECT_EQ(out, Expected(codes, scales, weights, m_rows));
    const Oracle oracle = Multiply(a, Decoded(weights), m_rows, n_rows, cols);
    EXPECT_LE(NormalisedError(oracle, out), 5e-4);
  }
}

NIBBLE_ON_EVERY_TARGET(W8A8);

// Sums of 2^17 products of the largest codes exceed 32 bits.
TEST(W8A8Products, DoNotOverflow) {
  const int64_t cols = (1 << 18) + 5;
  auto weights = QuantizedTensor::Allocate(*ParseScheme("int8 sym tensor f32"), 2, cols);
  ASSERT_TRUE(weights.ok());
  auto codes_of = weights->plane(Plane::kCodes).mutable_bytes();
  std::fill(codes_of.begin(), codes_of.end(), std::byte{0x80});
  *reinterpret_cast<float*>(weights->plane(Plane::kScales).data()) = 1;
  const std::vector<float> one = {1.0f};
  for (const int64_t m_rows : {1, 16}) {
    const std::vector<int8_t> codes(static_cast<size_t>(m_rows * cols), -128);
    std::vector<float> out(static_cast<size_t>(m_rows * 2));
    MatmulOptions options;
    options.activation_scales = one;
    ASSERT_TRUE(
        Matmul(Int8View(codes, m_rows, cols), *weights, ViewOf(out.data(), m_rows, 2), options)
            .ok());
    for (const float sum : out) EXPECT_EQ(sum, static_cast<float>(cols * 16384));
  }
}

TEST(W8A8Products, TakeGroupsRowsBiasAccumulationThreadsAndCallers) {
  const int64_t cols = 300, m_rows = 30;
  const QuantizedTensor first = RandomInt8("int8 sym channel f32", 90, cols),
                        second = RandomInt8("int8 sym tensor f32", 33, cols);
  const std::vector<int8_t> codes = RandomCodes(m_rows * cols);
  std::vector<float> scales(static_cast<size_t>(m_rows));
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i + 1) / 32;
  const std::vector<float> bias = RandomValues(90, 1);
  const std::vector<int32_t> rows = {29, 3, 3};
  const auto all = Expected(codes, scales, first, m_rows),
             some = Expected(codes, scales, second, m_rows);
  ThreadPool pool(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&] {
      std::vector<float> a(static_cast<size_t>(m_rows * 90), 0.5f), b(3 * 33, 0.5f);
      const std::vector<MatmulMember> members = {{&first, ViewOf(a.data(), m_rows, 90), bias, {}},
                                                 {&second, ViewOf(b.data(), 3, 33), {}, rows}};
      MatmulOptions options;
      options.activation_scales = scales;
      options.accumulate = true;
      options.parallel = pool.parallel_for();
      EXPECT_TRUE(MatmulGroup(Int8View(codes, m_rows, cols), members, options).ok());
      for (size_t i = 0; i < a.size(); ++i) ASSERT_EQ(a[i], 0.5f + (all[i] + bias[i % 90])) << i;
      for (size_t i = 0; i < b.size(); ++i) {
        ASSERT_EQ(b[i], 0.5f + some[static_cast<size_t>(rows[i / 33]) * 33 + i % 33]) << i;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(W8A8Products, HideNothingThatIsNotFinite) {
  const int64_t cols = 128, n_rows = 20, m_rows = 14;
  const QuantizedTensor weights = RandomInt8("int8 sym channel f32", n_rows, cols);
  MatmulOptions options;
  options.precision = Precision::kInt8PerRow;
  for (const float value : {NAN, INFINITY}) {
    std::vector<float> a = RandomValues(m_rows * cols, 4),
                       out(static_cast<size_t>(m_rows * n_rows));
    a[static_cast<size_t>(cols) + 7] = value;
    for (const bool split : {false, true}) {
      const TensorView x = ViewOf(std::as_const(a).data(), m_rows, cols);
      const MutableTensorView y = ViewOf(out.data(), m_rows, n_rows);
      ASSERT_TRUE((split ? MatmulLlmInt8(x, weights, y) : Matmul(x, weights, y, options)).ok());
      for (size_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(std::isfinite(out[i]), i / n_rows != 1) << i;
      }
    }
  }
}

TEST(W8A8Products, RefuseWhatDoesNotFit) {
  const std::vector<int8_t> codes(3 * 64);
  std::vector<float> out(3 * 5), three(3), two(2);
  const auto code = [&](const QuantizedTensor& weights, std::span<const float> scales) {
    MatmulOptions options;
    options.activation_scales = scales;
    return Matmul(Int8View(codes, 3, 64), weights, ViewOf(out.data(), 3, 5), options).code();
  };
  const QuantizedTensor weights = RandomInt8("int8 sym channel f32", 5, 64);
  EXPECT_EQ(code(weights, three), StatusCode::kOk);
  EXPECT_EQ(code(weights, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(weights, two), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(RandomInt8("int8 sym g32 f32", 5, 64), three), StatusCode::kUnsupported);
  EXPECT_EQ(code(*QuantizedTensor::Allocate(Format::kQ8_0, 5, 64), three),
            StatusCode::kUnsupported);
  EXPECT_EQ(MatmulLlmInt8(Int8View(codes, 3, 64), weights, ViewOf(out.data(), 3, 5)).code(),
            StatusCode::kInvalidArgument);
  const std::vector<float> floats(3 * 64);
  MatmulOptions options;
  options.activation_scales = three;
  EXPECT_EQ(Matmul(ViewOf(floats.data(), 3, 64), weights, ViewOf(out.data(), 3, 5), options).code(),
            StatusCode::kInvalidArgument);
}

// Outliers that are found in the activations keep them from coarsening all others.
TEST(LlmInt8AtRunTime, FindsTheOutliers) {
  const int64_t cols = 512, n_rows = 64;
  const std::vector<float> dense = RandomValues(n_rows * cols, 2);
  const auto weights =
      Quantize(ViewOf(dense.data(), n_rows, cols), *ParseScheme("int8 sym channel f32"));
  ASSERT_TRUE(weights.ok());
  const std::vector<float> w = Decoded(*weights), bias = RandomValues(n_rows, 9);
  for (const int64_t m_rows : {1, 20}) {
    std::vector<float> a = RandomValues(m_rows * cols, 3);
    for (float& v : a) v = std::fmax(-5.0f, std::fmin(5.0f, v));
    for (int64_t m = 0; m < m_rows; ++m) {
      for (const int64_t column : {17, 300}) {
        a[static_cast<size_t>(m * cols + column)] = m % 2 == 0 ? 60.0f : -75.0f;
      }
    }
    Oracle oracle = Multiply(a, w, m_rows, n_rows, cols);
    for (size_t i = 0; i < oracle.product.size(); ++i) {
      oracle.product[i] += static_cast<double>(bias[i % bias.size()]);
    }
    const auto error = [&](float threshold) {
      std::vector<float> out(static_cast<size_t>(m_rows * n_rows));
      MatmulOptions options;
      options.bias = bias;
      const Status status = MatmulLlmInt8(ViewOf(std::as_const(a).data(), m_rows, cols), *weights,
                                          ViewOf(out.data(), m_rows, n_rows), threshold, options);
      EXPECT_TRUE(status.ok()) << status.message();
      return NormalisedError(oracle, out);
    };
    const double split = error(6), whole = error(1000), all = error(0);
    EXPECT_LT(split, 1e-4);
    EXPECT_LT(split, whole / 20);
    EXPECT_LT(all, 1e-12);  // every column in f32
  }
}

}  // namespace
}  // namespace nibble
