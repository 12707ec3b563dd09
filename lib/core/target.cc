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

#include "kernels/dispatch.h"

#if HWY_ARCH_ARM_A64 && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if HWY_ARCH_X86 && !HWY_COMPILER_MSVC
#include <cpuid.h>
#endif

namespace nibble {
namespace {

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

// A target of Highway's, or AVX2 with AVX-VNNI (kernels/avx_vnni_pass.h).
struct Target {
  int64_t highway = 0;
  bool avx_vnni = false;
};

// Highway's names, but for Arm: there its NEON is taken for NEON with dot products
// (kernels/dots-inl.h).
std::string NameOf(const Target& target) {
  if (target.avx_vnni) return "avx2_vnni";
  if (target.highway == HWY_NEON_WITHOUT_AES) return "neon";
  if (target.highway == HWY_NEON) return "neon_dot";
  return LowerCase(hwy::TargetName(target.highway));
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

bool HasAvxVnni() {
#if HWY_ARCH_X86 && !HWY_COMPILER_MSVC
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
#else
  return false;
#endif
}

// What the processor has, whatever is forced; best first.
const std::vector<Target>& RunnableTargets() {
  static const std::vector<Target> targets = [] {
    std::vector<Target> found;
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      if (IsLacking(target)) continue;
      if (target == HWY_AVX2 && HasAvxVnni()) found.push_back({target, true});
      found.push_back({target});
    }
    return found;
  }();
  return targets;
}

// The target in use, once one is. Highway asks the processor each time, which under a hypervisor
// costs more than a small product.
std::atomic<int64_t> current_target = 0;
std::atomic<bool> uses_avx_vnni = false;

// Uses the target, or for kernels that are not compiled for it the next lesser one: targets are
// bits, better ones lower.
void Use(const Target& target) {
  int64_t targets = 0;
  for (const Target& runnable : RunnableTargets()) {
    if (runnable.highway >= target.highway) targets |= runnable.highway;
  }
  hwy::SetSupportedTargetsForTest(targets);
  const int64_t supported = hwy::SupportedTargets();
  hwy::GetChosenTarget().Update(supported);
  current_target = supported & HWY_TARGETS & -(supported & HWY_TARGETS);
  uses_avx_vnni = target.avx_vnni;
}

}  // namespace

std::vector<std::string> SupportedTargets() {
  std::vector<std::string> names;
  for (const Target& target : RunnableTargets()) names.push_back(NameOf(target));
  return names;
}

std::string CurrentTarget() {
  ChooseTarget();
  return NameOf({current_target, uses_avx_vnni});
}

bool UsesAvxVnni() {
  ChooseTarget();
  return uses_avx_vnni;
}

bool UsesI8mm() {
#if HWY_ARCH_ARM_A64 && defined(__linux__)
  constexpr unsigned long kI8mm = 1ul << 13;  // HWCAP2_I8MM, which older headers lack
  static const bool has_i8mm = (getauxval(AT_HWCAP2) & kI8mm) != 0;
  ChooseTarget();
  return has_i8mm && current_target != HWY_NEON_WITHOUT_AES;
#else
  return false;
#endif
}

Status ForceTarget(std::string_view name) {
  ChooseTarget();
  if (name.empty()) {
    Use(RunnableTargets().front());
    return OkStatus();
  }
  std::string known;
  for (const Target& target : RunnableTargets()) {
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
    const std::vector<Target>& runnable = RunnableTargets();  // before anything is forced
    const char* name = std::getenv("NIBBLE_TARGET");
    Target chosen = runnable.front();
    for (const Target& target : runnable) {
      if (name != nullptr && NameOf(target) == LowerCase(name)) chosen = target;
    }
    Use(chosen);
  });
}

}  // namespace nibble
