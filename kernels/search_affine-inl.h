// Scale search of the formats with a minimum: w = scale * code - min, codes from 0 up.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_SEARCH_AFFINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_SEARCH_AFFINE_INL_H_
#undef NIBBLE_KERNELS_SEARCH_AFFINE_INL_H_
#else
#define NIBBLE_KERNELS_SEARCH_AFFINE_INL_H_
#endif

#include "kernels/search_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A line through a group: w = scale * code - min.
template <class V>
struct Line {
  V scale, min;
};

// Codes of a group on a line.
template <class F, class D, class V = FloatVec<D>>
class LineCoder {
 public:
  HWY_INLINE LineCoder(D d, const Line<V>& line)
      : line_(line), inverse_(DivOrZero(d, hn::Set(d, 1.0f), line.scale)) {}

  HWY_INLINE V Code(D d, V x) const {
    return RoundWithin(d, hn::Mul(hn::Add(x, line_.min), inverse_), 0, F::kLargest);
  }
  // x less its decoded value, in the decoder's order of operations.
  HWY_INLINE V Residual(V x, V code) const {
    return hn::Sub(x, hn::Sub(hn::Mul(line_.scale, code), line_.min));
  }

 private:
  Line<V> line_;
  V inverse_;
};

template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE V LineError(D d, const Span& group, const Line<V>& line) {
  const LineCoder<F, D> coder(d, line);
  V error = hn::Zero(d);
  for (size_t i = 0; i < F::kGroup; ++i) {
    const V x = hn::Load(d, group.x + i * hn::Lanes(d));
    const V residual = coder.Residual(x, coder.Code(d, x));
    error = hn::Add(error, Weigh<kWeighted>(d, group, i, Square(d, residual)));
  }
  return error;
}

// Moments of a group's codes q and residuals r, by which a line is fitted.
template <class V>
struct LineMoments {
  V one, q, qq, r, rq;
};

template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE LineMoments<V> Moments(D d, const Span& group, const Line<V>& line) {
  const LineCoder<F, D> coder(d, line);
  const V zero = hn::Zero(d);
  LineMoments<V> sum{zero, zero, zero, zero, zero};
  for (size_t i = 0; i < F::kGroup; ++i) {
    const V x = hn::Load(d, group.x + i * hn::Lanes(d));
    const V code = coder.Code(d, x);
    const V residual = coder.Residual(x, code);
    const V weighed_code = Weigh<kWeighted>(d, group, i, code);
    sum.q = hn::Add(sum.q, weighed_code);
    sum.qq = hn::Add(sum.qq, hn::Mul(weighed_code, code));
    sum.r = hn::Add(sum.r, Weigh<kWeighted>(d, group, i, residual));
    sum.rq = hn::Add(sum.rq, hn::Mul(weighed_code, residual));
    sum.one = hn::Add(sum.one, Weigh<kWeighted>(d, group, i, hn::Set(d, 1.0f)));
  }
  return sum;
}

// part / (aa * bb - ab * ab), or 0 where that is no more than rounding leaves of a determinant that
// is zero.
template <class D, class V = FloatVec<D>>
HWY_INLINE V DivByDeterminant(D d, V part, V aa, V bb, V ab) {
  const V product = hn::Mul(aa, bb);
  const V determinant = hn::Sub(product, Square(d, ab));
  const auto usable = hn::Gt(determinant, hn::Mul(product, hn::Set(d, 1e-5f)));
  return DivOrZero(d, part, hn::IfThenElseZero(usable, determinant));
}

// Keeps a minimum within what a block can store: on the side that `sign` (1 or -1) gives all minima
// of the block, or anywhere where a format's minima have their own signs.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V LimitMin(D d, V min, V sign) {
  if constexpr (F::kGroups == 1) return min;
  return hn::Mul(sign, hn::Max(hn::Mul(sign, min), hn::Zero(d)));
}

// A candidate for a group's line: its range spans `steps` more than the codes do, of which `low`
// lie below code 0 and are cut off there.
struct Stretch {
  float steps, low;
};

// A line for a group, free of any grid. Each candidate chooses codes, to which scale and minimum
// are fitted by least squares.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE Line<V> SearchLine(D d, const Span& group, V sign) {
  const size_t lanes = hn::Lanes(d);
  const V zero = hn::Zero(d);
  V low = hn::Load(d, group.x), high = low;
  for (size_t i = 1; i < F::kGroup; ++i) {
    const V x = hn::Load(d, group.x + i * lanes);
    low = hn::Min(low, x);
    high = hn::Max(high, x);
  }
  const V base_min = LimitMin<F>(d, hn::Neg(low), sign);
  low = hn::Neg(base_min);
  const V range = hn::Max(hn::Sub(high, low), zero);
  const V per_range = DivOrZero(d, hn::Set(d, 1.0f), range);

  // Moments of y = x - low, which do not depend on the codes.
  V sum_1 = zero, sum_y = zero;
  for (size_t i = 0; i < F::kGroup; ++i) {
    const V y = hn::Sub(hn::Load(d, group.x + i * lanes), low);
    sum_1 = hn::Add(sum_1, Weigh<kWeighted>(d, group, i, hn::Set(d, 1.0f)));
    sum_y = hn::Add(sum_y, Weigh<kWeighted>(d, group, i, y));
  }

  Line<V> best{hn::Mul(range, hn::Set(d, 1.0f / F::kLargest)), base_min};
  V best_gain = zero;  // what the fit takes off sum(y^2)
  for (const Stretch stretch : Stretches<F, kWeighted>()) {
    const V inverse = hn::Mul(per_range, hn::Set(d, F::kLargest + stretch.steps));
    const V cut = hn::Set(d, stretch.low);
    V sum_q = zero, sum_qq = zero, sum_qy = zero;
    for (size_t i = 0; i < F::kGroup; ++i) {
      const V y = hn::Sub(hn::Load(d, group.x + i * lanes), low);
      const V code = RoundWithin(d, hn::Sub(hn::Mul(y, inverse), cut), 0, F::kLargest);
      const V weighed = Weigh<kWeighted>(d, group, i, code);
      sum_q = hn::Add(sum_q, weighed);
      sum_qq = hn::Add(sum_qq, hn::Mul(weighed, code));
      sum_qy = hn::Add(sum_qy, hn::Mul(weighed, y));
    }
    // y = scale * q - shift in least squares; where the minimum leaves its range, it is put on the
    // border and the scale fitted alone.
    const V shift_part = hn::Sub(hn::Mul(sum_q, sum_qy), hn::Mul(sum_qq, sum_y));
    const V free_shift = DivByDeterminant(d, shift_part, sum_1, sum_qq, sum_q);
    const V min = LimitMin<F>(d, hn::Add(base_min, free_shift), sign);
    const V shift = hn::Sub(min, base_min);
    const V target = hn::Add(sum_qy, hn::Mul(shift, sum_q));  // sum((y + shift) q)
    const V scale = DivOrZero(d, target, sum_qq);
    // sum(y^2) - sum((y + shift - scale q)^2), expanded.
    const V gain = hn::Sub(hn::Mul(scale, target),
                           hn::Mul(shift, hn::Add(hn::Add(sum_y, sum_y), hn::Mul(shift, sum_1))));
    const auto better = hn::Gt(gain, best_gain);
    best.scale = hn::IfThenElse(better, scale, best.scale);
    best.min = hn::IfThenElse(better, min, best.min);
    best_gain = hn::Max(gain, best_gain);
  }
  return best;
}

// What a search with minima finds, lane by lane: integers under d and min_d, which are 1 where
// there is one line for the block.
template <size_t kGroups>
struct AffineScales {
  HWY_ALIGN float d[kMaxLanes];
  HWY_ALIGN float min_d[kMaxLanes];
  HWY_ALIGN float scale[kGroups * kMaxLanes];
  HWY_ALIGN float min[kGroups * kMaxLanes];
};

// 1, or -1 for the blocks whose minima are stored negated because their groups lie above zero.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V SignOfMinima(D d, const Span& block) {
  V lowest = hn::Zero(d), highest = hn::Zero(d);  // of the groups' least weights
  for (size_t g = 0; g < F::kGroups; ++g) {
    const Span group = block.From(g * F::kGroup, hn::Lanes(d));
    V low = hn::Load(d, group.x);
    for (size_t i = 1; i < F::kGroup; ++i) {
      low = hn::Min(low, hn::Load(d, group.x + i * hn::Lanes(d)));
    }
    lowest = hn::Min(lowest, low);
    highest = hn::Max(highest, low);
  }
  return hn::IfThenElse(hn::Gt(highest, hn::Neg(lowest)), hn::Set(d, -1.0f), hn::Set(d, 1.0f));
}

// Integer scales and minima of all groups under the super-scales: the best, as decoded, of a square
// around `center_scale`, `center_min`. Returns the block's error.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE V FitIntegerLines(D d, const Span& block, const Line<V>& super,
                             const float* center_scale, const float* center_min, int reach,
                             float* chosen_scale, float* chosen_min) {
  const size_t lanes = hn::Lanes(d);
  V total = hn::Zero(d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const Span group = block.From(g * F::kGroup, lanes);
    const V middle_scale = hn::Load(d, center_scale + g * lanes);
    const V middle_min = hn::Load(d, center_min + g * lanes);
    V best_scale = hn::Zero(d), best_min = hn::Zero(d), best_error = hn::Set(d, 3e38f);
    for (int i = -reach; i <= reach; ++i) {
      const V scale = RoundWithin(d, hn::Add(middle_scale, hn::Set(d, static_cast<float>(i))), 0,
                                  F::kLargestScale);
      for (int j = -reach; j <= reach; ++j) {
        const V min = RoundWithin(d, hn::Add(middle_min, hn::Set(d, static_cast<float>(j))), 0,
                                  F::kLargestScale);
        const Line<V> line{hn::Mul(super.scale, scale), hn::Mul(super.min, min)};
        const V error = LineError<F, kWeighted>(d, group, line);
        const auto better = hn::Lt(error, best_error);
        best_scale = hn::IfThenElse(better, scale, best_scale);
        best_min = hn::IfThenElse(better, min, best_min);
        best_error = hn::Min(error, best_error);
      }
    }
    hn::Store(best_scale, d, chosen_scale + g * lanes);
    hn::Store(best_min, d, chosen_min + g * lanes);
    total = hn::Add(total, best_error);
  }
  return total;
}

// Super-scales fitted by least squares to the codes chosen under the given ones; the minima's is
// fitted last, to the scale as it is stored.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE Line<V> FitSuperLine(D d, const Span& block, const Line<V>& super, const float* scales,
                                const float* mins) {
  const size_t lanes = hn::Lanes(d);
  const V zero = hn::Zero(d);
  V aa = zero, am = zero, mm = zero, ra = zero, rm = zero;  // a = scale * code, m = min
  for (size_t g = 0; g < F::kGroups; ++g) {
    const V scale = hn::Load(d, scales + g * lanes);
    const V min = hn::Load(d, mins + g * lanes);
    const LineMoments<V> sum =
        Moments<F, kWeighted>(d, block.From(g * F::kGroup, lanes),
                              Line<V>{hn::Mul(super.scale, scale), hn::Mul(super.min, min)});
    aa = hn::Add(aa, hn::Mul(Square(d, scale), sum.qq));
    am = hn::Add(am, hn::Mul(hn::Mul(scale, min), sum.q));
    mm = hn::Add(mm, hn::Mul(Square(d, min), sum.one));
    ra = hn::Add(ra, hn::Mul(scale, sum.rq));
    rm = hn::Add(rm, hn::Mul(min, sum.r));
  }
  // Without minima the scale is fitted alone.
  const V both = DivByDeterminant(d, hn::Sub(hn::Mul(ra, mm), hn::Mul(rm, am)), aa, mm, am);
  const V delta = hn::IfThenElse(hn::Eq(mm, zero), DivOrZero(d, ra, aa), both);
  const V scale = RoundToF16(d, hn::Add(super.scale, delta));
  const V moved = hn::Sub(scale, super.scale);
  const V min_delta = DivOrZero(d, hn::Sub(hn::Mul(moved, am), rm), mm);
  return {scale, RoundToF16(d, hn::Add(super.min, min_delta))};
}

// `scale`, or where that is zero because all weights are equal, what rounding took from their
// minimum: the scale is free to give it back, with either sign.
template <class D, class V = FloatVec<D>>
HWY_INLINE V ScaleOrRest(D d, const Span& block, V scale, V min) {
  const V rest = RoundToF16(d, hn::Add(hn::Load(d, block.x), min));
  return hn::IfThenElse(hn::Eq(scale, hn::Zero(d)), rest, scale);
}

template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE void SearchAffine(D d, const Span& block, AffineScales<F::kGroups>& out) {
  const size_t lanes = hn::Lanes(d);
  constexpr size_t kSize = F::kGroups * kMaxLanes;
  HWY_ALIGN float ideal_scale[kSize];
  HWY_ALIGN float ideal_min[kSize];
  const V sign = SignOfMinima<F>(d, block);
  V largest_scale = hn::Zero(d), largest_min = hn::Zero(d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const Span group = block.From(g * F::kGroup, lanes);
    group.Prefetch(F::kGroup, lanes);
    const Line<V> line = SearchLine<F, kWeighted>(d, group, sign);
    hn::Store(line.scale, d, ideal_scale + g * lanes);
    hn::Store(line.min, d, ideal_min + g * lanes);
    largest_scale = hn::Max(largest_scale, line.scale);
    largest_min = hn::Max(largest_min, hn::Abs(line.min));
  }
  const V step = hn::Set(d, 1.0f / F::kLargestScale);
  Line<V> super{RoundScaleToF16(d, hn::Mul(largest_scale, step)),
                RoundScaleToF16(d, hn::Mul(sign, hn::Mul(largest_min, step)))};
  super.scale =
      ScaleOrRest(d, block, super.scale, hn::Mul(super.min, hn::Set(d, F::kLargestScale)));
  const V inverse_scale = DivOrZero(d, hn::Set(d, 1.0f), super.scale);
  const V inverse_min = DivOrZero(d, hn::Set(d, 1.0f), super.min);
  for (size_t i = 0; i < F::kGroups * lanes; i += lanes) {
    hn::Store(hn::Mul(hn::Load(d, ideal_scale + i), inverse_scale), d, ideal_scale + i);
    hn::Store(hn::Mul(hn::Load(d, ideal_min + i), inverse_min), d, ideal_min + i);
  }
  V error = FitIntegerLines<F, kWeighted>(d, block, super, ideal_scale, ideal_min, F::kReach,
                                          out.scale, out.min);

  // Fit the super-scales to the codes, then choose integers and codes again; keep what got better.
  for (int round = 0; round < Rounds<F, kWeighted>(); ++round) {
    const Line<V> fitted = FitSuperLine<F, kWeighted>(d, block, super, out.scale, out.min);
    HWY_ALIGN float chosen_scale[kSize];
    HWY_ALIGN float chosen_min[kSize];
    const V fitted_error = FitIntegerLines<F, kWeighted>(d, block, fitted, out.scale, out.min,
                                                         F::kRoundReach, chosen_scale, chosen_min);
    const auto better = hn::Lt(fitted_error, error);
    super.scale = hn::IfThenElse(better, fitted.scale, super.scale);
    super.min = hn::IfThenElse(better, fitted.min, super.min);
    error = hn::Min(error, fitted_error);
    const auto keep = [&](const float* chosen, float* kept) HWY_ATTR {
      hn::Store(hn::IfThenElse(better, hn::Load(d, chosen), hn::Load(d, kept)), d, kept);
    };
    for (size_t i = 0; i < F::kGroups * lanes; i += lanes) {
      keep(chosen_scale + i, out.scale + i);
      keep(chosen_min + i, out.min + i);
    }
  }
  hn::Store(super.scale, d, out.d);
  hn::Store(super.min, d, out.min_d);
}

// Formats whose group is the block: scale and minimum themselves are searched for.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE void SearchSingleLine(D d, const Span& block, AffineScales<1>& out) {
  const V one = hn::Set(d, 1.0f);
  block.Prefetch(F::kGroup, hn::Lanes(d));
  const Line<V> free = SearchLine<F, kWeighted>(d, block, one);
  Line<V> line{RoundScaleToF16(d, free.scale), RoundToF16(d, free.min)};
  line.scale = ScaleOrRest(d, block, line.scale, line.min);
  V error = LineError<F, kWeighted>(d, block, line);
  HWY_ALIGN float ones[kMaxLanes];
  hn::Store(one, d, ones);
  for (int round = 0; round < Rounds<F, kWeighted>(); ++round) {
    const Line<V> fitted = FitSuperLine<F, kWeighted>(d, block, line, ones, ones);
    const V fitted_error = LineError<F, kWeighted>(d, block, fitted);
    const auto better = hn::Lt(fitted_error, error);
    line.scale = hn::IfThenElse(better, fitted.scale, line.scale);
    line.min = hn::IfThenElse(better, fitted.min, line.min);
    error = hn::Min(error, fitted_error);
  }
  hn::Store(line.scale, d, out.d);
  hn::Store(line.min, d, out.min_d);
  hn::Store(one, d, out.scale);
  hn::Store(one, d, out.min);
}

// Bytes 4k to 4k + 3 of words[k] become the codes of weights 4k to 4k + 3.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void StoreAffineCodes(D d, const Span& block, const AffineScales<F::kGroups>& scales,
                                 uint32_t* HWY_RESTRICT words) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const size_t lanes = hn::Lanes(d);
  const V super = hn::Load(d, scales.d);
  const V super_min = hn::Load(d, scales.min_d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const Line<V> line{hn::Mul(super, hn::Load(d, scales.scale + g * lanes)),
                       hn::Mul(super_min, hn::Load(d, scales.min + g * lanes))};
    const LineCoder<F, D> coder(d, line);
    const auto code = [&](size_t i) HWY_ATTR {
      const V x = hn::Load(d, block.x + i * lanes);
      return hn::BitCast(du, hn::ConvertTo(di, coder.Code(d, x)));
    };
    for (size_t i = g * F::kGroup; i < (g + 1) * F::kGroup; i += 4) {
      const auto low = hn::Or(code(i), hn::ShiftLeft<8>(code(i + 1)));
      const auto high = hn::Or(code(i + 2), hn::ShiftLeft<8>(code(i + 3)));
      hn::Store(hn::Or(low, hn::ShiftLeft<16>(high)), du, words + i / 4 * lanes);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_SEARCH_AFFINE_INL_H_
