// The instruction set that the CPU kernels use. They are compiled for several and choose the best
// one the processor has when they first run, or the one that the environment variable NIBBLE_TARGET
// names.
#ifndef NIBBLE_TARGET_H_
#define NIBBLE_TARGET_H_

#include <string>
#include <string_view>
#include <vector>

#include "nibble/status.h"

namespace nibble {

// Names of the compiled targets that this processor can run, best first: "avx3_spr", "avx2_vnni",
// "neon".
std::vector<std::string> SupportedTargets();

// The target in use.
std::string CurrentTarget();

// Makes all kernels use the named target, in any letter case; an empty name brings back the best.
// Results that are bytes or integers do not depend on it. Not to be called while kernels run.
Status ForceTarget(std::string_view name);

// Chooses the target if that has not happened yet. Kernels call it; others need not.
void ChooseTarget();

}  // namespace nibble

#endif  // NIBBLE_TARGET_H_
