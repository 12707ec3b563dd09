// Compiles a file of integer products once more for AVX2 with AVX-VNNI, which Highway has no target
// for. Included, as often as there are targets, behind a file's last per-target line:
//
//     namespace HWY_NAMESPACE {
//     NIBBLE_BEGIN_DOTS            namespace vnni, in that pass
//     ...
//     NIBBLE_END_DOTS
//     }
//     HWY_AFTER_NAMESPACE();
//     #include "kernels/avx_vnni_pass.h"
//     #if NIBBLE_ONCE              in place of HWY_ONCE
//
// Functions are chosen by NIBBLE_DISPATCH_DOTS (kernels/dispatch.h).
#if HWY_ARCH_X86 && HWY_TARGET == HWY_AVX2 && !defined(NIBBLE_AVX_VNNI)
#define NIBBLE_AVX_VNNI
#include HWY_TARGET_INCLUDE
#undef NIBBLE_AVX_VNNI
#endif
