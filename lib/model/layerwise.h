// Layer after layer with the inputs of the layers that are quantized already, for any quantizer.
#ifndef NIBBLE_LIB_MODEL_LAYERWISE_H_
#define NIBBLE_LIB_MODEL_LAYERWISE_H_

#include <functional>
#include <string>

#include "lib/quantize/hessian.h"
#include "nibble/calibrate.h"

namespace nibble {

// Makes the matrix that takes the place of one: `weights` [rows, cols], in the model's order of
// rows, are those that serve best on the inputs that the layers before now give, `inputs` their
// Hessian. Returns what the model is to be run with from now on.
using ReplaceMatrix = std::function<Result<QuantizedTensor>(
    const std::string& name, const RowMatrix& weights, const Hessian& inputs)>;

// Calls `replace` for the matrices of all layers: of each layer query, key, value, the attention's
// output, gate, up, down. Of `options`, `gptq` counts as to damping and threads alone. As
// QuantizeLayerwise() in nibble/calibrate.h, but for the result.
Status ReplaceLayerwise(const Model& model, const CalibrationText& text,
                        const LayerwiseOptions& options, const ReplaceMatrix& replace);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_LAYERWISE_H_
