// What a Runner computes, in pieces that calibration calls one by one.
#ifndef NIBBLE_LIB_MODEL_RUNNER_IMPL_H_
#define NIBBLE_LIB_MODEL_RUNNER_IMPL_H_

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/transformer.h"
#include "lib/model/device_run.h"
#include "lib/model/kv_cache.h"
#include "lib/model/rope_table.h"
#include "lib/model/weights.h"
#include "nibble/model.h"

namespace nibble {

struct Runner::Impl {
  Impl(const Model& m, RunnerOptions o)
      : model(m), options(std::move(o)), rope(m.config().rope, m.weights().rope_divisors) {
    if (model.device() != Device::kCpu) {
      device = std::make_unique<DeviceRun>(model, options.parallel.stream);
      options.parallel.stream = device->stream();
    }
  }

  Model model;
  RunnerOptions options;
  RopeTable rope;
  std::unique_ptr<DeviceRun> device;  // null: all is done in host memory
  // Activations of one batch, by row, on the device where there is one. The feed-forward's lie
  // where attention's were.
  std::span<float> x, normed, query, key, value, attended, gate, up, cosines, sines;
  std::vector<float> memory;  // that they are cut from
  struct AttentionScratch {
    std::vector<float> floats;
    std::vector<int32_t> first, last;
    std::vector<AttentionState> states;
  };
  std::vector<AttentionScratch> scratch;  // of each worker

  // One of the matrices that multiply the same input.
  struct Output {
    const Linear& linear;
    float* out;
  };
  Status Multiply(std::initializer_list<Output> outputs, const float* input, int64_t rows,
                  bool accumulate = false);
  // The rows of `table` for `tokens`, scaled as the model asks: out f32 [tokens, width].
  Status Embed(const QuantizedTensor& table, std::span<const int32_t> tokens, float* out) const;
  void NormRows(const std::vector<float>& weight, const float* input, int64_t rows, float* out);
  void TurnAndStore(KvCache::Impl& cache, const DecoderLayer& layer, int64_t layer_index,
                    const std::vector<Span>& spans);
  void Attend(KvCache::Impl& cache, int64_t layer_index, const std::vector<Span>& spans);
  // From `x`: `attended`, the input of the layer's attention output.
  Status Attention(KvCache::Impl& cache, const DecoderLayer& layer, int64_t layer_index,
                   const std::vector<Span>& spans, int64_t rows);
  // From `x`: `gate`, the input of the layer's last matrix.
  Status FeedForward(const DecoderLayer& layer, int64_t rows);
  // Room for a batch, and the angles of its positions. What was computed before is lost.
  void Prepare(const std::vector<Span>& spans, int64_t rows);
  int64_t FloatsOf(int64_t rows) const;
  void LayOut(float* floats, int64_t rows);
  // x += norm(input W^T), without `norm` where that is empty.
  Status Add(const Linear& linear, const std::vector<float>& norm, const float* input,
             int64_t rows);
  // Forgets the rows of `x` and `attended` whose output is not wanted; returns the others' number.
  int64_t KeepOutputs(const std::vector<Span>& spans);
  // From `x`, the embedded tokens of a batch: its wanted outputs after the last norm.
  Status AllLayers(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows, float* out);
  // Logits, where the weights lie; so do the views, whatever they say.
  Status Head(TensorView hidden, MutableTensorView out);

  // Where wanted outputs go: rows after the last norm, or the likeliest tokens after them.
  struct Wanted {
    float* hidden = nullptr;
    int32_t* tokens = nullptr;
  };
  // Runs one batch; `wanted` moves behind what it writes.
  Status RunBatch(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows,
                  Wanted* wanted);
  Status RunBatchOnDevice(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows,
                          Wanted* wanted);
  // All tokens of a call.
  Status Run(KvCache& cache, std::span<const SequenceInput> inputs, std::vector<float>* hidden,
             std::vector<int32_t>* tokens);

  std::vector<float> host_hidden, host_logits;  // of the likeliest tokens
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_RUNNER_IMPL_H_
