#include "tools/nibble/calibration.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "tools/nibble/run_options.h"

namespace nibble::tools {

void AddWindowOptions(CLI::App& command, CalibrationOptions& options, int64_t most_windows) {
  command
      .add_option("--calibration-context", options.context,
                  "Tokens in a window of the text; default 512, or the model's context")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 24));
  command
      .add_option("--calibration-windows", options.windows,
                  "Stop after so many windows; default " +
                      (most_windows > 0 ? std::to_string(most_windows) : "all"))
      ->check(CLI::PositiveNumber);
}

void AddMemoryOption(CLI::App& command, CalibrationOptions& options) {
  command
      .add_option(
          "--calibration-memory", options.activations.memory_bytes,
          "Activations of the whole text that take more lie in a file without a name beside "
          "the output; default 1 GiB")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
}

ActivationMemory ActivationsBeside(const std::string& output, const CalibrationOptions& options) {
  ActivationMemory memory = options.activations;
  std::string name = output;
  while (name.size() > 1 && name.ends_with('/')) name.pop_back();
  const std::filesystem::path folder = std::filesystem::path(name).parent_path();
  memory.folder = folder.empty() ? "." : folder.string();
  return memory;
}

Result<Calibration> LoadCalibration(const std::string& path, const CalibrationOptions& options,
                                    int64_t most_windows) {
  constexpr int64_t kContext = 512;
  NIBBLE_ASSIGN_OR_RETURN(Model model, Model::Load(path));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(options.text));
  const int64_t context =
      options.context > 0 ? options.context : std::min(kContext, model.config().context);
  Result<CalibrationText> cut = CutCalibrationText(
      model, text, context, options.windows > 0 ? options.windows : most_windows);
  if (!cut.ok()) return std::move(cut).status().WithContext(options.text);
  return Calibration{std::move(model), *std::move(cut)};
}

}  // namespace nibble::tools
