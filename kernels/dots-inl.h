// Dot products of four bytes at a time, of weights without a sign and activations with one, for the
// target being compiled.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_AVX_VNNI) || defined(NIBBLE_KERNELS_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#if defined(NIBBLE_AVX_VNNI)  // the target's second pass
#elif defined(NIBBLE_KERNELS_DOTS_INL_H_)
#undef NIBBLE_KERNELS_DOTS_INL_H_
#else
#define NIBBLE_KERNELS_DOTS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

// See kernels/avx_vnni_pass.h.
#undef NIBBLE_BEGIN_DOTS
#undef NIBBLE_END_DOTS
#undef NIBBLE_ONCE
#ifdef NIBBLE_AVX_VNNI
#define NIBBLE_BEGIN_DOTS namespace vnni {
#define NIBBLE_END_DOTS }
#define NIBBLE_ONCE 0
#else
#define NIBBLE_BEGIN_DOTS
#define NIBBLE_END_DOTS
#define NIBBLE_ONCE HWY_ONCE
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS
namespace hn = hwy::HWY_NAMESPACE;

// Where products are of two numbers with signs, weights above 128 lose the 128 that made them
// unsigned, and AddDots<false> is of these. So it is before VNNI, where two products are added in
// 16 bits, which hold them only then, and on Arm, whose instruction takes no other pair.
#undef NIBBLE_SIGNED_DOTS
#if (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL && !defined(NIBBLE_AVX_VNNI)) || HWY_ARCH_ARM_A64
#define NIBBLE_SIGNED_DOTS 1
#else
#define NIBBLE_SIGNED_DOTS 0
#endif

// Whether the target has Arm's dot product instruction. Highway has no target of that name; all but
// the least of its NEON ones are taken for it (lib/core/target.cc asks the processor), unless the
// compiler is told that any processor has it or that there is no lesser one.
#undef NIBBLE_ARM_DOTS
#if HWY_ARCH_ARM_A64 &&                \
    (defined(__ARM_FEATURE_DOTPROD) || \
     (HWY_TARGET < HWY_NEON_WITHOUT_AES && (HWY_TARGETS & HWY_NEON_WITHOUT_AES) != 0))
#define NIBBLE_ARM_DOTS 1
#else
#define NIBBLE_ARM_DOTS 0
#endif

// What the weights of AddDots<kSmall> stand above those whose products it adds, where they are
// stored 128 above zero.
inline constexpr int kDotsOffset = NIBBLE_SIGNED_DOTS ? 0 : 128;

#if NIBBLE_ARM_DOTS
// In assembly, because compilers refuse to inline the intrinsic where its header names another
// architecture than Highway's attributes do; the assembler needs to be told too.
#undef NIBBLE_SDOT
#define NIBBLE_SDOT ".arch armv8.2-a+crypto+dotprod\n\tsdot "
#endif

#if HWY_ARCH_ARM_A64
using SignedBytes = hn::Vec<hn::FixedTag<int8_t, 16>>;
using Sums = hn::Vec<hn::FixedTag<int32_t, 4>>;

// sums[2 * r + c] += products of eight bytes of row r of w and of row c of a, two rows in each: of
// processors with i8mm alone, which UsesI8mm() tells.
HWY_INLINE Sums AddMatrixDots(SignedBytes w, SignedBytes a, Sums sums) {
  __asm__(".arch armv8.2-a+crypto+dotprod+i8mm\n\tsmmla %0.4s, %1.16b, %2.16b"
          : "+w"(sums.raw)
          : "w"(w.raw), "w"(a.raw));
  return sums;
}

// sum += products of bytes with signs, four a lane. Weights may be -128, activations may not.
HWY_INLINE Sums AddSignedDots(SignedBytes w, SignedBytes a, Sums sum) {
#if NIBBLE_ARM_DOTS
  __asm__(NIBBLE_SDOT "%0.4s, %1.16b, %2.16b" : "+w"(sum.raw) : "w"(w.raw), "w"(a.raw));
  return sum;
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w.raw), vget_low_s8(a.raw));
  const int16x8_t high = vmull_high_s8(w.raw, a.raw);
  return Sums(vpadalq_s16(sum.raw, vpaddq_s16(low, high)));
#endif
}
#endif

// sum += products of bytes without and with a sign, four a lane.
template <class D>
HWY_INLINE hn::Vec<hn::Repartition<int32_t, D>> AddUnsignedDots(
    D, hn::Vec<D> w, hn::Vec<hn::RebindToSigned<D>> a, hn::Vec<hn::Repartition<int32_t, D>> sum) {
#ifdef NIBBLE_AVX_VNNI
  // In assembly, because functions around it may be inlined into others of AVX2 alone.
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(w.raw), "x"(a.raw));
  return sum;
#else
  return hn::SumOfMulQuadAccumulate(hn::Repartition<int32_t, D>(), w, a, sum);
#endif
}

// sum += products of w and a, four a lane. Weights are below 128 where kSmall, activations above
// -128.
template <bool kSmall, class D>
HWY_INLINE hn::Vec<hn::Repartition<int32_t, D>> AddDots(D d, hn::Vec<D> w,
                                                        hn::Vec<hn::RebindToSigned<D>> a,
                                                        hn::Vec<hn::Repartition<int32_t, D>> sum) {
#if NIBBLE_SIGNED_DOTS
  const hn::RebindToSigned<D> ds;
  if constexpr (!kSmall) w = hn::Xor(w, hn::Set(d, uint8_t{128}));
  const auto w_signed = hn::BitCast(ds, w);
#if HWY_ARCH_ARM_A64
  return AddSignedDots(w_signed, a, sum);
#else
  const hn::Repartition<int32_t, D> di;
  const hn::Repartition<int16_t, D> d16;
  if constexpr (!kSmall) {
    a = hn::IfNegativeThenNegOrUndefIfZero(w_signed, a);
    w = hn::BitCast(d, hn::Abs(w_signed));
  }
  const auto pairs = hn::SatWidenMulPairwiseAdd(d16, w, a);
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di, pairs, hn::Set(d16, int16_t{1})));
#endif
#else
  return AddUnsignedDots(d, w, a, sum);
#endif
}

// sum += products of any two bytes with signs, four a lane.
template <class D>
HWY_INLINE hn::Vec<hn::Repartition<int32_t, D>> AddAnySigned(
    D ds, hn::Vec<D> w, hn::Vec<D> a, hn::Vec<hn::Repartition<int32_t, D>> sum) {
#if NIBBLE_ARM_DOTS
  return AddSignedDots(w, a, sum);
#else
  return hn::SumOfMulQuadAccumulate(hn::Repartition<int32_t, D>(), w, a, sum);
#endif
}

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_DOTS_INL_H_
