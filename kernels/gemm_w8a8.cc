#include "kernels/gemm_w8a8.h"

#include <cstring>
#include <limits>

#include "hwy/aligned_allocator.h"
#include "kernels/int8_targets.h"
#include "kernels/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm_w8a8.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D8 = hn::CappedTag<uint8_t, 64>;
using DS8 = hn::RebindToSigned<D8>;
using DI = hn::Repartition<int32_t, D8>;
using V8 = hn::Vec<D8>;
using VS8 = hn::Vec<DS8>;
using VI = hn::Vec<DI>;

// sum += dot products of four bytes each, of w + 128 where kStoredOffset is 128. Activations are
// above -128 unless kAnyCode.
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
constexpr int kStoredOffset = 0;
template <bool kAnyCode>
HWY_INLINE VI AddDots(VS8 w, VS8 a, VI sum) {
  // Two products of -128 by -128 do not fit in 16 bits.
  if constexpr (kAnyCode) return hn::SumOfMulQuadAccumulate(DI(), w, a, sum);
  const D8 d;
  const hn::Repartition<int16_t, D8> d16;
  const auto pairs = hn::SatWidenMulPairwiseAdd(d16, hn::BitCast(d, hn::Abs(w)),
                                                hn::IfNegativeThenNegOrUndefIfZero(w, a));
  return hn::Add(sum, hn::WidenMulPairwiseAdd(DI(), pairs, hn::Set(d16, int16_t{1})));
}
#else
constexpr int kStoredOffset = 128;
template <bool>
HWY_INLINE VI AddDots(VS8 w, VS8 a, VI sum) {
  return hn::SumOfMulQuadAccumulate(
      DI(), hn::Xor(hn::BitCast(D8(), w), hn::Set(D8(), uint8_t{128})), a, sum);
}
#endif

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
    s00 = AddDots<kAnyCode>(v0, a0, s00);
    if constexpr (kN > 1) {
      s01 = AddDots<kAnyCode>(v1, a0, s01), s02 = AddDots<kAnyCode>(v2, a0, s02),
      s03 = AddDots<kAnyCode>(v3, a0, s03);
    }
    if constexpr (kM > 1) {
      const VS8 a1 = hn::LoadU(ds, a + a_stride + k);
      s10 = AddDots<kAnyCode>(v0, a1, s10);
      if constexpr (kN > 1) {
        s11 = AddDots<kAnyCode>(v1, a1, s11), s12 = AddDots<kAnyCode>(v2, a1, s12),
        s13 = AddDots<kAnyCode>(v3, a1, s13);
      }
    }
    if constexpr (kM > 2) {
      const VS8 a2 = hn::LoadU(ds, a + 2 * a_stride + k);
      s20 = AddDots<kAnyCode>(v0, a2, s20);
      if constexpr (kN > 1) {
        s21 = AddDots<kAnyCode>(v1, a2, s21), s22 = AddDots<kAnyCode>(v2, a2, s22),
        s23 = AddDots<kAnyCode>(v3, a2, s23);
      }
    }
    if constexpr (kM > 3) {
      const VS8 a3 = hn::LoadU(ds, a + 3 * a_stride + k);
      s30 = AddDots<kAnyCode>(v0, a3, s30);
      if constexpr (kN > 1) {
        s31 = AddDots<kAnyCode>(v1, a3, s31), s32 = AddDots<kAnyCode>(v2, a3, s32),
        s33 = AddDots<kAnyCode>(v3, a3, s33);
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
    for (int n = 0; n < 4; ++n) sums[m * 4 + n] = int64_t{-kStoredOffset} * a.sums[m0 + m];
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
      if constexpr (kStoredOffset == 0) {
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

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(MultiplyRows);
HWY_EXPORT(RoundRow);
HWY_EXPORT(SumCodes);

namespace {

constexpr int64_t kAlign = 64;     // columns of a vector or tile
constexpr int64_t kTileRows = 32;  // of a panel and a slab
// Fewer activation rows would leave most of a tile empty.
constexpr int64_t kFewestTileRows = 12;
// Columns of which a slab stays in the first-level cache while panels pass by.
constexpr int64_t kTileCols = 1024;
// Weight and activation rows of a task: its panels take an eighth, its sums a quarter of a
// second-level cache of 2 MiB.
constexpr int64_t kTaskRows = 256;
constexpr int64_t kTaskActivations = 512;
// Weight rows that are multiplied with all activation rows before the next: they stay in the
// second-level cache.
constexpr int64_t kPanelRows = 64;

float WeightScale(const PlanarPlanes& planes, int64_t row) {
  return planes.Scale(planes.ScaleAt(row, 0));
}

// Weight rows [first, last) by all activation rows, in vectors.
void MultiplyVectors(const Product<W8A8Weights>& product, const W8A8Rows& a, int64_t first,
                     int64_t last) {
  const PlanarPlanes& planes = product.weights.planes;
  const ProductOutput& output = product.output;
  const auto multiply = NIBBLE_DISPATCH(MultiplyRows);
  const int8_t* codes = reinterpret_cast<const int8_t*>(planes.codes);
  for (int64_t panel = first; panel < last; panel += kPanelRows) {
    const int64_t panel_end = std::min(last, panel + kPanelRows);
    for (int64_t m0 = 0; m0 < a.rows; m0 += 4) {
      const int m_count = static_cast<int>(std::min<int64_t>(4, a.rows - m0));
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

// Memory of one worker for tiles.
struct TileScratch {
  int8_t* panels;
  int32_t* sums;
};

// Weight rows [first, last) by activation rows [m_first, m_last), in tiles. `slab` begins with the
// first of all activation rows.
void MultiplyTiles(const TilesW8A8& tiles, const Product<W8A8Weights>& product, const W8A8Rows& a,
                   const int8_t* slab, int64_t first, int64_t last, int64_t m_first, int64_t m_last,
                   const TileScratch& scratch) {
  const PlanarPlanes& planes = product.weights.planes;
  const int8_t* codes = reinterpret_cast<const int8_t*>(planes.codes);
  const int64_t n_panels = DivideUp(last - first, kTileRows);
  const auto sums_of = [&](int64_t n0, int64_t m0) {
    return scratch.sums +
           ((m0 - m_first) / kTileRows * n_panels + (n0 - first) / kTileRows) * kW8A8Sums;
  };
  for (int64_t col = 0; col < planes.cols; col += kTileCols) {
    const int64_t count = std::min(kTileCols, planes.cols - col);
    for (int64_t n0 = first; n0 < last; n0 += kTileRows) {
      tiles.pack_weights(codes + n0 * planes.cols + col, planes.cols,
                         std::min(kTileRows, last - n0), count,
                         scratch.panels + (n0 - first) * kTileCols);
    }
    for (int64_t m0 = m_first; m0 < m_last; m0 += kTileRows) {
      for (int64_t n0 = first; n0 < last; n0 += kTileRows) {
        tiles.multiply(scratch.panels + (n0 - first) * kTileCols,
                       slab + m0 * a.stride + col * kTileRows, DivideUp(count, kAlign), col == 0,
                       sums_of(n0, m0));
      }
    }
  }
  // A stretch of each output row at a time: panel by panel would touch its pages again and again.
  float weight_scales[kTaskRows] = {};
  for (int64_t n = first; n < last; ++n) weight_scales[n - first] = WeightScale(planes, n);
  for (int64_t m0 = m_first; m0 < m_last; m0 += kTileRows) {
    for (int64_t n0 = first; n0 < last; n0 += kTileRows) {
      tiles.store(sums_of(n0, m0), a, weight_scales + (n0 - first), product.output, m0,
                  std::min(kTileRows, m_last - m0), n0, std::min(kTileRows, last - n0));
    }
  }
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
  const size_t elements = static_cast<size_t>(layout.elements());
  auto codes = hwy::AllocateAligned<int8_t>(elements);
  auto scales = hwy::AllocateAligned<float>(elements / kAlign);
  auto sums = hwy::AllocateAligned<int32_t>(elements / kAlign);
  if (!codes || !scales || !sums) return OutOfMemory("matmul: no memory for activations");
  std::vector<W8A8Rows> rounded;
  for (size_t i = 0; i < products.size(); ++i) {
    const ActivationRows& a = products[i].activations;
    const int64_t begin = layout.Begin(i);
    rounded.push_back({a.rows, RoundUp(a.cols, kAlign), a.dtype == DType::kI8, codes.get() + begin,
                       scales.get() + begin / kAlign, sums.get() + begin / kAlign});
  }
  const auto put = [&](size_t i, int64_t m, float scale) {
    const int64_t at = layout.Begin(i) / kAlign + m;
    scales[static_cast<size_t>(at)] = scale;
    sums[static_cast<size_t>(at)] =
        NIBBLE_DISPATCH(SumCodes)(rounded[i].codes + m * rounded[i].stride, rounded[i].stride);
  };
  const auto codes_of = [&](size_t i, int64_t m) {
    return codes.get() + layout.Begin(i) + m * rounded[i].stride;
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
              NIBBLE_DISPATCH(RoundRow)(row, products[i].activations.cols, rounded[i].stride,
                                        codes_of(i, m)));
        }));
  }

  const TilesW8A8* tiles = AmxW8A8();
  const auto in_tiles = [&](size_t i) {
    return tiles != nullptr && products[i].activations.rows >= kFewestTileRows &&
           products[i].activations.cols <= kW8A8BlockCols;
  };

  // Slabs of the tile unit.
  std::vector<int64_t> slab_begins;
  TaskList slab_tasks;
  int64_t slab_bytes = 0, weight_rows = 0, most_rows = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const bool shared = i > 0 && layout.Begin(i) == layout.Begin(i - 1);
    slab_begins.push_back(shared ? slab_begins.back() : slab_bytes);
    const int64_t slabs =
        in_tiles(i) && !shared ? DivideUp(products[i].activations.rows, kTileRows) : 0;
    slab_tasks.Add(slabs);
    slab_bytes += slabs * kTileRows * rounded[i].stride;
    weight_rows += products[i].weights.planes.rows;
    if (in_tiles(i)) most_rows = std::max(most_rows, products[i].activations.rows);
  }
  const int64_t task_rows = RowsPerTask(weight_rows, kTileRows, kTaskRows, workers);
  const int64_t sums_each = task_rows * std::min(kTaskActivations, RoundUp(most_rows, kTileRows));
  auto slabs = hwy::AllocateAligned<int8_t>(static_cast<size_t>(slab_bytes) + 1);
  auto panels = hwy::AllocateAligned<int8_t>(
      static_cast<size_t>(most_rows > 0 ? workers * task_rows * kTileCols : 1));
  auto tile_sums = hwy::AllocateAligned<int32_t>(static_cast<size_t>(workers * sums_each) + 1);
  if (!slabs || !panels || !tile_sums) return OutOfMemory("matmul: no memory for packed operands");
  parallel(slab_tasks.count(), [&](int64_t index, int) {
    const auto [i, slab] = slab_tasks.At(index);
    tiles->pack_activations(rounded[i], slab * kTileRows,
                            slabs.get() + slab_begins[i] + slab * kTileRows * rounded[i].stride);
  });

  TaskList tasks;
  for (const auto& product : products) tasks.Add(DivideUp(product.weights.planes.rows, task_rows));
  parallel(tasks.count(), [&](int64_t index, int worker) {
    const auto [i, task] = tasks.At(index);
    const int64_t first = task * task_rows;
    const int64_t last = std::min(products[i].weights.planes.rows, first + task_rows);
    if (!in_tiles(i)) return MultiplyVectors(products[i], rounded[i], first, last);
    tiles->enter();
    const int64_t m_rows = rounded[i].rows;
    for (int64_t m = 0; m < m_rows; m += kTaskActivations) {
      MultiplyTiles(
          *tiles, products[i], rounded[i], slabs.get() + slab_begins[i], first, last, m,
          std::min(m_rows, m + kTaskActivations),
          {panels.get() + worker * task_rows * kTileCols, tile_sums.get() + worker * sums_each});
    }
    tiles->leave();
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // HWY_ONCE
