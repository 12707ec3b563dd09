// What quantization cost: perplexity of a text, and the distance to a reference model.
#ifndef NIBBLE_EVALUATE_H_
#define NIBBLE_EVALUATE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nibble/model.h"
#include "nibble/status.h"

namespace nibble {

// A mean with its standard error.
struct Estimate {
  double value = 0;
  double error = 0;
};

// How the distribution of the next token differs from the reference's, over the scored tokens.
struct Divergence {
  Estimate kl;  // mean of KL(reference || model), in nats
  double kl_median = 0;
  double kl_p99 = 0;
  double kl_max = 0;
  Estimate top1_agreement;  // share of positions where both find the same token likeliest
  Estimate reference_perplexity;
  Estimate log_ratio;  // mean of ln p_reference - ln p_model of the actual token
};

struct PerplexityResult {
  Estimate perplexity;
  Estimate mean_nll;  // nats a token
  int64_t windows = 0;
  int64_t scored_tokens = 0;
  double seconds = 0;
  bool has_divergence = false;
  Divergence divergence;  // where there was a reference
};

enum class Scoring : uint8_t {
  // Each window's second half, so that every scored token sees at least context / 2 others; a BOS
  // takes the place of the window's first token. llama.cpp's default.
  kSecondHalf,
  // All tokens of a window, behind a BOS of their own; without a BOS all but the first. As papers
  // count.
  kAll,
};

struct PerplexityOptions {
  int64_t context = 512;  // tokens of a window; windows do not overlap
  Scoring scoring = Scoring::kSecondHalf;
  int64_t max_windows = 0;      // 0: the whole text
  int64_t batch_tokens = 2048;  // run at once
  RunnerOptions runner;
  KvCacheOptions cache;
  // The reference: a model that runs beside this one, or log-probabilities saved before.
  const Model* reference = nullptr;
  std::string reference_logits;  // a file that SaveReferenceLogits wrote
  // After each batch: windows done, windows in all, the perplexity so far. False stops
  // (kCancelled).
  std::function<bool(int64_t done, int64_t windows, double perplexity)> progress;
};

// Perplexity of a text's tokens (without a BOS for kAll) cut into windows. Fails where it is
// shorter than one window.
Result<PerplexityResult> Perplexity(const Model& model, std::span<const int32_t> tokens,
                                    const PerplexityOptions& options = {});

// The same of several models with one vocabulary, in one pass: the reference runs once for all of
// them. All models are held at once; progress tells the first one's perplexity.
Result<std::vector<PerplexityResult>> Perplexities(std::span<const Model* const> models,
                                                   std::span<const int32_t> tokens,
                                                   const PerplexityOptions& options = {});

// Runs the model as Perplexity does and writes its log-probabilities, in 16 bits each, for
// PerplexityOptions::reference_logits of the same text, context, scoring and windows.
Status SaveReferenceLogits(const Model& model, std::span<const int32_t> tokens,
                           const std::string& path, const PerplexityOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_EVALUATE_H_
