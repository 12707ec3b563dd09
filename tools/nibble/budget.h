// Mixes by budget for the command: measure, choose, explain.
#ifndef NIBBLE_TOOLS_BUDGET_H_
#define NIBBLE_TOOLS_BUDGET_H_

#include <string>
#include <vector>

#include "nibble/budget.h"
#include "tools/nibble/calibration.h"
#include "tools/nibble/command.h"

namespace nibble::tools {

struct BudgetOptions {
  Budget target;
  std::vector<std::string> types;  // names of formats to choose from; empty: all
  std::string file;                // of sensitivities; empty: beside the output
  int64_t windows = 8;             // that divergence is measured on

  bool wanted() const { return target.bits_per_weight > 0 || target.file_bytes > 0; }
};

void AddBudgetOptions(CLI::App& command, BudgetOptions& options);

struct BudgetInputs {
  const ModelSource& source;
  const ModelRecipe& recipe;
  const ModelPermissions& permissions;
  const Calibration* calibration = nullptr;  // divergence is measured where there is one
  std::string output;                        // of the command
  GgufWriteOptions files;
};

// Measures what is not in the file of sensitivities yet, adds it there, and chooses. Without a text
// nothing is kept unless a file is named: such measurements take seconds.
Result<BudgetMix> FindMix(const BudgetOptions& options, const BudgetInputs& inputs,
                          const CommonOptions& common);

// What each matrix got, what it costs and is thought to lose.
std::string MixTable(const BudgetMix& mix, bool measured);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_BUDGET_H_
