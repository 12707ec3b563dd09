// The formats of kernels/unpack-inl.h whose codes are points of codebooks: gathered from the tables
// of kernels/iq_points.h, as many at once as a vector holds.
#if defined(NIBBLE_KERNELS_UNPACK_IQ_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_UNPACK_IQ_INL_H_
#undef NIBBLE_KERNELS_UNPACK_IQ_INL_H_
#else
#define NIBBLE_KERNELS_UNPACK_IQ_INL_H_
#endif

#include "kernels/unpack_blocks-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of points, of eight or four bytes.
template <class D>
using Points8 = hn::Repartition<uint64_t, D>;
template <class D>
using Points4 = hn::Repartition<uint32_t, D>;

// Fields of a word: one for each of eight points, of which the lanes take those from `point` on.
struct alignas(64) FieldShifts {
  uint64_t at[8];
};
inline constexpr FieldShifts kBytesOfWord = {{0, 8, 16, 24, 32, 40, 48, 56}};
inline constexpr FieldShifts kNibblesOfWord = {{0, 4, 8, 12, 16, 20, 24, 28}};
inline constexpr FieldShifts kPairsOfWord = {{0, 2, 4, 6, 8, 10, 12, 14}};
inline constexpr FieldShifts kSevensOfWord = {{0, 7, 14, 21, 32, 39, 46, 53}};
inline constexpr FieldShifts kThreesOfWord = {{0, 3, 6, 9, 16, 19, 22, 25}};
inline constexpr FieldShifts kTopOfWord = {{15, 15, 15, 15, 31, 31, 31, 31}};

template <class DP>
HWY_INLINE hn::Vec<DP> Fields(DP d, uint64_t word, const FieldShifts& shifts, size_t point,
                              uint64_t mask) {
  const auto fields = hn::Shr(hn::Set(d, word), hn::LoadU(d, shifts.at + point));
  return hn::And(fields, hn::Set(d, mask));
}

HWY_INLINE uint64_t TwoWords(const void* low, const void* high) {
  return LoadU32(static_cast<const uint8_t*>(low)) |
         uint64_t{LoadU32(static_cast<const uint8_t*>(high))} << 32;
}

// Negates the bytes where the mask is 255.
template <class D, class V>
HWY_INLINE V NegateMasked(D, V codes, V mask) {
  return hn::Sub(hn::Xor(codes, mask), mask);
}

// A weight for each bit.
template <class D>
HWY_INLINE hn::Vec<D> Signed(D d, hn::Vec<D> codes, const uint8_t* signs) {
  return hn::MaskedSubOr(codes, hn::LoadMaskBits(d, signs), hn::Zero(d), codes);
}

// Eight weights for each seven bits, whose signs are even in number.
template <class D>
HWY_INLINE hn::Vec<D> EvenSigned(D d, hn::Vec<D> codes, hn::Vec<Points8<D>> seven_bits) {
  const Points8<D> dp;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
  if constexpr (IsWide(D())) {
    // Bits make masks there.
    const hn::Rebind<uint8_t, Points8<D>> d8;
    const auto parity = hn::ShiftLeft<7>(hn::PopulationCount(seven_bits));
    const auto bytes = hn::TruncateTo(d8, hn::Or(seven_bits, parity));
    alignas(8) uint8_t signs[8];
    hn::Store(bytes, d8, signs);
    return Signed(d, codes, signs);
  }
#endif
  const hn::RebindToSigned<Points8<D>> di;
  const auto masks = hn::GatherIndex(dp, kSignMasks.even, hn::BitCast(di, seven_bits));
  return NegateMasked(d, codes, hn::BitCast(d, masks));
}

// 32 points of eight weights: index(first, p) and change(codes, first, p) see those from first + p
// on, `first` a multiple of eight and p within these.
template <class D, class Sink, class Index, class Change>
HWY_INLINE void VisitPoints8(D d, const uint64_t* table, const Sink& sink, const Index& index,
                             const Change& change) {
  const Points8<D> dp;
  for (size_t first = 0; first < 32; first += 8) {
    for (size_t p = 0; p < 8; p += hn::Lanes(dp)) {
      const auto at = hn::BitCast(hn::RebindToSigned<Points8<D>>(), index(first, p));
      const auto codes = change(hn::BitCast(d, hn::GatherIndex(dp, table, at)), first, p);
      sink(d, hn::Xor(codes, hn::Set(d, uint8_t{128})), 8 * (first + p));
    }
  }
}

// 64 points of four weights, sixteen and sixteen.
template <class D, class Sink, class Index, class Change>
HWY_INLINE void VisitPoints4(D d, const uint32_t* table, const Sink& sink, const Index& index,
                             const Change& change) {
  const Points4<D> dp;
  for (size_t first = 0; first < 64; first += 16) {
    for (size_t p = 0; p < 16; p += hn::Lanes(dp)) {
      const auto at = hn::BitCast(hn::RebindToSigned<Points4<D>>(), index(first, p));
      const auto codes = change(hn::BitCast(d, hn::GatherIndex(dp, table, at)), first, p);
      sink(d, hn::Xor(codes, hn::Set(d, uint8_t{128})), 4 * (first + p));
    }
  }
}

template <class D>
HWY_INLINE hn::Vec<D> LoadIndices(D d, const uint8_t* qs) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, D>(), qs));
}

// 2 * byte + 1, for bytes below 128.
HWY_INLINE uint64_t OddBytes(uint64_t bytes) { return 2 * bytes + 0x0101010101010101u; }

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ2_XXS& b, const Sink& sink) {
  VisitPoints8(
      d, kPointsIQ2_XXS.at, sink,
      [&](size_t first, size_t p) HWY_ATTR {
        return Fields(Points8<D>(), TwoWords(b.qs + first, b.qs + first + 4), kBytesOfWord, p, 255);
      },
      [&](auto codes, size_t first, size_t p) HWY_ATTR {
        const uint64_t signs = TwoWords(b.qs + first + 2, b.qs + first + 6);
        return EvenSigned(d, codes, Fields(Points8<D>(), signs, kSevensOfWord, p, 127));
      });
}
HWY_INLINE void UnpackScales(const BlockIQ2_XXS& b, float* scales, float*) {
  uint64_t raw = 0;
  for (int g = 0; g < 8; ++g) raw |= uint64_t{b.qs[4 * g + 3]} >> 12 << (8 * g);
  ScaleBytes<uint8_t>(OddBytes(raw), HalfToFloat(b.d) * 0.125f, scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ2_XS& b, const Sink& sink) {
  const Points8<D> dp;
  const hn::Rebind<uint16_t, Points8<D>> d16;
  VisitPoints8(
      d, kPointsIQ2_XS.at, sink,
      [&](size_t first, size_t p) HWY_ATTR {
        const auto q = hn::PromoteTo(dp, hn::LoadU(d16, b.qs + first + p));
        return hn::And(q, hn::Set(dp, uint64_t{511}));
      },
      [&](auto codes, size_t first, size_t p) HWY_ATTR {
        const auto q = hn::PromoteTo(dp, hn::LoadU(d16, b.qs + first + p));
        return EvenSigned(d, codes, hn::ShiftRight<9>(q));
      });
}
HWY_INLINE void UnpackScales(const BlockIQ2_XS& b, float* scales, float*) {
  const float d = HalfToFloat(b.d) * 0.125f;
  ScaleBytes<uint8_t>(OddBytes(SpreadNibbles(LoadU32(b.scales))),
                      OddBytes(SpreadNibbles(LoadU32(b.scales + 4))), d, scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ2_S& b, const Sink& sink) {
  VisitPoints8(
      d, kPointsIQ2_S.at, sink,
      [&](size_t first, size_t p) HWY_ATTR {
        const uint64_t high = b.qh[first / 4] | b.qh[first / 4 + 1] << 8;
        return hn::Or(LoadIndices(Points8<D>(), b.qs + first + p),
                      hn::ShiftLeft<8>(Fields(Points8<D>(), high, kPairsOfWord, p, 3)));
      },
      [&](auto codes, size_t first, size_t p)
          HWY_ATTR { return Signed(d, codes, b.qs + 32 + first + p); });
}
HWY_INLINE void UnpackScales(const BlockIQ2_S& b, float* scales, float*) {
  const float d = HalfToFloat(b.d) * 0.125f;
  ScaleBytes<uint8_t>(OddBytes(SpreadNibbles(LoadU32(b.scales))),
                      OddBytes(SpreadNibbles(LoadU32(b.scales + 4))), d, scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ3_XXS& b, const Sink& sink) {
  VisitPoints4(
      d, kPointsIQ3_XXS.at, sink,
      [&](size_t first, size_t p) HWY_ATTR { return LoadIndices(Points4<D>(), b.qs + first + p); },
      [&](auto codes, size_t first, size_t p) HWY_ATTR {
        const uint8_t* signs = b.qs + 64 + first / 2;
        return EvenSigned(
            d, codes, Fields(Points8<D>(), TwoWords(signs, signs + 4), kSevensOfWord, p / 2, 127));
      });
}
HWY_INLINE void UnpackScales(const BlockIQ3_XXS& b, float* scales, float*) {
  uint64_t raw = 0;
  for (int g = 0; g < 8; ++g) raw |= uint64_t{b.qs[64 + 4 * g + 3]} >> 4 << (8 * g);
  ScaleBytes<uint8_t>(OddBytes(raw), HalfToFloat(b.d) * 0.25f, scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ3_S& b, const Sink& sink) {
  const Points4<D> dp;
  VisitPoints4(
      d, kPointsIQ3_S.at, sink,
      [&](size_t first, size_t p) HWY_ATTR {
        const uint32_t high = b.qh[first / 8] | b.qh[first / 8 + 1] << 8;
        const auto bits = hn::Shr(hn::Set(dp, high), hn::Iota(dp, static_cast<uint32_t>(p)));
        return hn::Or(LoadIndices(dp, b.qs + first + p),
                      hn::ShiftLeft<8>(hn::And(bits, hn::Set(dp, 1u))));
      },
      [&](auto codes, size_t first, size_t p)
          HWY_ATTR { return Signed(d, codes, b.signs + (first + p) / 2); });
}
HWY_INLINE void UnpackScales(const BlockIQ3_S& b, float* scales, float*) {
  ScaleBytes<uint8_t>(OddBytes(SpreadNibbles(LoadU32(b.scales))), HalfToFloat(b.d), scales);
}

// Adds 1 to the eight codes of a point, or -1 where its lane of `minus` is 1.
template <class D>
HWY_INLINE hn::Vec<D> AddOne(D d, hn::Vec<D> codes, hn::Vec<Points8<D>> minus) {
  const Points8<D> dp;
  const auto shift =
      hn::Or(hn::Sub(hn::Zero(dp), minus), hn::Set(dp, uint64_t{0x0101010101010101u}));
  return hn::Add(codes, hn::BitCast(d, shift));
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ1_S& b, const Sink& sink) {
  const auto word = [&b](size_t first) -> uint64_t {
    return b.qh[first / 4] | uint64_t{b.qh[first / 4 + 1]} << 16;
  };
  VisitPoints8(
      d, kPointsIQ1.at, sink,
      [&](size_t first, size_t p) HWY_ATTR {
        return hn::Or(LoadIndices(Points8<D>(), b.qs + first + p),
                      hn::ShiftLeft<8>(Fields(Points8<D>(), word(first), kThreesOfWord, p, 7)));
      },
      [&](auto codes, size_t first, size_t p) HWY_ATTR {
        return AddOne(d, codes, Fields(Points8<D>(), word(first), kTopOfWord, p, 1));
      });
}
HWY_INLINE void UnpackScales(const BlockIQ1_S& b, float* scales, float*) {
  uint64_t raw = 0;
  for (int g = 0; g < 8; ++g) raw |= uint64_t{b.qh[g]} >> 12 << (8 * g);
  ScaleBytes<uint8_t>(OddBytes(raw & 0x0707070707070707u), HalfToFloat(b.d) * 0.125f, scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ1_M& b, const Sink& sink) {
  const auto nibbles = [&](size_t first, size_t p) HWY_ATTR {
    return Fields(Points8<D>(), LoadU32(b.qh + first / 2), kNibblesOfWord, p, 15);
  };
  VisitPoints8(
      d, kPointsIQ1.at, sink,
      [&](size_t first, size_t p) HWY_ATTR {
        const auto high = hn::And(nibbles(first, p), hn::Set(Points8<D>(), uint64_t{7}));
        return hn::Or(LoadIndices(Points8<D>(), b.qs + first + p), hn::ShiftLeft<8>(high));
      },
      [&](auto codes, size_t first, size_t p)
          HWY_ATTR { return AddOne(d, codes, hn::ShiftRight<3>(nibbles(first, p))); });
}
HWY_INLINE void UnpackScales(const BlockIQ1_M& b, float* scales, float*) {
  const float d = HalfToFloat(CodecIQ1_M::SuperScale(b)) * 0.125f;
  // Four fields of three bits in each of two words, one to each byte.
  const auto spread = [](uint64_t words) {
    const uint64_t word = (words & 0xFFFF) | words >> 16 << 32;
    return OddBytes((word & 0x0000000700000007u) | (word & 0x0000003800000038u) << 5 |
                    (word & 0x000001C0000001C0u) << 10 | (word & 0x00000E0000000E00u) << 15);
  };
  ScaleBytes<uint8_t>(spread(LoadU32(b.scales)), spread(LoadU32(b.scales + 4)), d, scales);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_UNPACK_IQ_INL_H_
