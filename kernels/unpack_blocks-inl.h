// The primitives of kernels/unpack-inl.h and the formats whose codes are computed from their bits.
#if defined(NIBBLE_KERNELS_UNPACK_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_UNPACK_BLOCKS_INL_H_
#undef NIBBLE_KERNELS_UNPACK_BLOCKS_INL_H_
#else
#define NIBBLE_KERNELS_UNPACK_BLOCKS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/codec.h"
#include "kernels/code_order.h"
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

// Whether vectors of D hold two runs.
template <class D>
constexpr bool IsWide(D d) {
  return hn::MaxLanes(d) > 32;
}

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

// Bit `from` of each byte as bit `to`, all others 0.
template <class D, class V>
HWY_INLINE V MoveBit(D d, V bytes, size_t from, size_t to) {
  const hn::Repartition<uint16_t, D> d16;
  const auto pairs = hn::BitCast(d16, bytes);
  const auto moved = from > to ? hn::ShiftRightSame(pairs, static_cast<int>(from - to))
                               : hn::ShiftLeftSame(pairs, static_cast<int>(to - from));
  return hn::And(hn::BitCast(d, moved), hn::Set(d, static_cast<uint8_t>(1u << to)));
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

// Bytes i, i + 1, ... of 32, or where a vector holds twice as many all of them and again all of
// them, shifted.
template <int kShift, class D>
HWY_INLINE hn::VFromD<D> LoadTwice(D d, const uint8_t* from, size_t i) {
  if constexpr (IsWide(D())) {
    const auto bytes = hn::LoadU(hn::Half<D>(), from);
    return hn::Combine(d, hn::ShiftRight<kShift>(bytes), bytes);
  } else {
    return hn::LoadU(d, from + i);
  }
}

// 256 nibbles in 128 bytes: 32 bytes hold 64 weights, low halves first. map(d, nibbles, place).
template <class D, class Sink, class Map>
HWY_INLINE void VisitKNibbles(D d, const uint8_t* qs, const Sink& sink, const Map& map) {
  constexpr size_t kRun = IsWide(D()) ? 64 : 32;
  for (size_t i = 0; i < 128; i += hn::Lanes(d)) {
    const auto bytes = hn::LoadU(d, qs + i);
    const size_t place = i / kRun * 2 * kRun + i % kRun;
    sink(d, map(d, LowNibble(d, bytes), place), place);
    sink(d, map(d, HighNibble(d, bytes), place + kRun), place + kRun);
  }
}

// 256 codes of two bits in 64 bytes: 32 bytes hold 128 weights, in four runs of 32, lowest bits
// first. map(d, two bits, byte within the run, run), where a wide vector holds runs r and r + 4.
template <class D, class Sink, class Map>
HWY_INLINE void VisitTwoBits(D d, const uint8_t* qs, const Sink& sink, const Map& map) {
  constexpr size_t kRun = IsWide(D()) ? 64 : 32;
  const auto three = hn::Set(d, uint8_t{3});
  for (size_t i = 0; i < 64; i += hn::Lanes(d)) {
    const auto bytes = hn::LoadU(d, qs + i);
    const size_t run = i / kRun * 4, at = i % kRun, place = run * kRun + at;
    sink(d, map(d, hn::And(bytes, three), at, run), place);
    sink(d, map(d, hn::And(hn::ShiftRight<2>(bytes), three), at, run + 1), place + kRun);
    sink(d, map(d, hn::And(hn::ShiftRight<4>(bytes), three), at, run + 2), place + 2 * kRun);
    sink(d, map(d, hn::ShiftRight<6>(bytes), at, run + 3), place + 3 * kRun);
  }
}

// The first of the base-3 digits of each byte (kernels/codec_simple.h), 3 * byte / 256: three
// quarters of it, rounded so that 85 and 170 stay below the next digit, over 64.
template <class D, class V>
HWY_INLINE V TernaryDigits(D d, V bytes) {
  const auto less = hn::SaturatedSub(bytes, hn::Set(d, uint8_t{1}));
  const auto half = hn::AverageRound(less, hn::Zero(d));
  return hn::ShiftRight<6>(hn::AverageRound(less, half));
}

// Five digits a byte, `stride` bytes at once, from code `at` on.
template <class D, class Sink>
HWY_INLINE void VisitTernary(D d, const uint8_t* qs, size_t stride, size_t at, const Sink& sink) {
  for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
    auto bytes = hn::LoadU(d, qs + i);
    for (size_t n = 0; n < 5; ++n) {
      sink(d, TernaryDigits(d, bytes), at + n * stride + i);
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

// out[i] = d * raw byte i, for eight or sixteen in the order of their places in one or two words.
// Through vectors: loads of what two stores wrote would have to wait for both.
template <class Raw>
HWY_INLINE void ScaleBytes(uint64_t raw, float d, float* out) {
  ScaleIntegers<8>(reinterpret_cast<const Raw*>(&raw), d, out);
}
template <class Raw>
HWY_INLINE void ScaleBytes(uint64_t low, uint64_t high, float d, float* out) {
  const hn::CappedTag<uint64_t, 2> d64;
  alignas(16) uint64_t raw[2];
  const auto both = hn::Dup128VecFromValues(d64, low, high);
  hn::Store(both, d64, raw);
  ScaleIntegers<16>(reinterpret_cast<const Raw*>(raw), d, out);
}

HWY_INLINE uint32_t LoadU32(const uint8_t* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// The nibbles of four bytes, low first, one to each byte.
HWY_INLINE uint64_t SpreadNibbles(uint64_t word) {
  word = (word | word << 16) & 0x0000FFFF0000FFFFu;
  word = (word | word << 8) & 0x00FF00FF00FF00FFu;
  return (word | word << 4) & 0x0F0F0F0F0F0F0F0Fu;
}

// 3 times each byte, modulo 256.
HWY_INLINE uint64_t TripleBytes(uint64_t bytes) { return AddBytes(bytes, AddBytes(bytes, bytes)); }

// Four bytes at once, for the packings of 6-bit scales.
inline constexpr uint32_t kLow6 = 0x3F3F3F3Fu, kLow4 = 0x0F0F0F0Fu, kLow2 = 0x03030303u;

// d * KScale and dmin * KMin of all groups.
HWY_INLINE void UnpackKScales(const uint8_t* packed, F16 d, F16 dmin, float* scales, float* mins) {
  const uint32_t a = LoadU32(packed), b = LoadU32(packed + 4), c = LoadU32(packed + 8);
  const uint64_t scale = (a & kLow6) | uint64_t{(c & kLow4) | ((a >> 6) & kLow2) << 4} << 32;
  const uint64_t min = (b & kLow6) | uint64_t{((c >> 4) & kLow4) | ((b >> 6) & kLow2) << 4} << 32;
  ScaleBytes<uint8_t>(scale, HalfToFloat(d), scales);
  ScaleBytes<uint8_t>(min, HalfToFloat(dmin), mins);
}

// 2^(e - 128) in each lane: below e = 2 a subnormal number, whose bits a shift does not make.
template <class DF>
HWY_INLINE hn::Vec<DF> PowersOfTwo(DF df, hn::Vec<hn::RebindToSigned<DF>> e) {
  const hn::RebindToSigned<DF> di;
  const auto normal = hn::ShiftLeft<23>(hn::Sub(e, hn::Set(di, 1)));
  const auto small =
      hn::IfThenElse(hn::Eq(e, hn::Zero(di)), hn::Set(di, 0x00200000), hn::Set(di, 0x00400000));
  return hn::BitCast(df, hn::IfThenElse(hn::Lt(e, hn::Set(di, 2)), small, normal));
}

// The order in which VisitCodes gives the codes of a super-block to wide vectors.
template <class Block>
inline constexpr CodeOrder kWideOrder = CodeOrder::kNatural;
template <>
inline constexpr CodeOrder kWideOrder<BlockQ2_K> = CodeOrder::kTwoBits;
template <>
inline constexpr CodeOrder kWideOrder<BlockQ3_K> = CodeOrder::kTwoBits;
template <>
inline constexpr CodeOrder kWideOrder<BlockQ4_K> = CodeOrder::kKNibbles;
template <>
inline constexpr CodeOrder kWideOrder<BlockQ5_K> = CodeOrder::kKNibbles;
template <>
inline constexpr CodeOrder kWideOrder<BlockTQ2_0> = CodeOrder::kTwoBits;
template <>
inline constexpr CodeOrder kWideOrder<BlockIQ4_XS> = CodeOrder::kSplitNibbles;

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
inline constexpr uint8_t kStoredOffset<BlockTQ1_0> = 1;
template <>
inline constexpr uint8_t kStoredOffset<BlockTQ2_0> = 1;

// --- Formats ---

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockQ4_0& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [](auto, auto q, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ4_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockQ4_1& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [](auto, auto q, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ4_1& b, float* scales, float* mins) {
  scales[0] = HalfToFloat(b.d);
  mins[0] = -HalfToFloat(b.m);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockQ5_0& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [&b](auto d, auto q, size_t i) HWY_ATTR {
    return hn::Or(q, BytesOfBits(d, b.qh + i / 8, 16));
  });
}
HWY_INLINE void UnpackScales(const BlockQ5_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockQ5_1& b, const Sink& sink) {
  VisitSplitNibbles(b.qs, sink, [&b](auto d, auto q, size_t i) HWY_ATTR {
    return hn::Or(q, BytesOfBits(d, b.qh + i / 8, 16));
  });
}
HWY_INLINE void UnpackScales(const BlockQ5_1& b, float* scales, float* mins) {
  scales[0] = HalfToFloat(b.d);
  mins[0] = -HalfToFloat(b.m);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockQ8_0& b, const Sink& sink) {
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

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockIQ4_NL& b, const Sink& sink) {
  VisitNibblesByTable(b.qs, kIq4Values, sink);
}
HWY_INLINE void UnpackScales(const BlockIQ4_NL& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D, const BlockMXFP4& b, const Sink& sink) {
  VisitNibblesByTable(b.qs, kFp4Doubled, sink);
}
HWY_INLINE void UnpackScales(const BlockMXFP4& b, float* scales, float*) {
  scales[0] = CodecMXFP4::Scale(b, 0);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockQ2_K& b, const Sink& sink) {
  VisitTwoBits(d, b.qs, sink, [](auto, auto q, size_t, size_t) HWY_ATTR { return q; });
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

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockQ3_K& b, const Sink& sink) {
  VisitTwoBits(d, b.qs, sink, [&b](auto d, auto q, size_t i, size_t run) HWY_ATTR {
    const auto high = LoadTwice<4>(d, b.hmask, i);
    return hn::Or(q, MoveBit(d, high, run, 2));
  });
}
HWY_INLINE void UnpackScales(const BlockQ3_K& b, float* scales, float*) {
  uint64_t nibbles;
  std::memcpy(&nibbles, b.scales, 8);
  const uint64_t top = LoadU32(b.scales + 8);
  const uint64_t low_top = (top & kLow2) | (top >> 2 & kLow2) << 32;
  const uint64_t high_top = (top >> 4 & kLow2) | (top >> 6 & kLow2) << 32;
  const uint64_t four = uint64_t{kLow4} << 32 | kLow4, minus32 = 0xE0E0E0E0E0E0E0E0u;
  ScaleBytes<int8_t>(AddBytes((nibbles & four) | low_top << 4, minus32),
                     AddBytes((nibbles >> 4 & four) | high_top << 4, minus32), HalfToFloat(b.d),
                     scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockQ4_K& b, const Sink& sink) {
  VisitKNibbles(d, b.qs, sink, [](auto, auto q, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockQ4_K& b, float* scales, float* mins) {
  UnpackKScales(b.scales, b.d, b.dmin, scales, mins);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockQ5_K& b, const Sink& sink) {
  VisitKNibbles(d, b.qs, sink, [&b](auto d, auto q, size_t place) HWY_ATTR {
    const auto high = LoadTwice<2>(d, b.qh, place % 32);
    const size_t bit = IsWide(d) ? place / 128 * 4 + place / 64 % 2 : place / 32;
    return hn::Or(q, MoveBit(d, high, bit, 4));
  });
}
HWY_INLINE void UnpackScales(const BlockQ5_K& b, float* scales, float* mins) {
  UnpackKScales(b.scales, b.d, b.dmin, scales, mins);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockQ6_K& b, const Sink& sink) {
  const auto mask = hn::Set(d, uint8_t{0x30});
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < 64; i += hn::Lanes(d)) {
      const auto bytes = hn::LoadU(d, b.ql + 64 * half + i);
      auto high = LoadTwice<2>(d, b.qh + 32 * half, i % 32);
      if (i >= 32) high = hn::ShiftRight<2>(high);
      const size_t place = 128 * half + i;
      sink(d, hn::Or(LowNibble(d, bytes), hn::And(hn::ShiftLeft<4>(high), mask)), place);
      sink(d, hn::Or(HighNibble(d, bytes), hn::And(high, mask)), place + 64);
    }
  }
}
HWY_INLINE void UnpackScales(const BlockQ6_K& b, float* scales, float*) {
  ScaleIntegers<16>(b.scales, HalfToFloat(b.d), scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockIQ4_XS& b, const Sink& sink) {
  if constexpr (IsWide(D())) {
    const auto table = StoredTable16(d, kIq4Values);
    for (size_t i = 0; i < 128; i += 64) {
      const auto bytes = hn::LoadU(d, b.qs + i);
      sink(d, hn::TableLookupBytes(table, LowNibble(d, bytes)), 2 * i);
      sink(d, hn::TableLookupBytes(table, HighNibble(d, bytes)), 2 * i + 64);
    }
  } else {
    for (size_t g = 0; g < 8; ++g) {
      const auto shifted = [&sink, g](auto d, auto stored, size_t i)
                               HWY_ATTR { sink(d, stored, 32 * g + i); };
      VisitNibblesByTable(b.qs + 16 * g, kIq4Values, shifted);
    }
  }
}
HWY_INLINE void UnpackScales(const BlockIQ4_XS& b, float* scales, float*) {
  // Pairs of bits apart, one to each byte.
  uint64_t high = b.scales_h;
  high = (high | high << 24) & 0x000000FF000000FFu;
  high = (high | high << 12) & 0x000F000F000F000Fu;
  high = (high | high << 6) & 0x0303030303030303u;
  const uint64_t raw =
      AddBytes(SpreadNibbles(LoadU32(b.scales_l)) | high << 4, 0xE0E0E0E0E0E0E0E0u);  // - 32
  ScaleBytes<int8_t>(raw, HalfToFloat(b.d), scales);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockTQ1_0& b, const Sink& sink) {
  // Five digits of 32 bytes and of 16 and four of four make four wide runs.
  uint64_t last[2];
  last[0] = LoadU32(b.qh);
  last[0] |= TripleBytes(last[0]) << 32;
  last[1] = TripleBytes(TripleBytes(last[0]));
#if HWY_MAX_BYTES >= 32 && !HWY_HAVE_SCALABLE
  const auto triple = [](auto v) HWY_ATTR { return hn::Add(v, hn::Add(v, v)); };
  const auto nine_times = [](auto v) HWY_ATTR { return hn::Add(v, hn::ShiftLeft<3>(v)); };
  const Bytes16 d16;
  const Bytes32 d32;
  const hn::Repartition<uint64_t, Bytes16> d64;
  const auto rest = hn::BitCast(d16, hn::Dup128VecFromValues(d64, last[0], last[1]));
  const auto x0 = hn::LoadU(d32, b.qs);
  const auto y0 = hn::LoadU(d16, b.qs + 32);
  const auto y01 = hn::Combine(d32, triple(y0), y0), y23 = nine_times(y01);
  const auto y4 = nine_times(hn::LowerHalf(d16, y23));
  if constexpr (IsWide(D())) {
    const auto x01 = hn::Combine(d, triple(x0), x0), x23 = nine_times(x01);
    const auto x4 = nine_times(hn::LowerHalf(d32, x23));
    sink(d, TernaryDigits(d, x01), 0);
    sink(d, TernaryDigits(d, x23), 64);
    sink(d, TernaryDigits(d, hn::Combine(d, y01, x4)), 128);
    sink(d, TernaryDigits(d, hn::Combine(d, hn::Combine(d32, rest, y4), y23)), 192);
  } else {
    VisitTernary(d32, b.qs, 32, 0, sink);
    sink(d32, TernaryDigits(d32, y01), 160);
    sink(d32, TernaryDigits(d32, y23), 192);
    sink(d32, TernaryDigits(d32, hn::Combine(d32, rest, y4)), 224);
  }
#else
  const Bytes16 d16;
  VisitTernary(Bytes32(), b.qs, 32, 0, sink);
  VisitTernary(d16, b.qs + 32, 16, 160, sink);
  for (size_t i = 0; i < 16; i += hn::Lanes(d16)) {
    const auto rest = hn::LoadU(d16, reinterpret_cast<const uint8_t*>(last) + i);
    sink(d16, TernaryDigits(d16, rest), 240 + i);
  }
#endif
}
HWY_INLINE void UnpackScales(const BlockTQ1_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

template <class D, class Sink>
HWY_INLINE void VisitCodes(D d, const BlockTQ2_0& b, const Sink& sink) {
  VisitTwoBits(d, b.qs, sink, [](auto, auto q, size_t, size_t) HWY_ATTR { return q; });
}
HWY_INLINE void UnpackScales(const BlockTQ2_0& b, float* scales, float*) {
  scales[0] = HalfToFloat(b.d);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_UNPACK_BLOCKS_INL_H_
