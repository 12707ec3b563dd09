#include "lib/evaluate/windows.h"

#include <algorithm>
#include <memory>
#include <string>

namespace nibble {
namespace {

// Rows whose logits are held at once: bounds the memory for large vocabularies.
constexpr int64_t kLogitRows = 64;

// One model with its cache.
struct Instance {
  const Model* model;
  std::unique_ptr<Runner> runner;
  KvCache cache;
  std::vector<float> hidden, logits;
};

}  // namespace

Result<WindowPlan> PlanWindows(const Model& model, std::span<const int32_t> tokens,
                               const PerplexityOptions& options) {
  if (options.context < 4 || options.context > model.config().context) {
    return InvalidArgument("windows of " + std::to_string(options.context) +
                           " tokens: the model takes 4 to " +
                           std::to_string(model.config().context));
  }
  WindowPlan plan;
  const bool bos = model.tokenizer().adds_bos();
  plan.bos_instead = bos && options.scoring == Scoring::kSecondHalf;
  plan.bos_before = bos && options.scoring == Scoring::kAll;
  plan.stride = options.context - (plan.bos_before ? 1 : 0);
  plan.windows = static_cast<int64_t>(tokens.size()) / plan.stride;
  if (plan.windows == 0) {
    return InvalidArgument("the text has " + std::to_string(tokens.size()) +
                           " tokens, fewer than one window of " + std::to_string(plan.stride));
  }
  if (options.max_windows > 0) plan.windows = std::min(plan.windows, options.max_windows);
  const int64_t first = options.scoring == Scoring::kSecondHalf ? options.context / 2 : 0;
  plan.scored_per_window = options.context - 1 - first;
  return plan;
}

Status RunWindows(std::span<const Model* const> models, std::span<const int32_t> tokens,
                  const PerplexityOptions& options, const WindowPlan& plan,
                  const std::function<Status(const ScoredRows&)>& rows,
                  const std::function<Status(int64_t)>& batch_done) {
  const int64_t context = options.context;
  const int64_t first_scored = context - 1 - plan.scored_per_window;
  const int64_t at_once = std::max<int64_t>(1, options.batch_tokens / context);
  const int64_t vocab = models[0]->config().vocab_size;
  std::vector<Instance> instances;
  for (const Model* model : models) {
    if (model->config().vocab_size != vocab) {
      return InvalidArgument("the reference's vocabulary differs from the model's");
    }
    NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model->config(), options.cache));
    instances.push_back(
        {model, std::make_unique<Runner>(*model, options.runner), std::move(cache), {}, {}});
  }
  std::vector<int32_t> window_tokens, targets;
  int64_t row_index = 0;
  for (int64_t w = 0; w < plan.windows; w += at_once) {
    const int64_t count = std::min(at_once, plan.windows - w);
    window_tokens.clear();
    for (int64_t i = 0; i < count; ++i) {
      const auto text = tokens.subspan(static_cast<size_t>((w + i) * plan.stride),
                                       static_cast<size_t>(plan.stride));
      const int32_t bos = models[0]->tokenizer().bos();
      if (plan.bos_before) window_tokens.push_back(bos);
      window_tokens.insert(window_tokens.end(), text.begin(), text.end());
      if (plan.bos_instead) window_tokens[static_cast<size_t>(i * context)] = bos;
    }
    for (Instance& instance : instances) {
      std::vector<SequenceInput> inputs;
      for (int64_t i = 0; i < count; ++i) {
        inputs.push_back(
            {instance.cache.AddSequence(),
             std::span(window_tokens)
                 .subspan(static_cast<size_t>(i * context), static_cast<size_t>(context)),
             true});
      }
      NIBBLE_RETURN_IF_ERROR(instance.runner->Forward(instance.cache, inputs, &instance.hidden));
      for (const SequenceInput& input : inputs) {
        NIBBLE_RETURN_IF_ERROR(instance.cache.Remove(input.sequence));
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t done = 0; done < plan.scored_per_window; done += kLogitRows) {
        const int64_t n = std::min(kLogitRows, plan.scored_per_window - done);
        const int64_t position = i * context + first_scored + done;
        const int32_t* next = window_tokens.data() + position + 1;
        targets.assign(next, next + n);
        ScoredRows scored{targets, {}, vocab, row_index};
        for (Instance& instance : instances) {
          const int64_t width = instance.model->config().width;
          instance.logits.resize(static_cast<size_t>(n * vocab));
          NIBBLE_RETURN_IF_ERROR(instance.runner->Logits(
              ViewOf(std::as_const(instance.hidden).data() + position * width, n, width),
              ViewOf(instance.logits.data(), n, vocab)));
          scored.logits.push_back(instance.logits);
        }
        NIBBLE_RETURN_IF_ERROR(rows(scored));
        row_index += n;
      }
    }
    NIBBLE_RETURN_IF_ERROR(batch_done(w + count));
  }
  return OkStatus();
}

}  // namespace nibble
