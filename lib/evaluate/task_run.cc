// Puts the items of tasks to a model.
#include <algorithm>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "lib/evaluate/moments.h"
#include "lib/evaluate/reference_logits.h"
#include "nibble/generate.h"
#include "nibble/tasks.h"

namespace nibble {
namespace {

// Rows whose logits are held at once: bounds the memory for large vocabularies.
constexpr int64_t kLogitRows = 64;

// An item in tokens. Multiple choice: `prompt` is what all options begin with, which ends before
// the prompt's last token where that one merges with an option's beginning.
struct EncodedItem {
  std::vector<int32_t> prompt;
  std::vector<std::vector<int32_t>> options;  // what follows
};

Result<std::vector<int32_t>> EncodeAfterBos(const Tokenizer& tokenizer, const std::string& text) {
  TokenizeOptions plain;
  plain.add_special = false;
  NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, tokenizer.Encode(text, plain));
  if (tokenizer.adds_bos()) tokens.insert(tokens.begin(), tokenizer.bos());
  return tokens;
}

Status TooLong(const TaskItem& item, const std::string& what, int64_t tokens,
               const ModelConfig& config) {
  return InvalidArgument(item.place + ": " + what + " take " + std::to_string(tokens) +
                         " tokens, more than the model's context of " +
                         std::to_string(config.context));
}

Result<EncodedItem> EncodeItem(const Model& model, const TaskItem& item) {
  EncodedItem encoded;
  const auto encode = [&](const std::string& text) {
    auto tokens = EncodeAfterBos(model.tokenizer(), text);
    return tokens.ok() ? std::move(tokens) : std::move(tokens).status().WithContext(item.place);
  };
  NIBBLE_ASSIGN_OR_RETURN(encoded.prompt, encode(item.prompt));
  if (item.options.empty()) {
    const int64_t total = static_cast<int64_t>(encoded.prompt.size()) + item.max_tokens;
    if (total > model.config().context) {
      return TooLong(item, "the prompt and what is generated", total, model.config());
    }
    return encoded;
  }
  size_t shared = encoded.prompt.size();
  for (const std::string& option : item.options) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, encode(item.prompt + option));
    const int64_t total = static_cast<int64_t>(tokens.size());
    if (total > model.config().context) {
      return TooLong(item, "the prompt and option " + std::to_string(encoded.options.size()), total,
                     model.config());
    }
    const auto end = encoded.prompt.begin() + static_cast<std::ptrdiff_t>(shared);
    const auto [first, second] =
        std::mismatch(encoded.prompt.begin(), end, tokens.begin(), tokens.end());
    shared = static_cast<size_t>(first - encoded.prompt.begin());
    encoded.options.push_back(std::move(tokens));
  }
  // An option that adds no token of its own is scored by the last one that it shares.
  for (const auto& option : encoded.options) shared = std::min(shared, option.size() - 1);
  if (shared == 0) {
    return InvalidArgument(item.place + ": the prompt leaves no token before the options");
  }
  encoded.prompt.resize(shared);
  for (auto& option : encoded.options) {
    option.erase(option.begin(), option.begin() + static_cast<std::ptrdiff_t>(shared));
  }
  return encoded;
}

// Scores options: the shared part of each item runs once, its options go on from forks of it.
class ChoiceScorer {
 public:
  static Result<ChoiceScorer> Create(const Model& model, const TaskOptions& options) {
    NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model.config(), options.cache));
    return ChoiceScorer(model, options, std::move(cache));
  }

  // The sum of log-probabilities of each option of each item, in order.
  Result<std::vector<double>> Score(std::span<const EncodedItem> items) {
    std::vector<int> parents, children;
    std::vector<SequenceInput> inputs;
    for (const EncodedItem& item : items) {  // all but the last token, whose output is wanted
      parents.push_back(cache_.AddSequence());
      if (item.prompt.size() > 1) {
        inputs.push_back(
            {parents.back(), std::span(item.prompt).first(item.prompt.size() - 1), false});
      }
    }
    if (!inputs.empty()) NIBBLE_RETURN_IF_ERROR(runner_->Forward(cache_, inputs, &hidden_));
    inputs.clear();
    std::vector<std::vector<int32_t>> tails;
    std::vector<int32_t> targets;
    for (const EncodedItem& item : items) {
      for (const std::vector<int32_t>& option : item.options) {
        tails.push_back({item.prompt.back()});
        tails.back().insert(tails.back().end(), option.begin(), option.end() - 1);
        targets.insert(targets.end(), option.begin(), option.end());
      }
    }
    size_t tail = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      for (size_t o = 0; o < items[i].options.size(); ++o) {
        NIBBLE_ASSIGN_OR_RETURN(const int child, cache_.Fork(parents[i]));
        children.push_back(child);
        inputs.push_back({child, tails[tail++], true});
      }
    }
    NIBBLE_RETURN_IF_ERROR(runner_->Forward(cache_, inputs, &hidden_));
    for (const int sequence : parents) NIBBLE_RETURN_IF_ERROR(cache_.Remove(sequence));
    for (const int sequence : children) NIBBLE_RETURN_IF_ERROR(cache_.Remove(sequence));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<double> log_p, LogProbabilities(targets));
    std::vector<double> sums;
    size_t row = 0;
    for (const std::vector<int32_t>& part : tails) {
      double sum = 0;
      for (size_t t = 0; t < part.size(); ++t) sum += log_p[row++];
      sums.push_back(sum);
    }
    return sums;
  }

 private:
  ChoiceScorer(const Model& model, const TaskOptions& options, KvCache cache)
      : model_(&model),
        parallel_(options.runner.parallel),
        runner_(std::make_unique<Runner>(model, options.runner)),
        cache_(std::move(cache)) {}

  // ln p of targets[r] after row r of hidden_.
  Result<std::vector<double>> LogProbabilities(std::span<const int32_t> targets) {
    const int64_t rows = static_cast<int64_t>(targets.size());
    const int64_t width = model_->config().width, vocab = model_->config().vocab_size;
    std::vector<double> log_p(targets.size());
    for (int64_t first = 0; first < rows; first += kLogitRows) {
      const int64_t count = std::min(kLogitRows, rows - first);
      logits_.resize(static_cast<size_t>(count * vocab));
      NIBBLE_RETURN_IF_ERROR(
          runner_->Logits(ViewOf(std::as_const(hidden_).data() + first * width, count, width),
                          ViewOf(logits_.data(), count, vocab)));
      parallel_(count, [&](int64_t r, int) {
        const auto row =
            std::span(logits_).subspan(static_cast<size_t>(r * vocab), static_cast<size_t>(vocab));
        LogSoftmax(row);
        const size_t index = static_cast<size_t>(first + r);
        log_p[index] = row[static_cast<size_t>(targets[index])];
      });
    }
    return log_p;
  }

  const Model* model_;
  ParallelFor parallel_;
  std::unique_ptr<Runner> runner_;
  KvCache cache_;
  std::vector<float> hidden_, logits_;
};

int64_t TokensOf(const EncodedItem& item) {
  size_t tokens = item.prompt.size();
  for (const auto& option : item.options) tokens += option.size();
  return static_cast<int64_t>(tokens);
}

using Done = std::function<Status(int64_t items)>;

Status RunChoices(const Model& model, const Task& task, std::span<const EncodedItem> encoded,
                  const TaskOptions& options, const Done& done, std::vector<bool>* correct) {
  NIBBLE_ASSIGN_OR_RETURN(ChoiceScorer scorer, ChoiceScorer::Create(model, options));
  for (size_t begin = 0; begin < encoded.size();) {
    int64_t tokens = 0;
    size_t end = begin;
    while (end < encoded.size() && (end == begin || tokens < options.batch_tokens)) {
      tokens += TokensOf(encoded[end++]);
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<double> sums,
                            scorer.Score(encoded.subspan(begin, end - begin)));
    size_t at = 0;
    for (size_t i = begin; i < end; ++i) {
      const TaskItem& item = task.items[i];
      size_t best = 0;
      double best_score = -std::numeric_limits<double>::infinity();
      for (size_t o = 0; o < item.options.size(); ++o) {
        const double score = sums[at++] / static_cast<double>(item.options[o].size());
        if (!(score > best_score)) continue;
        best = o;
        best_score = score;
      }
      if (best_score == -std::numeric_limits<double>::infinity()) {
        return Corrupt("the model's logits are not finite");
      }
      correct->push_back(best == item.answer);
    }
    NIBBLE_RETURN_IF_ERROR(done(static_cast<int64_t>(end - begin)));
    begin = end;
  }
  return OkStatus();
}

std::string_view Trimmed(std::string_view text) {
  constexpr const char* kSpace = " \t\r\n";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// Where the first of the item's stops begins; npos where there is none.
size_t EndOf(const std::string& text, const TaskItem& item) {
  size_t end = std::string::npos;
  for (const std::string& stop : item.stop) end = std::min(end, text.find(stop));
  return end;
}

Status RunMatches(const Model& model, const Task& task, std::span<const EncodedItem> encoded,
                  const TaskOptions& options, const Done& done, std::vector<bool>* correct) {
  for (size_t i = 0; i < encoded.size(); ++i) {
    const TaskItem& item = task.items[i];
    std::string text;
    GenerateOptions generate;
    generate.max_tokens = item.max_tokens;
    generate.runner = options.runner;
    generate.cache = options.cache;
    generate.on_token = [&](int32_t, std::string_view piece) {
      text += piece;
      return EndOf(text, item) == std::string::npos;
    };
    const Result<Generation> generation = Generate(model, encoded[i].prompt, generate);
    if (!generation.ok()) return Status(generation.status()).WithContext(item.place);
    text.resize(std::min(text.size(), EndOf(text, item)));
    correct->push_back(
        std::any_of(item.answers.begin(), item.answers.end(),
                    [&](const std::string& answer) { return Trimmed(answer) == Trimmed(text); }));
    NIBBLE_RETURN_IF_ERROR(done(1));
  }
  return OkStatus();
}

Result<std::vector<EncodedItem>> EncodeTask(const Model& model, const Task& task) {
  std::vector<EncodedItem> encoded;
  for (const TaskItem& item : task.items) {
    NIBBLE_ASSIGN_OR_RETURN(EncodedItem one, EncodeItem(model, item));
    encoded.push_back(std::move(one));
  }
  return encoded;
}

}  // namespace

Status CheckTasks(const Model& model, std::span<const Task> tasks) {
  for (const Task& task : tasks) NIBBLE_RETURN_IF_ERROR(EncodeTask(model, task).status());
  return OkStatus();
}

Result<std::vector<TaskResult>> RunTasks(const Model& model, std::span<const Task> tasks,
                                         const TaskOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckTasks(model, tasks));
  int64_t done = 0, items = 0;
  for (const Task& task : tasks) items += static_cast<int64_t>(task.items.size());
  const Done report = [&](int64_t more) {
    done += more;
    if (options.progress && !options.progress(done, items)) {
      return Cancelled("stopped after " + std::to_string(done) + " items");
    }
    return OkStatus();
  };
  std::vector<TaskResult> results;
  for (const Task& task : tasks) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<EncodedItem> encoded, EncodeTask(model, task));
    TaskResult result{task.name, task.kind, {}, {}};
    const auto run = task.kind == TaskKind::kMultipleChoice ? RunChoices : RunMatches;
    NIBBLE_RETURN_IF_ERROR(run(model, task, encoded, options, report, &result.correct));
    Moments accuracy;
    for (const bool correct : result.correct) accuracy.Add(correct ? 1 : 0);
    result.accuracy = accuracy.estimate();
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace nibble
