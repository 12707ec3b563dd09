#include "kernels/pack_bf16.h"

#include <cstring>
#include <type_traits>

// Decoded for the tile unit, which only processors of the last target have: the others would be
// copies that nobody runs, and take time to compile.
#ifndef HWY_DISABLED_TARGETS  // set for the sanitizers
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | HWY_AVX3 | HWY_AVX3_ZEN4)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pack_bf16.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/packed-inl.h"
#include "kernels/unpack-inl.h"
#include "kernels/visit_codec.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int kChunk = 32;

// A vector of floats whose pair rounds to one vector of bf16.
using DF = hn::CappedTag<float, 16>;
using DB = hn::Repartition<hwy::bfloat16_t, DF>;

HWY_INLINE void StorePair(hn::Vec<DF> low, hn::Vec<DF> high, uint16_t* out) {
  hn::StoreU(hn::OrderedDemote2To(DB(), low, high), DB(), reinterpret_cast<hwy::bfloat16_t*>(out));
}

// 32 codes in groups of kGroup (16, or 32 and more) to bf16, rounded as the exact weight rounds.
template <int kGroup, bool kHasMin>
HWY_INLINE void ScaleChunk(const int8_t* codes, const float* scales, const float* mins,
                           uint16_t* out) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<int8_t, DF> d8;
  const size_t lanes = hn::Lanes(df);
  const auto weight = [&](size_t i) HWY_ATTR {
    const size_t group = i / static_cast<size_t>(kGroup);
    const auto code = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, codes + i)));
    auto w = hn::Mul(code, hn::Set(df, scales[group]));
    if constexpr (kHasMin) w = hn::Sub(w, hn::Set(df, mins[group]));
    return w;
  };
  for (size_t i = 0; i < kChunk; i += 2 * lanes) StorePair(weight(i), weight(i + lanes), out + i);
}

// Bits of a format's stored codes (codes plus kStoredOffset) where there are at most 32 of them,
// and vectors of sixteen lanes in which to look up what they stand for; else 0.
template <class Codec>
constexpr int LookUpBits() {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  constexpr bool kFour = std::is_same_v<Codec, CodecQ4_0> || std::is_same_v<Codec, CodecQ4_1> ||
                         std::is_same_v<Codec, CodecQ2_K> || std::is_same_v<Codec, CodecQ3_K> ||
                         std::is_same_v<Codec, CodecQ4_K> || std::is_same_v<Codec, CodecTQ2_0>;
  constexpr bool kFive = std::is_same_v<Codec, CodecQ5_0> || std::is_same_v<Codec, CodecQ5_1> ||
                         std::is_same_v<Codec, CodecQ5_K>;
  return kFour ? 4 : kFive ? 5 : 0;
#else
  return 0;
#endif
}

// As ScaleChunk, from stored codes: what each stands for is computed once for a group.
template <class Codec>
HWY_INLINE void LookUpChunk(const uint8_t* stored, const float* scales, const float* mins,
                            uint16_t* out) {
  constexpr bool kTwoGroups = Codec::kGroup < kChunk;
  constexpr bool kFive = LookUpBits<Codec>() == 5;
  constexpr float kOffset = kStoredOffset<typename Codec::Block>;
  const DF df;
  const hn::Repartition<uint16_t, DF> d16;
  const hn::Rebind<uint8_t, decltype(d16)> d8;
  const auto weights = [&](float first, size_t group) HWY_ATTR {
    auto w = hn::Mul(hn::Iota(df, first), hn::Set(df, scales[group]));
    if constexpr (Codec::kHasMin) w = hn::Sub(w, hn::Set(df, mins[group]));
    return w;
  };
  // Entries 0-15 and 16-31: of 32 codes; of 16 codes in each of two groups; or of 16 codes twice.
  const auto low = weights(-kOffset, 0);
  const auto high = kFive ? weights(16 - kOffset, 0) : kTwoGroups ? weights(-kOffset, 1) : low;
  const auto table = hn::BitCast(d16, hn::OrderedDemote2To(DB(), low, high));
  auto index = hn::PromoteTo(d16, hn::LoadU(d8, stored));
  if constexpr (kTwoGroups) {
    const auto second = hn::Ge(hn::Iota(d16, 0), hn::Set(d16, uint16_t{16}));
    index = hn::Or(index, hn::IfThenElseZero(second, hn::Set(d16, uint16_t{16})));
  }
  hn::StoreU(hn::TableLookupLanes(table, hn::IndicesFromVec(d16, index)), d16, out);
}

template <class Codec>
void DecodeBlocksBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                      uint16_t* out, int64_t stride) {
  using Block = typename Codec::Block;
  constexpr int kGroup = Codec::kGroup;
  const Block* block =
      reinterpret_cast<const Block*>(static_cast<const std::byte*>(weights.source) +
                                     row * weights.row_bytes) +
      col / Codec::kWeights;
  alignas(64) int8_t codes[Codec::kWeights];
  uint8_t* stored = reinterpret_cast<uint8_t*>(codes);
  float scales[Codec::kWeights / kGroup];
  float mins[Codec::kWeights / kGroup];
  for (int64_t i = 0; i < count; i += Codec::kWeights, ++block) {
    UnpackScales(*block, scales, mins);
    if constexpr (LookUpBits<Codec>() > 0) {
      VisitCodes(Bytes32(), *block, [stored](auto d, auto bytes, size_t at) HWY_ATTR {
        hn::StoreU(bytes, d, stored + at);
      });
    } else {
      UnpackCodes(*block, codes);
    }
    for (int c = 0; c < Codec::kWeights; c += kChunk, out += stride) {
      const float *s = scales + c / kGroup, *m = mins + c / kGroup;
      if constexpr (LookUpBits<Codec>() > 0) {
        LookUpChunk<Codec>(stored + c, s, m, out);
      } else {
        ScaleChunk<kGroup, Codec::kHasMin>(codes + c, s, m, out);
      }
    }
  }
}

// --- Numbers ---

// Vectors of DF from numbers at any address.
HWY_INLINE VF LoadNumbers(const float* from, DF df) { return hn::LoadU(df, from); }
HWY_INLINE VF LoadNumbers(const hwy::float16_t* from, DF df) {
  return hn::PromoteTo(df, hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), from));
}

template <class Number>
void DecodeNumbersBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                       uint16_t* out, int64_t stride) {
  const DF df;
  const hn::Repartition<uint16_t, DF> d16;
  const size_t lanes = hn::Lanes(df);
  const Number* numbers = reinterpret_cast<const Number*>(
      static_cast<const std::byte*>(weights.source) + row * weights.row_bytes);
  numbers += col;
  const auto chunk = [&](const Number* from) HWY_ATTR {
    for (size_t i = 0; i < kChunk; i += 2 * lanes) {
      if constexpr (std::is_same_v<Number, uint16_t>) {
        hn::StoreU(hn::LoadU(d16, from + i), d16, out + i);
      } else {
        StorePair(LoadNumbers(from + i, df), LoadNumbers(from + i + lanes, df), out + i);
      }
    }
  };
  for (; count >= kChunk; count -= kChunk, numbers += kChunk, out += stride) chunk(numbers);
  if (count == 0) return;
  Number last[kChunk];
  std::memset(last, 0, sizeof(last));
  std::memcpy(last, numbers, static_cast<size_t>(count) * sizeof(Number));
  chunk(last);
}

// --- Packed tiles ---

// Shifts left by kBy, or right where it is negative.
template <int kBy, class V>
HWY_INLINE V Shift(V v) {
  if constexpr (kBy > 0) return hn::ShiftLeft<kBy>(v);
  if constexpr (kBy < 0) return hn::ShiftRight<-kBy>(v);
  return v;
}

// Sixteen rows' weights of column kColumn of quad kQuad, scaled. Stored codes are laid into the
// upper mantissa bits of 256, which makes them 256 + code without a conversion; `start` is what
// that and the offset, times the scale, are too much, and the minimum. A single rounding, and
// exact where scales are halves.
template <class Packed, int kQuad, int kColumn>
HWY_INLINE VF DecodeColumn(const uint8_t* chunk, VF scale, VF start) {
  const hn::RebindToUnsigned<DF> du;
  constexpr bool kInPlane = Packed::kHighBits == 0 && !Packed::kHasTable;
  constexpr QuadPlace kPlace = PlaceOf(Packed::kLowBits, kQuad);
  constexpr int kBits = Packed::kHasTable ? 8 : Packed::kLowBits + Packed::kHighBits;
  constexpr int kFirst = 8 * kColumn + (kInPlane ? kPlace.shift : 0);  // bit of the code
  V8 bytes;
  if constexpr (kInPlane) {
    bytes = hn::LoadU(D8(), chunk + 64 * kPlace.vector);
  } else {
    bytes = LoadQuad<Packed, kQuad>(chunk);
  }
  constexpr int kMantissaBit = 15;  // of 1 beside 256
  const auto moved = Shift<kMantissaBit - kFirst>(hn::BitCast(du, bytes));
  const auto mask = hn::Set(du, ((1u << kBits) - 1) << kMantissaBit);
  const auto number = hn::OrAnd(hn::BitCast(du, hn::Set(DF(), 256.0f)), moved, mask);
  return hn::MulAdd(hn::BitCast(DF(), number), scale, start);
}

// Two columns of sixteen rows as bf16, side by side, rounded to nearest and away from zero where
// both are.
HWY_INLINE void StoreColumns(VF even, VF odd, uint16_t* out) {
  const hn::RebindToUnsigned<DF> du;
  const auto half = hn::Set(du, 0x8000u);
  const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(du, even), half));
  const auto high = hn::Add(hn::BitCast(du, odd), half);
  hn::StoreU(hn::OrAnd(low, high, hn::Set(du, 0xFFFF0000u)), du, reinterpret_cast<uint32_t*>(out));
}

template <class Packed>
void DecodeTileBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                    uint16_t* out, int64_t stride) {
  constexpr int kParts = Packed::kGroup == 16 ? 2 : 1;  // each with a scale of its own
  constexpr int kPartQuads = kQuads / kParts;
  const uint8_t* tile = reinterpret_cast<const uint8_t*>(weights.codes) + row * weights.row_bytes;
  for (int64_t k = col; k < col + count; k += kChunk, out += stride) {
    const uint8_t* block = tile + k / Packed::kWeights * Packed::kBlockBytes;
    const int c = static_cast<int>(k % Packed::kWeights);
    const uint8_t* chunk = block + Packed::kScaleBytes + c / kPackCols * Packed::kChunkBytes;
    for (size_t r = 0; r < kPackRows; r += hn::Lanes(DF())) {
      const auto part = [&](auto number) HWY_ATTR {
        constexpr int kPart = decltype(number)::value;
        const Scale s = LoadScale<Packed>(block, r, c / Packed::kGroup + kPart);
        VF start = hn::Mul(s.scale, hn::Set(DF(), -256.0f - Packed::kOffset));
        if constexpr (Packed::kHasMin) start = hn::Sub(start, s.min);
        const auto quad = [&](auto within) HWY_ATTR {
          constexpr int kQuad = kPart * kPartQuads + decltype(within)::value;
          const uint8_t* from = chunk + 4 * r;
          uint16_t* to = out + 2 * kQuad * kChunk + 2 * r;
          StoreColumns(DecodeColumn<Packed, kQuad, 0>(from, s.scale, start),
                       DecodeColumn<Packed, kQuad, 1>(from, s.scale, start), to);
          StoreColumns(DecodeColumn<Packed, kQuad, 2>(from, s.scale, start),
                       DecodeColumn<Packed, kQuad, 3>(from, s.scale, start), to + kChunk);
        };
        Unroll<kPartQuads>(quad);
      };
      Unroll<kParts>(part);
    }
  }
}

void RoundToBf16(const float* values, int64_t count, uint16_t* out, int64_t stride) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  for (int64_t k = 0; k < count; k += kChunk, values += kChunk, out += stride) {
    for (size_t i = 0; i < kChunk; i += 2 * lanes) {
      StorePair(hn::LoadU(df, values + i), hn::LoadU(df, values + i + lanes), out + i);
    }
  }
}

WeightRows::DecodeBf16 FindDecodeBf16(Format format) {
  if (format == Format::kF32) return DecodeNumbersBf16<float>;
  if (format == Format::kF16) return DecodeNumbersBf16<hwy::float16_t>;
  if (format == Format::kBF16) return DecodeNumbersBf16<uint16_t>;
  WeightRows::DecodeBf16 found = nullptr;
  VisitCodec(format, [&](auto codec) { found = DecodeBlocksBf16<decltype(codec)>; });
  return found;
}

WeightRows::DecodeBf16 FindDecodePackedBf16(Format format) {
  WeightRows::DecodeBf16 found = nullptr;
  VisitPacked(format, [&](auto packed) { found = DecodeTileBf16<decltype(packed)>; });
  return found;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(FindDecodeBf16);
HWY_EXPORT(FindDecodePackedBf16);
HWY_EXPORT(RoundToBf16);

WeightRows::DecodeBf16 FindDecodeBf16(Format format) {
  return NIBBLE_DISPATCH(FindDecodeBf16)(format);
}

WeightRows::DecodeBf16 FindDecodePackedBf16(Format format) {
  return NIBBLE_DISPATCH(FindDecodePackedBf16)(format);
}

void DecodeBf16ByFloat(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                       uint16_t* out, int64_t stride) {
  float values[kBlockCols];
  weights.decode(weights, row, col, count, values);
  const int64_t padded = RoundUp(count, 32);
  std::memset(values + count, 0, static_cast<size_t>(padded - count) * sizeof(float));
  NIBBLE_DISPATCH(RoundToBf16)(values, padded, out, stride);
}

}  // namespace nibble
#endif  // HWY_ONCE
