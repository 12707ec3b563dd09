// Weights and inputs to try error feedback on, and the error that it is to lower.
#ifndef NIBBLE_TESTS_GPTQ_INPUTS_H_
#define NIBBLE_TESTS_GPTQ_INPUTS_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "nibble/gptq.h"
#include "nibble/quantize.h"

namespace nibble {

// Numbers in (-1, 1), the same on every machine.
class Noise {
 public:
  explicit Noise(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  float Next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 8) - (1 << 23)) / (1 << 23);
  }
  float NextBell() { return Next() + Next() + Next() + Next(); }

 private:
  uint32_t state_;
};

inline std::vector<float> BellMatrix(int64_t rows, int64_t cols, uint32_t seed) {
  Noise noise(seed);
  std::vector<float> m(static_cast<size_t>(rows * cols));
  for (float& x : m) x = 0.05f * noise.NextBell();
  return m;
}

// Inputs whose columns are correlated and of very different size, as activations are.
inline std::vector<float> CorrelatedInputs(int64_t tokens, int64_t cols, uint32_t seed) {
  Noise noise(seed);
  std::vector<float> x(static_cast<size_t>(tokens * cols));
  for (int64_t t = 0; t < tokens; ++t) {
    float common[4];
    for (float& c : common) c = noise.NextBell();
    float* row = x.data() + t * cols;
    for (int64_t j = 0; j < cols; ++j) {
      const float size = j % 37 == 5 ? 4.0f : 0.3f + 0.1f * static_cast<float>(j % 11);
      row[j] = size * (noise.NextBell() + common[j % 4] + (j > 0 ? 0.3f * row[j - 1] : 0.0f));
    }
  }
  return x;
}

inline Hessian HessianOf(const std::vector<float>& inputs, int64_t cols) {
  Hessian hessian(cols);
  const int64_t tokens = static_cast<int64_t>(inputs.size()) / cols;
  EXPECT_TRUE(hessian.Add(ViewOf(inputs.data(), tokens, cols)).ok());
  return hessian;
}

// Mean over the tokens of |(W - Q) x|^2, from the inputs themselves.
inline double OutputError(const std::vector<float>& w, const std::vector<float>& decoded,
                          int64_t rows, int64_t cols, const std::vector<float>& inputs) {
  const int64_t tokens = static_cast<int64_t>(inputs.size()) / cols;
  double error = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t t = 0; t < tokens; ++t) {
      double y = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const size_t at = static_cast<size_t>(r * cols + j);
        y += (static_cast<double>(w[at]) - decoded[at]) * inputs[static_cast<size_t>(t * cols + j)];
      }
      error += y * y;
    }
  }
  return error / static_cast<double>(tokens);
}

inline double OutputError(const std::vector<float>& w, const QuantizedTensor& q,
                          const std::vector<float>& inputs) {
  std::vector<float> decoded(w.size());
  EXPECT_TRUE(Dequantize(q, ViewOf(decoded.data(), q.rows(), q.cols())).ok());
  return OutputError(w, decoded, q.rows(), q.cols(), inputs);
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_GPTQ_INPUTS_H_
