// Changes to a model's weights before they are quantized, by name.
#ifndef NIBBLE_TOOLS_PREPARE_H_
#define NIBBLE_TOOLS_PREPARE_H_

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "nibble/awq.h"
#include "nibble/calibrate.h"
#include "nibble/model_source.h"

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

// The source with its weights changed. `notice` becomes a line that says what was won.
Result<ModelSource> Prepare(const PreparationInfo& preparation, const ModelSource& source,
                            const PreparationInputs& inputs, std::string* notice);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_PREPARE_H_
