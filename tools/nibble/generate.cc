#include "nibble/generate.h"

#include <sys/resource.h>

#include <memory>
#include <optional>

#include "fmt/core.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/command.h"
#include "tools/nibble/run_options.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

struct GenerateCommand {
  std::string model;
  std::string prompt;
  std::string prompt_file;
  std::string draft;  // a smaller model, or empty
  bool special = false;
  GenerateOptions generate;
  RunOptions run;
  CommonOptions common;
};

uint64_t PeakMemory() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

void PrintSummary(const Generation& g, bool drafted) {
  const int64_t decoded =
      static_cast<int64_t>(g.tokens.size()) - 1;  // the prompt's pass gave the first
  fmt::print(stderr, "prompt {} tokens, {:.1f} tokens/s; {} more, {:.1f} tokens/s; ",
             g.prompt_tokens, PerSecond(g.prompt_tokens, g.prefill_seconds), g.tokens.size(),
             PerSecond(std::max<int64_t>(decoded, 0), g.decode_seconds));
  if (drafted) {
    fmt::print(stderr, "{} of {} drafted tokens accepted; ", g.accepted, g.drafted);
  }
  if (g.left_out > 0) {
    fmt::print(stderr, "the prompt's first {} tokens were left out; ", g.left_out);
  }
  fmt::print(stderr, "cache {}, peak memory {}\n", Size(g.cache_bytes), Size(PeakMemory()));
}

int Generate(GenerateCommand options) {
  const Result<Model> model = LoadModel(options.model, options.run);
  if (!model.ok()) return FailAtWork(model.status());
  std::optional<Model> draft;
  if (!options.draft.empty()) {
    Result<Model> loaded = LoadModel(options.draft, options.run);
    if (!loaded.ok()) return FailAtWork(loaded.status());
    draft = *std::move(loaded);
    options.generate.draft = &*draft;
  }
  if (!options.prompt_file.empty()) {
    Result<std::string> text = ReadTextFile(options.prompt_file);
    if (!text.ok()) return FailAtWork(text.status());
    options.prompt = *std::move(text);
  }
  TokenizeOptions tokenize;
  tokenize.parse_special = options.special;
  const Result<std::vector<int32_t>> prompt = model->tokenizer().Encode(options.prompt, tokenize);
  if (!prompt.ok()) return FailAtWork(prompt.status());

  ThreadPool pool(options.common.threads);
  options.generate.runner.parallel = pool.parallel_for();
  options.generate.runner.precision = options.run.precision;
  options.generate.cache = options.run.cache;
  if (!options.common.json) {
    options.generate.on_token = [](int32_t, std::string_view piece) {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
      return std::ferror(stdout) == 0;
    };
  }
  const Result<Generation> result = nibble::Generate(*model, *prompt, options.generate);
  if (!result.ok()) return Fail(result.status());
  if (options.common.json) {
    const nlohmann::ordered_json document = {{"prompt_ids", *prompt},
                                             {"ids", result->tokens},
                                             {"text", model->tokenizer().Decode(result->tokens)},
                                             {"prompt_left_out", result->left_out},
                                             {"prefill_seconds", result->prefill_seconds},
                                             {"decode_seconds", result->decode_seconds},
                                             {"drafted", result->drafted},
                                             {"accepted", result->accepted},
                                             {"cache_bytes", result->cache_bytes},
                                             {"peak_memory_bytes", PeakMemory()}};
    // A text cut off inside a character is not UTF-8.
    fmt::print("{}\n", document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("\n");
  }
  if (!options.common.quiet) PrintSummary(*result, draft.has_value());
  return kSuccess;
}

}  // namespace

void AddGenerate(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a model");
  auto options = std::make_shared<GenerateCommand>();
  command->add_option("model", options->model, "GGUF file or Hugging Face folder")->required();
  auto* prompt = command->add_option_group("prompt");
  prompt->add_option("-p,--prompt", options->prompt, "The text to continue");
  prompt->add_option("-f,--prompt-file", options->prompt_file, "The same from a file");
  prompt->require_option(1);
  command->add_flag("--special", options->special,
                    "Texts of control tokens in the prompt are those tokens");
  GenerateOptions& g = options->generate;
  command->add_option("-n,--max-tokens", g.max_tokens, "The most tokens to add; default 128")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  command->add_flag("--truncate-prompt", g.truncate_prompt,
                    "Leave out the beginning of a prompt that is too long instead of refusing it");
  command->add_flag("!--no-stop", g.stop_at_end, "Go on after the end of the text");
  command->add_option("--temperature", g.sampling.temperature, "0 (default): the likeliest token")
      ->check(CLI::Range(0.0, 100.0));
  command->add_option("--top-k", g.sampling.top_k, "Draw from the likeliest K")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--top-p", g.sampling.top_p, "Draw from the likeliest that make up this share")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", g.sampling.seed, "Of the draws; default 0");
  command->add_option("--draft", options->draft,
                      "A smaller model of the same vocabulary that proposes tokens");
  command->add_option("--draft-tokens", g.draft_tokens, "Tokens it proposes at once; default 4")
      ->check(CLI::Range(int64_t{1}, int64_t{64}));
  AddRunOptions(*command, options->run);
  AddDeviceOption(*command, options->run);
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Generate(*options); }; });
}

}  // namespace nibble::tools
