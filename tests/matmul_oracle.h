// What products are compared with: sums in double precision, and how far from them a result is.
#ifndef NIBBLE_TESTS_MATMUL_ORACLE_H_
#define NIBBLE_TESTS_MATMUL_ORACLE_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/quantize.h"

namespace nibble {

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

}  // namespace nibble

#endif  // NIBBLE_TESTS_MATMUL_ORACLE_H_
