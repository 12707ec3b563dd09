#include <memory>

#include "fmt/core.h"
#include "tools/nibble/forecasts.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

struct AdviseCommand {
  ForecastCommand forecast;
  AdviceGoal goal;
};

std::string Joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "; ") + part;
  return text;
}

void PrintJson(const AdviseCommand& options, const Machine& machine,
               std::span<const TypeForecast> forecasts, const Advice& advice,
               const std::vector<std::string>& notices) {
  using nlohmann::ordered_json;
  ordered_json document = {
      {"model", options.forecast.params.empty() ? options.forecast.model : ""},
      {"params", options.forecast.params},
      {"machine", Json(machine)},
      {"type",
       advice.found ? ordered_json(forecasts[advice.ranking[0].index].type) : ordered_json()},
      {"method", advice.found ? ordered_json(GetMethodInfo(advice.method).name) : ordered_json()},
      {"importance", advice.importance},
      {"method_reason", advice.method_reason},
      {"notices", notices}};
  for (const RankedType& ranked : advice.ranking) {
    ordered_json entry = Json(forecasts[ranked.index]);
    entry["fits"] = ranked.fits;
    entry["reasons"] = ranked.reasons;
    document["ranking"].push_back(std::move(entry));
  }
  fmt::print("{}\n", document.dump(2));
}

int Run(AdviseCommand options) {
  if (options.forecast.types.empty()) {
    for (const MixInfo& mix : AllMixes()) {
      // MXFP4_MOE is Q8_0 but for experts.
      if (mix.mix != Mix::kF32 && mix.mix != Mix::kMXFP4_MOE)
        options.forecast.types.push_back(mix.name);
    }
  }
  Machine machine;
  std::vector<std::string> notices;
  const Result<std::vector<TypeForecast>> forecasts =
      MakeForecasts(options.forecast, &machine, &notices);
  if (!forecasts.ok()) return Fail(forecasts.status());
  if ((options.goal.max_memory_bytes > 0 || options.goal.min_decode > 0) &&
      (*forecasts)[0].decode_limit <= 0) {
    return FailAtWork(Unsupported(options.forecast.model +
                                  ": memory and speed of this architecture cannot be foreseen"));
  }
  const Advice advice = Advise(*forecasts, options.goal);
  if (options.forecast.common.json) {
    PrintJson(options, machine, *forecasts, advice, notices);
  } else {
    Table table({"type", "fits", "file", "bits/weight", "SNR dB", "memory", "decode <=", "why"},
                {false, false, true, true, true, true, true, false});
    for (const RankedType& ranked : advice.ranking) {
      const TypeForecast& f = (*forecasts)[ranked.index];
      table.Add({f.type, ranked.fits ? "yes" : "no", Size(f.file_bytes),
                 fmt::format("{:.3f}", f.bits_per_weight), SnrCell(f),
                 f.decode_limit > 0 ? Size(f.footprint.total()) : "?", RateCell(f.decode_limit),
                 Joined(ranked.reasons)});
    }
    fmt::print("{}", table.Text());
    if (!options.forecast.common.quiet) {
      for (const std::string& notice : notices) fmt::print(stderr, "note: {}\n", notice);
    }
  }
  if (!advice.found) {
    return FailAtWork(NotFound("no type keeps within these limits"));
  }
  if (!options.forecast.common.json) {
    const std::string& type = (*forecasts)[advice.ranking[0].index].type;
    fmt::print("\nTake {}: {}.\n{}.\n", type,
               options.goal.smallest ? "the smallest that fits" : "the least error of all that fit",
               advice.method_reason);
    fmt::print("\n  nibble quantize {} -o OUT.gguf --type {}{}\n",
               options.forecast.model.empty() ? "MODEL" : options.forecast.model, type,
               advice.method == Method::kGptq ? " --method gptq --calibration TEXT"
               : advice.importance            ? " --imatrix FILE"
                                              : "");
  }
  return kSuccess;
}

}  // namespace

void AddAdvise(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "advise", "Rank the types for a size, a memory or a speed, and say which to take and why");
  auto options = std::make_shared<AdviseCommand>();
  AddForecastOptions(*command, options->forecast);
  AdviceGoal& goal = options->goal;
  command->add_option("--max-size", goal.max_file_bytes, "Of the file, e.g. 4G")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  command
      ->add_option("--max-memory", goal.max_memory_bytes,
                   "Of the running model with a full cache, e.g. 6G")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  command->add_option("--min-decode", goal.min_decode, "Tokens/s that must be possible")
      ->check(CLI::PositiveNumber);
  command->add_option("--min-snr", goal.min_snr_db, "dB of signal to noise that must be left")
      ->check(CLI::PositiveNumber);
  const auto set_goal = [options](const std::string& name) {
    options->goal.smallest = name == "size";
  };
  command
      ->add_option_function<std::string>("--goal", set_goal,
                                         "quality (default): the least error that fits; size: the "
                                         "smallest that fits")
      ->check(CLI::IsMember({"quality", "size"}));
  command->footer(
      "Types: all mixes unless --type names some. SNR comes from a sample of the weights. Exit "
      "status 1 where nothing fits.");
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace nibble::tools
