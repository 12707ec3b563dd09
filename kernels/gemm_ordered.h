// Dense products for the arithmetic of quantization itself, in one order on every machine.
#ifndef NIBBLE_KERNELS_GEMM_ORDERED_H_
#define NIBBLE_KERNELS_GEMM_ORDERED_H_

#include <cstdint>

namespace nibble {

// A matrix whose element (i, k) lies at data[i * row_stride + k * col_stride]: either of the
// strides may be 1.
template <class T>
struct StridedMatrix {
  const T* data;
  int64_t row_stride, col_stride;
};

// c[i * c_stride + j] += sum over k of a(i, k) b(k, j), for i < m, j < n, k < depth; `scale` times
// the sum. Each element is summed over k in ascending order in blocks of fixed length, product and
// sum rounded apart, so that every target gives the same bits. `c` overlaps neither operand.
void AddProduct(StridedMatrix<float> a, StridedMatrix<float> b, int64_t m, int64_t n, int64_t depth,
                float scale, float* c, int64_t c_stride);
void AddProduct(StridedMatrix<double> a, StridedMatrix<double> b, int64_t m, int64_t n,
                int64_t depth, double scale, double* c, int64_t c_stride);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_ORDERED_H_
