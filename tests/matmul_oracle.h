// What products are compared with: sums in double precision, and how far from them a result is.
#ifndef NIBBLE_TESTS_MATMUL_ORACLE_H_
#define NIBBLE_TESTS_MATMUL_ORACLE_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"

namespace nibble {

// Blocks of random bytes whose decoded weights are of ordinary size: every code, scale and minimum
// of a format occurs, which quantizing smooth data would not show.
inline QuantizedTensor RandomWeights(Format format, int64_t rows, int64_t cols, uint32_t seed) {
  const FormatInfo& info = GetFormatInfo(format);
  auto tensor = QuantizedTensor::Allocate(format, rows, cols);
  EXPECT_TRUE(tensor.ok()) << tensor.status().message();
  std::mt19937 random(seed);
  std::byte* block = tensor->plane(Plane::kCodes).data();
  std::byte* end = block + tensor->plane(Plane::kCodes).size();
  std::vector<float> decoded(info.block_weights);
  for (; block < end; block += info.block_bytes) {
    for (;;) {
      for (uint32_t i = 0; i < info.block_bytes; ++i) block[i] = static_cast<std::byte>(random());
      const auto status = Dequantize(format, {block, info.block_bytes},
                                     ViewOf(decoded.data(), 1, info.block_weights));
      EXPECT_TRUE(status.ok()) << status.message();
      bool finite = true;
      float largest = 0;
      for (float w : decoded) {
        finite &= std::isfinite(w);
        largest = std::max(largest, std::fabs(w));
      }
      if (finite && largest > 1.0f / 64 && largest < 2) break;
    }
  }
  return *std::move(tensor);
}

inline std::vector<float> RandomValues(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

inline std::vector<float> Decoded(const QuantizedTensor& weights) {
  std::vector<float> w(static_cast<size_t>(weights.rows() * weights.cols()));
  const auto status = Dequantize(weights, ViewOf(w.data(), weights.rows(), weights.cols()));
  EXPECT_TRUE(status.ok()) << status.message();
  return w;
}

struct Oracle {
  std::vector<double> product;    // [M, N]
  std::vector<double> magnitude;  // sum over k of |a * w|
};

inline Oracle Multiply(const std::vector<float>& a, const std::vector<float>& w, int64_t m_rows,
                       int64_t n_rows, int64_t cols) {
  Oracle oracle;
  oracle.product.resize(static_cast<size_t>(m_rows * n_rows));
  oracle.magnitude.resize(oracle.product.size());
  for (int64_t m = 0; m < m_rows; ++m) {
    for (int64_t n = 0; n < n_rows; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double product = static_cast<double>(a[static_cast<size_t>(m * cols + k)]) *
                               w[static_cast<size_t>(n * cols + k)];
        sum += product;
        magnitude += std::fabs(product);
      }
      oracle.product[static_cast<size_t>(m * n_rows + n)] = sum;
      oracle.magnitude[static_cast<size_t>(m * n_rows + n)] = magnitude;
    }
  }
  return oracle;
}

inline double NormalisedError(const Oracle& oracle, const std::vector<float>& out) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    error += std::pow(out[i] - oracle.product[i], 2);
    norm += std::pow(oracle.product[i], 2);
  }
  return norm > 0 ? error / norm : error;
}

// The largest |out - product| / sum |a * w|.
inline double LargestRelativeError(const Oracle& oracle, const std::vector<float>& out) {
  double worst = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::isnan(out[i])) return std::numeric_limits<double>::infinity();
    const double error = std::fabs(out[i] - oracle.product[i]);
    if (error > 0) worst = std::max(worst, error / oracle.magnitude[i]);
  }
  return worst;
}

// activations[m_rows, cols] x weights^T.
// `weights`: a QuantizedTensor or PackedWeights.
template <class Weights>
std::vector<float> Product(const std::vector<float>& a, const Weights& weights, int64_t m_rows,
                           const MatmulOptions& options = {}) {
  std::vector<float> out(static_cast<size_t>(m_rows * weights.rows()), NAN);
  const Status status = Matmul(ViewOf(a.data(), m_rows, weights.cols()), weights,
                               ViewOf(out.data(), m_rows, weights.rows()), options);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_MATMUL_ORACLE_H_
