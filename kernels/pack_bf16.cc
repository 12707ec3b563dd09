#include "kernels/pack_bf16.h"

#include <cstring>

#include "kernels/pack_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pack_bf16.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
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

template <class Codec>
void DecodeBlocksBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                      uint16_t* out, int64_t chunk_stride) {
  using Block = typename Codec::Block;
  constexpr int kGroup = Codec::kGroup;
  const Block* block =
      reinterpret_cast<const Block*>(static_cast<const std::byte*>(weights.source) +
                                     row * weights.row_bytes) +
      col / Codec::kWeights;
  int8_t codes[Codec::kWeights];
  float scales[Codec::kWeights / kGroup];
  float mins[Codec::kWeights / kGroup];
  for (int64_t i = 0; i < count; i += Codec::kWeights, ++block) {
    UnpackCodes(*block, codes);
    UnpackScales(*block, scales, mins);
    for (int c = 0; c < Codec::kWeights; c += kChunk) {
      ScaleChunk<kGroup, Codec::kHasMin>(codes + c, scales + c / kGroup, mins + c / kGroup, out);
      out += chunk_stride;
    }
  }
}

template <class Packed>
void DecodeTileRowBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                       uint16_t* out, int64_t chunk_stride) {
  constexpr int kGroup = Packed::kGroup;
  const int r = static_cast<int>(row % kPackRows);
  const std::byte* block =
      weights.codes + (row - r) * weights.row_bytes + col / Packed::kWeights * Packed::kBlockBytes;
  int8_t codes[kPackCols];
  float scales[Packed::kGroups], mins[Packed::kGroups];
  for (int64_t i = 0; i < count; i += Packed::kWeights, block += Packed::kBlockBytes) {
    for (int g = 0; g < Packed::kGroups; ++g) {
      UnpackScale<Packed>(block, r, g, &scales[g], &mins[g]);
    }
    for (int c = 0; c < Packed::kWeights; c += kPackCols) {
      UnpackRow<Packed>(block + Packed::kScaleBytes + c / kPackCols * Packed::kChunkBytes, r,
                        codes);
      ScaleChunk<kGroup, Packed::kHasMin>(codes, scales + c / kGroup, mins + c / kGroup, out);
      out += chunk_stride;
    }
  }
}

void RoundChunks(const float* values, int64_t count, uint16_t* out, int64_t chunk_stride) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  for (int64_t i = 0; i < count; i += kChunk, out += chunk_stride) {
    for (size_t j = 0; j < kChunk; j += 2 * lanes) {
      StorePair(hn::LoadU(df, values + i + j), hn::LoadU(df, values + i + j + lanes), out + j);
    }
  }
}

WeightRows::DecodeBf16 FindDecodeBf16(Format format) {
  WeightRows::DecodeBf16 found = nullptr;
  VisitCodec(format, [&](auto codec) { found = DecodeBlocksBf16<decltype(codec)>; });
  return found;
}

WeightRows::DecodeBf16 FindDecodePackedBf16(Format format) {
  WeightRows::DecodeBf16 found = nullptr;
  VisitPacked(format, [&](auto packed) { found = DecodeTileRowBf16<decltype(packed)>; });
  return found;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(FindDecodeBf16);
HWY_EXPORT(FindDecodePackedBf16);
HWY_EXPORT(RoundChunks);

WeightRows::DecodeBf16 FindDecodeBf16(Format format) {
  return NIBBLE_DISPATCH(FindDecodeBf16)(format);
}

WeightRows::DecodeBf16 FindDecodePackedBf16(Format format) {
  return NIBBLE_DISPATCH(FindDecodePackedBf16)(format);
}

void DecodeBf16ByFloat(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                       uint16_t* out, int64_t chunk_stride) {
  float values[kBlockCols];
  weights.decode(weights, row, col, count, values);
  const int64_t padded = RoundUp(count, 32);
  std::memset(values + count, 0, static_cast<size_t>(padded - count) * sizeof(float));
  NIBBLE_DISPATCH(RoundChunks)(values, padded, out, chunk_stride);
}

}  // namespace nibble
#endif  // HWY_ONCE
