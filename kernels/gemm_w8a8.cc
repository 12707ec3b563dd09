#include "kernels/gemm_w8a8.h"

#include <cstring>
#include <limits>

#include "kernels/int8_targets.h"
#include "kernels/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm_w8a8.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS

namespace hn = hwy::HWY_NAMESPACE;

using D8 = hn::CappedTag<uint8_t, 64>;
using DS8 = hn::RebindToSigned<D8>;
using DI = hn::Repartition<int32_t, D8>;
using V8 = hn::Vec<D8>;
using VS8 = hn::Vec<DS8>;
using VI = hn::Vec<DI>;

// sum += dot products of four bytes each, of w + kDotsOffset. Activations are above -128 unless
// kAnyCode: two products of -128 by -128 do not fit in 16 bits.
template <bool kAnyCode>
HWY_INLINE VI AddSigned(VS8 w, VS8 a, VI sum) {
  if constexpr (kAnyCode && kDotsOffset == 0) return AddAnySigned(DS8(), w, a, sum);
  const D8 d;
  return AddDots<false>(d, hn::Xor(hn::BitCast(d, w), hn::Set(d, uint8_t{128})), a, sum);
}

// sums[m * 4 + n] += the product of activation row m and weight row n over `count` columns.
// Weights may end at `count`; activations are zeros from there to the end of a vector.
template <bool kAnyCode, int kM, int kN>
HWY_INLINE void MultiplyBlock(const int8_t* const* w, const int8_t* a, int64_t a_stride,
                              int64_t count, int64_t* sums) {
  static_assert(kM <= 4 && (kN == 1 || kN == 4));
  const DI di;
  const DS8 ds;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(ds));
  const int8_t *w0 = w[0], *w1 = w[kN - 1], *w2 = w1, *w3 = w1;
  if constexpr (kN > 1) w1 = w[1], w2 = w[2], w3 = w[3];
  VI s00 = hn::Zero(di), s01 = s00, s02 = s00, s03 = s00, s10 = s00, s11 = s00, s12 = s00,
     s13 = s00, s20 = s00, s21 = s00, s22 = s00, s23 = s00, s30 = s00, s31 = s00, s32 = s00,
     s33 = s00;
  const auto step = [&](auto load, int64_t k) HWY_ATTR {
    const VS8 v0 = load(w0 + k);
    VS8 v1 = v0, v2 = v0, v3 = v0;
    if constexpr (kN > 1) v1 = load(w1 + k), v2 = load(w2 + k), v3 = load(w3 + k);
    const VS8 a0 = hn::LoadU(ds, a + k);
    s00 = AddSigned<kAnyCode>(v0, a0, s00);
    if constexpr (kN > 1) {
      s01 = AddSigned<kAnyCode>(v1, a0, s01), s02 = AddSigned<kAnyCode>(v2, a0, s02),
      s03 = AddSigned<kAnyCode>(v3, a0, s03);
    }
    if constexpr (kM > 1) {
      const VS8 a1 = hn::LoadU(ds, a + a_stride + k);
      s10 = AddSigned<kAnyCode>(v0, a1, s10);
      if constexpr (kN > 1) {
        s11 = AddSigned<kAnyCode>(v1, a1, s11), s12 = AddSigned<kAnyCode>(v2, a1, s12),
        s13 = AddSigned<kAnyCode>(v3, a1, s13);
      }
    }
    if constexpr (kM > 2) {
      const VS8 a2 = hn::LoadU(ds, a + 2 * a_stride + k);
      s20 = AddSigned<kAnyCode>(v0, a2, s20);
      if constexpr (kN > 1) {
        s21 = AddSigned<kAnyCode>(v1, a2, s21), s22 = AddSigned<kAnyCode>(v2, a2, s22),
        s23 = AddSigned<kAnyCode>(v3, a2, s23);
      }
    }
    if constexpr (kM > 3) {
      const VS8 a3 = hn::LoadU(ds, a + 3 * a_stride + k);
      s30 = AddSigned<kAnyCode>(v0, a3, s30);
      if constexpr (kN > 1) {
        s31 = AddSigned<kAnyCode>(v1, a3, s31), s32 = AddSigned<kAnyCode>(v2, a3, s32),
        s33 = AddSigned<kAnyCode>(v3, a3, s33);
      }
    }
  };
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) {
    step([&](const int8_t* p) HWY_ATTR { return hn::LoadU(ds, p); }, k);
  }
  if (k < count) {
    const size_t rest = static_cast<size_t>(count - k);
    step([&](const int8_t* p) HWY_ATTR { return hn::LoadN(ds, p, rest); }, k);
  }
  const auto put = [&](int m, int n, VI s) HWY_ATTR { sums[m * 4 + n] += hn::ReduceSum(di, s); };
  put(0, 0, s00);
  if constexpr (kN > 1) put(0, 1, s01), put(0, 2, s02), put(0, 3, s03);
  if constexpr (kM > 1) put(1, 0, s10);
  if constexpr (kM > 1 && kN > 1) put(1, 1, s11), put(1, 2, s12), put(1, 3, s13);
  if constexpr (kM > 2) put(2, 0, s20);
  if constexpr (kM > 2 && kN > 1) put(2, 1, s21), put(2, 2, s22), put(2, 3, s23);
  if constexpr (kM > 3) put(3, 0, s30);
  if constexpr (kM > 3 && kN > 1) put(3, 1, s31), put(3, 2, s32), put(3, 3, s33);
}

// sums[m * 4 + n] = the products of `m_count` activation rows from m0 on with `n_count` weight
// rows, 4 at most of each.
void MultiplyRows(const int8_t* const* w, int n_count, int64_t cols, const W8A8Rows& a, int64_t m0,
                  int m_count, int64_t* sums) {
  const int8_t* codes = a.codes + m0 * a.stride;
  for (int m = 0; m < m_count; ++m) {
    for (int n = 0; n < 4; ++n) sums[m * 4 + n] = int64_t{-kDotsOffset} * a.sums[m0 + m];
  }
  for (int64_t col = 0; col < cols; col += kW8A8BlockCols) {
    const int64_t count = HWY_MIN(kW8A8BlockCols, cols - col);
    const auto multiply = [&](auto n_rows, int n) {
      constexpr int kN = decltype(n_rows)::value;
      const int8_t* rows[kN];
      for (int i = 0; i < kN; ++i) rows[i] = w[n + i] + col;
      const auto run = [&](auto any_code, auto m_rows) {
        MultiplyBlock<decltype(any_code)::value, decltype(m_rows)::value, kN>(
            rows, codes + col, a.stride, count, sums + n);
      };
      const auto by_count = [&](auto any_code) {
        if (m_count == 1) return run(any_code, std::integral_constant<int, 1>());
        if (m_count == 2) return run(any_code, std::integral_constant<int, 2>());
        if (m_count == 3) return run(any_code, std::integral_constant<int, 3>());
        return run(any_code, std::integral_constant<int, 4>());
      };
      if constexpr (kDotsOffset == 0) {
        if (a.any_code) return by_count(std::true_type());
      }
      by_count(std::false_type());
    };
    if (n_count == 4) {
      multiply(std::integral_constant<int, 4>(), 0);
    } else {
      for (int n = 0; n < n_count; ++n) multiply(std::integral_constant<int, 1>(), n);
    }
  }
}

// One activation row, `codes` filled up with zeros to `padded`; returns the scale.
float RoundRow(const float* HWY_RESTRICT row, int64_t cols, int64_t padded,
               int8_t* HWY_RESTRICT codes) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int8_t, decltype(df)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  auto most = hn::Zero(df), poison = hn::Zero(df);
  const auto look = [&](hn::Vec<decltype(df)> v) HWY_ATTR {
    most = hn::Max(most, hn::Abs(v));
    poison = hn::MulAdd(v, hn::Zero(df), poison);  // NaN where a value is not finite
  };
  int64_t k = 0;
  for (; k + lanes <= cols; k += lanes) look(hn::LoadU(df, row + k));
  if (k < cols) look(hn::LoadN(df, row + k, static_cast<size_t>(cols - k)));
  const float largest = hn::ReduceMax(df, most), nan = hn::ReduceSum(df, poison);
  std::memset(codes + cols, 0, static_cast<size_t>(padded - cols));
  if (nan != 0) {  // true of NaN too
    std::memset(codes, 0, static_cast<size_t>(cols));
    return nan;
  }
  const auto inverse = hn::Set(df, largest > 0 ? 127.0f / largest : 0.0f);
  const auto round = [&](hn::Vec<decltype(df)> v)
                         HWY_ATTR { return hn::DemoteTo(d8, hn::NearestInt(hn::Mul(v, inverse))); };
  for (k = 0; k + lanes <= cols; k += lanes)
    hn::StoreU(round(hn::LoadU(df, row + k)), d8, codes + k);
  if (k < cols) {
    const size_t rest = static_cast<size_t>(cols - k);
    hn::StoreN(round(hn::LoadN(df, row + k, rest)), d8, codes + k, rest);
  }
  return largest / 127.0f;
}

int32_t SumCodes(const int8_t* codes, int64_t padded) {
  const DS8 ds;
  const DI di;
  VI sum = hn::Zero(di);
  for (int64_t k = 0; k < padded; k += static_cast<int64_t>(hn::Lanes(ds))) {
    const auto pairs = hn::SumsOf2(hn::LoadU(ds, codes + k));
    sum = hn::Add(sum, hn::SumsOf2(pairs));
  }
  return hn::ReduceSum(di, sum);
}

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#include "kernels/avx_vnni_pass.h"

#if NIBBLE_ONCE
namespace nibble {

HWY_EXPORT(MultiplyRows);
HWY_EXPORT(RoundRow);
HWY_EXPORT(SumCodes);

namespace {

constexpr int64_t kAlign = 64;  // columns of a vector or tile
// Fewer activation rows would leave most of a tile empty.
constexpr int64_t kFewestTileRows = 12;
// Weight rows that are multiplied with all activation rows before the next: they stay in the
// second-level cache.
constexpr int64_t kPanelRows = 64;

float WeightScale(const PlanarPlanes& planes, int64_t row) {
  return planes.Scale(planes.ScaleAt(row, 0));
}

// One task in vectors.
void MultiplyVectors(const Product<W8A8Weights>& product, const W8A8Rows& a, const TileTask& task) {
  const PlanarPlanes& planes = product.weights.planes;
  const ProductOutput& output = product.output;
  const auto multiply = NIBBLE_DISPATCH_DOTS(MultiplyRows);
  const int8_t* codes = reinterpret_cast<const int8_t*>(planes.codes);
  const int64_t last = task.n0 + task.n_rows, m_last = task.m0 + task.m_rows;
  for (int64_t panel = task.n0; panel < last; panel += kPanelRows) {
    const int64_t panel_end = std::min(last, panel + kPanelRows);
    for (int64_t m0 = task.m0; m0 < m_last; m0 += 4) {
      const int m_count = static_cast<int>(std::min<int64_t>(4, m_last - m0));
      for (int64_t n0 = panel; n0 < panel_end; n0 += 4) {
        const int n_count = static_cast<int>(std::min<int64_t>(4, panel_end - n0));
        const int8_t* rows[4] = {};
        for (int n = 0; n < n_count; ++n) rows[n] = codes + (n0 + n) * planes.cols;
        int64_t sums[16];
        multiply(rows, n_count, planes.cols, a, m0, m_count, sums);
        for (int n = 0; n < n_count; ++n) {
          const float scale = WeightScale(planes, n0 + n);
          for (int m = 0; m < m_count; ++m) {
            float sum = static_cast<float>(sums[m * 4 + n]) * (scale * a.scales[m0 + m]);
            float& out = output.Row(m0 + m)[n0 + n];
            if (output.bias != nullptr) sum += output.bias[n0 + n];
            out = output.accumulate ? out + sum : sum;
          }
        }
      }
    }
  }
}

// One task in tiles. `slabs` begin with the first of all activation rows.
void MultiplyTiles(const TilesW8A8& tiles, const Product<W8A8Weights>& product, const W8A8Rows& a,
                   const uint8_t* slabs, const TileTask& task, int64_t block_rows,
                   const TileMemory<int32_t>& memory) {
  const PlanarPlanes& planes = product.weights.planes;
  const int64_t chunks = a.stride / kChunkBytes;
  const auto codes_at = [&](const TilePart& piece) {
    return reinterpret_cast<const int8_t*>(planes.codes) + piece.row * planes.cols +
           piece.chunk * kChunkBytes;
  };
  MultiplyTileTask(
      tiles.tiles, chunks, slabs + SlabBytes(task.m0, chunks), task, block_rows,
      [&](const TilePart& piece, const TilePart& next, uint8_t* panel) {
        const int64_t cols = planes.cols - piece.chunk * kChunkBytes;
        tiles.decode(codes_at(piece), codes_at(next), planes.cols, piece.row_count,
                     std::min(cols, piece.chunk_count * kChunkBytes), panel);
      },
      [&](const int32_t* totals, int64_t m, int64_t m_count, int64_t n, int64_t n_count) {
        float scales[kPairRows] = {};
        for (int64_t i = 0; i < n_count; ++i) scales[i] = WeightScale(planes, n + i);
        tiles.store(totals, a, scales, product.output, m, m_count, n, n_count);
      },
      memory);
}

}  // namespace

bool TakesW8A8(const PlanarPlanes& planes) {
  const Scheme& s = planes.scheme;
  return s.code == Code::kUniform && s.bits == 8 && s.symmetric && planes.group_index == nullptr &&
         s.granularity != Granularity::kGroup;
}

Status MatmulW8A8(std::span<const Product<W8A8Weights>> products, const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);
  const RoundedLayout layout(
      products, [](size_t) { return true; },
      [&](size_t i) { return RoundUp(products[i].activations.cols, kAlign); });
  const TilesW8A8* tiles = AmxW8A8();
  const auto in_tiles = [&](size_t i) {
    return tiles != nullptr && products[i].activations.rows >= kFewestTileRows &&
           products[i].activations.cols <= kW8A8BlockCols;
  };
  const auto chunks_of = [&](size_t i) {
    return DivideUp(products[i].activations.cols, kChunkBytes);
  };

  // Slabs of the tile unit.
  std::vector<int64_t> slab_begins;
  TaskList pairs;
  int64_t slab_bytes = 0, weight_rows = 0, most_rows = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const int64_t rows = products[i].activations.rows;
    const bool shared = i > 0 && layout.Begin(i) == layout.Begin(i - 1);
    const bool packs = in_tiles(i) && !shared;
    slab_begins.push_back(shared ? slab_begins.back() : slab_bytes);
    pairs.Add(packs ? DivideUp(rows, kPairRows) : 0);
    if (packs) slab_bytes += SlabBytes(rows, chunks_of(i));
    weight_rows += products[i].weights.planes.rows;
    if (in_tiles(i)) most_rows = std::max(most_rows, rows);
  }
  const int64_t task_rows = RowsPerTask(weight_rows, kPairRows, weight_rows, workers);
  const int64_t block_rows = most_rows > 0 ? std::min(BlockRows(most_rows), task_rows) : 0;

  WorkMemory memory;
  const auto codes_part = memory.Add<int8_t>(layout.elements());
  const auto scales_part = memory.Add<float>(layout.elements() / kAlign);
  const auto sums_part = memory.Add<int32_t>(layout.elements() / kAlign);
  const auto slabs_part = memory.Add<uint8_t>(slab_bytes);
  const TileScratch<int32_t> scratch(&memory, workers, block_rows, most_rows);
  if (!memory.Allocate()) return OutOfMemory("matmul: no memory for activations");
  int8_t* const codes = memory.At(codes_part);
  float* const scales = memory.At(scales_part);
  int32_t* const sums = memory.At(sums_part);
  uint8_t* const slabs = memory.At(slabs_part);

  std::vector<W8A8Rows> rounded;
  for (size_t i = 0; i < products.size(); ++i) {
    const ActivationRows& a = products[i].activations;
    const int64_t begin = layout.Begin(i);
    rounded.push_back({a.rows, RoundUp(a.cols, kAlign), a.dtype == DType::kI8, codes + begin,
                       scales + begin / kAlign, sums + begin / kAlign});
  }
  const auto put = [&](size_t i, int64_t m, float scale) {
    const int64_t at = layout.Begin(i) / kAlign + m;
    scales[at] = scale;
    sums[at] =
        NIBBLE_DISPATCH_DOTS(SumCodes)(rounded[i].codes + m * rounded[i].stride, rounded[i].stride);
  };
  const auto codes_of = [&](size_t i, int64_t m) {
    return codes + layout.Begin(i) + m * rounded[i].stride;
  };
  if (products.front().activations.dtype == DType::kI8) {
    parallel(layout.rows().count(), [&](int64_t index, int) {
      const auto [i, m] = layout.rows().At(index);
      const ActivationRows& a = products[i].activations;
      const auto& given = products[i].weights.activation_scales;
      int8_t* to = codes_of(i, m);
      std::memcpy(to, a.Row(m), static_cast<size_t>(a.cols));
      std::memset(to + a.cols, 0, static_cast<size_t>(rounded[i].stride - a.cols));
      const size_t row = static_cast<size_t>(a.index != nullptr ? a.index[m] : m);
      put(i, m, given[given.size() == 1 ? 0 : row]);
    });
  } else {
    NIBBLE_RETURN_IF_ERROR(
        RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
          put(i, m,
              NIBBLE_DISPATCH_DOTS(RoundRow)(row, products[i].activations.cols, rounded[i].stride,
                                             codes_of(i, m)));
        }));
  }

  parallel(pairs.count(), [&](int64_t index, int) {
    const auto [i, pair] = pairs.At(index);
    const int64_t m = pair * kPairRows;
    uint8_t* slab = slabs + slab_begins[i];
    ForSlabBlocks(rounded[i].rows, chunks_of(i), m,
                  [&, i = i](int64_t chunk, int64_t count, int64_t place) {
                    tiles->pack(rounded[i], m, chunk, count, slab + place);
                  });
  });

  TaskList tasks;
  for (const auto& product : products) {
    tasks.Add(DivideUp(product.weights.planes.rows, task_rows) *
              DivideUp(product.activations.rows, kSlabRows));
  }
  parallel(tasks.count(), [&](int64_t index, int worker) {
    const auto [i, number] = tasks.At(index);
    const int64_t n_rows = products[i].weights.planes.rows;
    const int64_t n_tasks = DivideUp(n_rows, task_rows);
    TileTask task;
    task.n0 = number % n_tasks * task_rows;
    task.n_rows = std::min(task_rows, n_rows - task.n0);
    task.m0 = number / n_tasks * kSlabRows;
    task.m_rows = std::min(kSlabRows, products[i].activations.rows - task.m0);
    task.piece_chunks = kPieceCols / kChunkBytes;
    task.few_rows = kMostFewRows;
    if (!in_tiles(i)) return MultiplyVectors(products[i], rounded[i], task);
    MultiplyTiles(*tiles, products[i], rounded[i], slabs + slab_begins[i], task, block_rows,
                  scratch.Of(memory, worker));
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // NIBBLE_ONCE
