// Small M: codes that are entries of books, and floats of eight bits.
#include "cuda/small_m_kernel.cuh"

namespace nibble::cuda {

template struct SmallMLauncher<PackedBook>;
template struct SmallMLauncher<PackedIQ4_XS>;
template struct SmallMLauncher<PackedE4M3>;
template struct SmallMLauncher<PackedE5M2>;

}  // namespace nibble::cuda
