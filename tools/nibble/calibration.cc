#include "tools/nibble/calibration.h"

#include <algorithm>
#include <utility>

#include "tools/nibble/run_options.h"

namespace nibble::tools {

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
