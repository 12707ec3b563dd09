// Small M: super-blocks of 256 weights.
#include "cuda/small_m_kernel.cuh"

namespace nibble::cuda {

template struct SmallMLauncher<PackedQ2_K>;
template struct SmallMLauncher<PackedQ3_K>;
template struct SmallMLauncher<PackedQ4_K>;
template struct SmallMLauncher<PackedQ5_K>;
template struct SmallMLauncher<PackedQ6_K>;

}  // namespace nibble::cuda
