#include "nibble/target.h"

#include <atomic>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <mutex>

#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL  // kernels/int8_targets.h
#endif
#include "hwy/highway.h"

#if HWY_ARCH_ARM_A64 && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace nibble {
namespace {

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

// Highway's, but for Arm: there its NEON is taken for NEON with dot products (kernels/dots-inl.h).
std::string NameOf(int64_t target) {
  if (target == HWY_NEON_WITHOUT_AES) return "neon";
  if (target == HWY_NEON) return "neon_dot";
  return LowerCase(hwy::TargetName(target));
}

// Whether the processor lacks what a target needs beyond what Highway asks for.
bool IsLacking([[maybe_unused]] int64_t target) {
#if HWY_ARCH_ARM_A64 && defined(__linux__)
  if (target == HWY_NEON && HWY_STATIC_TARGET != HWY_NEON) {
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) == 0;
  }
#endif
  return false;
}

// What the processor has, whatever is forced.
std::vector<int64_t> RunnableTargets() {
  static const std::vector<int64_t> targets = [] {
    std::vector<int64_t> found = hwy::SupportedAndGeneratedTargets();
    std::erase_if(found, IsLacking);
    return found;
  }();
  return targets;
}

// The target in use, once one is. Highway asks the processor each time, which under a hypervisor
// costs more than a small product.
std::atomic<int64_t> current_target = 0;

// Uses the target, 0 for the best, or for kernels that are not compiled for it the next lesser one:
// targets are bits, better ones lower.
void Use(int64_t target) {
  int64_t targets = 0;
  for (int64_t runnable : RunnableTargets()) {
    if (runnable >= target) targets |= runnable;
  }
  hwy::SetSupportedTargetsForTest(targets);
  const int64_t supported = hwy::SupportedTargets();
  hwy::GetChosenTarget().Update(supported);
  // Targets are bits, better ones lower.
  current_target = supported & HWY_TARGETS & -(supported & HWY_TARGETS);
}

}  // namespace

std::vector<std::string> SupportedTargets() {
  std::vector<std::string> names;
  for (int64_t target : RunnableTargets()) names.push_back(NameOf(target));
  return names;
}

std::string CurrentTarget() {
  ChooseTarget();
  return NameOf(current_target);
}

Status ForceTarget(std::string_view name) {
  ChooseTarget();
  if (name.empty()) {
    Use(0);
    return OkStatus();
  }
  std::string known;
  for (int64_t target : RunnableTargets()) {
    if (NameOf(target) == LowerCase(name)) {
      Use(target);
      return OkStatus();
    }
    known += (known.empty() ? "" : ", ") + NameOf(target);
  }
  return InvalidArgument("target '" + std::string(name) + "' cannot run here; these can: " + known);
}

void ChooseTarget() {
  static std::once_flag once;
  std::call_once(once, [] {
    const std::vector<int64_t> runnable = RunnableTargets();  // before anything is forced
    const char* name = std::getenv("NIBBLE_TARGET");
    int64_t chosen = 0;
    for (int64_t target : runnable) {
      if (name != nullptr && NameOf(target) == LowerCase(name)) chosen = target;
    }
    Use(chosen);
  });
}

}  // namespace nibble
