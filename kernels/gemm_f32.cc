#include "kernels/gemm_f32.h"

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm_f32.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// kM x kN dot products at once: each loaded vector serves several of them. The lanes of a sum run
// over the columns in the same way whatever kM and kN are.
template <int kM, int kN>
HWY_INLINE void DotTile(const float* HWY_RESTRICT a, int64_t a_stride, const float* HWY_RESTRICT w,
                        int64_t w_stride, int64_t count, float* HWY_RESTRICT sums,
                        int64_t sums_stride) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V s00 = hn::Zero(d), s01 = s00, s02 = s00, s03 = s00;
  V s10 = s00, s11 = s00, s12 = s00, s13 = s00;
  V s20 = s00, s21 = s00, s22 = s00, s23 = s00;
  const auto step = [&](auto load, int64_t k) HWY_ATTR {
    const V w0 = load(w + k);
    const V w1 = kN > 1 ? load(w + w_stride + k) : w0;
    const V w2 = kN > 2 ? load(w + 2 * w_stride + k) : w0;
    const V w3 = kN > 3 ? load(w + 3 * w_stride + k) : w0;
    const V a0 = load(a + k);
    s00 = hn::MulAdd(a0, w0, s00);
    if constexpr (kN > 1) s01 = hn::MulAdd(a0, w1, s01);
    if constexpr (kN > 2) s02 = hn::MulAdd(a0, w2, s02);
    if constexpr (kN > 3) s03 = hn::MulAdd(a0, w3, s03);
    if constexpr (kM > 1) {
      const V a1 = load(a + a_stride + k);
      s10 = hn::MulAdd(a1, w0, s10);
      if constexpr (kN > 1) s11 = hn::MulAdd(a1, w1, s11);
      if constexpr (kN > 2) s12 = hn::MulAdd(a1, w2, s12);
      if constexpr (kN > 3) s13 = hn::MulAdd(a1, w3, s13);
    }
    if constexpr (kM > 2) {
      const V a2 = load(a + 2 * a_stride + k);
      s20 = hn::MulAdd(a2, w0, s20);
      if constexpr (kN > 1) s21 = hn::MulAdd(a2, w1, s21);
      if constexpr (kN > 2) s22 = hn::MulAdd(a2, w2, s22);
      if constexpr (kN > 3) s23 = hn::MulAdd(a2, w3, s23);
    }
  };
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) {
    step([&](const float* p) HWY_ATTR { return hn::LoadU(d, p); }, k);
  }
  if (k < count) {
    const size_t rest = static_cast<size_t>(count - k);
    step([&](const float* p) HWY_ATTR { return hn::LoadN(d, p, rest); }, k);
  }
  const auto add = [&](int m, int n, V s)
                       HWY_ATTR { sums[m * sums_stride + n] += hn::ReduceSum(d, s); };
  add(0, 0, s00);
  if constexpr (kN > 1) add(0, 1, s01);
  if constexpr (kN > 2) add(0, 2, s02);
  if constexpr (kN > 3) add(0, 3, s03);
  if constexpr (kM > 1) {
    add(1, 0, s10);
    if constexpr (kN > 1) add(1, 1, s11);
    if constexpr (kN > 2) add(1, 2, s12);
    if constexpr (kN > 3) add(1, 3, s13);
  }
  if constexpr (kM > 2) {
    add(2, 0, s20);
    if constexpr (kN > 1) add(2, 1, s21);
    if constexpr (kN > 2) add(2, 2, s22);
    if constexpr (kN > 3) add(2, 3, s23);
  }
}

template <int kN>
HWY_INLINE void DotColumns(const float* a, int64_t a_stride, int64_t m_count, const float* w,
                           int64_t w_stride, int64_t count, float* sums, int64_t sums_stride) {
  int64_t m = 0;
  for (; m + 3 <= m_count; m += 3) {
    DotTile<3, kN>(a + m * a_stride, a_stride, w, w_stride, count, sums + m * sums_stride,
                   sums_stride);
  }
  for (; m < m_count; ++m) {
    DotTile<1, kN>(a + m * a_stride, a_stride, w, w_stride, count, sums + m * sums_stride,
                   sums_stride);
  }
}

void DotRowsF32(const float* a, int64_t a_stride, int64_t m_count, const float* w, int64_t w_stride,
                int64_t n_count, int64_t count, float* sums, int64_t sums_stride) {
  int64_t n = 0;
  for (; n + 4 <= n_count; n += 4) {
    DotColumns<4>(a, a_stride, m_count, w + n * w_stride, w_stride, count, sums + n, sums_stride);
  }
  for (; n < n_count; ++n) {
    DotColumns<1>(a, a_stride, m_count, w + n * w_stride, w_stride, count, sums + n, sums_stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(DotRowsF32);

void DotRowsF32(const float* a, int64_t a_stride, int64_t m_count, const float* w, int64_t w_stride,
                int64_t n_count, int64_t count, float* sums, int64_t sums_stride) {
  NIBBLE_DISPATCH(DotRowsF32)
  (a, a_stride, m_count, w, w_stride, n_count, count, sums, sums_stride);
}

}  // namespace nibble
#endif  // HWY_ONCE
