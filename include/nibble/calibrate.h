// Quantizes whole models with error feedback, layer after layer, on the inputs that calibration
// text gives.
#ifndef NIBBLE_CALIBRATE_H_
#define NIBBLE_CALIBRATE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "nibble/gptq.h"
#include "nibble/model.h"
#include "nibble/quantize_model.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble {

struct LayerwiseOptions {
  // Tokens of a window; windows do not overlap. A BOS, where the tokenizer adds one, takes the place
  // of a window's first token.
  int64_t context = 512;
  int64_t max_windows = 0;      // 0: the whole text
  int64_t batch_tokens = 2048;  // run at once
  GptqOptions gptq;             // its `parallel` serves all the work
  // Share of the errors in a layer's inputs, and in the residual stream that its output is added
  // to, that its weights are asked to make good (as in GPTAQ, arXiv 2504.02692).
  float input_correction = 1.0f;
  float residual_correction = 1.0f;
  // After each matrix; false stops (kCancelled).
  std::function<bool(std::string_view name, const GptqReport& report)> progress;
};

// The matrices of the model's layers that `plan` gives a block format, by name. Layers are
// quantized in order: each sees the inputs that the quantized layers before it give, and is fitted
// to what the original layer makes of the original inputs. Memory: the residual streams of all
// windows twice (f32 [tokens, width]), the Hessians of one layer's inputs, the result.
// Fails where the text is shorter than a window or the context longer than the model's.
Result<std::map<std::string, QuantizedTensor, std::less<>>> QuantizeLayerwise(
    const Model& model, const ModelPlan& plan, std::span<const int32_t> tokens,
    const LayerwiseOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_CALIBRATE_H_
