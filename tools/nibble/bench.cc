#include <charconv>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "fmt/core.h"
#include "nibble/model_benchmark.h"
#include "nibble/target.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/bench.h"
#include "tools/nibble/command.h"
#include "tools/nibble/run_options.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

struct BenchModelCommand {
  std::vector<std::string> models;
  ModelBenchmarkOptions benchmark;
  RunOptions run;
  CommonOptions common;
};

// One figure of a model, comparable with the same of another.
struct Figure {
  std::string name;  // what a table says
  std::string key;   // what JSON calls the ratio
  std::string text;
  double value;  // 0: there is no ratio
};

std::string Milliseconds(double seconds) {
  return fmt::format("{:.{}f}", 1e3 * seconds, seconds < 0.1 ? 2 : 0);
}

Figure LatencyFigure(const std::string& name, const std::string& key, const Latency& latency) {
  return {name + ", ms", key,
          fmt::format("{} / {} / {}", Milliseconds(latency.p50), Milliseconds(latency.p95),
                      Milliseconds(latency.p99)),
          latency.p50};
}

Figure RateFigure(const std::string& name, const std::string& key, double tokens_per_second) {
  return {name + ", tokens/s", key, fmt::format("{:.1f}", tokens_per_second), tokens_per_second};
}

// In the same order for every model that was measured with the same options.
std::vector<Figure> Figures(const ModelBenchmark& b) {
  std::vector<Figure> figures = {
      {"size on disk", "file_bytes", Size(b.file_bytes), static_cast<double>(b.file_bytes)},
      {"loaded after, ms", "load_seconds", Milliseconds(b.load_seconds), b.load_seconds},
      {"first product after, ms", "first_product_seconds", Milliseconds(b.first_product_seconds),
       b.first_product_seconds},
      {"peak memory", "peak_memory_bytes",
       b.peak_memory_bytes > 0 ? Size(b.peak_memory_bytes) : "n/a",
       static_cast<double>(b.peak_memory_bytes)},
      {"of it keys and values, at most", "peak_cache_bytes", Size(b.peak_cache_bytes),
       static_cast<double>(b.peak_cache_bytes)},
      {"device memory", "device_memory_bytes",
       b.device_memory_bytes > 0 ? Size(b.device_memory_bytes) : "n/a",
       static_cast<double>(b.device_memory_bytes)}};
  for (const BenchmarkPoint& point : b.prompts) {
    const std::string n = std::to_string(point.prompt_tokens), key = "prompt_" + n + "_";
    figures.push_back(LatencyFigure("prompt of " + n + ": first token p50 / p95 / p99",
                                    key + "first_token", point.first_token));
    figures.push_back(RateFigure("prompt of " + n + ": prefill", key + "prefill",
                                 point.prefill_tokens_per_second));
    if (point.decode_tokens_per_second == 0) continue;
    figures.push_back(LatencyFigure("prompt of " + n + ": next token p50 / p95 / p99",
                                    key + "next_token", point.next_token));
    figures.push_back(
        RateFigure("prompt of " + n + ": decode", key + "decode", point.decode_tokens_per_second));
  }
  for (const BenchmarkPoint& point : b.batches) {
    const std::string n = std::to_string(point.prompt_tokens);
    figures.push_back(RateFigure("batch of " + n + " prompt tokens", "batch_" + n + "_prefill",
                                 point.prefill_tokens_per_second));
  }
  for (const BenchmarkPoint& point : b.sequences) {
    const std::string n = std::to_string(point.sequences), key = "sequences_" + n + "_";
    figures.push_back(RateFigure(n + " sequences: prefill together", key + "prefill",
                                 point.prefill_tokens_per_second));
    if (point.decode_tokens_per_second == 0) continue;
    figures.push_back(RateFigure(n + " sequences: decode together", key + "decode",
                                 point.decode_tokens_per_second));
  }
  const auto yes = [](bool same) { return same ? "yes" : "NO"; };
  figures.push_back({"same tokens in every run", "", yes(b.same_tokens_in_runs), 0});
  figures.push_back({"same tokens with other threads", "", yes(b.same_tokens_in_threads), 0});
  return figures;
}

// Second over first; 0 where there is none.
double Ratio(const Figure& first, const Figure& second) {
  return first.value > 0 ? second.value / first.value : 0;
}

void PrintTable(const std::vector<ModelBenchmark>& models) {
  std::vector<std::string> heading = {""};
  std::vector<bool> numbers = {false};
  std::vector<std::vector<Figure>> figures;
  for (const ModelBenchmark& model : models) {
    heading.push_back(std::filesystem::path(model.path).filename());
    numbers.push_back(true);
    figures.push_back(Figures(model));
  }
  if (models.size() == 2) {
    heading.push_back("second / first");
    numbers.push_back(true);
  }
  Table table(heading, numbers);
  for (size_t i = 0; i < figures[0].size(); ++i) {
    std::vector<std::string> row = {figures[0][i].name};
    for (const auto& model : figures) row.push_back(model[i].text);
    if (models.size() == 2) {
      const double ratio = Ratio(figures[0][i], figures[1][i]);
      row.push_back(ratio > 0 ? fmt::format("{:.3f}", ratio) : "");
    }
    table.Add(std::move(row));
  }
  fmt::print("{}", table.Text());
}

ordered_json Json(const Latency& l) { return {{"p50", l.p50}, {"p95", l.p95}, {"p99", l.p99}}; }

ordered_json Json(const std::vector<BenchmarkPoint>& points) {
  ordered_json list = ordered_json::array();
  for (const BenchmarkPoint& point : points) {
    ordered_json entry = {{"prompt_tokens", point.prompt_tokens},
                          {"sequences", point.sequences},
                          {"first_token_seconds", Json(point.first_token)},
                          {"prefill_tokens_per_second", point.prefill_tokens_per_second},
                          {"cache_bytes", point.cache_bytes}};
    if (point.decode_tokens_per_second > 0) {
      entry["next_token_seconds"] = Json(point.next_token);
      entry["decode_tokens_per_second"] = point.decode_tokens_per_second;
    }
    list.push_back(std::move(entry));
  }
  return list;
}

ordered_json Json(const ModelBenchmark& b) {
  return {{"path", b.path},
          {"file_bytes", b.file_bytes},
          {"load_seconds", b.load_seconds},
          {"first_product_seconds", b.first_product_seconds},
          {"peak_memory_bytes",
           b.peak_memory_bytes > 0 ? ordered_json(b.peak_memory_bytes) : ordered_json()},
          {"peak_cache_bytes", b.peak_cache_bytes},
          {"device_memory_bytes",
           b.device_memory_bytes > 0 ? ordered_json(b.device_memory_bytes) : ordered_json()},
          {"prompts", Json(b.prompts)},
          {"batches", Json(b.batches)},
          {"sequences", Json(b.sequences)},
          {"same_tokens_in_runs", b.same_tokens_in_runs},
          {"same_tokens_in_threads", b.same_tokens_in_threads}};
}

void PrintJson(const std::vector<ModelBenchmark>& models, const BenchModelCommand& options,
               int threads) {
  ordered_json document = {{"version", NIBBLE_VERSION},
                           {"target", CurrentTarget()},
                           {"precision", PrecisionName(options.run.precision)},
                           {"threads", threads},
                           {"decode_tokens", options.benchmark.decode_tokens},
                           {"warmups", options.benchmark.warmups},
                           {"runs", options.benchmark.runs},
                           {"models", ordered_json::array()}};
  for (const ModelBenchmark& model : models) document["models"].push_back(Json(model));
  if (models.size() == 2) {
    const std::vector<Figure> first = Figures(models[0]), second = Figures(models[1]);
    for (size_t i = 0; i < first.size(); ++i) {
      const double ratio = Ratio(first[i], second[i]);
      if (ratio > 0) document["ratios"][first[i].key] = ratio;
    }
  }
  fmt::print("{}\n", document.dump(2, ' ', false, ordered_json::error_handler_t::replace));
}

// "32,128"; zeros stand for nothing.
std::vector<int64_t> ParseList(const std::string& name, const std::string& text) {
  constexpr int64_t kMost = 1 << 24;
  std::vector<int64_t> numbers;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (error != std::errc() || end != part.data() + part.size() || number < 0 || number > kMost) {
      throw CLI::ValidationError(name, "'" + text + "' is no list of numbers, with commas");
    }
    if (number > 0) numbers.push_back(number);
  }
  return numbers;
}

int Run(BenchModelCommand options) {
  if (const Status ready = PrepareDevice(options.run); !ready.ok()) return FailAtWork(ready);
  ModelBenchmarkOptions& benchmark = options.benchmark;
  ThreadPool pool(options.common.threads);
  ThreadPool other(pool.threads() > 1 ? 1 : 2);
  benchmark.runner.parallel = pool.parallel_for();
  benchmark.runner.precision = options.run.precision;
  benchmark.cache = options.run.cache;
  benchmark.other_parallel = other.parallel_for();
  ProgressDisplay display(options.common.quiet);
  benchmark.progress = [&](double fraction, std::string_view model, std::string_view step) {
    display.Update(fraction, std::string(step), std::string(model));
    return true;
  };
  const Result<std::vector<ModelBenchmark>> results = BenchmarkModels(options.models, benchmark);
  display.Clear();
  if (!results.ok()) return Fail(results.status());
  if (options.common.json) {
    PrintJson(*results, options, pool.threads());
  } else {
    PrintTable(*results);
    fmt::print("\nnibble {}, {}, {}, {} threads; medians of {} runs of {} decoded tokens\n",
               NIBBLE_VERSION, CurrentTarget(), PrecisionName(options.run.precision),
               pool.threads(), benchmark.runs, benchmark.decode_tokens);
  }
  return kSuccess;
}

}  // namespace

void AddBench(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed");
  auto targets = std::make_shared<std::pair<bool, CommonOptions>>();
  bench->add_flag("--targets", targets->first, "Tell which instruction sets can run here, and end");
  bench->add_flag("--json", targets->second.json, "With --targets: print one JSON document");
  bench->require_subcommand(0, 1);
  bench->callback([bench, targets, &action] {
    if (targets->first) {
      action = [targets] { return PrintTargets(targets->second); };
    } else if (bench->get_subcommands().empty()) {
      throw CLI::RequiredError("bench: a subcommand, kernels or model, or --targets");
    }
  });
  AddBenchKernels(*bench, action);
  CLI::App* command = bench->add_subcommand(
      "model", "Time a model, or two side by side: latencies, throughput, memory, same tokens");
  auto options = std::make_shared<BenchModelCommand>();
  ModelBenchmarkOptions& b = options->benchmark;
  const auto add_list = [&](const std::string& name, std::vector<int64_t>& numbers,
                            const char* help) {
    command->add_option_function<std::string>(
        name, [&numbers, name](const std::string& text) { numbers = ParseList(name, text); }, help);
  };
  command->add_option("models", options->models, "One or two: GGUF files or Hugging Face folders")
      ->required()
      ->expected(1, 2);
  add_list("--prompts", b.prompts, "Tokens of the prompts, with commas; default 32,128,512");
  add_list("--batches", b.batches,
           "Prompt tokens that run at once; default 1,8,64,256; 0 leaves this out");
  add_list("--sequences", b.sequences, "Sequences side by side; default 2,4,8; 0 leaves this out");
  command->add_option("--decode-tokens", b.decode_tokens, "After each prompt; default 32")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  command->add_option("--runs", b.runs, "Timed runs of each; default 5")
      ->check(CLI::Range(2, 100000));
  command->add_option("--warmups", b.warmups, "Runs before them; default 1")
      ->check(CLI::Range(0, 1000));
  AddRunOptions(*command, options->run);
  AddDeviceOption(*command, options->run);
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace nibble::tools
