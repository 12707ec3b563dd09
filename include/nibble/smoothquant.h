// SmoothQuant (arXiv 2211.10438): large inputs are what int8 activations suffer from; factors that
// move into the norm before make them smaller and the weights larger, so that both can be rounded
// to int8. The result is a model of the same kind, to be quantized to "int8 sym channel".
#ifndef NIBBLE_SMOOTHQUANT_H_
#define NIBBLE_SMOOTHQUANT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/layer_inputs.h"
#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/status.h"

namespace nibble {

struct SmoothQuantOptions {
  // Migration strength: a channel's factor is max|x|^alpha / max|w|^(1 - alpha).
  float alpha = 0.5f;
  // Find alpha for each pair of layers, of `steps` + 1 between 0 and 1 and no factors at all, by
  // the error of the int8 product on sample tokens.
  bool search = true;
  int steps = 10;
  // Factors between matrices too, from value to attention output and from up to down, where there
  // is no norm to take them.
  bool between_matrices = true;
  LayerInputsOptions inputs;  // its `parallel` serves all the work
};

struct SmoothQuantReport {
  std::string producer;  // of the pair of layers
  float alpha = -1;      // < 0: no factors
  // Of the product of weights rounded by row and inputs rounded by token, over the energy of the
  // exact one, on the sample tokens: without and with the factors.
  double error_before = 0, error_after = 0;
};

// The changes to `source` (which `model` was loaded from) that SmoothQuant makes on the inputs that
// calibration text gives. They leave the model's function as it is.
Result<ModelEdits> SmoothQuant(const ModelSource& source, const Model& model,
                               const CalibrationText& text, const SmoothQuantOptions& options = {},
                               std::vector<SmoothQuantReport>* reports = nullptr);

}  // namespace nibble

#endif  // NIBBLE_SMOOTHQUANT_H_
