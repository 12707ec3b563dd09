// What the matrices of a running model see.
#ifndef NIBBLE_LAYER_INPUTS_H_
#define NIBBLE_LAYER_INPUTS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/gptq.h"
#include "nibble/model.h"
#include "nibble/status.h"

namespace nibble {

struct LayerInputs {
  Hessian hessian;
  std::vector<float> maxima;   // largest magnitude, by column
  std::vector<float> samples;  // f32 [sample_count, cols]: tokens at even distances

  int64_t sample_count() const {
    return hessian.cols() == 0 ? 0 : static_cast<int64_t>(samples.size()) / hessian.cols();
  }
};

struct LayerInputsOptions {
  int64_t batch_tokens = 2048;            // run at once
  int64_t samples = 256;                  // tokens kept of each matrix's inputs, at most
  size_t memory_bytes = size_t{1} << 30;  // of statistics at once: the text is run again for the
                                          // matrices that do not fit
  ParallelFor parallel;
  // After each batch: batches done and in all, over all runs. False stops (kCancelled).
  std::function<bool(int64_t done, int64_t batches)> progress;
};

// Runs the model, in f32, over the text and hands the inputs of each of the `names` matrices to
// `visit`, in that order. Fails where a name is no matrix of the model's, and where an input is not
// finite.
Status VisitLayerInputs(
    const Model& model, const CalibrationText& text, std::span<const std::string> names,
    const LayerInputsOptions& options,
    const std::function<Status(std::string_view name, const LayerInputs& inputs)>& visit);

}  // namespace nibble

#endif  // NIBBLE_LAYER_INPUTS_H_
