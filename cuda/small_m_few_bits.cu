// Small M: integer codes of other sizes in groups.
#include "cuda/small_m_kernel.cuh"

namespace nibble::cuda {

template struct SmallMLauncher<PackedU2Min>;
template struct SmallMLauncher<PackedU3Min>;
template struct SmallMLauncher<PackedU5Min>;
template struct SmallMLauncher<PackedU6Min>;

}  // namespace nibble::cuda
