// Transposition in registers.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_TRANSPOSE_INL_H_
#undef NIBBLE_KERNELS_TRANSPOSE_INL_H_
#else
#define NIBBLE_KERNELS_TRANSPOSE_INL_H_
#endif

#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows and columns of a square of 16-byte rows.
template <typename T>
inline constexpr size_t kSquare = 16 / sizeof(T);

// Transposes such a square: to[c * stride + r] = from[r][c].
template <typename T>
HWY_INLINE void TransposeSquare(const T* const* from, T* to, size_t stride) {
#if HWY_TARGET == HWY_SCALAR
  for (size_t r = 0; r < kSquare<T>; ++r) {
    for (size_t c = 0; c < kSquare<T>; ++c) to[c * stride + r] = from[r][c];
  }
#else
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 8) {
    const hn::FixedTag<T, 2> d;
    const auto r0 = hn::LoadU(d, from[0]), r1 = hn::LoadU(d, from[1]);
    hn::StoreU(hn::InterleaveLower(d, r0, r1), d, to);
    hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, to + stride);
  } else {
    const hn::FixedTag<T, 4> d;
    const hn::RepartitionToWide<decltype(d)> dw;
    const auto r0 = hn::LoadU(d, from[0]), r1 = hn::LoadU(d, from[1]);
    const auto r2 = hn::LoadU(d, from[2]), r3 = hn::LoadU(d, from[3]);
    const auto low01 = hn::BitCast(dw, hn::InterleaveLower(d, r0, r1));
    const auto low23 = hn::BitCast(dw, hn::InterleaveLower(d, r2, r3));
    const auto high01 = hn::BitCast(dw, hn::InterleaveUpper(d, r0, r1));
    const auto high23 = hn::BitCast(dw, hn::InterleaveUpper(d, r2, r3));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dw, low01, low23)), d, to);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dw, low01, low23)), d, to + stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dw, high01, high23)), d, to + 2 * stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dw, high01, high23)), d, to + 3 * stride);
  }
#endif
}

// to[i * lanes + l] = from[l][i] for `length` (a multiple of 4) values of each of `lanes` arrays.
template <typename T>
HWY_INLINE void TransposeIn(const T* const* from, size_t lanes, size_t length, T* HWY_RESTRICT to) {
  if (lanes % 4 != 0) {
    for (size_t i = 0; i < length; ++i) {
      for (size_t l = 0; l < lanes; ++l) to[i * lanes + l] = from[l][i];
    }
    return;
  }
  for (size_t l = 0; l < lanes; l += 4) {
    for (size_t i = 0; i < length; i += 4) {
      const T* const rows[4] = {from[l] + i, from[l + 1] + i, from[l + 2] + i, from[l + 3] + i};
      TransposeSquare(rows, to + i * lanes + l, lanes);
    }
  }
}

// The way back: to[l][i] = from[i * lanes + l], arrays `pitch` apart.
template <typename T>
HWY_INLINE void TransposeOut(const T* HWY_RESTRICT from, size_t lanes, size_t length,
                             T* HWY_RESTRICT to, size_t pitch) {
  if (lanes % 4 != 0) {
    for (size_t l = 0; l < lanes; ++l) {
      for (size_t i = 0; i < length; ++i) to[l * pitch + i] = from[i * lanes + l];
    }
    return;
  }
  for (size_t l = 0; l < lanes; l += 4) {
    for (size_t i = 0; i < length; i += 4) {
      const T* rows[4];
      for (size_t k = 0; k < 4; ++k) rows[k] = from + (i + k) * lanes + l;
      TransposeSquare(rows, to + l * pitch + i, pitch);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_TRANSPOSE_INL_H_
