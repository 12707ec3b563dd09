// Dot products of packed weights (kernels/packed-inl.h), four columns of a row in each lane, with
// four activation codes that are the same for all rows, for the target being compiled.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_AVX_VNNI) || \
    defined(NIBBLE_KERNELS_QUAD_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#if defined(NIBBLE_AVX_VNNI)  // the target's second pass
#elif defined(NIBBLE_KERNELS_QUAD_DOTS_INL_H_)
#undef NIBBLE_KERNELS_QUAD_DOTS_INL_H_
#else
#define NIBBLE_KERNELS_QUAD_DOTS_INL_H_
#endif

#include <bit>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/dots-inl.h"
#include "kernels/packed-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS
namespace hn = hwy::HWY_NAMESPACE;

template <class Packed>
inline constexpr int kCodeBits = Packed::kHasTable ? std::bit_width(2u * Packed::kOffset - 1)
                                                   : Packed::kLowBits + Packed::kHighBits;

// What the bytes to multiply stand above the codes. Those of eight bits have a sign where
// NIBBLE_SIGNED_DOTS.
template <class Packed>
inline constexpr int kBytesOffset =
    NIBBLE_SIGNED_DOTS&& kCodeBits<Packed> == 8 ? 0 : Packed::kOffset;

// The bytes to multiply, of codes as they are stored.
template <class Packed>
HWY_INLINE V8 BytesOf(V8 stored) {
  if constexpr (kBytesOffset<Packed> == Packed::kOffset) return stored;
  return hn::Xor(stored, hn::Set(D8(), uint8_t{0x80}));
}

// Sixteen activation codes: in a register, of which Arm's instruction takes four, elsewhere in
// memory, from where four are loaded to all lanes.
#if NIBBLE_ARM_DOTS
using Codes16 = hn::Vec<DS8>;
HWY_INLINE Codes16 LoadCodes16(const int8_t* codes) { return hn::LoadU(DS8(), codes); }
#else
using Codes16 = const int8_t*;
HWY_INLINE Codes16 LoadCodes16(const int8_t* codes) { return codes; }

template <int kNumber>
HWY_INLINE hn::Vec<DS8> FourCodes(Codes16 codes) {
  int32_t four;
  std::memcpy(&four, codes + 4 * kNumber, sizeof(four));
  return hn::BitCast(DS8(), hn::Set(DI(), four));
}
#endif

// Products are of bytes with and without a sign that are added in pairs, in 16 bits.
#undef NIBBLE_PAIR_DOTS
#define NIBBLE_PAIR_DOTS (HWY_ARCH_X86 && NIBBLE_SIGNED_DOTS)

#if NIBBLE_PAIR_DOTS
using D16 = hn::Repartition<int16_t, D8>;
using Pairs = hn::Vec<D16>;

// How many products of pairs can be added in 16 bits: weights below 2^bits and activations up to
// 127. Weights of eight bits have a sign, which takes an instruction more; slower still are words
// (vpmaddwd, 0.82 of the speed) and products of a weight's upper seven bits and its last (0.73).
constexpr int PairDepth(int bits) { return bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1; }

template <int kBits>
HWY_INLINE Pairs MultiplyPairs(V8 w, hn::Vec<DS8> a) {
  if constexpr (kBits == 8) {  // the sign moves to the activations
    const auto w_signed = hn::BitCast(DS8(), w);
    a = hn::IfNegativeThenNegOrUndefIfZero(w_signed, a);
    w = hn::BitCast(D8(), hn::Abs(w_signed));
  }
  return hn::SatWidenMulPairwiseAdd(D16(), w, a);
}

HWY_INLINE VI AddPairs(Pairs pairs, VI sum) {
  return hn::Add(sum, hn::WidenMulPairwiseAdd(DI(), pairs, hn::Set(D16(), int16_t{1})));
}
#else
struct Pairs {};

// sum += products of w and activation codes 4 * kNumber and so on.
template <int kNumber>
HWY_INLINE VI AddQuad(V8 w, Codes16 codes, VI sum) {
#if NIBBLE_ARM_DOTS
  __asm__(NIBBLE_SDOT "%0.4s, %1.16b, %2.4b[%3]"
          : "+w"(sum.raw)
          : "w"(w.raw), "w"(codes.raw), "i"(kNumber));
  return sum;
#elif HWY_ARCH_ARM_A64
  return AddSignedDots(hn::BitCast(DS8(), w), FourCodes<kNumber>(codes), sum);
#else
  return AddUnsignedDots(D8(), w, FourCodes<kNumber>(codes), sum);
#endif
}
#endif

// Adds the products of quad kNumber of kCount that are added after another, of weights of kBits.
// Codes are the sixteen that hold the quad's; `pairs` holds what is still to be added to `sum`,
// which after the last quad is nothing.
template <int kBits, int kCount, int kNumber>
HWY_INLINE void AddQuadOf(V8 w, Codes16 codes, VI& sum, Pairs& pairs) {
#if NIBBLE_PAIR_DOTS
  constexpr int kDepth = PairDepth(kBits) < kCount ? PairDepth(kBits) : kCount;
  const Pairs products = MultiplyPairs<kBits>(w, FourCodes<kNumber % 4>(codes));
  if constexpr (kNumber % kDepth == 0) {
    pairs = products;
  } else {
    pairs = hn::Add(pairs, products);
  }
  if constexpr (kNumber % kDepth == kDepth - 1) sum = AddPairs(pairs, sum);
#else
  sum = AddQuad<kNumber % 4>(w, codes, sum);
#endif
}

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_QUAD_DOTS_INL_H_
