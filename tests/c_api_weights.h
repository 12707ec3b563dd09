// The matrix that the tests of the C interface quantize.
#ifndef NIBBLE_TESTS_C_API_WEIGHTS_H_
#define NIBBLE_TESTS_C_API_WEIGHTS_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nibble/c_api.h"

inline constexpr int64_t kRows = 7, kCols = 512;

inline std::vector<float> Weights() {
  std::vector<float> weights(kRows * kCols);
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = 0.1f * std::sin(0.37f * static_cast<float>(i) * static_cast<float>(i % 13));
  }
  return weights;
}

inline nibble_matrix MatrixOf(const std::vector<float>& weights) {
  return {weights.data(), NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU};
}

#endif  // NIBBLE_TESTS_C_API_WEIGHTS_H_
