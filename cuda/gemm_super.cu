// Large products: super-blocks of 256 weights.
#include "cuda/gemm_kernel.cuh"

namespace nibble::cuda {

template struct GemmLauncher<PackedQ2_K>;
template struct GemmLauncher<PackedQ3_K>;
template struct GemmLauncher<PackedQ4_K>;
template struct GemmLauncher<PackedQ5_K>;
template struct GemmLauncher<PackedQ6_K>;

}  // namespace nibble::cuda
