// Triangular systems and the Cholesky factor of a panel, in one order on every machine: product and
// difference are rounded apart, and each element's terms are subtracted one by one. (Eigen's order
// follows the width of the vectors, the caches and whether there is a fused multiply-add.)
#ifndef NIBBLE_LIB_QUANTIZE_TRIANGULAR_H_
#define NIBBLE_LIB_QUANTIZE_TRIANGULAR_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "hwy/base.h"

namespace nibble {

// y -= a x
template <class T>
inline void SubtractScaled(T a, const T* HWY_RESTRICT x, int64_t n, T* HWY_RESTRICT y) {
  for (int64_t i = 0; i < n; ++i) y[i] -= a * x[i];
}

// The transpose of an n x n matrix, [n, n].
template <class T>
std::vector<T> TransposeOf(const T* a, int64_t stride, int64_t n) {
  std::vector<T> out(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) out[static_cast<size_t>(j * n + i)] = a[i * stride + j];
  }
  return out;
}

// Each of `rows` rows x := x U^-1, U upper triangular [n, n], its diagonal taken as ones if `unit`.
template <class T>
void SolveUpper(const T* u, int64_t u_stride, int64_t n, bool unit, T* x, int64_t x_stride,
                int64_t rows) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    for (int64_t j = 0; j < n; ++j) {
      const T* row = u + j * u_stride;
      if (!unit) x[j] /= row[j];
      SubtractScaled(x[j], row + j + 1, n - j - 1, x + j + 1);
    }
  }
}

// Each of `rows` rows x := x L^-1, L lower triangular [n, n] with ones in its diagonal, whatever
// stands there.
template <class T>
void SolveUnitLower(const T* l, int64_t l_stride, int64_t n, T* x, int64_t x_stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    for (int64_t j = n - 1; j > 0; --j) SubtractScaled(x[j], l + j * l_stride, j, x);
  }
}

// Overwrites the lower triangle of a symmetric matrix by L, A = L L^T. False where A is not
// positive definite.
template <class T>
bool FactorCholesky(T* a, int64_t stride, int64_t n) {
  std::vector<T> column(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    if (!(a[j * stride + j] > 0)) return false;
    const T root = a[j * stride + j] = std::sqrt(a[j * stride + j]);
    for (int64_t i = j + 1; i < n; ++i) {
      column[static_cast<size_t>(i)] = a[i * stride + j] /= root;
    }
    for (int64_t i = j + 1; i < n; ++i) {
      SubtractScaled(a[i * stride + j], column.data() + j + 1, i - j, a + i * stride + j + 1);
    }
  }
  return true;
}

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_TRIANGULAR_H_
