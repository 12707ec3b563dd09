#include "kernels/gemm_ordered.h"

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm_ordered.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include <algorithm>

#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"
#include "kernels/dispatch.h"
#include "kernels/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows and vectors of a tile of sums: twelve accumulators, two vectors of b and one of a fit the
// sixteen registers of the smaller targets.
constexpr int64_t kTileRows = 6;
constexpr int64_t kTileVectors = 2;
// Of k that are summed before the result is added: a panel of b stays in the first-level cache.
// Every target must have the same.
constexpr int64_t kDepth = 256;
// Rows of a that are packed together.
constexpr int64_t kRows = 20 * kTileRows;

// kTileRows rows of a: element (i, k) lies at row[i][k * step].
template <class T>
struct TileOfA {
  const T* row[kTileRows];
  int64_t step;
};

// `depth` steps of kTileRows x 2 vectors: sums[i][j] = sum over k of a(i, k) b[k][j].
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void MultiplyTile(D d, const TileOfA<T>& a, const T* HWY_RESTRICT b, int64_t depth,
                             T* HWY_RESTRICT sums) {
  const size_t lanes = hn::Lanes(d);
  using V = hn::Vec<D>;
  V s00 = hn::Zero(d), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00;
  V s30 = s00, s31 = s00, s40 = s00, s41 = s00, s50 = s00, s51 = s00;
  const T *a0 = a.row[0], *a1 = a.row[1], *a2 = a.row[2];
  const T *a3 = a.row[3], *a4 = a.row[4], *a5 = a.row[5];
  const int64_t end = depth * a.step;
  for (int64_t k = 0; k < end; k += a.step, b += kTileVectors * lanes) {
    const V b0 = hn::Load(d, b), b1 = hn::Load(d, b + lanes);
    const auto row = [&](const T* from, V& s0, V& s1) HWY_ATTR {
      const V x = hn::Set(d, from[k]);
      s0 = hn::Add(s0, hn::Mul(x, b0));
      s1 = hn::Add(s1, hn::Mul(x, b1));
    };
    row(a0, s00, s01);
    row(a1, s10, s11);
    row(a2, s20, s21);
    row(a3, s30, s31);
    row(a4, s40, s41);
    row(a5, s50, s51);
  }
  const auto store = [&](int64_t i, V s0, V s1) HWY_ATTR {
    hn::Store(s0, d, sums + (2 * i) * static_cast<int64_t>(lanes));
    hn::Store(s1, d, sums + (2 * i + 1) * static_cast<int64_t>(lanes));
  };
  store(0, s00, s01);
  store(1, s10, s11);
  store(2, s20, s21);
  store(3, s30, s31);
  store(4, s40, s41);
  store(5, s50, s51);
}

// Elements (i, k) for i < tile, k < depth as [k][tile], zeros from i = count on.
template <class T>
HWY_INLINE void PackPanel(StridedMatrix<T> from, int64_t count, int64_t tile, int64_t depth,
                          T* HWY_RESTRICT out) {
  constexpr int64_t square = kSquare<T>;
  const T* data = from.data;
  if (count == tile && from.row_stride == 1) {
    for (int64_t k = 0; k < depth; ++k)
      std::copy_n(data + k * from.col_stride, tile, out + k * tile);
  } else if (count == tile && tile % square == 0 && depth % square == 0 && from.col_stride == 1) {
    for (int64_t i = 0; i < tile; i += square) {
      for (int64_t k = 0; k < depth; k += square) {
        const T* rows[square];
        for (int64_t r = 0; r < square; ++r) rows[r] = data + (i + r) * from.row_stride + k;
        TransposeSquare(rows, out + k * tile + i, static_cast<size_t>(tile));
      }
    }
  } else {
    for (int64_t k = 0; k < depth; ++k) {
      const T* element = data + k * from.col_stride;
      for (int64_t i = 0; i < count; ++i) out[k * tile + i] = element[i * from.row_stride];
      std::fill(out + k * tile + count, out + (k + 1) * tile, T(0));
    }
  }
}

template <class T>
void AddProductOf(StridedMatrix<T> a, StridedMatrix<T> b, int64_t m, int64_t n, int64_t depth,
                  T scale, T* c, int64_t c_stride) {
  const hn::ScalableTag<T> d;
  const int64_t width = kTileVectors * static_cast<int64_t>(hn::Lanes(d));
  // Rows that lie in one piece are read where they are; columns would be far apart.
  const bool packs_a = a.col_stride != 1;
  auto a_panels = hwy::AllocateAligned<T>(packs_a ? static_cast<size_t>(kRows * kDepth) : 1);
  auto b_panel = hwy::AllocateAligned<T>(static_cast<size_t>(width * kDepth));
  HWY_ALIGN T sums[kTileRows * kTileVectors * hn::MaxLanes(d)];
  for (int64_t first = 0; first < m; first += kRows) {
    const int64_t end = std::min(m, first + kRows);
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t steps = std::min(kDepth, depth - k);
      const auto panel = [&](int64_t i) { return a_panels.get() + (i - first) * kDepth; };
      for (int64_t i = first; packs_a && i < end; i += kTileRows) {
        PackPanel<T>({a.data + i * a.row_stride + k * a.col_stride, a.row_stride, a.col_stride},
                     std::min(kTileRows, end - i), kTileRows, steps, panel(i));
      }
      for (int64_t j = 0; j < n; j += width) {
        const int64_t cols = std::min(width, n - j);
        PackPanel<T>({b.data + k * b.row_stride + j * b.col_stride, b.col_stride, b.row_stride},
                     cols, width, steps, b_panel.get());
        for (int64_t i = first; i < end; i += kTileRows) {
          const int64_t rows = std::min(kTileRows, end - i);
          TileOfA<T> tile{{}, packs_a ? kTileRows : 1};
          for (int64_t r = 0; r < kTileRows; ++r) {
            // Of rows past the end, which are not stored, the last one takes the place.
            tile.row[r] =
                packs_a ? panel(i) + r : a.data + (i + std::min(r, rows - 1)) * a.row_stride + k;
          }
          MultiplyTile(d, tile, b_panel.get(), steps, sums);
          for (int64_t r = 0; r < rows; ++r) {
            T* out = c + (i + r) * c_stride + j;
            for (int64_t l = 0; l < cols; ++l) out[l] += scale * sums[r * width + l];
          }
        }
      }
    }
  }
}

void AddProductFloat(StridedMatrix<float> a, StridedMatrix<float> b, int64_t m, int64_t n,
                     int64_t depth, float scale, float* c, int64_t c_stride) {
  AddProductOf(a, b, m, n, depth, scale, c, c_stride);
}

void AddProductDouble(StridedMatrix<double> a, StridedMatrix<double> b, int64_t m, int64_t n,
                      int64_t depth, double scale, double* c, int64_t c_stride) {
  AddProductOf(a, b, m, n, depth, scale, c, c_stride);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(AddProductFloat);
HWY_EXPORT(AddProductDouble);

void AddProduct(StridedMatrix<float> a, StridedMatrix<float> b, int64_t m, int64_t n, int64_t depth,
                float scale, float* c, int64_t c_stride) {
  NIBBLE_DISPATCH(AddProductFloat)(a, b, m, n, depth, scale, c, c_stride);
}

void AddProduct(StridedMatrix<double> a, StridedMatrix<double> b, int64_t m, int64_t n,
                int64_t depth, double scale, double* c, int64_t c_stride) {
  NIBBLE_DISPATCH(AddProductDouble)(a, b, m, n, depth, scale, c, c_stride);
}

}  // namespace nibble
#endif  // HWY_ONCE
