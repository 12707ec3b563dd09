// The parts of `nibble bench` beside models.
#ifndef NIBBLE_TOOLS_BENCH_H_
#define NIBBLE_TOOLS_BENCH_H_

#include "tools/nibble/command.h"

namespace nibble::tools {

void AddBenchKernels(CLI::App& bench, Action& action);

// What the kernels can use on this machine.
int PrintTargets(const CommonOptions& options);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_BENCH_H_
