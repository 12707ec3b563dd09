// Quantizes a matrix of the caller to q4_K and back, on two threads, and prints what it cost.
#include <cmath>
#include <cstdio>
#include <vector>

#include "nibble/nibble.h"

// Deterministic numbers that look like weights: a sum of uniforms is nearly normal.
static std::vector<float> MakeWeights(int64_t count) {
  std::vector<float> weights(count);
  uint32_t state = 1;
  for (float& w : weights) {
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525u + 1013904223u;
      w += static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
    }
    w *= 0.02f;
  }
  return weights;
}

static nibble::Status Run() {
  const int64_t rows = 128, cols = 1024;
  std::vector<float> weights = MakeWeights(rows * cols);
  std::vector<float> restored(weights.size());

  // [readme]
  nibble::ThreadPool pool(2);  // or an adapter to the threads of your engine
  nibble::QuantizeOptions options;
  options.parallel = pool.parallel_for();

  NIBBLE_ASSIGN_OR_RETURN(
      nibble::QuantizedTensor quantized,
      nibble::Quantize(nibble::ViewOf(weights.data(), rows, cols), nibble::Format::kQ4_K, options));
  NIBBLE_RETURN_IF_ERROR(
      nibble::Dequantize(quantized, nibble::ViewOf(restored.data(), rows, cols), options.parallel));
  // [readme]

  double error = 0, power = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    error += std::pow(restored[i] - weights[i], 2);
    power += std::pow(weights[i], 2);
  }
  const double relative = std::sqrt(error / power);
  std::printf("%zu bytes, %.2f bits per weight, relative error %.3f\n", quantized.bytes(),
              8.0 * static_cast<double>(quantized.bytes()) / static_cast<double>(weights.size()),
              relative);
  // 16 levels over a range of about five standard deviations: more than 10% is no rounding error.
  if (!(relative < 0.10)) return nibble::InternalError("the error is too large");
  return nibble::OkStatus();
}

int main() {
  const nibble::Status status = Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
