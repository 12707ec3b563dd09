#include "tools/nibble/budget.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "fmt/core.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

// Enough of a text for the mean squares that weigh errors.
constexpr int64_t kImportanceWindows = 32;

Result<ImportanceMatrix> ImportanceOf(const Calibration& calibration, const ParallelFor& parallel,
                                      ProgressDisplay& display) {
  CalibrationText text = calibration.text;
  const int64_t windows = std::min(kImportanceWindows, text.windows());
  text.tokens.resize(static_cast<size_t>(windows * text.context));
  StatisticsOptions options;
  options.output = true;
  options.parallel = parallel;
  options.progress = [&](int64_t done, int64_t all) {
    display.Update(static_cast<double>(done) / static_cast<double>(all), "", "mean squares");
    return true;
  };
  return GatherStatistics(calibration.model, text, "", options);
}

Result<std::vector<Format>> FormatsNamed(const std::vector<std::string>& names) {
  std::vector<Format> formats;
  for (const std::string& name : names) {
    const FormatInfo* info = FindFormat(name);
    const auto known = BudgetFormats();
    if (info == nullptr || std::ranges::find(known, info->format) == known.end()) {
      std::string message = "--budget-types: " + name + " is none of";
      for (const Format format : known) {
        message.append(" ").append(GetFormatInfo(format).name);
      }
      return InvalidArgument(message);
    }
    formats.push_back(info->format);
  }
  return formats;
}

}  // namespace

void AddBudgetOptions(CLI::App& command, BudgetOptions& options) {
  CLI::Option* bits =
      command
          .add_option("--target-bpw", options.target.bits_per_weight,
                      "In place of --type: the best mix of at most so many bits per weight, all "
                      "tensors counted")
          ->check(CLI::Range(0.1, 32.0));
  CLI::Option* size = command
                          .add_option("--target-size", options.target.file_bytes,
                                      "The same for the size of the file, e.g. 4500M or 4G")
                          ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
                          ->check(CLI::PositiveNumber);
  const auto needs_target = [bits, size](const std::string&) {
    return bits->empty() && size->empty() ? std::string("needs --target-bpw or --target-size")
                                          : std::string();
  };
  command
      .add_option("--budget-types", options.types,
                  "Formats that such a mix is made of, between commas; default all that pay")
      ->delimiter(',')
      ->check(needs_target);
  command
      .add_option("--sensitivity", options.file,
                  "File of what each matrix loses: taken up where it exists, kept as it grows; "
                  "default OUTPUT.sensitivity.json where there is a calibration text")
      ->check(needs_target);
  command
      .add_option("--sensitivity-windows", options.windows,
                  "Windows of the calibration text that the loss of each matrix alone is measured "
                  "on; default 8")
      ->check(CLI::PositiveNumber)
      ->check(needs_target);
}

Result<BudgetMix> FindMix(const BudgetOptions& options, const BudgetInputs& inputs,
                          const CommonOptions& common) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Format> allowed, FormatsNamed(options.types));
  ThreadPool pool(common.threads);
  ProgressDisplay display(common.quiet);
  SensitivityOptions measure;
  measure.importance = inputs.recipe.importance;
  measure.windows = options.windows;
  measure.parallel = pool.parallel_for();
  ImportanceMatrix importance;
  if (inputs.calibration != nullptr) {
    measure.model = &inputs.calibration->model;
    measure.text = &inputs.calibration->text;
    if (measure.importance == nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(importance,
                              ImportanceOf(*inputs.calibration, measure.parallel, display));
      measure.importance = &importance;
    }
  }
  measure.progress = [&](double fraction, std::string_view matrix) {
    display.Update(fraction, "sensitivity", std::string(matrix));
    return true;
  };
  std::string file = options.file;
  if (file.empty() && inputs.calibration != nullptr) file = inputs.output + ".sensitivity.json";
  std::optional<Sensitivity> known;
  std::error_code error;
  if (!file.empty() && std::filesystem::exists(file, error)) {
    NIBBLE_ASSIGN_OR_RETURN(known, Sensitivity::Load(file));
  }
  if (!file.empty()) {
    measure.keep = [&](const Sensitivity& so_far) { return so_far.Save(file); };
  }
  Result<Sensitivity> sensitivity = MeasureSensitivity(inputs.source, measure, known);
  display.Clear();
  if (!sensitivity.ok()) {
    return known ? std::move(sensitivity).status().WithContext(file)
                 : std::move(sensitivity).status();
  }
  return PlanBudget(inputs.source, inputs.recipe, inputs.permissions, *sensitivity, options.target,
                    allowed, inputs.files);
}

std::string MixTable(const BudgetMix& mix, bool measured) {
  Table table({"matrix", "format", "size", measured ? "KL alone" : "error x share"},
              {false, false, true, true});
  for (const BudgetChoice& choice : mix.choices) {
    table.Add({choice.name,
               std::string(GetFormatInfo(choice.format).name) + (choice.fixed ? " (as asked)" : ""),
               Size(choice.bytes), fmt::format("{:.3g}", choice.loss)});
  }
  return table.Text() +
         fmt::format("{}: {:.4g}\n",
                     measured ? "sum of the matrices' divergences, rounded without feedback"
                              : "sum of the matrices' relative errors by their shares",
                     mix.loss);
}

}  // namespace nibble::tools
