// Large products: codes that are entries of books, and floats of eight bits.
#include "cuda/gemm_kernel.cuh"

namespace nibble::cuda {

template struct GemmLauncher<PackedBook>;
template struct GemmLauncher<PackedIQ4_XS>;
template struct GemmLauncher<PackedE4M3>;
template struct GemmLauncher<PackedE5M2>;

}  // namespace nibble::cuda
