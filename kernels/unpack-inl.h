// Blocks to vectors: codes as int8 in the order of the weights, scales and minima as floats by
// group, for the target being compiled. What each block means is said in kernels/codec.h; this is
// equal to it, bit for bit, and made of a few primitives that the formats share.
//
//   void UnpackCodes(const Block& b, int8_t* codes)                  codes[kWeights]
//   void UnpackScales(const Block& b, float* scales, float* mins)    [kWeights / kGroup] each; mins
//                                                                    written where the codec
//                                                                    kHasMin
//   void VisitCodes(const Block& b, sink)                            for products, which need not
//                                                                    store the codes:
//     sink(d, stored, i) gets codes i, i + 1, ... of the block as a vector of unsigned bytes with
//     tag d, each code plus kStoredOffset<Block>.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_KERNELS_UNPACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_UNPACK_INL_H_
#undef NIBBLE_KERNELS_UNPACK_INL_H_
#else
#define NIBBLE_KERNELS_UNPACK_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/codec.h"
#include "kernels/iq_points.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Whether conversions between halves and floats are one exact instruction.
#undef NIBBLE_HAVE_F16_CONVERSION
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)) || HWY_ARCH_ARM_A64
#define NIBBLE_HAVE_F16_CONVERSION 1
#else
#define NIBBLE_HAVE_F16_CONVERSION 0
#endif

// --- Primitives ---

using Bytes16 = hn::CappedTag<uint8_t, 16>;  // the 16 bytes of 32 nibbles
using Bytes32 = hn::CappedTag<uint8_t, 32>;  // a run of 32 codes, in one vector or in two

HWY_INLINE float HalfToFloat(F16 half) {
#if NIBBLE_HAVE_F16_CONVERSION
  const hn::CappedTag<float, 1> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const hn::Rebind<uint16_t, decltype(df)> du;
  return hn::GetLane(hn::PromoteTo(df, hn::BitCast(dh, hn::Set(du, half.bits))));
#else
  return ToFloat(half);
#endif
}

template <class D, class V>
HWY_INLINE V LowNibble(D d, V bytes) {
  return hn::And(bytes, hn::Set(d, uint8_t{15}));
}

template <class D, class V>
HWY_INLINE V HighNibble(D, V bytes) {
  return hn::ShiftRight<4>(bytes);
}

template <class D>
HWY_INLINE void StoreCodes(D d, hn::VFromD<D> codes, int8_t* to) {
  hn::StoreU(codes, d, reinterpret_cast<uint8_t*>(to));
}

// `value` in every byte whose bit of the little-endian field is set.
template <class D>
HWY_INLINE hn::VFromD<D> BytesOfBits(D d, const uint8_t* bits, uint8_t value) {
  return hn::IfThenElseZero(hn::LoadMaskBits(d, bits), hn::Set(d, value));
}

// `value` in every byte of `bytes` that has `bit`.
template <class D, class V>
HWY_INLINE V BytesWithBit(D d, V bytes, uint8_t bit, uint8_t value) {
  return hn::IfThenElseZero(hn::TestBit(bytes, hn::Set(d, bit)), hn::Set(d, value));
}

// 16 entries plus 128, the same in every 16 bytes.
template <class D>
HWY_INLINE hn::VFromD<D> StoredTable16(D d, const int8_t* table) {
  const auto entries = hn::LoadDup128(d, reinterpret_cast<const uint8_t*>(table));
  return hn::Xor(entries, hn::Set(d, uint8_t{128}));
}

// 32 nibbles in 16 bytes, low halves first: map(d, nibbles, index of the first) gives the codes.
template <class Sink, class Map>
HWY_INLINE void VisitSplitNibbles(const uint8_t* qs, const Sink& sink, const Map& map) {
#if HWY_MAX_BYTES >= 32 && !HWY_HAVE_SCALABLE
  const Bytes32 d;
  const hn::Repartition<uint32_t, Bytes32> d32;
  const hn::Half<decltype(d32)> half;
  const auto shifts = hn::Combine(d32, hn::Set(half, 4u), hn::Zero(half));
  const auto bytes = hn::BitCast(d, hn::Shr(hn::BitCast(d32, hn::LoadDup128(d, qs)), shifts));
  sink(d, map(d, LowNibble(d, bytes), 0), 0);
#else
  const Bytes16 d;
  for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const auto bytes = hn::LoadU(d, qs + i);
    sink(d, map(d, LowNibble(d, bytes), i), i);
    sink(d, map(d, HighNibble(d, bytes), i + 16), i + 16);
  }
#endif
}

// 256 nibbles in 128 bytes: 32 bytes hold 64 weights, low halves first.
template <class Sink, class Map>
HWY_INLINE void VisitKNibbles(const uint8_t* qs, const Sink& sink, const Map& map) {
  const Bytes32 d;
  for (size_t run = 0; run < 4; ++run) {
    for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
      const auto bytes = hn::LoadU(d, qs + 32 * run + i);
      sink(d, map(d, LowNibble(d, bytes), 64 * run + i), 64 * run + i);
      sink(d, map(d, HighNibble(d, bytes), 64 * run + 32 + i), 64 * run + 32 + i);
    }
  }
}

// 256 codes of two bits in 64 bytes: 32 bytes hold 128 weights, in four runs of 32, lowest bits
// first. map(d, two bits, byte within the run, run).
template <class Sink, class Map>
HWY_INLINE void VisitTwoBits(const uint8_t* qs, const Sink& sink, const Map& map) {
  const Bytes32 d;
  const auto three = hn::Set(d, uint8_t{3});
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
      const auto bytes = hn::LoadU(d, qs + 32 * half + i);
      const size_t to = 128 * half + i, run = 4 * half;
      sink(d, map(d, hn::And(bytes, three), i, run), to);
      sink(d, map(d, hn::And(hn::ShiftRight<2>(bytes), three), i, run + 1), to + 32);
      sink(d, map(d, hn::And(hn::ShiftRight<4>(bytes), three), i, run + 2), to + 64);
      sink(d, map(d, hn::ShiftRight<6>(bytes), i, run + 3), to + 96);
    }
  }
}

// Codes of base 3, minus one: five digits a byte (kernels/codec_simple.h), `stride` bytes at once.
template <class D>
HWY_INLINE void UnpackTernary(D d, const uint8_t* qs, size_t stride, int digits, int8_t* codes) {
  const auto one = hn::Set(d, uint8_t{1});
  for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
    auto bytes = hn::LoadU(d, qs + i);
    for (int n = 0; n < digits; ++n) {
      // 3 * byte / 256 is 0 below 86, 1 below 171, else 2.
      const auto low = hn::IfThenElseZero(hn::Lt(bytes, hn::Set(d, uint8_t{86})), one);
      const auto high = hn::IfThenElseZero(hn::Gt(bytes, hn::Set(d, uint8_t{170})), one);
      StoreCodes(d, hn::Sub(high, low), codes + static_cast<size_t>(n) * stride + i);
      bytes = hn::Add(bytes, hn::Add(bytes, bytes));
    }
  }
}

// out[i] = d * raw[i] for a multiple of eight integers.
template <size_t kCount, class Raw>
HWY_INLINE void ScaleIntegers(const Raw* raw, float d, float* out) {
  const hn::CappedTag<float, (kCount < 16 ? kCount : 16)> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<Raw, decltype(df)> dr;
  const auto factor = hn::Set(df, d);
  for (size_t i = 0; i < kCount; i += hn::Lanes(df)) {
    const auto wide = hn::PromoteTo(di, hn::LoadU(dr, raw + i));
    hn::StoreU(hn::Mul(factor, hn::ConvertTo(df, wide)), df, out + i);
  }
}

// out[i] = d * (2 * raw[i] + 1).
template <size_t kCount>
HWY_INLINE void ScaleOddIntegers(const uint8_t* raw, float d, float* out) {
  uint8_t odd[kCount];
  for (size_t i = 0; i < kCount; ++i) odd[i] = static_cast<uint8_t>(2 * raw[i] + 1);
  ScaleIntegers<kCount>(odd, d, out);
}

// The nibbles of bytes, low first.
template <size_t kBytes>
HWY_INLINE void NibblePairs(const uint8_t* bytes, uint8_t* out) {
  for (size_t i = 0; i < kBytes; ++i) {
    out[2 * i] = bytes[i] & 15;
    out[2 * i + 1] = bytes[i] >> 4;
  }
}

HWY_INLINE uint32_t LoadU32(const uint8_t* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Four bytes at once, for the packings of 6-bit scales.
inline constexpr uint32_t kLow6 = 0x3F3F3F3Fu, kLow4 = 0x0F0F0F0Fu, kLow2 = 0x03030303u;

// KScale and KMin of all groups, in the order of the groups.
HWY_INLINE void UnpackKScales(const uint8_t* packed, uint8_t* scales, uint8_t* mins) {
  const uint32_t a = LoadU32(packed), b = LoadU32(packed + 4), c = LoadU32(packed + 8);
  const uint32_t scale[2] = {a & kLow6, (c & kLow4) | ((a >> 6) & kLow2) << 4};
  const uint32_t min[2] = {b & kLow6, ((c >> 4) & kLow4) | ((b >> 6) & kLow2) << 4};
  std::memcpy(scales, scale, 8);
  std::memcpy(mins, min, 8);
}

HWY_INLINE void StoreWord(uint64_t codes, int8_t* to) { std::memcpy(to, &codes, sizeof(codes)); }

// What VisitCodes adds to codes so that they are not negative.
template <class Block>
inline constexpr uint8_t kStoredOffset = 128;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ4_0> = 8;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ4_1> = 0;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ5_0> = 16;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ5_1> = 0;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ2_K> = 0;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ3_K> = 4;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ4_K> = 0;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ5_K> = 0;
template <>
inline constexpr uint8_t kStoredOffset<BlockQ6_K> = 32;
template <>
inline constexpr uint8_t kStoredOffset<BlockTQ2_0> = 1;

// --- Formats ---

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ4_0& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [](auto, auto q, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ4_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ4_1& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [](auto, auto q, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ4_1& b, float* scales, float* mins) {
  scales[0] = HalfToFloat(b.d);
  mins[0] = -HalfToFloat(b.m);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ5_0& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [&b](auto d, auto q, size_t i) HWY_ATTR {
    return hn::Or(q, BytesOfBits(d, b.qh + i / 8, 16));
  });
}
HWY_INLINE void UnpackScales(const BlockQ5_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ5_1& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [&b](auto d, auto q, size_t i) HWY_ATTR {
    return hn::Or(q, BytesOfBits(d, b.qh + i / 8, 16));
  });
}
HWY_INLINE void UnpackScales(const BlockQ5_1& b, float* scales, float* mins) {
  scales[0] = HalfToFloat(b.d);
  mins[0] = -HalfToFloat(b.m);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ8_0& b, const Sink& sink) {
  const Bytes32 d;
  for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
    const auto bytes = hn::LoadU(d, reinterpret_cast<const uint8_t*>(b.qs) + i);
    sink(d, hn::Xor(bytes, hn::Set(d, uint8_t{128})), i);
  }
}
HWY_INLINE void UnpackScales(const BlockQ8_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class Sink>
HWY_INLINE void VisitNibblesByTable(const uint8_t* qs, const int8_t* table16, const Sink& sink) {
  VisitSplitNibbles(qs, sink, [table16](auto d, auto q, size_t) HWY_ATTR {
    return hn::TableLookupBytes(StoredTable16(d, table16), q);
  });
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockIQ4_NL& b, const Sink& sink) {
  VisitNibblesByTable(b.qs, kIq4Values, sink);
}
HWY_INLINE void UnpackScales(const BlockIQ4_NL& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockMXFP4& b, const Sink& sink) {
  VisitNibblesByTable(b.qs, kFp4Doubled, sink);
}
HWY_INLINE void UnpackScales(const BlockMXFP4& b, float* scales, float*) {
  scales[0] = CodecMXFP4::Scale(b, 0);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ2_K& b, const Sink& sink) {
  VisitTwoBits(b.qs, sink, [](auto, auto q, size_t, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ2_K& b, float* scales, float* mins) {
  const Bytes16 d;
  uint8_t low[16], high[16];
  for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const auto bytes = hn::LoadU(d, b.scales + i);
    hn::StoreU(LowNibble(d, bytes), d, low + i);
    hn::StoreU(HighNibble(d, bytes), d, high + i);
  }
  ScaleIntegers<16>(low, HalfToFloat(b.d), scales);
  ScaleIntegers<16>(high, HalfToFloat(b.dmin), mins);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ3_K& b, const Sink& sink) {
  VisitTwoBits(b.qs, sink, [&b](auto d, auto q, size_t i, size_t run) HWY_ATTR {
    const auto high =
        BytesWithBit(d, hn::LoadU(d, b.hmask + i), static_cast<uint8_t>(1u << run), 4);
    return hn::Or(q, high);
  });
}
HWY_INLINE void UnpackScales(const BlockQ3_K& b, float* scales, float*) {
  const uint32_t a = LoadU32(b.scales), c = LoadU32(b.scales + 4), high = LoadU32(b.scales + 8);
  const uint32_t words[4] = {(a & kLow4) | (high & kLow2) << 4,
                             (c & kLow4) | ((high >> 2) & kLow2) << 4,
                             ((a >> 4) & kLow4) | ((high >> 4) & kLow2) << 4,
                             ((c >> 4) & kLow4) | ((high >> 6) & kLow2) << 4};
  int8_t raw[16];
  std::memcpy(raw, words, 16);
  for (int8_t& r : raw) r = static_cast<int8_t>(r - 32);
  ScaleIntegers<16>(raw, HalfToFloat(b.d), scales);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ4_K& b, const Sink& sink) {
  VisitKNibbles(b.qs, sink, [](auto, auto q, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ4_K& b, float* scales, float* mins) {
  uint8_t scale[8], min[8];
  UnpackKScales(b.scales, scale, min);
  ScaleIntegers<8>(scale, HalfToFloat(b.d), scales);
  ScaleIntegers<8>(min, HalfToFloat(b.dmin), mins);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ5_K& b, const Sink& sink) {
  VisitKNibbles(b.qs, sink, [&b](auto d, auto q, size_t i) HWY_ATTR {
    const auto high = hn::LoadU(d, b.qh + i % 32);
    return hn::Or(q, BytesWithBit(d, high, static_cast<uint8_t>(1u << (i / 32)), 16));
  });
}
HWY_INLINE void UnpackScales(const BlockQ5_K& b, float* scales, float* mins) {
  uint8_t scale[8], min[8];
  UnpackKScales(b.scales, scale, min);
  ScaleIntegers<8>(scale, HalfToFloat(b.d), scales);
  ScaleIntegers<8>(min, HalfToFloat(b.dmin), mins);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockQ6_K& b, const Sink& sink) {
  const Bytes32 d;
  const auto mask = hn::Set(d, uint8_t{0x30});
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
      const auto a = hn::LoadU(d, b.ql + 64 * half + i);
      const auto c = hn::LoadU(d, b.ql + 64 * half + 32 + i);
      const auto high = hn::LoadU(d, b.qh + 32 * half + i);
      const size_t to = 128 * half + i;
      const auto store = [&](auto low, auto bits, size_t at)
                             HWY_ATTR { sink(d, hn::Or(low, hn::And(bits, mask)), at); };
      store(LowNibble(d, a), hn::ShiftLeft<4>(high), to);
      store(LowNibble(d, c), hn::ShiftLeft<2>(high), to + 32);
      store(HighNibble(d, a), high, to + 64);
      store(HighNibble(d, c), hn::ShiftRight<2>(high), to + 96);
    }
  }
}
HWY_INLINE void UnpackScales(const BlockQ6_K& b, float* scales, float*) {
  ScaleIntegers<16>(b.scales, HalfToFloat(b.d), scales);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockIQ4_XS& b, const Sink& sink) {
  for (size_t g = 0; g < 8; ++g) {
    const auto shifted = [&sink, g](auto d, auto stored, size_t i)
                             HWY_ATTR { sink(d, stored, 32 * g + i); };
    VisitNibblesByTable(b.qs + 16 * g, kIq4Values, shifted);
  }
}
HWY_INLINE void UnpackScales(const BlockIQ4_XS& b, float* scales, float*) {
  int8_t raw[8];
  for (int g = 0; g < 8; ++g) {
    const int low = (b.scales_l[g / 2] >> (4 * (g % 2))) & 15;
    raw[g] = static_cast<int8_t>((low | ((b.scales_h >> (2 * g)) & 3) << 4) - 32);
  }
  ScaleIntegers<8>(raw, HalfToFloat(b.d), scales);
}

HWY_INLINE void UnpackCodes(const BlockTQ1_0& b, int8_t* codes) {
  UnpackTernary(Bytes32(), b.qs, 32, 5, codes);
  UnpackTernary(Bytes16(), b.qs + 32, 16, 5, codes + 160);
  UnpackTernary(hn::CappedTag<uint8_t, 4>(), b.qh, 4, 4, codes + 240);
}
HWY_INLINE void UnpackScales(const BlockTQ1_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class Sink>
HWY_INLINE void VisitCodes(const BlockTQ2_0& b, const Sink& sink) {
  VisitTwoBits(b.qs, sink, [](auto, auto q, size_t, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockTQ2_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

HWY_INLINE void UnpackCodes(const BlockIQ2_XXS& b, int8_t* codes) {
  for (int g = 0; g < 8; ++g) {
    const uint32_t signs = CodecIQ2_XXS::SignsAndScale(b, g);
    for (int n = 0; n < 4; ++n) {
      const uint64_t point = kPointsIQ2_XXS.at[CodecIQ2_XXS::Index(b, 4 * g + n)];
      StoreWord(NegateBytes(point, kSignMasks.even[(signs >> (7 * n)) & 127]), codes);
      codes += 8;
    }
  }
}
HWY_INLINE void UnpackScales(const BlockIQ2_XXS& b, float* scales, float*) {
  uint8_t raw[8];
  for (int g = 0; g < 8; ++g) raw[g] = static_cast<uint8_t>(b.qs[4 * g + 3] >> 12);
  ScaleOddIntegers<8>(raw, HalfToFloat(b.d) * 0.125f, scales);
}

HWY_INLINE void UnpackCodes(const BlockIQ2_XS& b, int8_t* codes) {
  for (int p = 0; p < 32; ++p) {
    const uint64_t point = kPointsIQ2_XS.at[b.qs[p] & 511];
    StoreWord(NegateBytes(point, kSignMasks.even[b.qs[p] >> 9]), codes + 8 * p);
  }
}
HWY_INLINE void UnpackScales(const BlockIQ2_XS& b, float* scales, float*) {
  uint8_t raw[16];
  NibblePairs<8>(b.scales, raw);
  ScaleOddIntegers<16>(raw, HalfToFloat(b.d) * 0.125f, scales);
}

HWY_INLINE void UnpackCodes(const BlockIQ2_S& b, int8_t* codes) {
  for (int p = 0; p < 32; ++p) {
    const uint64_t point = kPointsIQ2_S.at[CodecIQ2_S::Index(b, p)];
    StoreWord(NegateBytes(point, kSignMasks.all[b.qs[32 + p]]), codes + 8 * p);
  }
}
HWY_INLINE void UnpackScales(const BlockIQ2_S& b, float* scales, float*) {
  uint8_t raw[16];
  NibblePairs<8>(b.scales, raw);
  ScaleOddIntegers<16>(raw, HalfToFloat(b.d) * 0.125f, scales);
}

HWY_INLINE void UnpackCodes(const BlockIQ3_XXS& b, int8_t* codes) {
  for (int g = 0; g < 8; ++g) {
    const uint32_t signs = CodecIQ3_XXS::SignsAndScale(b, g);
    for (int n = 0; n < 4; ++n) {
      const uint8_t* pair = b.qs + 8 * g + 2 * n;
      const uint64_t points = kPointsIQ3_XXS.at[pair[0]] | uint64_t{kPointsIQ3_XXS.at[pair[1]]}
                                                               << 32;
      StoreWord(NegateBytes(points, kSignMasks.even[(signs >> (7 * n)) & 127]), codes);
      codes += 8;
    }
  }
}
HWY_INLINE void UnpackScales(const BlockIQ3_XXS& b, float* scales, float*) {
  uint8_t raw[8];
  for (int g = 0; g < 8; ++g) raw[g] = b.qs[64 + 4 * g + 3] >> 4;
  ScaleOddIntegers<8>(raw, HalfToFloat(b.d) * 0.25f, scales);
}

HWY_INLINE void UnpackCodes(const BlockIQ3_S& b, int8_t* codes) {
  for (int n = 0; n < 32; ++n) {
    const uint64_t points = kPointsIQ3_S.at[CodecIQ3_S::Index(b, 2 * n)] |
                            uint64_t{kPointsIQ3_S.at[CodecIQ3_S::Index(b, 2 * n + 1)]} << 32;
    StoreWord(NegateBytes(points, kSignMasks.all[b.signs[n]]), codes + 8 * n);
  }
}
HWY_INLINE void UnpackScales(const BlockIQ3_S& b, float* scales, float*) {
  uint8_t raw[8];
  NibblePairs<4>(b.scales, raw);
  ScaleOddIntegers<8>(raw, HalfToFloat(b.d), scales);
}

inline constexpr uint64_t kOnes = 0x0101010101010101u, kMinusOnes = ~uint64_t{0};

HWY_INLINE void UnpackCodes(const BlockIQ1_S& b, int8_t* codes) {
  for (int p = 0; p < 32; ++p) {
    const uint64_t shift = b.qh[p / 4] >> 15 ? kMinusOnes : kOnes;
    StoreWord(AddBytes(kPointsIQ1.at[CodecIQ1_S::Index(b, p)], shift), codes + 8 * p);
  }
}
HWY_INLINE void UnpackScales(const BlockIQ1_S& b, float* scales, float*) {
  uint8_t raw[8];
  for (int g = 0; g < 8; ++g) raw[g] = (b.qh[g] >> 12) & 7;
  ScaleOddIntegers<8>(raw, HalfToFloat(b.d) * 0.125f, scales);
}

HWY_INLINE void UnpackCodes(const BlockIQ1_M& b, int8_t* codes) {
  for (int p = 0; p < 32; ++p) {
    const uint64_t shift = CodecIQ1_M::HighNibble(b, p) & 8 ? kMinusOnes : kOnes;
    StoreWord(AddBytes(kPointsIQ1.at[CodecIQ1_M::Index(b, p)], shift), codes + 8 * p);
  }
}
HWY_INLINE void UnpackScales(const BlockIQ1_M& b, float* scales, float*) {
  uint8_t raw[16];
  for (int g = 0; g < 16; ++g) {
    raw[g] = static_cast<uint8_t>((CodecIQ1_M::ScaleWord(b, g / 4) >> (3 * (g % 4))) & 7);
  }
  ScaleOddIntegers<16>(raw, HalfToFloat(CodecIQ1_M::SuperScale(b)) * 0.125f, scales);
}

// --- Each of the two from the other ---

template <class Block>
HWY_INLINE void UnpackCodes(const Block& b, int8_t* codes) {
  VisitCodes(b, [codes](auto d, auto stored, size_t i) HWY_ATTR {
    StoreCodes(d, hn::Sub(stored, hn::Set(d, kStoredOffset<Block>)), codes + i);
  });
}

// Ternary digits and points of codebooks: scattered, so that they pass through memory.
template <class Block, class Sink>
HWY_INLINE void VisitCodes(const Block& b, const Sink& sink) {
  alignas(64) int8_t codes[256];
  UnpackCodes(b, codes);
  const Bytes32 d;
  for (size_t i = 0; i < 256; i += hn::Lanes(d)) {
    const auto bytes = hn::Load(d, reinterpret_cast<const uint8_t*>(codes) + i);
    sink(d, hn::Xor(bytes, hn::Set(d, uint8_t{128})), i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_UNPACK_INL_H_
