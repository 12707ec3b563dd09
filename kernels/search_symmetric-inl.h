// Scale search of the formats without a minimum: w = scale * code, code from a codebook.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_SEARCH_SYMMETRIC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_SEARCH_SYMMETRIC_INL_H_
#undef NIBBLE_KERNELS_SEARCH_SYMMETRIC_INL_H_
#else
#define NIBBLE_KERNELS_SEARCH_SYMMETRIC_INL_H_
#endif

#include <iterator>

#include "kernels/codec.h"
#include "kernels/search_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Codebooks of kCodes values. kExtreme is the code of largest magnitude; Nearest() gives the code
// nearest to a quotient, Stored() the number that is packed for it.

// The integers of [kLow, kHigh].
template <int kLow, int kHigh = -kLow - 1>
struct UniformBook {
  static constexpr float kExtreme = kLow;
  static constexpr int kCodes = kHigh - kLow + 1;
  static constexpr float Value(int i) { return static_cast<float>(kLow + i); }

  template <class D, class V = FloatVec<D>>
  static HWY_INLINE V Nearest(D d, V quotient) {
    return RoundWithin(d, quotient, kLow, kHigh);
  }
  template <class D, class V = FloatVec<D>>
  static HWY_INLINE auto Stored(D d, V quotient) {
    const hn::RebindToSigned<D> di;
    return hn::ConvertTo(di, hn::Sub(Nearest(d, quotient), hn::Set(d, kLow)));
  }
  // The number packed for a code.
  static uint8_t Pack(float code) { return static_cast<uint8_t>(code - kLow); }
};

// table[index], for 16 values.
template <class D, class VI>
HWY_INLINE FloatVec<D> Lookup16(D d, const float* HWY_RESTRICT table, VI index) {
#if !HWY_HAVE_SCALABLE
  if constexpr (hn::MaxLanes(D()) == 16) {
    return hn::TableLookupLanes(hn::Load(d, table), hn::IndicesFromVec(d, index));
  } else if constexpr (hn::MaxLanes(D()) == 8) {
    return hn::TwoTablesLookupLanes(d, hn::Load(d, table), hn::Load(d, table + 8),
                                    hn::IndicesFromVec(d, index));
  }
#endif
  return hn::GatherIndex(d, table, index);
}

// The non-linear codebook of iq4_nl and iq4_xs.
struct Iq4Book {
  static constexpr float kExtreme = kIq4Values[0];
  static constexpr int kCodes = 16;
  static constexpr float Value(int i) { return kIq4Values[i]; }

  // The index of the nearest value, halves down: four steps of a binary search over the bounds
  // between neighbours. The bounds wait in the order in which the steps meet them.
  template <class D, class V = FloatVec<D>>
  static HWY_INLINE auto Stored(D d, V quotient) {
    const hn::RebindToSigned<D> di;
    auto index = hn::IfThenElseZero(hn::RebindMask(di, hn::Gt(quotient, hn::Set(d, Bound(7)))),
                                    hn::Set(di, 8));
    const auto step = [&](const float* bounds, int width) HWY_ATTR {
      const auto above = hn::RebindMask(di, hn::Gt(quotient, Lookup16(d, bounds, index)));
      index = hn::Add(index, hn::IfThenElseZero(above, hn::Set(di, width)));
    };
    step(kBounds.ahead3, 4);
    step(kBounds.ahead1, 2);
    step(kBounds.ahead0, 1);
    return index;
  }
  template <class D, class V = FloatVec<D>>
  static HWY_INLINE V Nearest(D d, V quotient) {
    return Lookup16(d, kBounds.value, Stored(d, quotient));
  }
  static uint8_t Pack(float code) {
    uint8_t index = 0;
    while (kBounds.value[index] < code) ++index;
    return index;
  }

 private:
  static constexpr float Bound(int i) { return 0.5f * (Value(i) + Value(i + 1)); }
  struct alignas(64) Bounds {
    float value[16] = {}, ahead0[16] = {}, ahead1[16] = {}, ahead3[16] = {};
    constexpr Bounds() {
      for (int i = 0; i < 16; ++i) value[i] = Value(i);
      for (int i = 0; i < 15; ++i) ahead0[i] = Bound(i);
      for (int i = 0; i < 14; ++i) ahead1[i] = Bound(i + 1);
      for (int i = 0; i < 12; ++i) ahead3[i] = Bound(i + 3);
    }
  };
  static const Bounds kBounds;
};
inline constexpr Iq4Book::Bounds Iq4Book::kBounds{};

// The squared error of a group at a scale.
template <class Book, size_t kGroup, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE V ScaleError(D d, const Span& group, V scale) {
  const V inverse = DivOrZero(d, hn::Set(d, 1.0f), scale);
  V error = hn::Zero(d);
  for (size_t i = 0; i < kGroup; ++i) {
    const V x = hn::Load(d, group.x + i * hn::Lanes(d));
    const V code = Book::Nearest(d, hn::Mul(x, inverse));
    const V residual = hn::Sub(x, hn::Mul(scale, code));
    error = hn::Add(error, Weigh<kWeighted>(d, group, i, Square(d, residual)));
  }
  return error;
}

// What a least-squares fit of a common scale needs of codes chosen at `scale`: adds
// sum(residual * factor * code) and sum((factor * code)^2).
template <class Book, size_t kGroup, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE void AddScaleFit(D d, const Span& group, V scale, V factor, V& residual_code,
                            V& code_code) {
  const V inverse = DivOrZero(d, hn::Set(d, 1.0f), scale);
  V rq = hn::Zero(d), qq = hn::Zero(d);
  for (size_t i = 0; i < kGroup; ++i) {
    const V x = hn::Load(d, group.x + i * hn::Lanes(d));
    const V code = Book::Nearest(d, hn::Mul(x, inverse));
    const V residual = hn::Sub(x, hn::Mul(scale, code));
    const V weighed = Weigh<kWeighted>(d, group, i, code);
    rq = hn::Add(rq, hn::Mul(weighed, residual));
    qq = hn::Add(qq, hn::Mul(weighed, code));
  }
  residual_code = hn::Add(residual_code, hn::Mul(factor, rq));
  code_code = hn::Add(code_code, hn::Mul(Square(d, factor), qq));
}

// A scale for a group, free of any grid. Candidates put the weight of largest magnitude at
// stretch * kExtreme, on either side for negative stretches; each chooses codes, to which the scale
// is fitted by least squares: the best has the largest sum(x q)^2 / sum(q^2), which is what the fit
// takes off the error.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE V SearchGroupScale(D d, const Span& group) {
  using Book = typename F::Book;
  V extreme = hn::Zero(d), magnitude = hn::Set(d, kTiny);
  for (size_t i = 0; i < F::kGroup; ++i) {
    const V x = hn::Load(d, group.x + i * hn::Lanes(d));
    const auto larger = hn::Gt(hn::Abs(x), magnitude);
    magnitude = hn::Max(magnitude, hn::Abs(x));
    extreme = hn::IfThenElse(larger, x, extreme);
  }
  const V unit = DivOrZero(d, hn::Set(d, Book::kExtreme), extreme);
  // Where no candidate counts (all weights of errors zero) the extreme still decides.
  V best_xq = hn::Mul(extreme, hn::Set(d, 1 / Book::kExtreme)), best_qq = hn::Set(d, 1.0f),
    best_score = hn::Zero(d);
  for (const float stretch : Stretches<F, kWeighted>()) {
    const V inverse = hn::Mul(unit, hn::Set(d, stretch));
    V xq = hn::Zero(d), qq = hn::Zero(d);
    for (size_t i = 0; i < F::kGroup; ++i) {
      const V x = hn::Load(d, group.x + i * hn::Lanes(d));
      const V code = Book::Nearest(d, hn::Mul(x, inverse));
      const V weighed = Weigh<kWeighted>(d, group, i, code);
      xq = hn::Add(xq, hn::Mul(weighed, x));
      qq = hn::Add(qq, hn::Mul(weighed, code));
    }
    // score / qq > best_score / best_qq without the quotients
    const V score = Square(d, xq);
    const auto better = hn::Gt(hn::Mul(score, best_qq), hn::Mul(best_score, qq));
    best_xq = hn::IfThenElse(better, xq, best_xq);
    best_qq = hn::IfThenElse(better, qq, best_qq);
    best_score = hn::IfThenElse(better, score, best_score);
  }
  return DivOrZero(d, best_xq, best_qq);
}

// The half-precision scale that brings some code, or where there are integer scales the largest
// code under one of these, closest to x: constant blocks have but this to choose.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V ScaleOfConstant(D d, V x) {
  using Book = typename F::Book;
  V best = hn::Zero(d), best_error = hn::Abs(x);
  for (int i = 0; i < Book::kCodes; ++i) {
    V factor = hn::Set(d, Book::Value(i));
    if constexpr (F::kGroups > 1) {
      factor = hn::Set(d, Book::kExtreme * (F::kScaleLow + static_cast<float>(i)));
    }
    const V scale = RoundToF16(d, DivOrZero(d, x, factor));
    const V error = hn::Abs(hn::Sub(x, hn::Mul(scale, factor)));
    const auto better = hn::Lt(error, best_error);
    best = hn::IfThenElse(better, scale, best);
    best_error = hn::Min(error, best_error);
  }
  return best;
}

// `scale`, but for constant blocks the one that suits them.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V UnlessConstant(D d, const Span& block, V scale) {
  const V constant = hn::Load(d, block.constant);
  const auto is_constant = hn::Ne(constant, hn::Zero(d));
  if (hn::AllFalse(d, is_constant)) return scale;
  return hn::IfThenElse(is_constant, ScaleOfConstant<F>(d, constant), scale);
}

// What a search without minima finds, lane by lane.
template <size_t kGroups>
struct SymmetricScales {
  HWY_ALIGN float d[kMaxLanes];
  HWY_ALIGN float scale[kGroups * kMaxLanes];  // integers; all 1 where there is no super-scale
};

// Integer scales of all groups under super-scale `d`: those of the nearest 2 * reach + 1 to
// `center` (in units of d) with the least error as decoded. Returns the block's error.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE V FitIntegerScales(D d, const Span& block, V super, const float* center, int reach,
                              float* chosen) {
  const size_t lanes = hn::Lanes(d);
  V total = hn::Zero(d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const Span group = block.From(g * F::kGroup, lanes);
    const V middle = hn::Load(d, center + g * lanes);
    V best = hn::Zero(d), best_error = hn::Set(d, 3e38f);
    for (int step = -reach; step <= reach; ++step) {
      const V scale = RoundWithin(d, hn::Add(middle, hn::Set(d, static_cast<float>(step))),
                                  F::kScaleLow, F::kScaleHigh);
      const V error =
          ScaleError<typename F::Book, F::kGroup, kWeighted>(d, group, hn::Mul(super, scale));
      const auto better = hn::Lt(error, best_error);
      best = hn::IfThenElse(better, scale, best);
      best_error = hn::Min(error, best_error);
    }
    hn::Store(best, d, chosen + g * lanes);
    total = hn::Add(total, best_error);
  }
  return total;
}

template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE void SearchSymmetric(D d, const Span& block, SymmetricScales<F::kGroups>& out) {
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN float ideal[F::kGroups * kMaxLanes];
  const V constant = hn::Load(d, block.constant);
  const auto is_constant = hn::Ne(constant, hn::Zero(d));
  const V scale_of_constant = hn::Mul(constant, hn::Set(d, 1.0f / F::Book::kExtreme));
  V largest = hn::Zero(d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const Span group = block.From(g * F::kGroup, lanes);
    group.Prefetch(F::kGroup, lanes);
    V scale = SearchGroupScale<F, kWeighted>(d, group);
    scale = hn::IfThenElse(is_constant, scale_of_constant, scale);
    hn::Store(scale, d, ideal + g * lanes);
    largest = hn::IfThenElse(hn::Gt(hn::Abs(scale), hn::Abs(largest)), scale, largest);
  }
  V super = hn::Zero(d), error = hn::Set(d, 3e38f);
  const auto keep_better = [&](V other, const float* center, int reach) HWY_ATTR {
    if constexpr (F::kReach == 0 && Rounds<F, kWeighted>() == 0 &&
                  std::size(F::kLargestBecomes) == 1) {
      // Nothing to compare with.
      super = other;
      for (size_t i = 0; i < F::kGroups * lanes; i += lanes) {
        hn::Store(RoundWithin(d, hn::Load(d, center + i), F::kScaleLow, F::kScaleHigh), d,
                  out.scale + i);
      }
    } else {
      HWY_ALIGN float chosen[F::kGroups * kMaxLanes];
      const V other_error = FitIntegerScales<F, kWeighted>(d, block, other, center, reach, chosen);
      const auto better = hn::Lt(other_error, error);
      super = hn::IfThenElse(better, other, super);
      error = hn::Min(error, other_error);
      for (size_t i = 0; i < F::kGroups * lanes; i += lanes) {
        hn::Store(hn::IfThenElse(better, hn::Load(d, chosen + i), hn::Load(d, out.scale + i)), d,
                  out.scale + i);
      }
    }
  };
  // The largest scale becomes the integer with the most room, the negative one, or one near it.
  for (const float integer : F::kLargestBecomes) {
    const V start = UnlessConstant<F>(
        d, block, RoundScaleToF16(d, hn::Mul(largest, hn::Set(d, 1.0f / integer))));
    const V inverse = DivOrZero(d, hn::Set(d, 1.0f), start);
    HWY_ALIGN float center[F::kGroups * kMaxLanes];
    for (size_t i = 0; i < F::kGroups * lanes; i += lanes) {
      hn::Store(hn::Mul(hn::Load(d, ideal + i), inverse), d, center + i);
    }
    keep_better(start, center, F::kReach);
  }

  // Fit the super-scale to the codes, then choose scales and codes again; keep what got better. A
  // last fit needs no proof: the nearest half to the best scale for given codes cannot be worse.
  const auto fit = [&]() HWY_ATTR {
    V rq = hn::Zero(d), qq = hn::Zero(d);
    for (size_t g = 0; g < F::kGroups; ++g) {
      const V scale = hn::Load(d, out.scale + g * lanes);
      AddScaleFit<typename F::Book, F::kGroup, kWeighted>(d, block.From(g * F::kGroup, lanes),
                                                          hn::Mul(super, scale), scale, rq, qq);
    }
    return RoundToF16(d, hn::Add(super, DivOrZero(d, rq, qq)));
  };
  for (int round = 0; round < Rounds<F, kWeighted>(); ++round) {
    keep_better(fit(), out.scale, F::kRoundReach);
  }
  super = fit();
  hn::Store(super, d, out.d);
}

// Formats whose group is the block: its half-precision scale itself is searched for.
template <class F, bool kWeighted, class D, class V = FloatVec<D>>
HWY_INLINE void SearchSingleScale(D d, const Span& block, SymmetricScales<1>& out) {
  using Book = typename F::Book;
  const V one = hn::Set(d, 1.0f);
  block.Prefetch(F::kGroup, hn::Lanes(d));
  V scale = RoundScaleToF16(d, SearchGroupScale<F, kWeighted>(d, block));
  scale = UnlessConstant<F>(d, block, scale);
  V error = ScaleError<Book, F::kGroup, kWeighted>(d, block, scale);
  for (int round = 0; round < Rounds<F, kWeighted>(); ++round) {
    V rq = hn::Zero(d), qq = hn::Zero(d);
    AddScaleFit<Book, F::kGroup, kWeighted>(d, block, scale, one, rq, qq);
    const V fitted = RoundToF16(d, hn::Add(scale, DivOrZero(d, rq, qq)));
    const V fitted_error = ScaleError<Book, F::kGroup, kWeighted>(d, block, fitted);
    scale = hn::IfThenElse(hn::Lt(fitted_error, error), fitted, scale);
    error = hn::Min(error, fitted_error);
  }
  hn::Store(scale, d, out.d);
  hn::Store(one, d, out.scale);
}

// Bytes 4k to 4k + 3 of words[k] become the stored codes of weights 4k to 4k + 3.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void StoreSymmetricCodes(D d, const Span& block,
                                    const SymmetricScales<F::kGroups>& scales,
                                    uint32_t* HWY_RESTRICT words) {
  const hn::RebindToUnsigned<D> du;
  const size_t lanes = hn::Lanes(d);
  const V super = hn::Load(d, scales.d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const V scale = hn::Mul(super, hn::Load(d, scales.scale + g * lanes));
    const V inverse = DivOrZero(d, hn::Set(d, 1.0f), scale);
    const auto code = [&](size_t i) HWY_ATTR {
      const V x = hn::Load(d, block.x + i * lanes);
      return hn::BitCast(du, F::Book::Stored(d, hn::Mul(x, inverse)));
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

#endif  // NIBBLE_KERNELS_SEARCH_SYMMETRIC_INL_H_
