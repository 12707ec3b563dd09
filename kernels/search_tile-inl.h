// Ground of the scale searches: blocks lie side by side, one a lane.
//
// A tile holds Lanes(d) blocks transposed, so that vector i is weight i of every block. Each lane
// then runs the plain scalar algorithm on its own block: nothing is ever summed across lanes, so
// the bytes cannot depend on the vector length. Nothing here fuses a multiplication with an
// addition or approximates a quotient, for the same reason.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_SEARCH_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_SEARCH_TILE_INL_H_
#undef NIBBLE_KERNELS_SEARCH_TILE_INL_H_
#else
#define NIBBLE_KERNELS_SEARCH_TILE_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr size_t kMaxLanes = 16;

// Below this a weight counts as zero: no half-precision scale reaches down there, and reciprocals
// stay finite.
inline constexpr float kTiny = 0x1p-40f;

template <class D>
using FloatVec = hn::Vec<D>;

// Part of a tile: vectors of weights, and of how much each one's squared error counts.
struct Span {
  const float* x;
  const float* weight;    // unused where all errors count alike
  const float* constant;  // one vector: the value of blocks whose weights are all equal, else 0
  // Where, if rows follow each other, as many weights lie that the next tiles are made from.
  const float* ahead;

  // The same from vector `first` on.
  Span From(size_t first, size_t lanes) const {
    return {x + first * lanes, weight + first * lanes, constant, ahead + first * lanes};
  }
  // Asks for the weights ahead of `count` vectors.
  HWY_INLINE void Prefetch(size_t count, size_t lanes) const {
    for (size_t i = 0; i < count * lanes; i += 16) hwy::Prefetch(ahead + i);
  }
};

// value * weight, or the value itself where all errors count alike.
template <bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE V Weigh(D d, const Span& span, size_t i, V value) {
  if constexpr (kWeighted) return hn::Mul(value, hn::Load(d, span.weight + i * hn::Lanes(d)));
  return value;
}

// The candidates of a format's search.
template <class F, bool kWeighted>
constexpr const auto& Stretches() {
  if constexpr (kWeighted) {
    return F::kImportanceStretches;
  } else {
    return F::kStretches;
  }
}

template <class F, bool kWeighted>
constexpr int Rounds() {
  if constexpr (kWeighted && requires { F::kImportanceRounds; }) {
    return F::kImportanceRounds;
  } else {
    return F::kRounds;
  }
}

// Round to nearest even, for |v| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline constexpr float kRounder = 12582912.0f;
template <class D, class V = FloatVec<D>>
HWY_INLINE V Round(D d, V v) {
  const V rounder = hn::Set(d, kRounder);
  return hn::Sub(hn::Add(v, rounder), rounder);
}

// Round to nearest even within [low, high], both integers.
template <class D, class V = FloatVec<D>>
HWY_INLINE V RoundWithin(D d, V v, float low, float high) {
  return Round(d, hn::Min(hn::Max(v, hn::Set(d, low)), hn::Set(d, high)));
}

// The nearest half-precision value, ties to even, saturated, and never -0.
template <class D, class V = FloatVec<D>>
HWY_INLINE V RoundToF16(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  const V largest = hn::Set(d, 65504.0f);
  v = hn::Min(hn::Max(v, hn::Neg(largest)), largest);
  // Normal: 13 bits of the fraction go.
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0xFFF)));
  const V normal = hn::BitCast(d, hn::And(rounded, hn::Set(du, ~uint32_t{0x1FFF})));
  // Subnormal: multiples of 2^-24, the spacing of floats at 0.75.
  const V shift = hn::Set(d, 0.75f);
  const V subnormal = hn::Sub(hn::Add(v, shift), shift);
  return hn::IfThenElse(hn::Lt(hn::Abs(v), hn::Set(d, 0x1p-14f)), subnormal, normal);
}

// RoundToF16, but what is not zero stays so where it may: the smallest scale serves a block better
// than none.
template <class D, class V = FloatVec<D>>
HWY_INLINE V RoundScaleToF16(D d, V v) {
  const V rounded = RoundToF16(d, v);
  const V least = hn::CopySign(hn::Set(d, 0x1p-24f), v);
  const auto lost = hn::And(hn::Eq(rounded, hn::Zero(d)), hn::Gt(hn::Abs(v), hn::Set(d, kTiny)));
  return hn::IfThenElse(lost, least, rounded);
}

// a / b, or 0 where b is not above kTiny * kTiny in magnitude.
template <class D, class V = FloatVec<D>>
HWY_INLINE V DivOrZero(D d, V a, V b) {
  const auto usable = hn::Gt(hn::Abs(b), hn::Set(d, kTiny * kTiny));
  return hn::IfThenElseZero(usable, hn::Div(a, hn::IfThenElse(usable, b, hn::Set(d, 1.0f))));
}

template <class D, class V = FloatVec<D>>
HWY_INLINE V Square(D, V v) {
  return hn::Mul(v, v);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_SEARCH_TILE_INL_H_
