#include "kernels/gemv_int8.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"
#include "kernels/pack.h"
#include "kernels/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv_int8.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/packed-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The order in which the blocks of a tile are taken: its four quarters in turn. Memory delivers
// four streams half as fast again as one, whose prefetchers start anew on every page.
struct BlockOrder {
  int64_t blocks;
  int64_t quarter = blocks / 4;

  int64_t At(int64_t i) const { return i < 4 * quarter ? i % 4 * quarter + i / 4 : i; }
};

// How far ahead, in its stream, weights are asked for.
constexpr int kPrefetchBytes = 1024;

// Four consecutive activation codes in every lane.
HWY_INLINE hn::Vec<DS8> BroadcastQuad(const int8_t* codes) {
  int32_t quad;
  std::memcpy(&quad, codes, sizeof(quad));
  return hn::BitCast(DS8(), hn::Set(DI(), quad));
}

// sums[m * 16 + r] = activation row m0 + m times row r of the tile, for m < kM.
template <class Packed, int kM>
HWY_INLINE void MultiplyTile(const std::byte* tile, const Int8Activations& a, int64_t m0,
                             float* HWY_RESTRICT sums) {
  static_assert(kM <= 4);
  const DF df;
  const DI di;
  const int64_t groups32 = a.cols / 32, groups16 = a.cols / 16;
  const int8_t* codes = a.codes + m0 * a.cols;
  const float* scales = a.scales + m0 * groups32;
  const int32_t* starts = a.starts + m0 * groups16;
  const float* group_sums = a.sums + m0 * groups16;

  const BlockOrder order = {a.cols / Packed::kWeights};

  for (size_t row = 0; row < kPackRows; row += hn::Lanes(df)) {
    VF sum0 = hn::Zero(df), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    for (int64_t i = 0; i < order.blocks; ++i) {
      const int64_t at = order.At(i), col = at * Packed::kWeights;
      const uint8_t* block = reinterpret_cast<const uint8_t*>(tile) + at * Packed::kBlockBytes;
      if (row == 0) {
        // Beyond the tile: the next one.
        constexpr int kAhead =
            4 * ((kPrefetchBytes + Packed::kBlockBytes - 1) / Packed::kBlockBytes);
        int64_t next = i + kAhead;
        next = next < order.blocks ? order.At(next) : order.blocks + order.At(next % order.blocks);
        const std::byte* ahead = tile + next * Packed::kBlockBytes;
        for (int line = 0; line < Packed::kBlockBytes; line += 64) hwy::Prefetch(ahead + line);
      }
      for (int c = 0; c < Packed::kWeights; c += kPackCols) {
        const uint8_t* chunk =
            block + Packed::kScaleBytes + c / kPackCols * Packed::kChunkBytes + 4 * row;
        const int64_t k = col + c;

        // Integer sums of a half or a whole chunk.
        const auto half = [&](auto first, VI& i0, VI& i1, VI& i2, VI& i3) HWY_ATTR {
          constexpr int kFirst = decltype(first)::value;
          const auto quad = [&](auto number) HWY_ATTR {
            constexpr int kQuad = kFirst + decltype(number)::value;
            const V8 w = LoadQuad<Packed, kQuad>(chunk);
            const int8_t* at = codes + k + 4 * kQuad;
            i0 = hn::SumOfMulQuadAccumulate(di, w, BroadcastQuad(at), i0);
            if constexpr (kM > 1)
              i1 = hn::SumOfMulQuadAccumulate(di, w, BroadcastQuad(at + a.cols), i1);
            if constexpr (kM > 2) {
              i2 = hn::SumOfMulQuadAccumulate(di, w, BroadcastQuad(at + 2 * a.cols), i2);
            }
            if constexpr (kM > 3) {
              i3 = hn::SumOfMulQuadAccumulate(di, w, BroadcastQuad(at + 3 * a.cols), i3);
            }
          };
          quad(std::integral_constant<int, 0>());
          quad(std::integral_constant<int, 1>());
          quad(std::integral_constant<int, 2>());
          quad(std::integral_constant<int, 3>());
        };
        const auto start = [&](int m, int64_t group16)
                               HWY_ATTR { return hn::Set(di, starts[m * groups16 + group16]); };
        // sum += integer * (weight scale * activation scale) - min * activation sum
        const auto add = [&](int m, VF integer, VF scale, VF sum) HWY_ATTR {
          const VF a_scale = hn::Set(df, scales[m * groups32 + k / 32]);
          return hn::MulAdd(integer, hn::Mul(scale, a_scale), sum);
        };
        const auto subtract = [&](int m, int64_t group16, VF min, VF sum) HWY_ATTR {
          if constexpr (!Packed::kHasMin) return sum;
          return hn::NegMulAdd(min, hn::Set(df, group_sums[m * groups16 + group16]), sum);
        };
        const auto finish = [&](int m, VI integer, const Scale& s, int64_t group16,
                                VF sum) HWY_ATTR {
          return subtract(m, group16, s.min, add(m, hn::ConvertTo(df, integer), s.scale, sum));
        };

        VI i0 = start(0, k / 16), i1 = i0, i2 = i0, i3 = i0;
        if constexpr (kM > 1) i1 = start(1, k / 16);
        if constexpr (kM > 2) i2 = start(2, k / 16);
        if constexpr (kM > 3) i3 = start(3, k / 16);
        half(std::integral_constant<int, 0>(), i0, i1, i2, i3);
        if constexpr (Packed::kGroup == 16) {
          const Scale s = LoadScale<Packed>(block, row, c / 16);
          sum0 = finish(0, i0, s, k / 16, sum0);
          if constexpr (kM > 1) sum1 = finish(1, i1, s, k / 16, sum1);
          if constexpr (kM > 2) sum2 = finish(2, i2, s, k / 16, sum2);
          if constexpr (kM > 3) sum3 = finish(3, i3, s, k / 16, sum3);
          i0 = start(0, k / 16 + 1);
          if constexpr (kM > 1) i1 = start(1, k / 16 + 1);
          if constexpr (kM > 2) i2 = start(2, k / 16 + 1);
          if constexpr (kM > 3) i3 = start(3, k / 16 + 1);
        }
        half(std::integral_constant<int, 4>(), i0, i1, i2, i3);
        constexpr int kLast = Packed::kGroup == 16 ? 1 : 0;
        const Scale s =
            LoadScale<Packed>(block, row, Packed::kGroup == 16 ? c / 16 + 1 : c / Packed::kGroup);
        sum0 = finish(0, i0, s, k / 16 + kLast, sum0);
        if constexpr (kM > 1) sum1 = finish(1, i1, s, k / 16 + kLast, sum1);
        if constexpr (kM > 2) sum2 = finish(2, i2, s, k / 16 + kLast, sum2);
        if constexpr (kM > 3) sum3 = finish(3, i3, s, k / 16 + kLast, sum3);
      }
    }
    hn::StoreU(sum0, df, sums + row);
    if constexpr (kM > 1) hn::StoreU(sum1, df, sums + kPackRows + row);
    if constexpr (kM > 2) hn::StoreU(sum2, df, sums + 2 * kPackRows + row);
    if constexpr (kM > 3) hn::StoreU(sum3, df, sums + 3 * kPackRows + row);
  }
}

template <class Packed>
void MultiplyTileOf(const std::byte* tile, const Int8Activations& a, int64_t m0, int64_t m_count,
                    float* sums) {
  switch (m_count) {
    case 1:
      return MultiplyTile<Packed, 1>(tile, a, m0, sums);
    case 2:
      return MultiplyTile<Packed, 2>(tile, a, m0, sums);
    case 3:
      return MultiplyTile<Packed, 3>(tile, a, m0, sums);
    default:
      return MultiplyTile<Packed, 4>(tile, a, m0, sums);
  }
}

using MultiplyTileFunction = void (*)(const std::byte* tile, const Int8Activations& a, int64_t m0,
                                      int64_t m_count, float* sums);

MultiplyTileFunction FindMultiplyTile(Format format) {
  MultiplyTileFunction found = nullptr;
  VisitPacked(format, [&](auto packed) { found = MultiplyTileOf<decltype(packed)>; });
  return found;
}

void QuantizeActivations(const float* row, int64_t cols, int group, int offset, int8_t* codes,
                         float* scales, int32_t* starts, float* sums) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  const size_t lanes = hn::Lanes(df);
  for (int64_t k = 0; k < cols; k += 32) {
    auto most = hn::Zero(df), poison = hn::Zero(df);
    for (size_t i = 0; i < 32; i += lanes) {
      const auto v = hn::LoadU(df, row + k + i);
      most = hn::Max(most, hn::Abs(v));
      poison = hn::MulAdd(v, hn::Zero(df), poison);  // NaN where a value is not finite
    }
    const float largest = hn::ReduceMax(df, most), nan = hn::ReduceSum(df, poison);
    const float scale = largest / 127.0f;
    const auto inverse = hn::Set(df, largest > 0 && nan == 0 ? 127.0f / largest : 0.0f);
    int32_t sum[2] = {0, 0};
    for (size_t i = 0; i < 32; i += lanes) {
      const auto q = hn::NearestInt(hn::Mul(hn::LoadU(df, row + k + i), inverse));
      hn::StoreU(hn::DemoteTo(d8, q), d8, codes + k + i);
      sum[i / 16] += hn::ReduceSum(di, q);
    }
    const float a_scale = nan == 0 ? scale : nan;
    scales[k / 32] = a_scale;
    starts[k / 16] = -offset * (group == 16 ? sum[0] : sum[0] + sum[1]);
    starts[k / 16 + 1] = -offset * sum[1];
    sums[k / 16] = a_scale * static_cast<float>(group == 16 ? sum[0] : sum[0] + sum[1]);
    sums[k / 16 + 1] = a_scale * static_cast<float>(sum[1]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(FindMultiplyTile);
HWY_EXPORT(QuantizeActivations);

void QuantizeActivations(const float* row, int64_t cols, int group, int offset, int8_t* codes,
                         float* scales, int32_t* starts, float* sums) {
  NIBBLE_DISPATCH(QuantizeActivations)(row, cols, group, offset, codes, scales, starts, sums);
}

namespace {

// Sums of weight rows [first, last) with all activation rows; `first` begins a tile.
template <class Multiply>
void MultiplyTiles(const Product<PackedTiles>& product, const Int8Activations& a, Multiply multiply,
                   int64_t first, int64_t last) {
  const PackedTiles& weights = product.weights;
  const ProductOutput& output = product.output;
  const int64_t m_rows = product.activations.rows;
  const int64_t tile_bytes = PackedTileBytes(weights.format, weights.cols);
  for (int64_t n0 = first; n0 < last; n0 += kPackRows) {
    const std::byte* tile = weights.tiles + n0 / kPackRows * tile_bytes;
    const int64_t n_count = std::min<int64_t>(kPackRows, last - n0);
    for (int64_t m0 = 0; m0 < m_rows; m0 += 4) {
      const int64_t m_count = std::min<int64_t>(4, m_rows - m0);
      float tile_sums[4 * kPackRows];
      multiply(tile, a, m0, m_count, tile_sums);
      for (int64_t m = 0; m < m_count; ++m) {
        float* out = output.Row(m0 + m) + n0;
        for (int64_t n = 0; n < n_count; ++n) {
          float sum = tile_sums[m * kPackRows + n];
          if (output.bias != nullptr) sum += output.bias[n0 + n];
          out[n] = output.accumulate ? out[n] + sum : sum;
        }
      }
    }
  }
}

}  // namespace

Status MatmulInt8(std::span<const Product<PackedTiles>> products, const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);

  struct Rounding {
    int group = 0, offset = 0;
    bool operator==(const Rounding&) const = default;
  };
  std::vector<Rounding> roundings(products.size());
  int64_t weight_rows = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    VisitPacked(products[i].weights.format, [&](auto packed) {
      roundings[i] = {decltype(packed)::kGroup, decltype(packed)::kOffset};
    });
    weight_rows += products[i].weights.rows;
  }
  const RoundedLayout layout(
      products, [&](size_t i) { return roundings[i] == roundings[i - 1]; },
      [&](size_t i) { return products[i].weights.cols; });
  const size_t elements = static_cast<size_t>(layout.elements());
  auto codes = hwy::AllocateAligned<int8_t>(elements);
  auto scales = hwy::AllocateAligned<float>(elements / 32);
  auto starts = hwy::AllocateAligned<int32_t>(elements / 16);
  auto sums = hwy::AllocateAligned<float>(elements / 16);
  if (!codes || !scales || !starts || !sums) {
    return OutOfMemory("matmul: no memory for activations");
  }
  NIBBLE_RETURN_IF_ERROR(
      RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
        const int64_t cols = products[i].weights.cols, at = layout.Begin(i) + m * cols;
        QuantizeActivations(row, cols, roundings[i].group, roundings[i].offset, codes.get() + at,
                            scales.get() + at / 32, starts.get() + at / 16, sums.get() + at / 16);
      }));

  const int64_t task_rows = RowsPerTask(weight_rows, kPackRows, weight_rows, workers);
  TaskList tasks;
  for (const auto& product : products) tasks.Add(DivideUp(product.weights.rows, task_rows));
  parallel(tasks.count(), [&](int64_t index, int) {
    const auto [i, task] = tasks.At(index);
    const PackedTiles& weights = products[i].weights;
    const int64_t at = layout.Begin(i);
    const Int8Activations a = {weights.cols, codes.get() + at, scales.get() + at / 32,
                               starts.get() + at / 16, sums.get() + at / 16};
    MultiplyTiles(products[i], a, NIBBLE_DISPATCH(FindMultiplyTile)(weights.format),
                  task * task_rows, std::min(weights.rows, (task + 1) * task_rows));
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // HWY_ONCE
