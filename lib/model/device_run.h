// The part of a Runner that works on a device: its memory there, and what it queues.
#ifndef NIBBLE_LIB_MODEL_DEVICE_RUN_H_
#define NIBBLE_LIB_MODEL_DEVICE_RUN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "lib/model/device_weights.h"
#include "lib/model/kv_cache.h"
#include "lib/model/rope_table.h"
#include "nibble/model.h"

namespace nibble {

// The tokens of one input inside the batch.
struct Span {
  KvCache::Impl::Sequence* sequence;
  int64_t begin, count;  // rows of the batch
  int64_t position = 0;  // of the first in the sequence
  std::span<const int32_t> tokens = {};
  int64_t outputs = 0;  // of the last so many the output is wanted
};

// What is queued runs behind what was queued before; the first error of anything queued sticks, and
// nothing is queued behind it.
class DeviceRun {
 public:
  // `stream`: the caller's, or null for one of its own.
  DeviceRun(const Model& model, void* stream);
  ~DeviceRun();

  const Model::DeviceWeights& weights() const { return weights_; }
  void* stream() const { return stream_; }

  // Begins a batch: floats for its activations, and the description of its rows on the device.
  // Earlier ones are lost.
  Status Begin(size_t floats, const RopeTable& rope, const KvCache::Impl& cache,
               const std::vector<Span>& spans, int64_t rows);
  float* activations() { return reinterpret_cast<float*>(activations_.data()); }

  // Queues one token of each sequence, by queue(): what it queues is the same whenever StepKey is
  // and no memory has moved, so that the second time it is recorded as a graph, and then replayed.
  Status RunStep(const KvCache::Impl& cache, const std::function<Status()>& queue);
  // What went wrong so far, if anything.
  Status Take();

  // --- What is queued, with pointers to the device's memory

  void Embed(int64_t rows, float scale, float* out);
  void NormRows(const std::vector<float>& weight, const float* input, int64_t rows, float* out);
  void Gate(float* gate, const float* up, int64_t count);
  void Add(float* x, const float* y, int64_t count);
  void SoftCap(float* x, int64_t count, float cap);
  void TurnAndStore(const KvCache::Impl& cache, const DecoderLayer& layer, int64_t layer_index,
                    float* query, float* key, const float* value);
  void Attend(const KvCache::Impl& cache, int64_t layer_index, const float* query, float* out);
  // Of each row of `width` only those whose output is wanted stay.
  void KeepOutputs(int64_t width, float* x);
  void Likeliest(const float* logits, int64_t rows, int32_t* out);

  // --- Memory of results, kept until more is wanted

  Result<float*> Logits(int64_t rows);
  Result<int32_t*> Chosen(int64_t rows);
  Result<float*> Hidden(int64_t rows);
  // Waits and copies to host memory.
  Status Fetch(void* to, const void* from, size_t bytes);
  Status Send(void* to, const void* from, size_t bytes);  // from host memory

 private:
  struct StepKey {
    int64_t rows = 0, most_pages = 0, page_tokens = 0;
    CacheType keys = CacheType::kF16, values = CacheType::kF16;
    bool operator==(const StepKey&) const = default;
  };
  Status Reserve(Buffer& part, size_t bytes);
  AttentionLayer LayerOf(const KvCache::Impl& cache, int64_t layer_index) const;
  template <class Call>
  void Queue(const Call& call) {
    if (status_.ok()) status_ = call();
  }

  const ModelConfig& config_;
  const Model::DeviceWeights& weights_;
  const DecoderBackend& decoder_;
  std::shared_ptr<void> own_stream_;
  void* stream_;
  Buffer activations_, description_, logits_, chosen_, hidden_;
  std::vector<std::byte> staged_;  // the description in host memory
  DecoderBatch batch_;
  const int32_t* kept_ = nullptr;  // rows whose output is wanted; null: all
  int64_t kept_count_ = 0;
  Status status_;
  std::optional<StepKey> last_step_;
  std::shared_ptr<void> recorded_;  // of last_step_, once it came again
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_DEVICE_RUN_H_
