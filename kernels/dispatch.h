// How a kernel's plain function calls the one compiled for the target in use: after HWY_EXPORT(F),
// NIBBLE_DISPATCH(F)(arguments).
#ifndef NIBBLE_KERNELS_DISPATCH_H_
#define NIBBLE_KERNELS_DISPATCH_H_

#include "hwy/highway.h"
#include "nibble/target.h"

#define NIBBLE_DISPATCH(function) (::nibble::ChooseTarget(), HWY_DYNAMIC_DISPATCH(function))

namespace nibble {
// Whether the target in use is AVX2 with AVX-VNNI (kernels/avx_vnni_pass.h).
bool UsesAvxVnni();
// Whether the processor has Arm's products of small matrices of bytes (i8mm), and a target that may
// use them.
bool UsesI8mm();
}  // namespace nibble

#if HWY_ARCH_X86 && (HWY_TARGETS & HWY_AVX2)
#define NIBBLE_DISPATCH_DOTS(function) \
  (::nibble::UsesAvxVnni() ? N_AVX2::vnni::function : HWY_DYNAMIC_DISPATCH(function))
#else
#define NIBBLE_DISPATCH_DOTS(function) NIBBLE_DISPATCH(function)
#endif

// For lambdas of kernels, after their parameters: compiled for the target, and always inlined. A
// compiler that leaves one out of line keeps the sums that it captures in memory, which made
// products up to twice as slow.
#if HWY_COMPILER_MSVC
#define NIBBLE_INLINE_LAMBDA HWY_ATTR
#else
#define NIBBLE_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))
#endif

#endif  // NIBBLE_KERNELS_DISPATCH_H_
