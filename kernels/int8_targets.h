// For kernels of integer products: of the AVX-512 targets with VNNI the later ones would only be
// copies that take time to compile, as would SSSE3 beside SSE4. The first of them, which Highway
// leaves out unless asked, is the one to keep. Included before Highway; the target in use falls
// back to the best one compiled.
#ifndef NIBBLE_KERNELS_INT8_TARGETS_H_
#define NIBBLE_KERNELS_INT8_TARGETS_H_

#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif

#ifndef HWY_DISABLED_TARGETS  // set for the sanitizers
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#endif

#endif  // NIBBLE_KERNELS_INT8_TARGETS_H_
