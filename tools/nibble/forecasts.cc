#include "tools/nibble/forecasts.h"

#include <cmath>
#include <optional>

#include "fmt/core.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

// "7B", "350M": decimal.
Result<uint64_t> ParseCount(const std::string& text) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  double unit = 1;
  const std::string rest = used == 0 ? "?" : text.substr(used);
  if (rest == "M" || rest == "m") unit = 1e6;
  if (rest == "B" || rest == "b" || rest == "G") unit = 1e9;
  if (rest == "T" || rest == "t") unit = 1e12;
  if ((unit == 1 && !rest.empty()) || !std::isfinite(value) || value <= 0 || value * unit > 1e15) {
    return InvalidArgument("'" + text + "' is no number of weights, such as 7B or 350M");
  }
  return static_cast<uint64_t>(value * unit);
}

}  // namespace

void AddForecastOptions(CLI::App& command, ForecastCommand& options) {
  auto* what = command.add_option_group("model");
  what->add_option("model", options.model, "GGUF file, .safetensors file or Hugging Face folder");
  what->add_option("--params", options.params,
                   "Instead of a model: so many weights in a usual shape, e.g. 7B");
  what->require_option(1);
  command.add_option("--type", options.types, "A mix or a format; may be given again")
      ->take_all()
      ->expected(1);
  command.add_option("--imatrix", options.imatrix, "Importance matrix to quantize the sample with");
  command.add_flag("--no-sample", options.no_sample, "Read no weights: no error, no time");
  command
      .add_option("--bandwidth", options.bandwidth,
                  "Bytes per second that memory gives, e.g. 100G, instead of a measurement")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  command
      .add_option("--context", options.footprint.context,
                  "Tokens that each sequence's cache holds; default: all that the model takes")
      ->check(CLI::PositiveNumber);
  command.add_option("--sequences", options.footprint.sequences, "At once; default 1")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  AddCacheOptions(command, options.footprint.cache);
  AddCommonOptions(command, options.common);
}

Result<std::vector<TypeForecast>> MakeForecasts(const ForecastCommand& options, Machine* machine,
                                                std::vector<std::string>* notices) {
  ForecastOptions forecast;
  forecast.footprint = options.footprint;
  ThreadPool pool(options.common.threads);
  forecast.parallel = pool.parallel_for();
  if (options.no_sample) forecast.sample_weights = 0;
  std::optional<ModelSource> source;
  ModelShape shape;
  if (options.params.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(source, ModelSource::Open(options.model));
    notices->assign(source->notices().begin(), source->notices().end());
    ModelShape own{source->metadata(), {source->tensors().begin(), source->tensors().end()}};
    const Result<Footprint> footprint = ForeseeFootprint(own, options.footprint);
    if (!footprint.ok()) {
      notices->push_back("no memory and speed of running it: " + footprint.status().message());
    }
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t weights, ParseCount(options.params));
    NIBBLE_ASSIGN_OR_RETURN(shape, UsualShape(weights));
    NIBBLE_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromMetadata(shape.metadata));
    notices->push_back(fmt::format(
        "a usual shape: {} layers of width {}, {} heads of {} and {} for keys and values, "
        "feed-forward {}; without the tokenizer's bytes, and no weights to sample",
        config.layers, config.width, config.heads, config.head_dim, config.kv_heads,
        config.ffn_width));
  }
  ImportanceMatrix importance;
  if (!options.imatrix.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(importance, ImportanceMatrix::Load(options.imatrix));
    forecast.importance = &importance;
  }
  ProgressDisplay display(options.common.quiet);
  NIBBLE_ASSIGN_OR_RETURN(*machine, MeasureMachine(pool.parallel_for()));
  if (options.bandwidth > 0) machine->read_bytes_per_second = options.bandwidth;
  forecast.machine = *machine;
  std::vector<TypeForecast> forecasts;
  for (size_t i = 0; i < options.types.size(); ++i) {
    display.Update(static_cast<double>(i) / static_cast<double>(options.types.size()), "sampling",
                   options.types[i]);
    Result<TypeForecast> one = source ? ForecastType(*source, options.types[i], forecast)
                                      : ForecastType(shape, options.types[i], forecast);
    if (!one.ok()) return std::move(one).status().WithContext(options.types[i]);
    forecasts.push_back(*std::move(one));
  }
  return forecasts;
}

ordered_json Json(const TypeForecast& forecast) {
  const auto figure = [](std::optional<double> x) {
    return x && std::isfinite(*x) ? ordered_json(*x) : ordered_json();
  };
  const auto limit = [](double x) { return x > 0 ? ordered_json(x) : ordered_json(); };
  ordered_json json = {
      {"type", forecast.type},
      {"file_bytes", forecast.file_bytes},
      {"bits_per_weight", forecast.bits_per_weight},
      {"memory",
       {{"weights", forecast.footprint.weights},
        {"cache", forecast.footprint.cache},
        {"scratch", forecast.footprint.scratch},
        {"total", forecast.footprint.total()}}},
      {"decode_limit", limit(forecast.decode_limit)},
      {"prefill_limit", limit(forecast.prefill_limit)},
      {"nmse", figure(forecast.Nmse())},
      {"snr_db", figure(forecast.SnrDb())},
      {"quantize_seconds",
       forecast.sampled ? ordered_json(forecast.quantize_seconds) : ordered_json()},
      {"quantize_memory",
       forecast.sampled ? ordered_json(forecast.quantize_memory) : ordered_json()}};
  for (const SampledTensor& tensor : forecast.tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"format", GetFormatInfo(tensor.format).name},
                               {"weights", tensor.weights},
                               {"nmse", tensor.nmse}});
  }
  return json;
}

ordered_json Json(const Machine& machine) {
  return {{"read_bytes_per_second", machine.read_bytes_per_second},
          {"multiply_adds_per_second", machine.multiply_adds_per_second}};
}

std::string SnrCell(const TypeForecast& forecast) {
  const std::optional<double> snr = forecast.SnrDb();
  if (!snr) return "?";
  return std::isinf(*snr) ? "exact" : fmt::format("{:.1f}", *snr);
}

std::string RateCell(double tokens_per_second) {
  if (tokens_per_second <= 0) return "?";
  return fmt::format("{:.{}f}", tokens_per_second, tokens_per_second < 100 ? 1 : 0);
}

}  // namespace nibble::tools
