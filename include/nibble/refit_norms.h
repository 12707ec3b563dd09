// Recovery without training: after quantization, the gains of the norms are fitted so that the
// quantized matrices behind them give the original outputs as nearly as they can. Closed form; a
// file of the same kind and size.
#ifndef NIBBLE_REFIT_NORMS_H_
#define NIBBLE_REFIT_NORMS_H_

#include <map>
#include <string>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/layer_inputs.h"
#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble {

struct RefitNormsOptions {
  // Share of the mean curvature that holds gains back where the text tells little.
  double damping = 0.01;
  LayerInputsOptions inputs;  // its `parallel` serves all the work
};

struct RefitNormReport {
  std::string norm;
  // Sums over the matrices behind it of the output's mean squared error, over that of the output
  // itself, on the calibration text.
  double error_before = 0, error_after = 0;
};

// The changes to the norms of `source` (which `model` was loaded from) that serve its matrices best
// once those in `quantized` have taken their places. With E = Q R - W, R the gains' relative change
// and H the inputs' mean products, the sum of E H E^T is quadratic in R; `damping` draws R to 1.
Result<ModelEdits> RefitNorms(const ModelSource& source, const Model& model,
                              const std::map<std::string, QuantizedTensor, std::less<>>& quantized,
                              const CalibrationText& text, const RefitNormsOptions& options = {},
                              std::vector<RefitNormReport>* reports = nullptr);

}  // namespace nibble

#endif  // NIBBLE_REFIT_NORMS_H_
