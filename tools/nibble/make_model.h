// The work that quantize, convert and dequantize share: plan, check, tell, write, report.
#ifndef NIBBLE_TOOLS_MAKE_MODEL_H_
#define NIBBLE_TOOLS_MAKE_MODEL_H_

#include <string>
#include <vector>

#include "nibble/quantize_model.h"
#include "tools/nibble/budget.h"
#include "tools/nibble/calibration.h"
#include "tools/nibble/command.h"

namespace nibble::tools {

struct MakeModelOptions {
  std::string model;
  std::string output;
  std::string type;
  BudgetOptions budget;  // where wanted, in place of the type
  std::string scheme;    // a planar one, in place of both: a Hugging Face folder
  std::string layout;    // of the folder; empty: the first that holds the scheme
  bool pure = false;
  std::vector<std::string> tensor_types;  // REGEX=TYPE
  std::string imatrix;                    // a file, or empty
  Method method = Method::kRtn;
  std::vector<std::string> preparations;  // names, in order
  CalibrationOptions calibration;
  bool clamp = false;
  ModelPermissions permissions;
  uint64_t max_shard_bytes = 0;
  bool dry_run = false;
  bool overwrite = false;
  CommonOptions common;
};

// Options of all that write a model.
void AddOutputOptions(CLI::App& command, MakeModelOptions& options);

int MakeModel(const MakeModelOptions& options);
int MakeFolder(const MakeModelOptions& options);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_MAKE_MODEL_H_
