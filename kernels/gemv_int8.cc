#include "kernels/gemv_int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"
#include "kernels/int8_targets.h"
#include "kernels/pack.h"
#include "kernels/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv_int8.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/quad_dots-inl.h"
#include "kernels/round32-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS

namespace hn = hwy::HWY_NAMESPACE;

// How far ahead, in its stream, weights are asked for.
constexpr int kPrefetchBytes = 1024;

// The activations of a chunk: rows lie strides apart.
struct ChunkActivations {
  const int8_t* codes;
  int64_t code_stride;
  const float* scales;
  int64_t scale_stride;
  const int32_t* starts;
  const float* sums;
  int64_t start_stride;  // of both
};

// Activation rows that are multiplied with each time weights are unpacked: two sums for each must
// find registers.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
constexpr int kMostRows = kMostTileRows;
#else
constexpr int kMostRows = kMostTileRows / 2;
#endif

// One chunk of 32 columns of one tile times kM activation rows; sums[m * 16 + r] += row m times row
// r, for rows of the tile from `row` on, as many as a vector has lanes.
template <class Packed, int kM>
HWY_INLINE void MultiplyChunk(const uint8_t* block, int c, const ChunkActivations& a, size_t row,
                              float* HWY_RESTRICT sums) {
  static_assert(kM <= kMostRows);
  constexpr int kParts = Packed::kGroup == 16 ? 2 : 1;  // each with a scale of its own
  const DF df;
  const DI di;
  const uint8_t* chunk =
      block + Packed::kScaleBytes + c / kPackCols * Packed::kChunkBytes + 4 * row;
  VF sum[kM];
  Unroll<kM>([&](auto m) NIBBLE_INLINE_LAMBDA { sum[m] = hn::Load(df, sums + m * kPackRows); });
  Unroll<kParts>([&](auto part) NIBBLE_INLINE_LAMBDA {
    constexpr int kPartQuads = kQuads / kParts;
    VI integer[kM];
    Pairs pairs[kM];
    Unroll<kM>([&](auto m) NIBBLE_INLINE_LAMBDA {
      integer[m] = hn::Set(di, a.starts[m * a.start_stride + part]);
    });
    Unroll<kPartQuads / 4>([&](auto four) NIBBLE_INLINE_LAMBDA {
      constexpr int kFirst = decltype(part)::value * kPartQuads + 4 * decltype(four)::value;
      Codes16 codes[kM];
      Unroll<kM>([&](auto m) NIBBLE_INLINE_LAMBDA {
        codes[m] = LoadCodes16(a.codes + m * a.code_stride + 4 * kFirst);
      });
      Unroll<4>([&](auto number) NIBBLE_INLINE_LAMBDA {
        constexpr int kQuad = kFirst + decltype(number)::value;
        const V8 w = BytesOf<Packed>(LoadQuad<Packed, kQuad>(chunk));
        Unroll<kM>([&](auto m) NIBBLE_INLINE_LAMBDA {
          AddQuadOf<kCodeBits<Packed>, kPartQuads, kQuad % kPartQuads>(w, codes[m], integer[m],
                                                                       pairs[m]);
        });
      });
    });
    const Scale s = LoadScale<Packed>(block, row, c / Packed::kGroup + part);
    // sum += integer * (weight scale * activation scale) - min * activation sum
    Unroll<kM>([&](auto m) NIBBLE_INLINE_LAMBDA {
      const VF a_scale = hn::Set(df, a.scales[m * a.scale_stride]);
      sum[m] = hn::MulAdd(hn::ConvertTo(df, integer[m]), hn::Mul(s.scale, a_scale), sum[m]);
      if constexpr (Packed::kHasMin) {
        sum[m] = hn::NegMulAdd(s.min, hn::Set(df, a.sums[m * a.start_stride + part]), sum[m]);
      }
    });
  });
  Unroll<kM>([&](auto m) NIBBLE_INLINE_LAMBDA { hn::Store(sum[m], df, sums + m * kPackRows); });
}

// sums[(s * kMostTileRows + m) * 16 + r] = activation row m0 + m times row r of tile s.
template <class Packed, int kM>
HWY_INLINE void MultiplyTiles(const TileStreams& tiles, const Int8Activations& a, int64_t m0,
                              float* HWY_RESTRICT sums) {
  const int64_t groups32 = a.cols / 32, groups16 = a.cols / 16;
  std::memset(sums, 0,
              sizeof(float) * kMostTileRows * kPackRows * static_cast<size_t>(tiles.count));
  ChunkActivations at = {
      a.codes + m0 * a.cols,  a.cols,  a.scales + m0 * groups32, groups32, a.starts + m0 * groups16,
      a.sums + m0 * groups16, groups16};
  const int64_t blocks = a.cols / Packed::kWeights;
  for (int64_t i = 0; i < blocks; ++i) {
    for (int c = 0; c < Packed::kWeights; c += kPackCols) {
      for (int s = 0; s < tiles.count; ++s) {
        const std::byte* block = tiles.tile[s] + i * Packed::kBlockBytes;
        constexpr int kChunks = Packed::kWeights / kPackCols;
        const std::byte* ahead =
            block + kPrefetchBytes + Packed::kBlockBytes * (c / kPackCols) / kChunks;
        for (int line = 0; line < Packed::kBlockBytes / kChunks; line += 64) {
          hwy::Prefetch(ahead + line);
        }
        for (size_t row = 0; row < kPackRows; row += hn::Lanes(DF())) {
          MultiplyChunk<Packed, kM>(reinterpret_cast<const uint8_t*>(block), c, at, row,
                                    sums + s * kMostTileRows * kPackRows + row);
        }
      }
      at.codes += kPackCols;
      at.scales += 1;
      at.starts += 2;
      at.sums += 2;
    }
  }
}

template <class Packed>
void MultiplyTilesOf(const TileStreams& tiles, const Int8Activations& a, int64_t m0,
                     int64_t m_count, float* sums) {
  switch (m_count) {
    case 1:
      return MultiplyTiles<Packed, 1>(tiles, a, m0, sums);
    case 2:
      return MultiplyTiles<Packed, 2>(tiles, a, m0, sums);
    case 3:
      return MultiplyTiles<Packed, 3>(tiles, a, m0, sums);
    case 4:
      return MultiplyTiles<Packed, 4>(tiles, a, m0, sums);
    default:
      return MultiplyTiles<Packed, kMostRows>(tiles, a, m0, sums);
  }
}

TilesKernel FindTilesKernel(Format format) {
  TilesKernel found;
  VisitPacked(format, [&](auto packed) {
    using Packed = decltype(packed);
    found = {MultiplyTilesOf<Packed>, kMostRows, Packed::kGroup, kBytesOffset<Packed>};
  });
  return found;
}

void QuantizeActivations(const float* row, int64_t cols, int group, int offset, int8_t* codes,
                         float* scales, int32_t* starts, float* sums) {
  for (int64_t k = 0; k < cols; k += 32) {
    const auto [scale, sum] = Round32(row + k, codes + k, codes + k + 16);
    const int32_t first = group == 16 ? sum[0] : sum[0] + sum[1];
    scales[k / 32] = scale;
    starts[k / 16] = -offset * first;
    starts[k / 16 + 1] = -offset * sum[1];
    sums[k / 16] = scale * static_cast<float>(first);
    sums[k / 16 + 1] = scale * static_cast<float>(sum[1]);
  }
}

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#include "kernels/avx_vnni_pass.h"

#if NIBBLE_ONCE
namespace nibble {

HWY_EXPORT(FindTilesKernel);
HWY_EXPORT(QuantizeActivations);

void QuantizeActivations(const float* row, int64_t cols, int group, int offset, int8_t* codes,
                         float* scales, int32_t* starts, float* sums) {
  NIBBLE_DISPATCH_DOTS(QuantizeActivations)(row, cols, group, offset, codes, scales, starts, sums);
}

Status MatmulInt8(std::span<const Product<PackedTiles>> products, const ParallelFor& parallel) {
  std::vector<TilesKernel> kernels;
  for (const auto& product : products) {
    kernels.push_back(NIBBLE_DISPATCH_DOTS(FindTilesKernel)(product.weights.format));
  }
  const RoundedLayout layout(
      products, [&](size_t i) { return kernels[i].RoundsLike(kernels[i - 1]); },
      [&](size_t i) { return products[i].weights.cols; });
  // Behind the last row rows of zeros, that kernels may read some that do not exist.
  int64_t widest = 0;
  for (const auto& product : products) widest = std::max(widest, product.weights.cols);
  const size_t rounded = static_cast<size_t>(layout.elements());
  const size_t elements = rounded + static_cast<size_t>(kMostTileRows * widest);
  auto codes = hwy::AllocateAligned<int8_t>(elements);
  auto scales = hwy::AllocateAligned<float>(elements / 32);
  auto starts = hwy::AllocateAligned<int32_t>(elements / 16);
  auto sums = hwy::AllocateAligned<float>(elements / 16);
  if (!codes || !scales || !starts || !sums) {
    return OutOfMemory("matmul: no memory for activations");
  }
  std::fill(codes.get() + rounded, codes.get() + elements, int8_t{0});
  std::fill(scales.get() + rounded / 32, scales.get() + elements / 32, 0.0f);
  std::fill(starts.get() + rounded / 16, starts.get() + elements / 16, 0);
  std::fill(sums.get() + rounded / 16, sums.get() + elements / 16, 0.0f);
  NIBBLE_RETURN_IF_ERROR(
      RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
        const int64_t cols = products[i].weights.cols, at = layout.Begin(i) + m * cols;
        QuantizeActivations(row, cols, kernels[i].group, kernels[i].offset, codes.get() + at,
                            scales.get() + at / 32, starts.get() + at / 16, sums.get() + at / 16);
      }));

  const auto tile_count = [&](size_t i) { return DivideUp(products[i].weights.rows, kPackRows); };
  const auto multiply = [&](size_t i, const int64_t* numbers, int count) {
    const PackedTiles& weights = products[i].weights;
    const ProductOutput& output = products[i].output;
    const int64_t at = layout.Begin(i), m_rows = products[i].activations.rows;
    const Int8Activations a = {weights.cols, codes.get() + at, scales.get() + at / 32,
                               starts.get() + at / 16, sums.get() + at / 16};
    TileStreams streams;
    streams.count = count;
    const int64_t tile_bytes = PackedTileBytes(weights.format, weights.cols);
    for (int s = 0; s < count; ++s) streams.tile[s] = weights.tiles + numbers[s] * tile_bytes;
    const TilesKernel& kernel = kernels[i];
    for (int64_t m0 = 0; m0 < m_rows; m0 += kernel.most_rows) {
      const int64_t m_count = std::min(kernel.most_rows, m_rows - m0);
      alignas(64) float products_of_tiles[kStreams * kMostTileRows * kPackRows];
      kernel.multiply(streams, a, m0, m_count, products_of_tiles);
      for (int s = 0; s < count; ++s) {
        const int64_t n0 = numbers[s] * kPackRows;
        const int64_t n_count = std::min<int64_t>(kPackRows, weights.rows - n0);
        for (int64_t m = 0; m < m_count; ++m) {
          const float* sum = products_of_tiles + (s * kMostTileRows + m) * kPackRows;
          for (int64_t n = 0; n < n_count; ++n) output.Put(m0 + m, n0 + n, sum[n]);
        }
      }
    }
  };
  ForStreams(products.size(), tile_count, parallel, multiply);
  return OkStatus();
}

}  // namespace nibble
#endif  // NIBBLE_ONCE
