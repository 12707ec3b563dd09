#include "lib/model/layer_stream.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nibble {

Result<std::unique_ptr<LayerStream>> LayerStream::Start(const Model& model,
                                                        const QuantizedTensor& embedding,
                                                        const CalibrationText& text,
                                                        const ActivationMemory& memory,
                                                        const ParallelFor& parallel) {
  if (model.config().architecture == "gemma2") {
    return Unsupported("gemma2 cannot be quantized layer by layer: its halves end in norms");
  }
  if (model.device() != Device::kCpu) {
    return Unsupported("models are quantized layer by layer in host memory only");
  }
  ModelConfig one_layer = model.config();
  one_layer.layers = 1;
  NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(one_layer));
  RunnerOptions options;
  options.precision = Precision::kF32;
  options.parallel = parallel;
  std::unique_ptr<LayerStream> stream(
      new LayerStream(model, options, std::move(cache), text.context));
  NIBBLE_ASSIGN_OR_RETURN(
      stream->residual_,
      Activations::Create(static_cast<int64_t>(text.tokens.size()), stream->width_, memory));
  NIBBLE_RETURN_IF_ERROR(stream->run_.Embed(embedding, text.tokens, stream->residual_.data()));
  return stream;
}

TensorView LayerStream::Normed(const std::vector<float>& norm, WindowBatch batch) {
  const int64_t rows = batch.windows * context_;
  run_.Prepare({}, rows);
  run_.NormRows(norm, Residual(batch), rows, run_.normed.data());
  return ViewOf(run_.normed.data(), rows, width_);
}

Result<TensorView> LayerStream::LastInputs(const DecoderLayer& layer, Half half,
                                           WindowBatch batch) {
  const ModelConfig& c = run_.model.config();
  const int64_t rows = batch.windows * context_;
  std::vector<Span> spans;
  std::vector<int> sequences;
  if (half == Half::kAttention) {
    for (int64_t w = 0; w < batch.windows; ++w) {
      sequences.push_back(cache_.AddSequence());
      spans.push_back({&cache_.impl().sequences.at(sequences.back()), w * context_, context_});
      NIBBLE_RETURN_IF_ERROR(cache_.impl().Reserve(*spans.back().sequence, context_));
    }
  }
  run_.Prepare(spans, rows);
  std::copy_n(Residual(batch), rows * width_, run_.x.data());
  if (half == Half::kFeedForward) {
    NIBBLE_RETURN_IF_ERROR(run_.FeedForward(layer, rows));
    return TensorView(ViewOf(run_.gate.data(), rows, c.ffn_width));
  }
  NIBBLE_RETURN_IF_ERROR(run_.Attention(cache_.impl(), layer, 0, spans, rows));
  for (const int sequence : sequences) NIBBLE_RETURN_IF_ERROR(cache_.Remove(sequence));
  return TensorView(ViewOf(run_.attended.data(), rows, c.heads * c.value_dim));
}

Status LayerStream::Add(const Linear& last, TensorView inputs, WindowBatch batch) {
  return run_.Multiply({{last, Residual(batch)}}, static_cast<const float*>(inputs.data),
                       inputs.rows, /*accumulate=*/true);
}

std::vector<float> LayerStream::ErrorWeights(WindowBatch batch) const {
  std::vector<float> weights(static_cast<size_t>(batch.windows * context_));
  const float* row = Residual(batch);
  for (float& weight : weights) {
    double squares = 0;
    for (int64_t c = 0; c < width_; ++c) squares += static_cast<double>(row[c]) * row[c];
    const double mean = squares / static_cast<double>(width_);
    weight = static_cast<float>(1 / std::sqrt(mean + run_.model.config().norm_eps));
    row += width_;
  }
  return weights;
}

}  // namespace nibble
