#include "kernels/amx.h"

#include "hwy/detect_compiler_arch.h"
#include "nibble/target.h"

#if HWY_ARCH_X86_64 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nibble {
namespace {

AmxSupport Ask() {
  AmxSupport support;
#if HWY_ARCH_X86_64 && defined(__linux__)
  // The tile kernels also use AVX-512 with bf16 conversions.
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return support;
  const bool avx512 = ((b >> 16) & 1) != 0 && ((b >> 30) & 1) != 0 && ((b >> 31) & 1) != 0;
  const bool tile = ((d >> 24) & 1) != 0;
  const bool bf16 = ((d >> 22) & 1) != 0;
  const bool int8 = ((d >> 25) & 1) != 0;
  if (!avx512 || !tile || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || ((a >> 5) & 1) == 0) {
    return support;
  }

  // The kernel saves tile registers only for processes that asked (ARCH_REQ_XCOMP_PERM for the
  // state component XTILEDATA).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return support;
  support.bf16 = bf16;
  support.int8 = int8;
#endif
  return support;
}

}  // namespace

AmxSupport GetAmxSupport() {
  static const AmxSupport support = Ask();
  return CurrentTarget() == "avx3_spr" ? support : AmxSupport{};
}

}  // namespace nibble
