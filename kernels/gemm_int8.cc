#include "kernels/gemm_int8.h"

#include <cstring>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"
#include "kernels/int8_targets.h"
#include "kernels/pack.h"
#include "kernels/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm_int8.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/quad_dots-inl.h"
#include "kernels/unpack-inl.h"

#ifndef NIBBLE_KERNELS_GEMM_INT8_ONCE_
#define NIBBLE_KERNELS_GEMM_INT8_ONCE_
namespace nibble {

// Columns that are unpacked at once: a super-block, or eight blocks of 32.
constexpr int kUnpackCols = 256;
// Activation rows whose codes, scales and sums should stay in the second-level cache.
constexpr int64_t kMostBlockRows = 128;

// Sixteen weight rows of 32 columns.
struct ByteChunk {
  alignas(64) uint8_t quads[kQuads * 4 * kPackRows];  // as a plane of 8 bits in pack_layout.h
  alignas(64) float scales[2 * kPackRows];            // of the chunk, or of its two groups of 16
  alignas(64) float mins[2 * kPackRows];
};

// Activation rows of a chunk of columns, one after another.
struct ActivationChunk {
  const int8_t* codes = nullptr;  // [rows, 32]
  const float* scales = nullptr;  // [rows]
  // Of both halves; where groups are larger than 16, the first stands for the whole chunk.
  const int32_t* starts[2] = {};  // -offset * sum(codes)
  const float* sums[2] = {};      // scale * sum(codes)
};

// Unpacks columns [col, col + count) of sixteen rows, of which `rows` exist.
using UnpackTile = void (*)(const std::byte* from, int64_t row_bytes, int64_t rows, int64_t col,
                            int64_t count, ByteChunk* chunks);
// sums[t * kMostBlockRows * 16 + m * 16 + r] += products of a chunk of tile t, for m < m_count.
using MultiplyChunk = void (*)(const ByteChunk* const* tiles, const ActivationChunk& a,
                               int64_t m_count, float* sums);

// How weights of a format are multiplied.
struct Int8Kernel {
  UnpackTile unpack_packed = nullptr;
  UnpackTile unpack_blocks = nullptr;
  MultiplyChunk multiply[2] = {};  // of one tile, and of most_tiles
  int most_tiles = 1;
  int group = 0;   // columns of a weight scale
  int offset = 0;  // what the bytes of a ByteChunk stand above the codes
};

}  // namespace nibble
#endif  // NIBBLE_KERNELS_GEMM_INT8_ONCE_

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS

namespace hn = hwy::HWY_NAMESPACE;

template <class Packed>
void UnpackPackedTile(const std::byte* tile, int64_t, int64_t, int64_t col, int64_t count,
                      ByteChunk* chunks) {
  constexpr int kChunkGroups = Packed::kGroup < kPackCols ? kPackCols / Packed::kGroup : 1;
  for (int64_t k = col; k < col + count; k += kPackCols, ++chunks) {
    const uint8_t* block =
        reinterpret_cast<const uint8_t*>(tile) + k / Packed::kWeights * Packed::kBlockBytes;
    const int c = static_cast<int>(k % Packed::kWeights);
    const uint8_t* chunk = block + Packed::kScaleBytes + c / kPackCols * Packed::kChunkBytes;
    for (size_t row = 0; row < kPackRows; row += hn::Lanes(DF())) {
      const auto quad = [&](auto number) HWY_ATTR {
        constexpr int kQuad = decltype(number)::value;
        hn::StoreU(BytesOf<Packed>(LoadQuad<Packed, kQuad>(chunk + 4 * row)), D8(),
                   chunks->quads + kQuad * 4 * kPackRows + 4 * row);
      };
      quad(std::integral_constant<int, 0>());
      quad(std::integral_constant<int, 1>());
      quad(std::integral_constant<int, 2>());
      quad(std::integral_constant<int, 3>());
      quad(std::integral_constant<int, 4>());
      quad(std::integral_constant<int, 5>());
      quad(std::integral_constant<int, 6>());
      quad(std::integral_constant<int, 7>());
      for (int g = 0; g < kChunkGroups; ++g) {
        const Scale s = LoadScale<Packed>(block, row, c / Packed::kGroup + g);
        hn::StoreU(s.scale, DF(), chunks->scales + g * kPackRows + row);
        if constexpr (Packed::kHasMin) hn::StoreU(s.min, DF(), chunks->mins + g * kPackRows + row);
      }
    }
  }
}

// The codes of a block as they stand in a ByteChunk, column after column.
template <class Packed, class Block>
HWY_INLINE void UnpackStored(const Block& block, uint8_t* HWY_RESTRICT stored) {
  constexpr uint8_t kAdd =
      static_cast<uint8_t>(kBytesOffset<Packed> - static_cast<int>(kStoredOffset<Block>));
  VisitCodes(Bytes32(), block, [stored](auto d, auto bytes, size_t at) HWY_ATTR {
    if constexpr (kAdd != 0) bytes = hn::Add(bytes, hn::Set(d, kAdd));
    hn::StoreU(bytes, d, stored + at);
  });
}

// Sixteen rows of 16 columns, a row after another, to four quads.
HWY_INLINE void TransposeQuads(const uint8_t* rows, uint8_t* quads) {
  const hn::Repartition<uint32_t, D8> d32;
  for (size_t row = 0; row < kPackRows; row += hn::Lanes(d32)) {
    hn::Vec<decltype(d32)> q0, q1, q2, q3;
    hn::LoadInterleaved4(d32, reinterpret_cast<const uint32_t*>(rows + 16 * row), q0, q1, q2, q3);
    const auto store = [&](int quad, hn::Vec<decltype(d32)> v) HWY_ATTR {
      hn::StoreU(v, d32, reinterpret_cast<uint32_t*>(quads + quad * 4 * kPackRows + 4 * row));
    };
    store(0, q0), store(1, q1), store(2, q2), store(3, q3);
  }
}

template <class Packed>
void UnpackBlockTile(const std::byte* blocks, int64_t row_bytes, int64_t rows, int64_t col,
                     int64_t count, ByteChunk* chunks) {
  using Codec = typename Packed::Codec;
  using Block = typename Codec::Block;
  constexpr int kGroups = Codec::kWeights / Codec::kGroup;
  constexpr int kChunkGroups = Codec::kGroup < kPackCols ? kPackCols / Codec::kGroup : 1;
  constexpr size_t kHalf = 16 * kPackRows;  // bytes of sixteen rows of 16 columns
  const bool aligned = reinterpret_cast<uintptr_t>(blocks) % alignof(Block) == 0;
  alignas(64) uint8_t halves[kUnpackCols / 16 * kHalf];
  if (rows < kPackRows) {
    std::memset(halves, 0, sizeof(halves));
    std::memset(static_cast<void*>(chunks), 0,
                static_cast<size_t>(count / kPackCols) * sizeof(ByteChunk));
  }
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* from =
        blocks + r * row_bytes + col / Codec::kWeights * static_cast<int64_t>(sizeof(Block));
    ByteChunk* to = chunks;
    uint8_t* half = halves + 16 * r;
    for (int64_t k = 0; k < count; k += Codec::kWeights, from += sizeof(Block)) {
      // A mapped file may hold blocks at odd addresses. Those that it does not are read in place:
      // loads that cross what a copy has just stored wait for it.
      Block copy;
      if (!aligned) std::memcpy(&copy, from, sizeof(Block));
      const Block& block = aligned ? *reinterpret_cast<const Block*>(from) : copy;
      alignas(64) uint8_t stored[Codec::kWeights];
      float scales[kGroups], mins[kGroups];
      UnpackStored<Packed>(block, stored);
      UnpackScales(block, scales, mins);
      for (int c = 0; c < Codec::kWeights; c += 16, half += kHalf) {
        std::memcpy(half, stored + c, 16);
      }
      for (int c = 0; c < Codec::kWeights; c += kPackCols, ++to) {
        for (int g = 0; g < kChunkGroups; ++g) {
          to->scales[g * kPackRows + r] = scales[c / Codec::kGroup + g];
          if constexpr (Codec::kHasMin) to->mins[g * kPackRows + r] = mins[c / Codec::kGroup + g];
        }
      }
    }
  }
  const uint8_t* half = halves;
  for (int64_t k = 0; k < count; k += kPackCols, ++chunks, half += 2 * kHalf) {
    TransposeQuads(half, chunks->quads);
    TransposeQuads(half + kHalf, chunks->quads + kQuads / 2 * 4 * kPackRows);
  }
}

#if NIBBLE_PAIR_DOTS
// Products of four quads, w their bytes, all added in 16 bits.
HWY_INLINE Pairs FourPairs(V8 w0, V8 w1, V8 w2, V8 w3, const int8_t* codes) {
  const auto pairs = [&](V8 w, auto number) HWY_ATTR {
    return MultiplyPairs<4>(w, FourCodes<decltype(number)::value>(codes));
  };
  return hn::Add(hn::Add(pairs(w0, std::integral_constant<int, 0>()),
                         pairs(w1, std::integral_constant<int, 1>())),
                 hn::Add(pairs(w2, std::integral_constant<int, 2>()),
                         pairs(w3, std::integral_constant<int, 3>())));
}
#endif

// Four quads' dot products, added to `sum`; w are the bytes of consecutive quads.
template <int kBits>
HWY_INLINE VI DotFour(V8 w0, V8 w1, V8 w2, V8 w3, const int8_t* codes, VI sum) {
  const Codes16 a = LoadCodes16(codes);
#if NIBBLE_PAIR_DOTS
  constexpr int kDepth = PairDepth(kBits);
  if constexpr (kDepth >= 4) return AddPairs(FourPairs(w0, w1, w2, w3, codes), sum);
  const auto p0 = MultiplyPairs<kBits>(w0, FourCodes<0>(a));
  const auto p1 = MultiplyPairs<kBits>(w1, FourCodes<1>(a));
  const auto p2 = MultiplyPairs<kBits>(w2, FourCodes<2>(a));
  const auto p3 = MultiplyPairs<kBits>(w3, FourCodes<3>(a));
  if constexpr (kDepth == 2) {
    return AddPairs(hn::Add(p2, p3), AddPairs(hn::Add(p0, p1), sum));
  }
  return AddPairs(p3, AddPairs(p2, AddPairs(p1, AddPairs(p0, sum))));
#else
  sum = AddQuad<1>(w1, a, AddQuad<0>(w0, a, sum));
  return AddQuad<3>(w3, a, AddQuad<2>(w2, a, sum));
#endif
}

// Where there are registers for it, activation codes are loaded once for two tiles: loading them is
// then no longer what takes longest.
inline constexpr int kChunkTiles = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3 ? 2 : 1;

template <int kTiles, bool kHasMin, bool kHalves, int kBits>
void MultiplyByteChunks(const ByteChunk* const* tiles, const ActivationChunk& a, int64_t m_count,
                        float* HWY_RESTRICT sums) {
  const DF df;
  const DI di;
  const int8_t* const a_codes = a.codes;
  const float* const a_scales = a.scales;
  const int32_t *const starts0 = a.starts[0], *const starts1 = a.starts[1];
  const float *const sums0 = a.sums[0], *const sums1 = a.sums[1];
  const ByteChunk &left = *tiles[0], &right = *tiles[kTiles - 1];
  for (size_t row = 0; row < kPackRows; row += hn::Lanes(df)) {
    const auto load = [&](const ByteChunk& from, int q) HWY_ATTR {
      return hn::LoadU(D8(), from.quads + q * 4 * kPackRows + 4 * static_cast<int>(row));
    };
    const V8 l0 = load(left, 0), l1 = load(left, 1), l2 = load(left, 2), l3 = load(left, 3);
    const V8 l4 = load(left, 4), l5 = load(left, 5), l6 = load(left, 6), l7 = load(left, 7);
    const V8 r0 = load(right, 0), r1 = load(right, 1), r2 = load(right, 2), r3 = load(right, 3);
    const V8 r4 = load(right, 4), r5 = load(right, 5), r6 = load(right, 6), r7 = load(right, 7);
    const auto load_scale = [&](const float* from, bool there, bool second) HWY_ATTR {
      return there ? hn::LoadU(df, from + (second ? kPackRows : 0) + row) : hn::Zero(df);
    };
    const VF l_scale = load_scale(left.scales, true, false);
    const VF l_scale1 = load_scale(left.scales, kHalves, true);
    const VF r_scale = load_scale(right.scales, true, false);
    const VF r_scale1 = load_scale(right.scales, kHalves, true);
    const VF l_min = load_scale(left.mins, kHasMin, false);
    const VF l_min1 = load_scale(left.mins, kHasMin && kHalves, true);
    const VF r_min = load_scale(right.mins, kHasMin, false);
    const VF r_min1 = load_scale(right.mins, kHasMin && kHalves, true);
    const int8_t* codes = a_codes;
    float* at = sums + row;
    for (int64_t m = 0; m < m_count; ++m, codes += kPackCols, at += kPackRows) {
      const VF a_scale = hn::Set(df, a_scales[m]);
      const auto add = [&](V8 w0, V8 w1, V8 w2, V8 w3, V8 w4, V8 w5, V8 w6, V8 w7, VF scale,
                           VF scale1, VF min, VF min1, VF sum) NIBBLE_INLINE_LAMBDA {
        VI i0 = hn::Set(di, starts0[m]);
        if constexpr (kHalves) {
          i0 = DotFour<kBits>(w0, w1, w2, w3, codes, i0);
          const VI i1 = DotFour<kBits>(w4, w5, w6, w7, codes + 16, hn::Set(di, starts1[m]));
          VF both = hn::Mul(hn::ConvertTo(df, i0), scale);
          both = hn::MulAdd(hn::ConvertTo(df, i1), scale1, both);
          sum = hn::MulAdd(both, a_scale, sum);
        } else {
#if NIBBLE_PAIR_DOTS
          if constexpr (PairDepth(kBits) == 8) {
            const auto pairs =
                hn::Add(FourPairs(w0, w1, w2, w3, codes), FourPairs(w4, w5, w6, w7, codes + 16));
            i0 = AddPairs(pairs, i0);
          } else {
            i0 = DotFour<kBits>(w0, w1, w2, w3, codes, i0);
            i0 = DotFour<kBits>(w4, w5, w6, w7, codes + 16, i0);
          }
#else
          i0 = DotFour<kBits>(w0, w1, w2, w3, codes, i0);
          i0 = DotFour<kBits>(w4, w5, w6, w7, codes + 16, i0);
#endif
          sum = hn::MulAdd(hn::ConvertTo(df, i0), hn::Mul(scale, a_scale), sum);
        }
        if constexpr (kHasMin) {
          sum = hn::NegMulAdd(min, hn::Set(df, sums0[m]), sum);
          if constexpr (kHalves) sum = hn::NegMulAdd(min1, hn::Set(df, sums1[m]), sum);
        }
        return sum;
      };
      const VF l_sum =
          add(l0, l1, l2, l3, l4, l5, l6, l7, l_scale, l_scale1, l_min, l_min1, hn::LoadU(df, at));
      if constexpr (kTiles > 1) {
        float* r_at = at + kMostBlockRows * kPackRows;
        hn::StoreU(add(r0, r1, r2, r3, r4, r5, r6, r7, r_scale, r_scale1, r_min, r_min1,
                       hn::LoadU(df, r_at)),
                   df, r_at);
      }
      hn::StoreU(l_sum, df, at);
    }
  }
}

#if NIBBLE_ARM_DOTS
// As MultiplyByteChunks<1>, with i8mm: an instruction multiplies eight columns of two weight rows
// with those of two activation rows, twice as many as sdot.
template <bool kHasMin, bool kHalves>
void MultiplyByteMatrices(const ByteChunk* const* tiles, const ActivationChunk& a, int64_t m_count,
                          float* HWY_RESTRICT sums) {
  const hn::FixedTag<float, 4> df;
  const hn::FixedTag<int32_t, 4> di;
  const hn::FixedTag<int64_t, 2> d64;
  const hn::FixedTag<int8_t, 16> ds;
  const ByteChunk& chunk = *tiles[0];
  // Sums of columns of 16 or 32 begin with the starts of both activation rows, for each weight row.
  const auto starts_of = [&](const int32_t* starts, int64_t m, int64_t other) HWY_ATTR {
    return hn::Dup128VecFromValues(di, starts[m], starts[other], starts[m], starts[other]);
  };
  for (size_t row = 0; row < kPackRows; row += 4) {
    // Eight columns of rows 0 and 1, and of rows 2 and 3, from two quads of four rows.
    const auto quad = [&](int q) HWY_ATTR {
      return hn::BitCast(di, hn::LoadU(ds, reinterpret_cast<const int8_t*>(chunk.quads) +
                                               q * 4 * kPackRows + 4 * static_cast<int>(row)));
    };
    const auto lower = [&](int q) HWY_ATTR {
      return hn::BitCast(ds, hn::InterleaveLower(di, quad(q), quad(q + 1)));
    };
    const auto upper = [&](int q) HWY_ATTR {
      return hn::BitCast(ds, hn::InterleaveUpper(di, quad(q), quad(q + 1)));
    };
    const auto l0 = lower(0), l1 = lower(2), l2 = lower(4), l3 = lower(6);
    const auto u0 = upper(0), u1 = upper(2), u2 = upper(4), u3 = upper(6);
    const auto scale = hn::LoadU(df, chunk.scales + row);
    const auto scale1 = kHalves ? hn::LoadU(df, chunk.scales + kPackRows + row) : scale;
    const auto min = kHasMin ? hn::LoadU(df, chunk.mins + row) : scale;
    const auto min1 = kHasMin && kHalves ? hn::LoadU(df, chunk.mins + kPackRows + row) : scale;
    for (int64_t m = 0; m < m_count; m += 2) {
      const int64_t other = HWY_MIN(m + 1, m_count - 1);  // the last alone is multiplied twice
      // Columns 8 * i and on of both.
      const auto load = [&](int64_t at, int64_t from) HWY_ATTR {
        return hn::BitCast(d64, hn::LoadU(ds, a.codes + at * kPackCols + from));
      };
      const auto first = load(m, 0), first1 = load(other, 0);
      const auto last = load(m, 16), last1 = load(other, 16);
      const auto a0 = hn::BitCast(ds, hn::InterleaveLower(d64, first, first1));
      const auto a1 = hn::BitCast(ds, hn::InterleaveUpper(d64, first, first1));
      const auto a2 = hn::BitCast(ds, hn::InterleaveLower(d64, last, last1));
      const auto a3 = hn::BitCast(ds, hn::InterleaveUpper(d64, last, last1));
      Sums low = starts_of(a.starts[0], m, other), high = low;
      low = AddMatrixDots(l1, a1, AddMatrixDots(l0, a0, low));
      high = AddMatrixDots(u1, a1, AddMatrixDots(u0, a0, high));
      Sums low1 = low, high1 = high;
      if constexpr (kHalves) low1 = high1 = starts_of(a.starts[1], m, other);
      low1 = AddMatrixDots(l3, a3, AddMatrixDots(l2, a2, low1));
      high1 = AddMatrixDots(u3, a3, AddMatrixDots(u2, a2, high1));
      const auto add = [&](Sums dots, Sums dots1, int64_t at) HWY_ATTR {
        float* to = sums + at * kPackRows + static_cast<int64_t>(row);
        auto sum = hn::LoadU(df, to);
        const auto a_scale = hn::Set(df, a.scales[at]);
        if constexpr (kHalves) {
          auto both = hn::Mul(hn::ConvertTo(df, dots), scale);
          both = hn::MulAdd(hn::ConvertTo(df, dots1), scale1, both);
          sum = hn::MulAdd(both, a_scale, sum);
        } else {
          sum = hn::MulAdd(hn::ConvertTo(df, dots1), hn::Mul(scale, a_scale), sum);
        }
        if constexpr (kHasMin) {
          sum = hn::NegMulAdd(min, hn::Set(df, a.sums[0][at]), sum);
          if constexpr (kHalves) sum = hn::NegMulAdd(min1, hn::Set(df, a.sums[1][at]), sum);
        }
        hn::StoreU(sum, df, to);
      };
      add(hn::ConcatEven(di, high, low), hn::ConcatEven(di, high1, low1), m);
      if (other > m) add(hn::ConcatOdd(di, high, low), hn::ConcatOdd(di, high1, low1), other);
    }
  }
}
#endif

Int8Kernel FindInt8Kernel(Format format) {
  Int8Kernel kernel;
  VisitPacked(format, [&](auto packed) {
    using Packed = decltype(packed);
    constexpr int kBits = NIBBLE_PAIR_DOTS ? kCodeBits<Packed> : 0;  // else not asked for
    constexpr bool kHalves = Packed::kGroup == 16;
    kernel = {UnpackPackedTile<Packed>,
              UnpackBlockTile<Packed>,
              {MultiplyByteChunks<1, Packed::kHasMin, kHalves, kBits>,
               MultiplyByteChunks<kChunkTiles, Packed::kHasMin, kHalves, kBits>},
              kChunkTiles,
              Packed::kGroup,
              kBytesOffset<Packed>};
#if NIBBLE_ARM_DOTS
    if (UsesI8mm()) {
      kernel.multiply[0] = kernel.multiply[1] = MultiplyByteMatrices<Packed::kHasMin, kHalves>;
    }
#endif
  });
  return kernel;
}

// Dot products of four bytes leave registers for the sums of many activation rows, so that kernels
// for few stay ahead for longer.
int64_t FewestRows() { return NIBBLE_PAIR_DOTS ? 8 : 17; }

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#include "kernels/avx_vnni_pass.h"

#if NIBBLE_ONCE
namespace nibble {

HWY_EXPORT(FindInt8Kernel);
HWY_EXPORT(FewestRows);

namespace {

// The weights of a product, packed or canonical.
struct TileRows {
  Int8Kernel kernel;
  UnpackTile unpack;
  const std::byte* data;
  int64_t rows, cols;
  int64_t row_bytes;
  int64_t tile_bytes;  // from sixteen rows to the next
};

TileRows RowsOf(const PackedTiles& w) {
  const Int8Kernel kernel = NIBBLE_DISPATCH_DOTS(FindInt8Kernel)(w.format);
  return {
      kernel, kernel.unpack_packed, w.tiles, w.rows, w.cols, 0, PackedTileBytes(w.format, w.cols)};
}

TileRows RowsOf(const BlockWeights& w) {
  const Int8Kernel kernel = NIBBLE_DISPATCH_DOTS(FindInt8Kernel)(w.format);
  const FormatInfo& info = GetFormatInfo(w.format);
  const int64_t row_bytes = w.cols / info.block_weights * info.block_bytes;
  return {kernel, kernel.unpack_blocks, w.blocks, w.rows, w.cols, row_bytes, kPackRows * row_bytes};
}

// Rounded activations: of each kMostBlockRows rows, chunk after chunk of 32 columns.
struct RoundedChunks {
  int64_t rows, cols;
  int8_t* codes;
  float* scales;
  int32_t* starts[2];
  float* sums[2];

  int64_t BlockRows(int64_t m0) const { return std::min(kMostBlockRows, rows - m0); }
  // Where row m0 + m of chunk c lies; m0 begins a block of rows.
  int64_t At(int64_t m0, int64_t c, int64_t m) const {
    return m0 * (cols / kPackCols) + c * BlockRows(m0) + m;
  }
  ActivationChunk Chunk(int64_t m0, int64_t c) const {
    const int64_t at = At(m0, c, 0);
    return {codes + at * kPackCols,
            scales + at,
            {starts[0] + at, starts[1] + at},
            {sums[0] + at, sums[1] + at}};
  }
};

void RoundRow(const RoundedChunks& to, const Int8Kernel& kernel, int64_t m, const float* row) {
  const int64_t m0 = m / kMostBlockRows * kMostBlockRows;
  for (int64_t k = 0; k < to.cols; k += kUnpackCols) {
    const int64_t count = std::min<int64_t>(kUnpackCols, to.cols - k);
    int8_t codes[kUnpackCols];
    float scales[kUnpackCols / 32], sums[kUnpackCols / 16];
    int32_t starts[kUnpackCols / 16];
    QuantizeActivations(row + k, count, kernel.group, kernel.offset, codes, scales, starts, sums);
    for (int64_t c = 0; c < count / kPackCols; ++c) {
      const int64_t at = to.At(m0, k / kPackCols + c, m - m0);
      std::memcpy(to.codes + at * kPackCols, codes + c * kPackCols, kPackCols);
      to.scales[at] = scales[c];
      for (int half = 0; half < 2; ++half) {
        to.starts[half][at] = starts[2 * c + half];
        to.sums[half][at] = sums[2 * c + half];
      }
    }
  }
}

// Asks for columns [col, col + kUnpackCols) of sixteen canonical rows, or behind the last column
// for the first of the next sixteen: they lie a row apart, which the processor's own prefetchers do
// not see. Inlined by force: GCC 12 takes a function that only prefetches for one without an
// effect.
HWY_INLINE void PrefetchRows(const TileRows& w, const std::byte* tile, int64_t col) {
  if (w.row_bytes == 0) return;
  if (col >= w.cols) tile += w.tile_bytes, col = 0;
  const std::byte* from = tile + col * w.row_bytes / w.cols;
  const int64_t bytes = kUnpackCols * w.row_bytes / w.cols;
  for (int r = 0; r < kPackRows; ++r, from += w.row_bytes) {
    for (int64_t i = 0; i < bytes + 63; i += 64) hwy::Prefetch(from + i);
  }
}

// Writes sums[m * 16 + n] to out[m0 + m, n0 + n].
void StoreTileSums(const float* sums, const ProductOutput& output, int64_t m0, int64_t m_count,
                   int64_t n0, int64_t n_count) {
  if (n_count == kPackRows && output.bias == nullptr && !output.accumulate) {
    for (int64_t m = 0; m < m_count; ++m) {
      std::memcpy(output.Row(m0 + m) + n0, sums + m * kPackRows, kPackRows * sizeof(float));
    }
    return;
  }
  for (int64_t m = 0; m < m_count; ++m) {
    for (int64_t n = 0; n < n_count; ++n) output.Put(m0 + m, n0 + n, sums[m * kPackRows + n]);
  }
}

// Multiplies the weight rows of up to kernel.most_tiles tiles from n0 on with all activation rows.
void MultiplyTileRows(const TileRows& w, const RoundedChunks& a, int64_t n0, int64_t n_end,
                      int64_t m0, const ProductOutput& output) {
  constexpr int kMostTiles = 2;
  alignas(64) float sums[kMostTiles * kMostBlockRows * kPackRows];
  ByteChunk chunks[kMostTiles][kUnpackCols / kPackCols];
  const int64_t m_count = a.BlockRows(m0);
  const int tiles = n0 + kPackRows < n_end ? w.kernel.most_tiles : 1;
  const auto tile_at = [&](int t) { return w.data + (n0 / kPackRows + t) * w.tile_bytes; };
  const auto n_count = [&](int t) {
    return std::min<int64_t>(kPackRows, n_end - n0 - t * kPackRows);
  };
  std::memset(sums, 0, sizeof(sums));
  for (int64_t k = 0; k < w.cols; k += kUnpackCols) {
    const int64_t count = std::min<int64_t>(kUnpackCols, w.cols - k);
    for (int t = 0; t < tiles; ++t) {
      w.unpack(tile_at(t), w.row_bytes, n_count(t), k, count, chunks[t]);
      PrefetchRows(w, tile_at(t), k + count);
    }
    for (int64_t c = 0; c < count / kPackCols; ++c) {
      const ByteChunk* const of_tiles[] = {&chunks[0][c], &chunks[1][c]};
      w.kernel.multiply[tiles > 1](of_tiles, a.Chunk(m0, k / kPackCols + c), m_count, sums);
    }
  }
  for (int t = 0; t < tiles; ++t) {
    StoreTileSums(sums + t * kMostBlockRows * kPackRows, output, m0, m_count, n0 + t * kPackRows,
                  n_count(t));
  }
}

template <class Weights>
Status Run(std::span<const Product<Weights>> products, const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);
  std::vector<TileRows> weights;
  int64_t weight_rows = 0;
  for (const auto& product : products) {
    weights.push_back(RowsOf(product.weights));
    weight_rows += product.weights.rows;
  }
  const RoundedLayout layout(
      products,
      [&](size_t i) {
        return weights[i].kernel.group == weights[i - 1].kernel.group &&
               weights[i].kernel.offset == weights[i - 1].kernel.offset;
      },
      [&](size_t i) { return products[i].weights.cols; });
  const size_t elements = static_cast<size_t>(layout.elements());
  auto codes = hwy::AllocateAligned<int8_t>(elements);
  auto scales = hwy::AllocateAligned<float>(elements / kPackCols);
  auto starts = hwy::AllocateAligned<int32_t>(elements / kPackCols * 2);
  auto sums = hwy::AllocateAligned<float>(elements / kPackCols * 2);
  if (!codes || !scales || !starts || !sums) {
    return OutOfMemory("matmul: no memory for activations");
  }
  const auto rounded = [&](size_t i) {
    const int64_t begin = layout.Begin(i), at = begin / kPackCols;
    const int64_t second = static_cast<int64_t>(elements) / kPackCols + at;
    return RoundedChunks{products[i].activations.rows,
                         weights[i].cols,
                         codes.get() + begin,
                         scales.get() + at,
                         {starts.get() + at, starts.get() + second},
                         {sums.get() + at, sums.get() + second}};
  };
  NIBBLE_RETURN_IF_ERROR(
      RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
        RoundRow(rounded(i), weights[i].kernel, m, row);
      }));

  // A task takes some weight rows, with 128 activation rows after another: those come from the
  // second-level cache for each sixteen weight rows.
  const int64_t task_rows = RowsPerTask(weight_rows, kPackRows, weight_rows, workers);
  TaskList tasks;
  for (const auto& product : products) tasks.Add(DivideUp(product.weights.rows, task_rows));
  parallel(tasks.count(), [&](int64_t index, int) {
    const auto [i, task] = tasks.At(index);
    const RoundedChunks a = rounded(i);
    const int64_t last = std::min(weights[i].rows, (task + 1) * task_rows);
    for (int64_t m0 = 0; m0 < a.rows; m0 += kMostBlockRows) {
      const int64_t step = weights[i].kernel.most_tiles * kPackRows;
      for (int64_t n0 = task * task_rows; n0 < last; n0 += step) {
        MultiplyTileRows(weights[i], a, n0, last, m0, products[i].output);
      }
    }
  });
  return OkStatus();
}

}  // namespace

int64_t FewestGemmInt8Rows() { return NIBBLE_DISPATCH_DOTS(FewestRows)(); }

bool HasGemmInt8(Format format) { return PackedTileBytes(format, 256) > 0; }

Status GemmInt8(std::span<const Product<PackedTiles>> products, const ParallelFor& parallel) {
  return Run(products, parallel);
}

Status GemmInt8(std::span<const Product<BlockWeights>> products, const ParallelFor& parallel) {
  return Run(products, parallel);
}

}  // namespace nibble
#endif  // NIBBLE_ONCE
