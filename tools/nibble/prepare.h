// Changes to a model's weights before they are quantized, by name.
#ifndef NIBBLE_TOOLS_PREPARE_H_
#define NIBBLE_TOOLS_PREPARE_H_

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/awq.h"
#include "nibble/calibrate.h"
#include "nibble/model_source.h"
#include "tools/nibble/calibration.h"
#include "tools/nibble/command.h"

namespace nibble::tools {

struct PreparationInfo {
  const char* name;
  bool calibrated;      // looks at calibration text
  const char* summary;  // a line for people
};

std::span<const PreparationInfo> AllPreparations();
// In any letter case; null where there is none.
const PreparationInfo* FindPreparation(std::string_view name);

struct PreparationInputs {
  const Model* model = nullptr;  // of `text` and the source; of a calibrated one
  const CalibrationText* text = nullptr;
  std::function<QuantizationTarget(std::string_view name)> target;  // of awq
  bool importance = false;  // whether the quantization will be weighed
  LayerInputsOptions options;
};

// What several preparations, one after another, work on and leave behind.
struct Prepared {
  ModelSource& source;
  Calibration* calibration = nullptr;  // its model follows the source; null: none is calibrated
  std::vector<std::string>& notices;
};

// Does one of them for the command. `target` and `importance` as in PreparationInputs.
Status PrepareOne(const PreparationInfo& preparation,
                  const std::function<QuantizationTarget(std::string_view name)>& target,
                  bool importance, const CommonOptions& common, Prepared prepared);

// The source with its weights changed. `notice` becomes a line that says what was won.
Result<ModelSource> Prepare(const PreparationInfo& preparation, const ModelSource& source,
                            const PreparationInputs& inputs, std::string* notice);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_PREPARE_H_
