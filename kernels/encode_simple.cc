#include <cstring>

#include "kernels/encode.h"
#include "kernels/encode_oracle.h"

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/encode_simple.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/convert.h"
#include "kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Every choice below is the one that kernels/encode_oracle.h writes out: maxima and minima do not
// depend on the order they are taken in, and each code on one weight, with one rounding an
// operation.

using Floats = hn::CappedTag<float, 16>;
using Ints = hn::RebindToSigned<Floats>;
using Bytes16 = hn::CappedTag<uint8_t, 16>;
using Bytes32 = hn::CappedTag<uint8_t, 32>;

struct Range {
  float min, max;
};

template <size_t kCount>
HWY_INLINE Range RangeOf(const float* w) {
  const Floats d;
  auto min = hn::LoadU(d, w), max = min;
  for (size_t i = hn::Lanes(d); i < kCount; i += hn::Lanes(d)) {
    const auto x = hn::LoadU(d, w + i);
    min = hn::Min(min, x);
    max = hn::Max(max, x);
  }
  return {hn::ReduceMin(d, min), hn::ReduceMax(d, max)};
}

template <size_t kCount>
HWY_INLINE float MaxMagnitude(const float* w) {
  const Floats d;
  auto max = hn::Abs(hn::LoadU(d, w));
  for (size_t i = hn::Lanes(d); i < kCount; i += hn::Lanes(d)) {
    max = hn::Max(max, hn::Abs(hn::LoadU(d, w + i)));
  }
  return hn::ReduceMax(d, max);
}

// The first weight of the largest magnitude.
template <size_t kCount>
HWY_INLINE float SignedMax(const float* w) {
  const Range range = RangeOf<kCount>(w);
  if (-range.min < range.max) return range.max;
  if (-range.min > range.max) return range.min;
  return oracle::SignedMax(w,
                           kCount);  // both signs have it, or all are zeros: whichever comes first
}

// codes[i] = map(d, w[i]) as bytes, saturated.
template <size_t kCount, class Byte, class Map>
HWY_INLINE void MapToBytes(const float* w, Byte* codes, const Map& map) {
  const Floats d;
  const hn::Rebind<Byte, Floats> d8;
  for (size_t i = 0; i < kCount; i += hn::Lanes(d)) {
    hn::StoreU(hn::DemoteTo(d8, map(d, hn::LoadU(d, w + i))), d8, codes + i);
  }
}

// Halves away from zero: adding the float below one half cannot carry smaller fractions over.
template <class D, class V>
HWY_INLINE hn::VFromD<Ints> RoundAway(D d, V x) {
  return hn::ConvertTo(Ints(), hn::Add(x, hn::CopySign(hn::Set(d, 0x1.fffffep-2f), x)));
}

HWY_INLINE float SymmetricCodes(const float* w, int offset, uint8_t* codes) {
  const float scale = SignedMax<32>(w) / static_cast<float>(-offset);
  const float reciprocal = oracle::Reciprocal(scale);
  if (oracle::Overflows(reciprocal)) {
    std::memset(codes, 0, 32);
    return scale;
  }
  MapToBytes<32>(w, codes, [=](auto d, auto x) HWY_ATTR {
    const auto shift = hn::Set(d, static_cast<float>(offset) + 0.5f);
    const auto q = hn::ConvertTo(Ints(), hn::Add(hn::Mul(x, hn::Set(d, reciprocal)), shift));
    return hn::Min(q, hn::Set(Ints(), 2 * offset - 1));
  });
  return scale;
}

HWY_INLINE float AffineCodes(const float* w, int largest, uint8_t* codes, float* min) {
  const Range range = RangeOf<32>(w);
  *min = range.min + 0.0f;  // one zero
  const float scale = (range.max + 0.0f - *min) / static_cast<float>(largest);
  const float reciprocal = oracle::Reciprocal(scale);
  if (oracle::Overflows(reciprocal)) {
    std::memset(codes, 0, 32);
    return scale;
  }
  MapToBytes<32>(w, codes, [=, base = *min](auto d, auto x) HWY_ATTR {
    const auto scaled = hn::Mul(hn::Sub(x, hn::Set(d, base)), hn::Set(d, reciprocal));
    const auto q = hn::ConvertTo(Ints(), hn::Add(scaled, hn::Set(d, 0.5f)));
    return hn::Min(q, hn::Set(Ints(), largest));
  });
  return scale;
}

// round(w / scale) + offset as bytes; all `offset` where the reciprocal overflows.
template <size_t kCount, class Byte>
HWY_INLINE void RoundedCodes(const float* w, float scale, int offset, Byte* codes) {
  const float reciprocal = oracle::Reciprocal(scale);
  if (oracle::Overflows(reciprocal)) {
    std::memset(codes, offset, kCount);
    return;
  }
  MapToBytes<kCount>(w, codes, [=](auto d, auto x) HWY_ATTR {
    return hn::Add(RoundAway(d, hn::Mul(x, hn::Set(d, reciprocal))), hn::Set(Ints(), offset));
  });
}

HWY_INLINE void PackNibbles(const uint8_t* codes, uint8_t* qs) {
  const Bytes16 d;
  const auto mask = hn::Set(d, uint8_t{15});
  for (size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const auto low = hn::And(hn::LoadU(d, codes + i), mask);
    hn::StoreU(hn::Or(low, hn::ShiftLeft<4>(hn::LoadU(d, codes + 16 + i))), d, qs + i);
  }
}

HWY_INLINE void PackFifthBits(const uint8_t* codes, uint8_t* qh) {
  const Bytes32 d;
  for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
    hn::StoreMaskBits(d, hn::TestBit(hn::LoadU(d, codes + i), hn::Set(d, uint8_t{16})), qh + i / 8);
  }
}

HWY_INLINE void Encode(const float* w, BlockQ4_0& b) {
  uint8_t codes[32];
  b.d = ToF16(SymmetricCodes(w, 8, codes));
  PackNibbles(codes, b.qs);
}

HWY_INLINE void Encode(const float* w, BlockQ5_0& b) {
  uint8_t codes[32];
  b.d = ToF16(SymmetricCodes(w, 16, codes));
  PackNibbles(codes, b.qs);
  PackFifthBits(codes, b.qh);
}

HWY_INLINE void Encode(const float* w, BlockQ4_1& b) {
  uint8_t codes[32];
  float min;
  b.d = ToF16(AffineCodes(w, 15, codes, &min));
  b.m = ToF16(min);
  PackNibbles(codes, b.qs);
}

HWY_INLINE void Encode(const float* w, BlockQ5_1& b) {
  uint8_t codes[32];
  float min;
  b.d = ToF16(AffineCodes(w, 31, codes, &min));
  b.m = ToF16(min);
  PackNibbles(codes, b.qs);
  PackFifthBits(codes, b.qh);
}

HWY_INLINE void Encode(const float* w, BlockQ8_0& b) {
  const float scale = MaxMagnitude<32>(w) / 127;
  b.d = ToF16(scale);
  RoundedCodes<32>(w, scale, 0, b.qs);
}

HWY_INLINE void Encode(const float* w, BlockQ8_1& b) {
  const float scale = MaxMagnitude<32>(w) / 127;
  RoundedCodes<32>(w, scale, 0, b.qs);
  int sum = 0;
  for (int8_t q : b.qs) sum += q;
  b.d = ToF16(scale);
  b.s = ToF16(static_cast<float>(sum) * scale);
}

HWY_INLINE void Encode(const float* w, BlockQ8_K& b) {
  const float factor = -127 / SignedMax<256>(w);
  if (oracle::Overflows(factor)) {
    b = {};
    return;
  }
  b.d = 1 / factor;
  MapToBytes<256>(w, b.qs, [=](auto d, auto x) HWY_ATTR {
    return hn::NearestInt(hn::Mul(x, hn::Set(d, factor)));
  });
  for (int g = 0; g < 16; ++g) {
    int sum = 0;
    for (int i = 16 * g; i < 16 * (g + 1); ++i) sum += b.qs[i];
    b.bsums[g] = static_cast<int16_t>(sum);
  }
}

// Five digits to a byte, for every value of the digits.
struct TernaryTable {
  uint8_t packed[243];
  constexpr TernaryTable() : packed() {
    for (int value = 0; value < 243; ++value) packed[value] = oracle::TernaryByte(value);
  }
};
inline constexpr TernaryTable kTernary;

// Digits `stride` apart, first digit most significant; absent digits are 0.
template <class D>
HWY_INLINE void PackTernary(D d, const uint8_t* codes, size_t stride, size_t digits, uint8_t* qs) {
  for (size_t i = 0; i < stride; i += hn::Lanes(d)) {
    auto value = hn::Zero(d);
    for (size_t n = 0; n < 5; ++n) {
      value = hn::Add(value, hn::Add(value, value));
      if (n < digits) value = hn::Add(value, hn::LoadU(d, codes + n * stride + i));
    }
    hn::StoreU(value, d, qs + i);
  }
  for (size_t i = 0; i < stride; ++i) qs[i] = kTernary.packed[qs[i]];
}

HWY_INLINE void Encode(const float* w, BlockTQ1_0& b) {
  uint8_t codes[256];
  const float scale = MaxMagnitude<256>(w);
  b.d = ToF16(scale);
  RoundedCodes<256>(w, scale, 1, codes);
  PackTernary(Bytes32(), codes, 32, 5, b.qs);
  PackTernary(Bytes16(), codes + 160, 16, 5, b.qs + 32);
  PackTernary(hn::CappedTag<uint8_t, 4>(), codes + 240, 4, 4, b.qh);
}

HWY_INLINE void Encode(const float* w, BlockTQ2_0& b) {
  uint8_t codes[256];
  const float scale = MaxMagnitude<256>(w);
  b.d = ToF16(scale);
  RoundedCodes<256>(w, scale, 1, codes);
  const Bytes32 d;
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
      const uint8_t* c = codes + 128 * half + i;
      const auto low = hn::Or(hn::LoadU(d, c), hn::ShiftLeft<2>(hn::LoadU(d, c + 32)));
      const auto high = hn::Or(hn::LoadU(d, c + 64), hn::ShiftLeft<2>(hn::LoadU(d, c + 96)));
      hn::StoreU(hn::Or(low, hn::ShiftLeft<4>(high)), d, b.qs + 32 * half + i);
    }
  }
}

HWY_INLINE void Encode(const float* w, BlockMXFP4& b) {
  b.e = oracle::MxExponent(MaxMagnitude<32>(w));
  const float unit = CodecMXFP4::Scale(b, 0);
  uint8_t codes[32];
  MapToBytes<32>(w, codes, [=](auto d, auto x) HWY_ATTR {
    const auto magnitude = hn::Abs(x), one = hn::Set(d, 1.0f);
    auto code = hn::Zero(d);
    for (float bound : oracle::kMxBounds) {
      code = hn::Add(code, hn::IfThenElseZero(hn::Gt(magnitude, hn::Set(d, bound * unit)), one));
    }
    // Zero keeps its positive code.
    const auto negative = hn::And(hn::Lt(x, hn::Zero(d)), hn::Gt(code, hn::Zero(d)));
    return hn::ConvertTo(Ints(), hn::Add(code, hn::IfThenElseZero(negative, hn::Set(d, 8.0f))));
  });
  PackNibbles(codes, b.qs);
}

template <class Block, int kWeights>
HWY_INLINE void EncodeBlocks(const float* row, int64_t cols, std::byte* out) {
  for (int64_t i = 0; i < cols; i += kWeights) {
    Block block;
    Encode(row + i, block);
    std::memcpy(out, &block, sizeof(block));
    out += sizeof(block);
  }
}

void EncodeBlocksOf(Format format, const float* row, int64_t cols, std::byte* out) {
  switch (format) {
    case Format::kQ4_0:
      return EncodeBlocks<BlockQ4_0, 32>(row, cols, out);
    case Format::kQ4_1:
      return EncodeBlocks<BlockQ4_1, 32>(row, cols, out);
    case Format::kQ5_0:
      return EncodeBlocks<BlockQ5_0, 32>(row, cols, out);
    case Format::kQ5_1:
      return EncodeBlocks<BlockQ5_1, 32>(row, cols, out);
    case Format::kQ8_0:
      return EncodeBlocks<BlockQ8_0, 32>(row, cols, out);
    case Format::kQ8_1:
      return EncodeBlocks<BlockQ8_1, 32>(row, cols, out);
    case Format::kQ8_K:
      return EncodeBlocks<BlockQ8_K, 256>(row, cols, out);
    case Format::kTQ1_0:
      return EncodeBlocks<BlockTQ1_0, 256>(row, cols, out);
    case Format::kTQ2_0:
      return EncodeBlocks<BlockTQ2_0, 256>(row, cols, out);
    case Format::kMXFP4:
      return EncodeBlocks<BlockMXFP4, 32>(row, cols, out);
    default:
      return;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(EncodeBlocksOf);

void EncodeSimple(Format format, const float* row, int64_t cols, std::byte* out) {
  switch (format) {
    case Format::kF32:
      return ConvertFromFloat(DType::kF32, row, cols, out);
    case Format::kF16:
      return ConvertFromFloat(DType::kF16, row, cols, out);
    case Format::kBF16:
      return ConvertFromFloat(DType::kBF16, row, cols, out);
    default:
      NIBBLE_DISPATCH(EncodeBlocksOf)(format, row, cols, out);
  }
}

}  // namespace nibble
#endif
