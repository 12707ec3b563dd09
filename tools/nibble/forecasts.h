// What estimate and advise share: the model or its size, the types, the machine.
#ifndef NIBBLE_TOOLS_FORECASTS_H_
#define NIBBLE_TOOLS_FORECASTS_H_

#include <string>
#include <vector>

#include "nibble/estimate.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/command.h"
#include "tools/nibble/run_options.h"

namespace nibble::tools {

struct ForecastCommand {
  std::string model;   // or
  std::string params;  // "7B"
  std::vector<std::string> types;
  std::string imatrix;
  bool no_sample = false;
  double bandwidth = 0;  // bytes per second; 0: measured
  FootprintOptions footprint;
  CommonOptions common;
};

void AddForecastOptions(CLI::App& command, ForecastCommand& options);

// Forecasts of all types, in the order given.
Result<std::vector<TypeForecast>> MakeForecasts(const ForecastCommand& options, Machine* machine,
                                                std::vector<std::string>* notices);

nlohmann::ordered_json Json(const TypeForecast& forecast);
nlohmann::ordered_json Json(const Machine& machine);

// "24.6", "exact", or "?" where nothing was sampled.
std::string SnrCell(const TypeForecast& forecast);
std::string RateCell(double tokens_per_second);  // "?" for 0

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_FORECASTS_H_
