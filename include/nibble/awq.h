// Activation-aware weight quantization (AWQ, arXiv 2306.00978): before rounding, channels that
// carry large inputs are scaled up where they are used and down where they are made, and outlying
// weights are clipped, as far as that lowers the error of the layers' outputs. The result is a
// model of the same kind, to be quantized to anything.
#ifndef NIBBLE_AWQ_H_
#define NIBBLE_AWQ_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "nibble/format.h"
#include "nibble/layer_inputs.h"
#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/scheme.h"
#include "nibble/status.h"

namespace nibble {

// What a matrix will be quantized to.
using QuantizationTarget = std::variant<Format, Scheme>;

struct AwqOptions {
  // By the name of a matrix. Needed.
  std::function<QuantizationTarget(std::string_view name)> target;
  // Whether rounding will be weighed by the mean squares of the inputs.
  bool importance = false;
  int steps = 20;  // exponents tried between 0 and 1
  // Whether weights of planar groups are clipped where that helps: down to half of the largest.
  // Formats and weighed schemes search for that themselves.
  bool clip = true;
  LayerInputsOptions inputs;  // its `parallel` serves all the work
};

struct AwqReport {
  std::string producer;     // of the pair of layers
  float exponent = 0;       // of the inputs' size in the factors; 0: all factors are 1
  bool by_weights = false;  // the factors also divide by the weights' size
  // Sums over the consumers of the output's mean squared error, over that of the output itself:
  // rounded as they are, with the factors, and with clipping.
  double error_before = 0, error_scaled = 0, error_clipped = 0;
};

// The changes to `source` (which `model` was loaded from) that AWQ makes on the inputs that
// calibration text gives. Factors alone leave the model's function as it
// is; clipping does not.
Result<ModelEdits> Awq(const ModelSource& source, const Model& model, const CalibrationText& text,
                       const AwqOptions& options, std::vector<AwqReport>* reports = nullptr);

}  // namespace nibble

#endif  // NIBBLE_AWQ_H_
