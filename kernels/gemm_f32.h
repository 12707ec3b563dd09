// The exact product: f32 dot products of rows that lie in memory as they are.
#ifndef NIBBLE_KERNELS_GEMM_F32_H_
#define NIBBLE_KERNELS_GEMM_F32_H_

#include <cstdint>

namespace nibble {

// sums[m * sums_stride + n] += a[m] . w[n] over `count` columns, for m < m_count, n < n_count. Rows
// lie `a_stride` and `w_stride` floats apart. Each sum depends on its own two rows alone.
void DotRowsF32(const float* a, int64_t a_stride, int64_t m_count, const float* w, int64_t w_stride,
                int64_t n_count, int64_t count, float* sums, int64_t sums_stride);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_F32_H_
