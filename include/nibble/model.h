// Run Llama-family models: load, keep the keys and values of many sequences, compute logits.
#ifndef NIBBLE_MODEL_H_
#define NIBBLE_MODEL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/gguf.h"
#include "nibble/matmul.h"
#include "nibble/model_source.h"
#include "nibble/parallel.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"
#include "nibble/tokenizer.h"

namespace nibble {

enum class Activation : uint8_t { kSilu, kGelu };

// How positions turn pairs of a head's dimensions (RoPE, arXiv 2104.09864).
struct RopeConfig {
  int64_t dims = 0;  // the first `dims` of each head are turned
  float base = 10000.0f;
  float scale = 1.0f;       // positions are multiplied by it (linear scaling: 1 / factor)
  bool half_split = false;  // pairs (i, i + dims / 2) instead of (2i, 2i + 1)
  // YaRN (arXiv 2309.00071) where yarn_factor > 1: low frequencies are interpolated by the factor.
  float yarn_factor = 1.0f;
  float yarn_beta_fast = 32.0f;
  float yarn_beta_slow = 1.0f;
  float yarn_attention_factor = 1.0f;
  int64_t yarn_original_context = 0;
};

struct ModelConfig {
  std::string architecture;  // "llama", "qwen2", "qwen3", "gemma", "gemma2"
  int64_t vocab_size = 0;
  int64_t context = 0;  // tokens it was trained for
  int64_t width = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // of queries and keys
  int64_t value_dim = 0;
  int64_t ffn_width = 0;
  int64_t sliding_window = 0;  // 0: all earlier tokens are seen
  int64_t window_period = 1;   // the last of so many layers sees all of them; 1: none does
  float norm_eps = 1e-5f;
  float embedding_scale = 1.0f;
  float query_scale = 0.0f;         // of attention scores
  float attention_soft_cap = 0.0f;  // scores become cap * tanh(score / cap); 0: they do not
  float output_soft_cap = 0.0f;     // the same of logits
  Activation activation = Activation::kSilu;
  RopeConfig rope;

  // Of one layer; 0: all earlier tokens are seen.
  int64_t WindowOf(int64_t layer) const {
    return window_period == 1 || layer % window_period < window_period - 1 ? sliding_window : 0;
  }

  // Reads "<architecture>.*"; an error names the key that is missing or out of range.
  static Result<ModelConfig> FromMetadata(const GgufMetadata& metadata);
};

// An immutable model: its weights stay in the mapped file. Safe to share between threads.
class Model {
 public:
  // A GGUF file or a Hugging Face folder. Fails with the name of what is missing or ill-shaped.
  static Result<Model> Load(const std::string& path);
  // The same from an opened source, which may be an edited one.
  static Result<Model> Load(const ModelSource& source);

  // A layer's matrix or the output's, by its name in the file.
  Result<QuantizedTensor> Matrix(std::string_view name) const;
  // The same model with other weights in place of the matrices of these names, of the same shapes
  // and of any format or scheme; in host memory.
  Result<Model> With(std::map<std::string, QuantizedTensor, std::less<>> matrices) const;

  // The same model with its weights in a device's memory too, packed for products of the given
  // precision: runners of it, and of its copies, run there. Waits until all is there; an error
  // where no backend serves the device (nibble/cuda.h: Initialize).
  Result<Model> OnDevice(Device device, Precision precision = Precision::kInt8) const;
  Device device() const;
  size_t device_bytes() const;  // of the weights there

  const ModelConfig& config() const;
  const GgufMetadata& metadata() const;
  const Tokenizer& tokenizer() const;
  uint64_t file_bytes() const;

  struct Weights;
  const Weights& weights() const;
  struct DeviceWeights;
  const DeviceWeights* device_weights() const;  // null in host memory

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

enum class CacheType : uint8_t {
  kF16,
  kQ8_0,  // blocks of 32: head dimensions that are multiples of 32
  kQ4_0,
  kInt8,  // one f32 scale for each head and token
};

struct KvCacheOptions {
  CacheType keys = CacheType::kF16;
  CacheType values = CacheType::kF16;
  int64_t page_tokens = 32;  // tokens in a page
  int64_t max_tokens = 0;    // the most that all sequences hold together; 0: no bound but memory
  // Where the pages lie: where the model's weights do. On a GPU, head dimensions are multiples
  // of 8.
  Device device = Device::kCpu;
};

// The keys and values of many sequences, in pages from one pool: a sequence is a list of pages,
// pages are taken when tokens come, and a fork shares its parent's pages until one of them writes
// (PagedAttention, arXiv 2309.06180). Not safe for concurrent use.
class KvCache {
 public:
  static Result<KvCache> Create(const ModelConfig& config, const KvCacheOptions& options = {});
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  int AddSequence();
  // A new sequence with the same tokens, sharing their pages.
  Result<int> Fork(int sequence);
  // Forgets all but the first `tokens`.
  Status Truncate(int sequence, int64_t tokens);
  Status Remove(int sequence);
  int64_t Length(int sequence) const;  // -1 for a sequence that is not there

  size_t used_bytes() const;       // of pages in use
  size_t allocated_bytes() const;  // of pages in use and kept for reuse
  size_t bytes_per_token() const;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  KvCache();
  std::unique_ptr<Impl> impl_;
};

// New tokens of one sequence.
struct SequenceInput {
  int sequence = 0;
  std::span<const int32_t> tokens;
  bool all_outputs = false;  // false: only the last token's output is wanted
};

// Sees the input of each linear layer: `weight` is its GGUF name, `input` f32 [tokens,
// in_features].
using LayerObserver = std::function<void(std::string_view weight, TensorView input)>;

struct RunnerOptions {
  Precision precision = Precision::kInt8;
  ParallelFor parallel;
  // Called in one thread with the inputs of all new tokens of a call at once. Not on a GPU.
  LayerObserver observer;
  // The most tokens that run side by side, which bounds the scratch memory. More are cut into equal
  // parts, unless an observer wants to see them together.
  int64_t batch_tokens = 512;
};

// Computes a model's outputs, on the device where its weights lie; the arguments below lie in host
// memory. Holds the scratch memory of one computation: one runner for each
// thread that calls; the model is shared.
class Runner {
 public:
  explicit Runner(const Model& model, RunnerOptions options = {});
  ~Runner();

  // Appends the tokens to their sequences and runs them through all layers. `hidden` becomes f32
  // [outputs, width], after the last norm: one row for each wanted token, in order. On an error the
  // cache is as before. Positions beyond the model's context are refused.
  Status Forward(KvCache& cache, std::span<const SequenceInput> inputs, std::vector<float>* hidden);

  // The logits of rows of Forward's output: out f32 [rows, vocab_size].
  Status Logits(TensorView hidden, MutableTensorView out);

  // Forward, and the likeliest token after each wanted token, the lowest id among equals. On a GPU,
  // a step of one token a sequence is recorded once as a graph and then replayed.
  Status NextTokens(KvCache& cache, std::span<const SequenceInput> inputs,
                    std::vector<int32_t>* tokens);

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_H_
