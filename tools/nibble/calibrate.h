// What the two kinds of calibrate share.
#ifndef NIBBLE_TOOLS_CALIBRATE_H_
#define NIBBLE_TOOLS_CALIBRATE_H_

#include <string>
#include <vector>

#include "tools/nibble/calibration.h"
#include "tools/nibble/command.h"

namespace nibble::tools {

struct CalibrateCommand {
  std::string model;  // or empty: only to merge
  CalibrationOptions calibration;
  std::vector<std::string> merge;  // files of statistics
  std::string output;
  bool hessians = false;
  bool output_layer = false;
  bool overwrite = false;
  CommonOptions common;
};

// calibrate --hessians
int CalibrateHessians(const CalibrateCommand& options);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_CALIBRATE_H_
