// Calibration text for the commands that run a model over it.
#ifndef NIBBLE_TOOLS_CALIBRATION_H_
#define NIBBLE_TOOLS_CALIBRATION_H_

#include <cstdint>
#include <optional>
#include <string>

#include "nibble/calibrate.h"
#include "tools/nibble/command.h"

namespace nibble::tools {

struct CalibrationOptions {
  std::string text;      // a file
  std::string hessians;  // a file, in place of the text
  int64_t context = 0;   // tokens of a window; 0: 512, or the model's context where that is less
  int64_t windows = 0;   // the first so many; 0: the method's own number
  double damping = GptqOptions().damping;
  bool static_groups = false;
  bool sequential = false;
  ActivationMemory activations;
};

// A model and the text it is calibrated on.
struct Calibration {
  Model model;
  CalibrationText text;
};

// Windows of a calibration text that is longer, where no number is asked for.
inline constexpr int64_t kMostWindows = 128;

// --calibration-context and --calibration-windows; `most_windows`: the default, 0: all.
void AddWindowOptions(CLI::App& command, CalibrationOptions& options, int64_t most_windows);
// --calibration-memory
void AddMemoryOption(CLI::App& command, CalibrationOptions& options);

// Where activations lie: what is too large for memory, in the folder of the output.
ActivationMemory ActivationsBeside(const std::string& output, const CalibrationOptions& options);

// `most_windows`: where the options name no number; 0: all.
Result<Calibration> LoadCalibration(const std::string& model, const CalibrationOptions& options,
                                    int64_t most_windows);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_CALIBRATION_H_
