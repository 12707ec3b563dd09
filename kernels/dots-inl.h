// Dot products of four bytes at a time, of weights without a sign and activations with one, for the
// target being compiled.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_KERNELS_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_DOTS_INL_H_
#undef NIBBLE_KERNELS_DOTS_INL_H_
#else
#define NIBBLE_KERNELS_DOTS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Without an instruction for such products, two are multiplied and added in 16 bits, where they fit
// only if weights above 128 lose the 128 that made them unsigned: AddDots<false> is then of these.
#undef NIBBLE_SIGNED_DOTS
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
#define NIBBLE_SIGNED_DOTS 1
#else
#define NIBBLE_SIGNED_DOTS 0
#endif

// What the weights of AddDots<kSmall> stand above those whose products it adds, where they are
// stored 128 above zero.
inline constexpr int kDotsOffset = NIBBLE_SIGNED_DOTS ? 0 : 128;

// sum += products of w and a, four a lane. Weights are at most 128 where kSmall, activations above
// -128.
template <bool kSmall, class D>
HWY_INLINE hn::Vec<hn::Repartition<int32_t, D>> AddDots(D d, hn::Vec<D> w,
                                                        hn::Vec<hn::RebindToSigned<D>> a,
                                                        hn::Vec<hn::Repartition<int32_t, D>> sum) {
  const hn::Repartition<int32_t, D> di;
#if NIBBLE_SIGNED_DOTS
  const hn::Repartition<int16_t, D> d16;
  if constexpr (!kSmall) {
    const hn::RebindToSigned<D> ds;
    const auto w_signed = hn::BitCast(ds, hn::Xor(w, hn::Set(d, uint8_t{128})));
    a = hn::IfNegativeThenNegOrUndefIfZero(w_signed, a);
    w = hn::BitCast(d, hn::Abs(w_signed));
  }
  const auto pairs = hn::SatWidenMulPairwiseAdd(d16, w, a);
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di, pairs, hn::Set(d16, int16_t{1})));
#else
  return hn::SumOfMulQuadAccumulate(di, w, a, sum);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_DOTS_INL_H_
