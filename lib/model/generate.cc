#include "nibble/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace nibble {
namespace {

int32_t Likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// splitmix64 (Steele, Lea, Flood 2014): small, and the same everywhere, unlike the standard
// library's distributions.
double NextUniform(uint64_t* state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// A model with the one sequence it is continuing.
class Continuation {
 public:
  static Result<Continuation> Create(const Model& model, const GenerateOptions& options) {
    NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model.config(), options.cache));
    return Continuation(model, options, std::move(cache));
  }

  // Appends tokens and computes the logits after the last one, or after each.
  Status Advance(std::span<const int32_t> tokens, bool all, std::vector<float>* logits) {
    const int64_t vocab = model_->config().vocab_size;
    const SequenceInput input{sequence_, tokens, all};
    NIBBLE_RETURN_IF_ERROR(runner_->Forward(cache_, {&input, 1}, &hidden_));
    const int64_t rows = static_cast<int64_t>(hidden_.size()) / model_->config().width;
    logits->resize(static_cast<size_t>(rows * vocab));
    return runner_->Logits(ViewOf(hidden_.data(), rows, model_->config().width),
                           ViewOf(logits->data(), rows, vocab));
  }

  // Appends tokens and finds the likeliest one after the last, or after each.
  Status Choose(std::span<const int32_t> tokens, bool all, std::vector<int32_t>* chosen) {
    const SequenceInput input{sequence_, tokens, all};
    return runner_->NextTokens(cache_, {&input, 1}, chosen);
  }

  Status Truncate(int64_t length) { return cache_.Truncate(sequence_, length); }
  int64_t length() const { return cache_.Length(sequence_); }
  const KvCache& cache() const { return cache_; }

 private:
  Continuation(const Model& model, const GenerateOptions& options, KvCache cache)
      : model_(&model),
        runner_(std::make_unique<Runner>(model, options.runner)),
        cache_(std::move(cache)),
        sequence_(cache_.AddSequence()) {}

  const Model* model_;
  std::unique_ptr<Runner> runner_;
  KvCache cache_;
  int sequence_;
  std::vector<float> hidden_;
};

// Collects the result; tells when to stop.
class Output {
 public:
  Output(const Model& model, const GenerateOptions& options) : model_(model), options_(options) {}

  // False when `token` ends the text or nothing more is wanted after it.
  bool Emit(int32_t token) {
    if (options_.stop_at_end && model_.tokenizer().IsEnd(token)) return false;
    tokens.push_back(token);
    if (options_.on_token && !options_.on_token(token, model_.tokenizer().Piece(token)))
      return false;
    return static_cast<int64_t>(tokens.size()) < options_.max_tokens;
  }

  std::vector<int32_t> tokens;

 private:
  const Model& model_;
  const GenerateOptions& options_;
};

// The last of more than `count` tokens, begun by the BOS that they began with.
std::vector<int32_t> NewestTokens(std::span<const int32_t> tokens, int64_t count,
                                  const Tokenizer& tokenizer) {
  std::vector<int32_t> newest(tokens.end() - count, tokens.end());
  if (tokenizer.adds_bos() && tokens[0] == tokenizer.bos()) newest[0] = tokens[0];
  return newest;
}

// Proposes up to `count` tokens greedily after `unseen`, which the draft has not seen.
Status Propose(Continuation* draft, std::vector<int32_t> unseen, int64_t count,
               std::vector<int32_t>* proposal) {
  std::vector<int32_t> chosen;
  proposal->clear();
  while (static_cast<int64_t>(proposal->size()) < count) {
    NIBBLE_RETURN_IF_ERROR(draft->Choose(unseen, false, &chosen));
    proposal->push_back(chosen[0]);
    unseen = chosen;
  }
  return OkStatus();
}

// Appends tokens to a continuation and draws, by the caller's options, the token after the last, or
// after each.
class Chooser {
 public:
  Chooser(Continuation& target, const SamplingOptions& sampling, size_t vocab)
      : target_(target), sampler_(sampling), greedy_(sampling.temperature <= 0), vocab_(vocab) {}

  // What comes after token i of the last tokens appended, or after the last where not all counted.
  Status Advance(std::span<const int32_t> tokens, bool all) {
    return greedy_ ? target_.Choose(tokens, all, &chosen_) : target_.Advance(tokens, all, &logits_);
  }
  int32_t Next(size_t i) {
    return greedy_ ? chosen_[i]
                   : sampler_.Sample(std::span<const float>(logits_).subspan(i * vocab_, vocab_));
  }

 private:
  Continuation& target_;
  Sampler sampler_;
  bool greedy_;
  size_t vocab_;
  std::vector<float> logits_;
  std::vector<int32_t> chosen_;
};

}  // namespace

int32_t Sampler::Sample(std::span<const float> logits) {
  if (options_.temperature <= 0) return Likeliest(logits);
  std::vector<std::pair<float, int32_t>> candidates(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {-logits[i], static_cast<int32_t>(i)};
  std::sort(candidates.begin(), candidates.end());
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < candidates.size()) {
    candidates.resize(static_cast<size_t>(options_.top_k));
  }
  std::vector<double> probabilities;
  double sum = 0;
  for (const auto& [negated, id] : candidates) {
    probabilities.push_back(
        std::exp((static_cast<double>(candidates[0].first) - negated) / options_.temperature));
    sum += probabilities.back();
  }
  size_t kept = 0;
  double mass = 0;
  while (kept < probabilities.size() && (kept == 0 || mass < options_.top_p * sum)) {
    mass += probabilities[kept++];
  }
  double draw = NextUniform(&state_) * mass;
  for (size_t i = 0; i < kept; ++i) {
    draw -= probabilities[i];
    if (draw < 0) return candidates[i].second;
  }
  return candidates[kept - 1].second;
}

Result<Generation> Generate(const Model& model, std::span<const int32_t> prompt,
                            const GenerateOptions& options) {
  const int64_t context = model.config().context;
  if (prompt.empty()) return InvalidArgument("the prompt has no tokens");
  const size_t given = prompt.size();
  std::vector<int32_t> shorter;
  if (options.truncate_prompt && static_cast<int64_t>(given) >= context) {
    shorter = NewestTokens(prompt, context - std::min(options.max_tokens, context / 2),
                           model.tokenizer());
    prompt = shorter;
  }
  if (static_cast<int64_t>(prompt.size()) >= context) {
    return InvalidArgument("the prompt of " + std::to_string(prompt.size()) +
                           " tokens leaves no room in the model's context of " +
                           std::to_string(context));
  }
  if (options.draft != nullptr) {
    if (options.sampling.temperature > 0) {
      return InvalidArgument("a draft model serves greedy generation only: temperature must be 0");
    }
    if (options.draft->config().vocab_size != model.config().vocab_size) {
      return InvalidArgument("the draft's vocabulary differs from the model's");
    }
  }
  Generation result;
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  result.left_out = static_cast<int64_t>(given - prompt.size());
  if (options.max_tokens <= 0) return result;
  const size_t vocab = static_cast<size_t>(model.config().vocab_size);
  NIBBLE_ASSIGN_OR_RETURN(Continuation target, Continuation::Create(model, options));
  std::optional<Continuation> draft;
  if (options.draft != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(draft, Continuation::Create(*options.draft, options));
  }
  Chooser chooser(target, options.sampling, vocab);
  Output output(model, options);

  auto start = std::chrono::steady_clock::now();
  NIBBLE_RETURN_IF_ERROR(chooser.Advance(prompt, false));
  if (draft) {  // all but the last token, which the first proposal runs
    std::vector<int32_t> unused;
    if (prompt.size() > 1) {
      NIBBLE_RETURN_IF_ERROR(draft->Choose(prompt.first(prompt.size() - 1), false, &unused));
    }
  }
  result.prefill_seconds = Seconds(start);
  start = std::chrono::steady_clock::now();

  int32_t next = chooser.Next(0);
  bool more = output.Emit(next);
  std::vector<int32_t> proposal;
  std::vector<int32_t> history(prompt.begin(), prompt.end());
  while (more && target.length() < context) {
    history.push_back(next);
    std::vector<int32_t> batch = {next};
    if (draft) {
      const int64_t room =
          std::min({options.draft_tokens, context - target.length() - 1,
                    options.draft->config().context - static_cast<int64_t>(history.size())});
      const std::vector<int32_t> unseen(history.begin() + draft->length(), history.end());
      NIBBLE_RETURN_IF_ERROR(Propose(&*draft, unseen, room, &proposal));
      batch.insert(batch.end(), proposal.begin(), proposal.end());
      result.drafted += static_cast<int64_t>(proposal.size());
    }
    NIBBLE_RETURN_IF_ERROR(chooser.Advance(batch, true));
    ++result.decode_passes;
    // The model's own choice after each token of the batch; the proposal counts while it agrees.
    for (size_t i = 0; i < batch.size() && more; ++i) {
      next = chooser.Next(i);
      more = output.Emit(next);
      if (i + 1 < batch.size()) {
        if (next != batch[i + 1]) break;
        ++result.accepted;
        if (more) history.push_back(next);
      }
    }
    if (draft) {  // forget what was proposed in vain
      const int64_t known = static_cast<int64_t>(history.size());
      NIBBLE_RETURN_IF_ERROR(target.Truncate(std::min(known, target.length())));
      NIBBLE_RETURN_IF_ERROR(draft->Truncate(std::min(known, draft->length())));
    }
  }
  result.decode_seconds = Seconds(start);
  result.tokens = std::move(output.tokens);
  result.cache_bytes = target.cache().used_bytes();
  return result;
}

}  // namespace nibble
