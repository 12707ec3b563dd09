// A model on its way through its layers, one half of a layer at a time, all windows of a text side
// by side.
#ifndef NIBBLE_LIB_MODEL_LAYER_STREAM_H_
#define NIBBLE_LIB_MODEL_LAYER_STREAM_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lib/model/activations.h"
#include "lib/model/run_text.h"
#include "lib/model/runner_impl.h"
#include "nibble/calibrate.h"
#include "nibble/model.h"
#include "nibble/tensor.h"

namespace nibble {

// Both halves of a layer norm the residual stream for their first matrices; their last adds to it.
enum class Half { kAttention, kFeedForward };

class LayerStream {
 public:
  // All windows as `embedding` gives them. `model` tells everything else but the layers.
  static Result<std::unique_ptr<LayerStream>> Start(const Model& model,
                                                    const QuantizedTensor& embedding,
                                                    const CalibrationText& text,
                                                    const ActivationMemory& memory,
                                                    const ParallelFor& parallel);

  // f32 [tokens of the batch, width].
  float* Residual(WindowBatch batch) { return residual_.data() + batch.first * context_ * width_; }
  const float* Residual(WindowBatch batch) const {
    return residual_.data() + batch.first * context_ * width_;
  }

  // The residual stream behind a norm, f32 [tokens, width]; valid until the next call.
  TensorView Normed(const std::vector<float>& norm, WindowBatch batch);
  // The inputs of the last matrix of a half, f32 [tokens, cols]; valid until the next call.
  Result<TensorView> LastInputs(const DecoderLayer& layer, Half half, WindowBatch batch);
  // Adds the product of such inputs with a matrix to the residual stream.
  Status Add(const Linear& last, TensorView inputs, WindowBatch batch);
  // Each token's 1 / root mean square in the residual stream: what a norm behind it multiplies
  // errors by. The few tokens whose activations are massive do not outweigh all others so.
  std::vector<float> ErrorWeights(WindowBatch batch) const;

 private:
  LayerStream(const Model& model, RunnerOptions options, KvCache cache, int64_t context)
      : run_(model, std::move(options)),
        cache_(std::move(cache)),
        context_(context),
        width_(model.config().width) {}

  Runner::Impl run_;
  KvCache cache_;
  int64_t context_, width_;
  Activations residual_;  // [tokens, width]
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_LAYER_STREAM_H_
