// Large products: integer codes of other sizes in groups.
#include "cuda/gemm_kernel.cuh"

namespace nibble::cuda {

template struct GemmLauncher<PackedU2Min>;
template struct GemmLauncher<PackedU3Min>;
template struct GemmLauncher<PackedU5Min>;
template struct GemmLauncher<PackedU6Min>;

}  // namespace nibble::cuda
