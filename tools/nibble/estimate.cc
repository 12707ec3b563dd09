#include <memory>

#include "fmt/core.h"
#include "tools/nibble/forecasts.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

int Run(ForecastCommand options) {
  if (options.types.empty()) {
    options.types = {kCopyType, "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"};
  }
  Machine machine;
  std::vector<std::string> notices;
  const Result<std::vector<TypeForecast>> forecasts = MakeForecasts(options, &machine, &notices);
  if (!forecasts.ok()) return Fail(forecasts.status());
  if (options.common.json) {
    nlohmann::ordered_json document = {{"model", options.params.empty() ? options.model : ""},
                                       {"params", options.params},
                                       {"machine", Json(machine)},
                                       {"notices", notices}};
    for (const TypeForecast& forecast : *forecasts) document["types"].push_back(Json(forecast));
    fmt::print("{}\n", document.dump(2));
    return kSuccess;
  }
  Table table({"type", "file", "bits/weight", "SNR dB", "quantize in", "with", "weights", "+ cache",
               "+ scratch", "= memory", "decode <=", "prefill <="},
              {false, true, true, true, true, true, true, true, true, true, true, true});
  for (const TypeForecast& f : *forecasts) {
    table.Add({f.type, Size(f.file_bytes), fmt::format("{:.3f}", f.bits_per_weight), SnrCell(f),
               f.sampled ? fmt::format("{:.1f} s", f.quantize_seconds) : "?",
               f.sampled ? Size(f.quantize_memory) : "?", Size(f.footprint.weights),
               f.decode_limit > 0 ? Size(f.footprint.cache) : "?",
               f.decode_limit > 0 ? Size(f.footprint.scratch) : "?",
               f.decode_limit > 0 ? Size(f.footprint.total()) : "?", RateCell(f.decode_limit),
               RateCell(f.prefill_limit)});
  }
  fmt::print("{}", table.Text());
  if (options.common.quiet) return kSuccess;
  fmt::print(
      "\nTokens/s are limits of a model larger than the caches: memory gives {}/s, products {:.0f} "
      "Gmultiply-adds/s.\n",
      Size(static_cast<uint64_t>(machine.read_bytes_per_second)),
      machine.multiply_adds_per_second / 1e9);
  for (const std::string& notice : notices) fmt::print(stderr, "note: {}\n", notice);
  return kSuccess;
}

}  // namespace

void AddEstimate(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "estimate", "Foresee size, error, time, memory and the limits of speed, type by type");
  auto options = std::make_shared<ForecastCommand>();
  AddForecastOptions(*command, *options);
  command->footer(
      "Files are exact to the byte. SNR and the time to quantize come from a sample of each "
      "tensor's rows; \"with\" is the memory that takes. Memory: of the running model with a full "
      "cache.");
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace nibble::tools
