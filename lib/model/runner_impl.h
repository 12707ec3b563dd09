// What a Runner computes, in pieces that calibration calls one by one.
#ifndef NIBBLE_LIB_MODEL_RUNNER_IMPL_H_
#define NIBBLE_LIB_MODEL_RUNNER_IMPL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include "kernels/transformer.h"
#include "lib/model/kv_cache.h"
#include "lib/model/weights.h"
#include "nibble/model.h"

namespace nibble {

// The angle of one position for each pair of dimensions.
class RopeTable {
 public:
  RopeTable(const RopeConfig& rope, const std::vector<float>& divisors) : pairs_(rope.dims / 2) {
    const double dims = static_cast<double>(rope.dims);
    // YaRN: the pair whose wavelength fits `turns` times into the original context.
    const auto pair_of = [&](double turns) {
      return dims * std::log(static_cast<double>(rope.yarn_original_context) / (turns * 2 * M_PI)) /
             (2 * std::log(rope.base));
    };
    for (int64_t i = 0; i < pairs_; ++i) {
      double frequency =
          std::pow(static_cast<double>(rope.base), -2.0 * static_cast<double>(i) / dims);
      if (!divisors.empty()) frequency /= divisors[static_cast<size_t>(i)];
      if (rope.yarn_factor > 1) {
        const double low = std::max(0.0, std::floor(pair_of(rope.yarn_beta_fast)));
        const double high = std::min(dims - 1, std::ceil(pair_of(rope.yarn_beta_slow)));
        const double ramp =
            std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
        frequency = frequency / rope.yarn_factor * ramp + frequency * (1 - ramp);
      }
      frequencies_.push_back(frequency * rope.scale);
    }
    if (rope.yarn_factor > 1) {
      magnitude_ = rope.yarn_attention_factor * (1.0 + 0.1 * std::log(rope.yarn_factor));
    }
  }

  // Cosines and sines of `position`, `pairs` each.
  void Fill(int64_t position, float* cosines, float* sines) const {
    for (int64_t i = 0; i < pairs_; ++i) {
      const double angle = static_cast<double>(position) * frequencies_[static_cast<size_t>(i)];
      cosines[i] = static_cast<float>(std::cos(angle) * magnitude_);
      sines[i] = static_cast<float>(std::sin(angle) * magnitude_);
    }
  }

  int64_t pairs() const { return pairs_; }

 private:
  int64_t pairs_;
  double magnitude_ = 1.0;
  std::vector<double> frequencies_;
};

// The tokens of one input inside the batch.
struct Span {
  KvCache::Impl::Sequence* sequence;
  int64_t begin, count;  // rows of the batch
  int64_t position = 0;  // of the first in the sequence
  std::span<const int32_t> tokens = {};
  int64_t outputs = 0;  // of the last so many the output is wanted
};

struct Runner::Impl {
  Impl(const Model& m, RunnerOptions o)
      : model(m), options(std::move(o)), rope(m.config().rope, m.weights().rope_divisors) {}

  Model model;
  RunnerOptions options;
  RopeTable rope;
  // Activations of one batch, by row. The feed-forward's lie where attention's were.
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
  // x += norm(input W^T), without `norm` where that is empty.
  Status Add(const Linear& linear, const std::vector<float>& norm, const float* input,
             int64_t rows);
  // Runs one batch and writes its wanted outputs; `out` moves behind them.
  Status AllLayers(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows, float** out);
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_RUNNER_IMPL_H_
