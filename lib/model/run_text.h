// A model over the windows of a calibration text.
#ifndef NIBBLE_LIB_MODEL_RUN_TEXT_H_
#define NIBBLE_LIB_MODEL_RUN_TEXT_H_

#include <functional>

#include "nibble/calibrate.h"

namespace nibble {

// Some windows.
struct WindowBatch {
  int64_t first, windows;
};

// Refuses a text of no window, windows longer than the model's context, tokens that it does not
// have.
Status CheckText(const Model& model, const CalibrationText& text);

// Calls `function` for all windows in order, as many at once as make about `batch_tokens`.
Status ForEachBatch(const CalibrationText& text, int64_t batch_tokens,
                    const std::function<Status(WindowBatch)>& function);

// Runs the model, in f32, over all windows; `visit` gets the last hidden states of each batch, f32
// [tokens, width], after the last norm.
Status RunText(const Model& model, const CalibrationText& text, int64_t batch_tokens,
               const ParallelFor& parallel, const LayerObserver& observer,
               const std::function<Status(WindowBatch, TensorView hidden)>& visit);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_RUN_TEXT_H_
