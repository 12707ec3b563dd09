// For kernels that neither multiply integers nor need more than AVX-512F/BW/DQ/VL: the later
// AVX-512 targets (and SSSE3) would be copies that only take time to compile. Included before
// Highway; the target in use falls back to the best one compiled.
#ifndef NIBBLE_KERNELS_FLOAT_TARGETS_H_
#define NIBBLE_KERNELS_FLOAT_TARGETS_H_

#ifndef HWY_DISABLED_TARGETS  // set for the sanitizers
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#endif

#endif  // NIBBLE_KERNELS_FLOAT_TARGETS_H_
