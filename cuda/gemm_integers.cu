// Large products: integer codes in groups.
#include "cuda/gemm_kernel.cuh"

namespace nibble::cuda {

template struct GemmLauncher<PackedU4>;
template struct GemmLauncher<PackedU8>;
template struct GemmLauncher<PackedU4Min>;
template struct GemmLauncher<PackedU8Min>;

}  // namespace nibble::cuda
