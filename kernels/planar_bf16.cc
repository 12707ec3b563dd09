#include "kernels/planar_bf16.h"

#include <algorithm>
#include <cstring>

#include "kernels/matmul.h"

// As in pack_bf16.cc.
#ifndef HWY_DISABLED_TARGETS  // set for the sanitizers
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | HWY_AVX3 | HWY_AVX3_ZEN4)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/planar_bf16.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/planar_decoders-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3

constexpr int64_t kChunk = 32;
constexpr int64_t kMostGroups = kBlockCols / kChunk;
static_assert(kMostGroups <= 16);

using D16 = hn::Repartition<uint16_t, DF>;
using V16 = hn::Vec<D16>;

HWY_INLINE V16 ToBf16(VF low, VF high) {
  const hn::Repartition<hwy::bfloat16_t, DF> d;
  return hn::BitCast(D16(), hn::OrderedDemote2To(d, low, high));
}

// n <= 16 elements of a plane from `first` on.
HWY_INLINE void LoadFloats(const PlanarMatrix& matrix, DType dtype, const uint8_t* plane,
                           int64_t first, size_t n, float* out) {
  const DF df;
  const hn::Rebind<uint16_t, DF> d16;
  VF values;
  if (dtype == DType::kU8) {
    const auto codes = hn::PromoteTo(DI(), hn::LoadN(DU8(), plane + first, n));
    values = matrix.planes.scheme.double_quant ? hn::GatherIndex(df, matrix.scale_map, codes)
                                               : hn::ConvertTo(df, codes);
  } else if (dtype == DType::kF32) {
    values = hn::LoadN(df, reinterpret_cast<const float*>(plane + 4 * first), n);
  } else {
    const auto bits = hn::LoadN(d16, reinterpret_cast<const uint16_t*>(plane + 2 * first), n);
    values = dtype == DType::kF16
                 ? hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), bits))
                 : hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
  }
  hn::StoreU(values, df, out);
}

// The scales and zeros of n groups of a row.
HWY_INLINE void LoadGroups(const PlanarMatrix& matrix, int64_t row, int64_t group, size_t n,
                           float* scales, float* zeros) {
  const PlanarPlanes& p = matrix.planes;
  const int64_t at = p.ScaleAt(row, group);
  if (p.scheme.double_quant) {
    LoadFloats(matrix, DType::kU8, p.scales, at, n, scales);
    const int64_t blocks = DivideUp(p.scale_count(), kScalesPerSuperBlock);
    const float mean = LoadPlaneFloat(p.super_scales, DType::kF32, blocks);
    for (size_t i = 0; i < n; ++i) {
      const int64_t block = (at + static_cast<int64_t>(i)) / kScalesPerSuperBlock;
      scales[i] = scales[i] * LoadPlaneFloat(p.super_scales, DType::kF32, block) + mean;
    }
  } else {
    LoadFloats(matrix, p.scheme.scale_dtype, p.scales, at, n, scales);
  }
  if (!p.scheme.symmetric) LoadFloats(matrix, p.scheme.zero_dtype, p.zeros, at, n, zeros);
}

// Codes of at most five bits are looked up in a vector of what they all stand for.
template <int kBits>
struct LookUp {
  template <class Decoder>
  HWY_INLINE LookUp(const Decoder& decode, VF scale, VF zero) {
    const auto weights = [&](uint32_t first) HWY_ATTR {
      const auto codes = hn::And(hn::Iota(DU(), first), hn::Set(DU(), (1u << kBits) - 1));
      return decode(hn::TruncateTo(DU8(), codes), scale, zero);
    };
    table = ToBf16(weights(0), weights(16));
  }
  // Of 32 codes, one a byte.
  HWY_INLINE V16 operator()(const uint8_t* codes) const {
    const hn::Rebind<uint8_t, D16> d8;
    return hn::TableLookupLanes(
        table, hn::IndicesFromVec(D16(), hn::PromoteTo(D16(), hn::LoadU(d8, codes))));
  }
  // Of 16 bytes of two codes: each byte in 32 bits, its upper half moved to the upper 16.
  HWY_INLINE V16 Nibbles(const uint8_t* bytes) const {
    const auto wide = hn::PromoteTo(DU(), hn::LoadU(DU8(), bytes));
    const auto pairs = hn::And(hn::Or(wide, hn::ShiftLeft<12>(wide)), hn::Set(DU(), 0x000F000Fu));
    return hn::TableLookupLanes(table, hn::IndicesFromVec(D16(), hn::BitCast(D16(), pairs)));
  }
  V16 table;
};

template <int kBits, class Decoder>
void DecodeWith(const PlanarMatrix& matrix, const Decoder& decode, int64_t row, int64_t col,
                int64_t count, uint16_t* out, int64_t stride) {
  const PlanarPlanes& p = matrix.planes;
  const uint8_t* stream = p.codes + row * PlanarRowBytes(kBits, p.cols) + col / 8 * kBits;
  alignas(64) uint8_t bytes[kBlockCols];
  const uint8_t* codes = stream;
  if constexpr (kBits != 4 && kBits != 8) {
    UnpackCodes(stream, kBits, count, bytes);
    codes = bytes;
  }
  const int64_t size = p.scheme.granularity == Granularity::kGroup ? p.scheme.group_size : p.cols;
  const int64_t first = col / size, groups = (col + count - 1) / size - first + 1;
  alignas(64) float scales[16], zeros[16] = {};
  LoadGroups(matrix, row, first, static_cast<size_t>(groups), scales, zeros);

  for (int64_t g = 0, i = 0; g < groups; ++g) {
    const int64_t end = std::min(count, (first + g + 1) * size - col);
    const VF scale = hn::Set(DF(), scales[g]), zero = hn::Set(DF(), zeros[g]);
    const auto decode_chunk = [&](const auto& chunk_of) HWY_ATTR {
      for (; i + kChunk <= end; i += kChunk, out += stride) {
        hn::StoreU(chunk_of(codes + (kBits == 4 ? i / 2 : i)), D16(), out);
      }
      if (i == end) return;
      alignas(64) uint8_t last[kChunk] = {};
      const int64_t rest = end - i;
      std::memcpy(last, codes + (kBits == 4 ? i / 2 : i),
                  static_cast<size_t>(kBits == 4 ? (rest + 1) / 2 : rest));
      const auto kept = hn::FirstN(D16(), static_cast<size_t>(rest));
      hn::StoreU(hn::IfThenElseZero(kept, chunk_of(last)), D16(), out);
      i = end;
    };
    if constexpr (kBits <= 5) {
      const LookUp<kBits> look_up(decode, scale, zero);
      decode_chunk([&](const uint8_t* from) HWY_ATTR {
        if constexpr (kBits == 4) return look_up.Nibbles(from);
        return look_up(from);
      });
    } else {
      decode_chunk([&](const uint8_t* from) HWY_ATTR {
        return ToBf16(decode(hn::LoadU(DU8(), from), scale, zero),
                      decode(hn::LoadU(DU8(), from + 16), scale, zero));
      });
    }
  }
}

template <int kBits>
void DecodeOf(const PlanarMatrix& matrix, int64_t row, int64_t col, int64_t count, uint16_t* out,
              int64_t stride) {
  VisitDecoder(matrix.book, [&](const auto& decode) {
    DecodeWith<kBits>(matrix, decode, row, col, count, out, stride);
  });
}

DecodePlanarBf16 Find(const PlanarMatrix& matrix) {
  const Scheme& s = matrix.planes.scheme;
  if (matrix.planes.group_index != nullptr) return nullptr;
  if (s.granularity == Granularity::kGroup && s.group_size % kChunk != 0) return nullptr;
  constexpr DecodePlanarBf16 kOfBits[] = {nullptr,     DecodeOf<1>, DecodeOf<2>,
                                          DecodeOf<3>, DecodeOf<4>, DecodeOf<5>,
                                          DecodeOf<6>, DecodeOf<7>, DecodeOf<8>};
  return kOfBits[s.bits];
}

#else

DecodePlanarBf16 Find(const PlanarMatrix&) { return nullptr; }

#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(Find);

DecodePlanarBf16 FindDecodePlanarBf16(const PlanarMatrix& matrix) {
  return NIBBLE_DISPATCH(Find)(matrix);
}

}  // namespace nibble
#endif  // HWY_ONCE
