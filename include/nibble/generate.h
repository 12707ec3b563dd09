// Continue a text: greedy or sampled, with or without a draft model.
#ifndef NIBBLE_GENERATE_H_
#define NIBBLE_GENERATE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "nibble/model.h"
#include "nibble/status.h"

namespace nibble {

struct SamplingOptions {
  float temperature = 0.0f;  // 0: the likeliest token, the lowest id among equals
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;        // the smallest set of likeliest tokens whose probability reaches it
  uint64_t seed = 0;
};

struct GenerateOptions {
  int64_t max_tokens = 128;
  bool stop_at_end = true;  // at the model's end-of-text tokens, which are not part of the result
  // A prompt that leaves no room in the context loses its oldest tokens, but not a BOS: room is
  // left for max_tokens, at most half of the context. False: it is refused.
  bool truncate_prompt = false;
  SamplingOptions sampling;
  RunnerOptions runner;
  KvCacheOptions cache;
  // Speculative decoding (arXiv 2211.17192): the draft proposes, the model verifies several tokens
  // in one pass. Greedy only; the text is the model's own. Both models share the vocabulary.
  const Model* draft = nullptr;
  int64_t draft_tokens = 4;
  // Called with each token and the bytes it adds; false stops.
  std::function<bool(int32_t token, std::string_view piece)> on_token;
};

struct Generation {
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0;  // that were run
  int64_t left_out = 0;       // of a truncated prompt
  double prefill_seconds = 0;
  double decode_seconds = 0;  // from the first token to the last
  int64_t decode_passes = 0;  // passes of the model after the prompt's
  int64_t drafted = 0, accepted = 0;
  size_t cache_bytes = 0;  // of the model's cache at the end
};

// Refuses a prompt that is empty and, unless it may be truncated, one that leaves no room in the
// model's context.
Result<Generation> Generate(const Model& model, std::span<const int32_t> prompt,
                            const GenerateOptions& options = {});

// Draws tokens from logits; the same seed gives the same draws on every machine whose logits agree.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options), state_(options.seed) {}
  int32_t Sample(std::span<const float> logits);

 private:
  SamplingOptions options_;
  uint64_t state_;
};

}  // namespace nibble

#endif  // NIBBLE_GENERATE_H_
