// Small M: integer codes in groups.
#include "cuda/small_m_kernel.cuh"

namespace nibble::cuda {

template struct SmallMLauncher<PackedU4>;
template struct SmallMLauncher<PackedU8>;
template struct SmallMLauncher<PackedU4Min>;
template struct SmallMLauncher<PackedU8Min>;

}  // namespace nibble::cuda
