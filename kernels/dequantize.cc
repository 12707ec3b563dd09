#include "kernels/dequantize.h"

#include <algorithm>
#include <cstring>

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/dequantize.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/convert.h"
#include "kernels/dispatch.h"
#include "kernels/unpack-inl.h"
#include "kernels/visit_codec.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

template <class Codec>
HWY_INLINE void DecodeBlock(const typename Codec::Block& block, float* out) {
  constexpr int kGroups = Codec::kWeights / Codec::kGroup;
  alignas(64) int8_t codes[Codec::kWeights];
  float scales[kGroups], mins[kGroups];
  UnpackCodes(block, codes);
  UnpackScales(block, scales, mins);

  const hn::CappedTag<float, 16> df;  // 16 divides every group
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  for (int g = 0; g < kGroups; ++g) {
    const auto scale = hn::Set(df, scales[g]);
    for (size_t i = 0; i < Codec::kGroup; i += hn::Lanes(df)) {
      const size_t at = static_cast<size_t>(g * Codec::kGroup) + i;
      auto w = hn::Mul(scale, hn::ConvertTo(df, hn::PromoteTo(di, hn::Load(d8, codes + at))));
      if constexpr (Codec::kHasMin) w = hn::Sub(w, hn::Set(df, mins[g]));
      hn::StoreU(w, df, out + at);
    }
  }
}

template <class Codec>
void DecodeBlocks(const std::byte* bytes, int64_t count, float* out) {
  using Block = typename Codec::Block;
  if (reinterpret_cast<uintptr_t>(bytes) % alignof(Block) == 0) {
    const Block* blocks = reinterpret_cast<const Block*>(bytes);
    for (int64_t i = 0; i < count; i += Codec::kWeights) DecodeBlock<Codec>(*blocks++, out + i);
    return;
  }
  for (int64_t i = 0; i < count; i += Codec::kWeights) {
    Block block;
    std::memcpy(&block, bytes, sizeof(block));
    bytes += sizeof(block);
    DecodeBlock<Codec>(block, out + i);
  }
}

void DecodeBlocksOf(Format format, const std::byte* blocks, int64_t count, float* out) {
  VisitCodec(format, [&](auto codec) { DecodeBlocks<decltype(codec)>(blocks, count, out); });
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(DecodeBlocksOf);

void DecodeRow(Format format, const std::byte* blocks, int64_t count, float* out) {
  switch (format) {
    case Format::kF32:
      return ConvertToFloat(DType::kF32, blocks, count, out);
    case Format::kF16:
      return ConvertToFloat(DType::kF16, blocks, count, out);
    case Format::kBF16:
      return ConvertToFloat(DType::kBF16, blocks, count, out);
    default:
      NIBBLE_DISPATCH(DecodeBlocksOf)(format, blocks, count, out);
  }
}

}  // namespace nibble
#endif
