#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "fmt/core.h"
#include "nibble/evaluate.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/command.h"
#include "tools/nibble/run_options.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

struct PerplexityCommand {
  std::string model;
  std::string text;
  std::string reference;  // a model, or empty
  std::string save_logits;
  PerplexityOptions perplexity;
  RunOptions run;
  CommonOptions common;
};

nlohmann::ordered_json Json(const Estimate& e) { return {{"value", e.value}, {"error", e.error}}; }

void PrintJson(const PerplexityResult& r) {
  nlohmann::ordered_json document = {{"perplexity", Json(r.perplexity)},
                                     {"mean_nll", Json(r.mean_nll)},
                                     {"windows", r.windows},
                                     {"scored_tokens", r.scored_tokens},
                                     {"seconds", r.seconds}};
  if (r.has_divergence) {
    const Divergence& d = r.divergence;
    document["divergence"] = {{"kl", Json(d.kl)},
                              {"kl_median", d.kl_median},
                              {"kl_p99", d.kl_p99},
                              {"kl_max", d.kl_max},
                              {"top1_agreement", Json(d.top1_agreement)},
                              {"log_ratio", Json(d.log_ratio)},
                              {"reference_perplexity", Json(d.reference_perplexity)}};
  }
  fmt::print("{}\n", document.dump(2));
}

void PrintText(const PerplexityResult& r) {
  fmt::print("perplexity      {:.4f} ± {:.4f}  ({} tokens in {} windows, {:.1f} s)\n",
             r.perplexity.value, r.perplexity.error, r.scored_tokens, r.windows, r.seconds);
  if (!r.has_divergence) return;
  const Divergence& d = r.divergence;
  fmt::print("reference       {:.4f} ± {:.4f}\n", d.reference_perplexity.value,
             d.reference_perplexity.error);
  fmt::print("ratio           {:.5f} ± {:.5f}\n", std::exp(d.log_ratio.value),
             std::exp(d.log_ratio.value) * d.log_ratio.error);
  fmt::print("mean KL         {:.6f} ± {:.6f}\n", d.kl.value, d.kl.error);
  fmt::print("KL median, 99%  {:.6f}, {:.6f}\n", d.kl_median, d.kl_p99);
  fmt::print("same top token  {:.2f} ± {:.2f} %\n", 100 * d.top1_agreement.value,
             100 * d.top1_agreement.error);
}

int Run(PerplexityCommand options) {
  const Result<Model> model = LoadModel(options.model, options.run);
  if (!model.ok()) return FailAtWork(model.status());
  std::optional<Model> reference;
  if (!options.reference.empty()) {
    Result<Model> loaded = LoadModel(options.reference, options.run);
    if (!loaded.ok()) return FailAtWork(loaded.status());
    reference = *std::move(loaded);
    options.perplexity.reference = &*reference;
  }
  const Result<std::string> text = ReadTextFile(options.text);
  if (!text.ok()) return FailAtWork(text.status());
  TokenizeOptions tokenize;
  tokenize.add_special = options.perplexity.scoring == Scoring::kSecondHalf;
  const Result<std::vector<int32_t>> tokens = model->tokenizer().Encode(*text, tokenize);
  if (!tokens.ok()) return FailAtWork(Status(tokens.status()).WithContext(options.text));

  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  options.perplexity.runner.parallel = pool.parallel_for();
  options.perplexity.runner.precision = options.run.precision;
  options.perplexity.cache = options.run.cache;
  options.perplexity.progress = [&](int64_t done, int64_t windows, double so_far) {
    const double fraction = static_cast<double>(done) / static_cast<double>(windows);
    const double rate = static_cast<double>(done * options.perplexity.context) / display.Seconds();
    display.Update(fraction, fmt::format("{:.0f} tokens/s", rate),
                   so_far > 0 ? fmt::format("perplexity {:.4f}", so_far) : std::string());
    return true;
  };
  if (!options.save_logits.empty()) {
    const Status saved =
        SaveReferenceLogits(*model, *tokens, options.save_logits, options.perplexity);
    display.Clear();
    return saved.ok() ? kSuccess : Fail(saved);
  }
  const Result<PerplexityResult> result = Perplexity(*model, *tokens, options.perplexity);
  display.Clear();
  if (!result.ok()) return Fail(result.status());
  if (options.common.json)
    PrintJson(*result);
  else
    PrintText(*result);
  return kSuccess;
}

}  // namespace

void AddPerplexity(CLI::App& app, Action& action) {
  static const std::map<std::string, Scoring> scorings = {{"half", Scoring::kSecondHalf},
                                                          {"all", Scoring::kAll}};
  CLI::App* command = app.add_subcommand(
      "perplexity", "Tell how well a model predicts a text, and how far it is from another model");
  auto options = std::make_shared<PerplexityCommand>();
  PerplexityOptions& p = options->perplexity;
  command->add_option("model", options->model, "GGUF file or Hugging Face folder")->required();
  command->add_option("--text", options->text, "A text file")->required();
  CLI::Option* reference =
      command->add_option("--reference", options->reference,
                          "The model to compare with: KL divergence and top-1 agreement");
  command
      ->add_option("--reference-logits", p.reference_logits,
                   "The same from a file of --save-logits")
      ->excludes(reference);
  command
      ->add_option("--save-logits", options->save_logits,
                   "Write what this model thinks of the text, for --reference-logits")
      ->excludes(reference);
  command->add_option("--context", p.context, "Tokens in a window; default 512")
      ->check(CLI::Range(int64_t{4}, int64_t{1} << 24));
  command
      ->add_option("--score", p.scoring,
                   "half (default): each window's second half, as llama.cpp; all: every token")
      ->transform(CLI::CheckedTransformer(scorings, CLI::ignore_case).description(""));
  command->add_option("--windows", p.max_windows, "Stop after so many windows")
      ->check(CLI::PositiveNumber);
  AddRunOptions(*command, options->run);
  AddDeviceOption(*command, options->run);
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace nibble::tools
