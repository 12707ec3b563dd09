// An engine of its own calibrates a layer: it feeds the layer's inputs to nibble as it runs, and
// gets weights that lose less in the same bytes.
#include <cstdio>
#include <vector>

#include "nibble/gptq.h"
#include "nibble/nibble.h"

namespace {

constexpr int64_t kRows = 64, kCols = 512, kTokens = 2048;

// Numbers in (-0.5, 0.5), the same on every machine.
class Numbers {
 public:
  float Next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(state_ >> 8) / (1 << 24) - 0.5f;
  }

 private:
  uint32_t state_ = 1;
};

// Inputs as activations are: neighbours resemble each other, some columns are much larger.
std::vector<float> RunLayersBefore(Numbers& numbers) {
  std::vector<float> inputs(kTokens * kCols);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const float before = i % kCols == 0 ? 0.0f : inputs[i - 1];
    inputs[i] = 0.7f * before + numbers.Next() * (i % kCols % 61 == 7 ? 5.0f : 1.0f);
  }
  return inputs;
}

// Mean over the tokens of the squared error of the layer's outputs.
nibble::Result<double> OutputError(const std::vector<float>& weights,
                                   const nibble::QuantizedTensor& quantized,
                                   const std::vector<float>& inputs) {
  std::vector<float> difference(weights.size()), outputs(kTokens * kRows);
  NIBBLE_RETURN_IF_ERROR(
      nibble::Dequantize(quantized, nibble::ViewOf(difference.data(), kRows, kCols)));
  for (size_t i = 0; i < weights.size(); ++i) difference[i] = weights[i] - difference[i];
  double sum = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      double y = 0;
      for (int64_t j = 0; j < kCols; ++j) {
        y += static_cast<double>(difference[r * kCols + j]) * inputs[t * kCols + j];
      }
      sum += y * y;
    }
  }
  return sum / kTokens;
}

nibble::Status Run() {
  Numbers numbers;
  std::vector<float> weights(kRows * kCols);
  for (float& w : weights) w = 0.1f * (numbers.Next() + numbers.Next() + numbers.Next());
  const nibble::TensorView view = nibble::ViewOf(std::as_const(weights).data(), kRows, kCols);
  const std::vector<float> inputs = RunLayersBefore(numbers);

  nibble::Hessian hessian(kCols);
  for (int64_t t = 0; t < kTokens; t += 256) {  // batch by batch, as the engine runs
    NIBBLE_RETURN_IF_ERROR(hessian.Add(nibble::ViewOf(inputs.data() + t * kCols, 256, kCols)));
  }
  nibble::GptqReport report;
  NIBBLE_ASSIGN_OR_RETURN(const nibble::QuantizedTensor fed,
                          nibble::QuantizeGptq(view, nibble::Format::kQ3_K, hessian, {}, &report));

  nibble::QuantizeOptions weighed;
  const std::vector<float> importance = hessian.MeanSquares();
  weighed.importance = importance;
  NIBBLE_ASSIGN_OR_RETURN(const nibble::QuantizedTensor searched,
                          nibble::Quantize(view, nibble::Format::kQ3_K, weighed));
  NIBBLE_ASSIGN_OR_RETURN(const double before, OutputError(weights, searched, inputs));
  NIBBLE_ASSIGN_OR_RETURN(const double after, OutputError(weights, fed, inputs));
  std::printf("output error in %zu bytes: %.3e weighed by importance, %.3e with feedback\n",
              fed.bytes(), before, after);
  if (!(after < 0.8 * before)) return nibble::InternalError("the feedback gains too little");
  return nibble::OkStatus();
}

}  // namespace

int main() {
  const nibble::Status status = Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
