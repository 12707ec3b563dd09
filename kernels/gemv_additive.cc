#include "kernels/gemv_additive.h"

#include <cmath>
#include <cstring>

#include "hwy/cache_control.h"
#include "kernels/convert.h"
#include "kernels/int8_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv_additive.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"

#ifndef NIBBLE_GEMV_ADDITIVE_CONSTANTS
#define NIBBLE_GEMV_ADDITIVE_CONSTANTS
namespace nibble {
namespace {

// Entries of a codebook, and of a table.
constexpr int64_t kTable = 256;
// Weight rows whose codes go through a table together.
constexpr int64_t kTileRows = 64;
// Activation rows that share the rearranging of codes.
constexpr int64_t kMostShared = 4;

// The tables of one activation row: byte `code` of table i is round(dot / scale) + 128 for code i
// of a weight row; `scale` of its 32 columns. Where an activation is not finite, the scale is NaN.
struct ActivationTables {
  const uint8_t* bytes;  // [codes, kTable], aligned to 64
  const float* scales;   // [blocks]
};

}  // namespace
}  // namespace nibble
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

// The tables of 32 columns, of which `a` holds the activations, zeros behind the last. `dots`:
// room for `count` * kTable floats.
void MakeTables(const AdditiveTables& weights, const float* HWY_RESTRICT a, int64_t count,
                float* HWY_RESTRICT dots, uint8_t* HWY_RESTRICT bytes, float* scale) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint8_t, DF> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t vector = weights.planes().scheme.vector;
  const int64_t codebooks = weights.planes().scheme.codebooks;
  VF most = hn::Zero(df), poison = hn::Zero(df);
  for (int64_t i = 0; i < count; ++i) {
    const float* columns = weights.columns() + i % codebooks * vector * kTable;
    const float* x = a + i / codebooks * vector;
    for (int64_t e = 0; e < kTable; e += 2 * lanes) {
      VF dot0 = hn::Zero(df), dot1 = dot0;
      for (int64_t k = 0; k < vector; ++k) {
        const VF xk = hn::Set(df, x[k]);
        dot0 = hn::MulAdd(xk, hn::Load(df, columns + k * kTable + e), dot0);
        dot1 = hn::MulAdd(xk, hn::Load(df, columns + k * kTable + e + lanes), dot1);
      }
      hn::Store(dot0, df, dots + i * kTable + e);
      hn::Store(dot1, df, dots + i * kTable + e + lanes);
      most = hn::Max(most, hn::Max(hn::Abs(dot0), hn::Abs(dot1)));
      poison = hn::MulAdd(hn::Add(dot0, dot1), hn::Zero(df), poison);
    }
  }
  const float largest = hn::ReduceMax(df, most), nan = hn::ReduceSum(df, poison);
  *scale = nan == 0 ? largest / 127.0f : nan;
  const VF inverse = hn::Set(df, largest > 0 && nan == 0 ? 127.0f / largest : 0.0f);
  const auto offset = hn::Set(di, 128);
  for (int64_t i = 0; i < count * kTable; i += lanes) {
    const auto q = hn::NearestInt(hn::Mul(hn::Load(df, dots + i), inverse));
    hn::StoreU(hn::DemoteTo(d8, hn::Add(q, offset)), d8, bytes + i);
  }
}

// sums[m * kTileRows + r] = activation row m times weight row `first` + r, without its scale.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL && HWY_MAX_BYTES == 64

// A table of 256 bytes is looked up for 64 weight rows at once, which wants code i of 64 rows in a
// vector: 16 bytes of 64 rows are transposed in registers.

using D8 = hn::FixedTag<uint8_t, 64>;
using DS8 = hn::RebindToSigned<D8>;
using D16 = hn::Repartition<uint16_t, D8>;
using DS16 = hn::RebindToSigned<D16>;
using DI = hn::Repartition<int32_t, D8>;
using V8 = hn::Vec<D8>;
using V16 = hn::Vec<D16>;

// (vector, byte) of 16 vectors becomes (byte, vector), in each of their four quarters: each step
// rotates the eight bits of the pair of indices by one.
HWY_INLINE void Transpose(V8* HWY_RESTRICT v) {
  const D8 d;
  V8 t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = hn::InterleaveLower(d, v[i], v[i + 8]);
    t[2 * i + 1] = hn::InterleaveUpper(d, v[i], v[i + 8]);
  }
  for (int i = 0; i < 8; ++i) {
    v[2 * i] = hn::InterleaveLower(d, t[i], t[i + 8]);
    v[2 * i + 1] = hn::InterleaveUpper(d, t[i], t[i + 8]);
  }
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = hn::InterleaveLower(d, v[i], v[i + 8]);
    t[2 * i + 1] = hn::InterleaveUpper(d, v[i], v[i + 8]);
  }
  for (int i = 0; i < 8; ++i) {
    v[2 * i] = hn::InterleaveLower(d, t[i], t[i + 8]);
    v[2 * i + 1] = hn::InterleaveUpper(d, t[i], t[i + 8]);
  }
}

// 16 bytes of each of 64 rows that lie `stride` bytes apart: row r in quarter r / 16 of vector
// r % 16.
HWY_INLINE void LoadRows(const uint8_t* HWY_RESTRICT codes, int64_t stride, V8* HWY_RESTRICT v) {
  const D8 d;
  const auto second = hn::FirstN(d, 16), third = hn::FirstN(d, 32), fourth = hn::FirstN(d, 48);
  for (int i = 0; i < 16; ++i) {
    const V8 q0 = hn::LoadDup128(d, codes + i * stride);
    const V8 q1 = hn::LoadDup128(d, codes + (i + 16) * stride);
    const V8 q2 = hn::LoadDup128(d, codes + (i + 32) * stride);
    const V8 q3 = hn::LoadDup128(d, codes + (i + 48) * stride);
    v[i] = hn::IfThenElse(fourth, hn::IfThenElse(third, hn::IfThenElse(second, q0, q1), q2), q3);
  }
}

// Sums of 64 rows on their way: those of the even rows and those of the odd ones; of the block at
// hand with 256 times the odd rows' beside the even ones'.
struct TileSums {
  alignas(64) uint16_t both[32], odd[32];
  alignas(64) float sums[kTileRows];  // even rows 0 .. 30, 32 .. 62, odd rows likewise
};

HWY_INLINE void EndBlock(float scale, int64_t count, V16 both, V16 odd, TileSums& tile) {
  const DF df;
  const DI di;
  const DS16 ds;
  const auto by = hn::Set(df, scale);
  const auto offset = hn::Set(ds, static_cast<int16_t>(128 * count));
  const auto even = hn::Sub(both, hn::ShiftLeft<8>(odd));
  const auto add = [&](auto x, int64_t at) NIBBLE_INLINE_LAMBDA {
    hn::Store(hn::MulAdd(by, hn::ConvertTo(df, x), hn::Load(df, tile.sums + at)), df,
              tile.sums + at);
  };
  const auto e = hn::Sub(hn::BitCast(ds, even), offset);
  const auto o = hn::Sub(hn::BitCast(ds, odd), offset);
  add(hn::PromoteLowerTo(di, e), 0);
  add(hn::PromoteUpperTo(di, e), 16);
  add(hn::PromoteLowerTo(di, o), 32);
  add(hn::PromoteUpperTo(di, o), 48);
}

// Codes [at, at + count) of the rows, count <= 16, through the tables of one activation row.
HWY_INLINE void LookUp(const AdditiveTables& weights, const ActivationTables& a, const V8* codes,
                       int64_t at, int64_t count, TileSums& tile) {
  const D8 d;
  const DS8 ds;
  const D16 d16;
  const V8 low_bits = hn::Set(d, 127);
  const int64_t block_codes = weights.block_codes(), all = weights.codes();
  V16 both = hn::Load(d16, tile.both), odd = hn::Load(d16, tile.odd);
  int64_t block = at / block_codes, in_block = at - block * block_codes;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* table = a.bytes + (at + i) * kTable;
    const auto index = hn::IndicesFromVec(d, hn::And(codes[i], low_bits));
    const V8 low = hn::TwoTablesLookupLanes(d, hn::Load(d, table), hn::Load(d, table + 64), index);
    const V8 high =
        hn::TwoTablesLookupLanes(d, hn::Load(d, table + 128), hn::Load(d, table + 192), index);
    const V16 x =
        hn::BitCast(d16, hn::IfNegativeThenElse(hn::BitCast(ds, codes[i]), hn::BitCast(ds, high),
                                                hn::BitCast(ds, low)));
    both = hn::Add(both, x);
    odd = hn::Add(odd, hn::ShiftRight<8>(x));
    if (++in_block == block_codes || at + i + 1 == all) {
      EndBlock(a.scales[block++], in_block, both, odd, tile);
      both = odd = hn::Zero(d16);
      in_block = 0;
    }
  }
  hn::Store(both, d16, tile.both);
  hn::Store(odd, d16, tile.odd);
}

void MultiplyTile(const AdditiveTables& weights, int64_t first, const ActivationTables* a,
                  int64_t m_count, float* HWY_RESTRICT sums) {
  const int64_t all = weights.codes(), rows = HWY_MIN(kTileRows, weights.rows() - first);
  const uint8_t* codes = weights.planes().codes + first * all;
  TileSums tiles[kMostShared];
  std::memset(tiles, 0, sizeof(TileSums) * static_cast<size_t>(m_count));
  for (int64_t at = 0; at < all; at += 16) {
    const int64_t count = HWY_MIN(int64_t{16}, all - at);
    V8 v[16];
    if (rows == kTileRows && count == 16) {
      LoadRows(codes + at, all, v);
    } else {
      alignas(64) uint8_t rest[kTileRows * 16] = {};
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(rest + r * 16, codes + r * all + at, static_cast<size_t>(count));
      }
      LoadRows(rest, 16, v);
    }
    // The next tile's codes, as many as these.
    for (int64_t i = 0; i < 16 * kTileRows; i += 64) {
      hwy::Prefetch(codes + (all + at) * kTileRows + i);
    }
    Transpose(v);
    for (int64_t m = 0; m < m_count; ++m) LookUp(weights, a[m], v, at, count, tiles[m]);
  }
  for (int64_t m = 0; m < m_count; ++m) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      sums[m * kTileRows + r] = tiles[m].sums[r % 2 * 32 + r / 2];
    }
  }
}

#else

void MultiplyTile(const AdditiveTables& weights, int64_t first, const ActivationTables* a,
                  int64_t m_count, float* HWY_RESTRICT sums) {
  const int64_t all = weights.codes(), rows = HWY_MIN(kTileRows, weights.rows() - first);
  const int64_t block_codes = weights.block_codes();
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* codes = weights.planes().codes + (first + r) * all;
    for (int64_t m = 0; m < m_count; ++m) {
      const uint8_t* table = a[m].bytes;
      float sum = 0;
      for (int64_t at = 0, block = 0; at < all; at += block_codes, ++block) {
        const int64_t count = HWY_MIN(block_codes, all - at);
        int32_t dots[2] = {};
        int64_t i = 0;
        for (; i + 2 <= count; i += 2, table += 2 * kTable) {
          dots[0] += table[codes[at + i]];
          dots[1] += table[kTable + codes[at + i + 1]];
        }
        for (; i < count; ++i, table += kTable) dots[0] += table[codes[at + i]];
        const int64_t dot = dots[0] + dots[1] - 128 * count;
        sum += a[m].scales[block] * static_cast<float>(dot);
      }
      sums[m * kTileRows + r] = sum;
    }
  }
}

#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(MakeTables);
HWY_EXPORT(MultiplyTile);

namespace {

// Blocks of 32 columns whose tables one task makes.
constexpr int64_t kTableBlocks = 16;

}  // namespace

Result<AdditiveTables> AdditiveTables::Make(const AdditiveRows& weights) {
  const AdditiveBooks books = weights.books();
  const int64_t vector = books.vector;
  AdditiveTables tables;
  tables.weights_ = &weights;
  tables.columns_ =
      hwy::AllocateAligned<float>(static_cast<size_t>(books.codebooks * kTable * vector));
  if (!tables.columns_) return OutOfMemory("matmul: no memory for codebooks");
  for (int64_t c = 0; c < books.codebooks; ++c) {
    for (int64_t e = 0; e < kTable; ++e) {
      for (int64_t k = 0; k < vector; ++k) {
        tables.columns_[static_cast<size_t>((c * vector + k) * kTable + e)] =
            books.entries[(c * kTable + e) * vector + k];
      }
    }
  }
  return tables;
}

Status MatmulAdditive(std::span<const Product<const AdditiveTables*>> products,
                      const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);
  // Where the tables of each product begin, of its activation rows one after another.
  std::vector<int64_t> table_begins, scale_begins;
  int64_t tables = 0, blocks = 0, most_codes = 0, weight_rows = 0;
  TaskList table_tasks;
  for (const auto& product : products) {
    const AdditiveTables& weights = *product.weights;
    table_begins.push_back(tables);
    scale_begins.push_back(blocks);
    tables += product.activations.rows * weights.codes();
    blocks += product.activations.rows * weights.blocks();
    most_codes = std::max(most_codes, weights.block_codes());
    weight_rows += weights.rows();
    table_tasks.Add(product.activations.rows * DivideUp(weights.blocks(), kTableBlocks));
  }
  auto bytes = hwy::AllocateAligned<uint8_t>(static_cast<size_t>(tables * kTable));
  auto scales = hwy::AllocateAligned<float>(static_cast<size_t>(blocks));
  auto dots = hwy::AllocateAligned<float>(static_cast<size_t>(workers * most_codes * kTable));
  if (!bytes || !scales || !dots) return OutOfMemory("matmul: no memory for tables");

  parallel(table_tasks.count(), [&](int64_t index, int worker) {
    const auto [i, task] = table_tasks.At(index);
    const AdditiveTables& weights = *products[i].weights;
    const ActivationRows& a = products[i].activations;
    const int64_t pieces = DivideUp(weights.blocks(), kTableBlocks);
    const int64_t m = task / pieces, first = task % pieces * kTableBlocks;
    for (int64_t b = first; b < std::min(weights.blocks(), first + kTableBlocks); ++b) {
      float x[32] = {};
      ConvertToFloat(a.dtype,
                     static_cast<const std::byte*>(a.Row(m)) +
                         static_cast<size_t>(b * 32) * DTypeBytes(a.dtype),
                     std::min<int64_t>(32, a.cols - b * 32), x);
      const int64_t code = b * weights.block_codes();
      NIBBLE_DISPATCH(MakeTables)
      (weights, x, std::min(weights.block_codes(), weights.codes() - code),
       dots.get() + worker * most_codes * kTable,
       bytes.get() + (table_begins[i] + m * weights.codes() + code) * kTable,
       scales.get() + scale_begins[i] + m * weights.blocks() + b);
    }
  });

  const int64_t task_rows = RowsPerTask(weight_rows, kTileRows, weight_rows, workers);
  TaskList tasks;
  for (const auto& product : products) tasks.Add(DivideUp(product.weights->rows(), task_rows));
  parallel(tasks.count(), [&](int64_t index, int) {
    const auto [i, task] = tasks.At(index);
    const AdditiveTables& weights = *products[i].weights;
    const PlanarPlanes& planes = weights.planes();
    const int64_t last = std::min(weights.rows(), (task + 1) * task_rows);
    for (int64_t row = task * task_rows; row < last; row += kTileRows) {
      for (int64_t m0 = 0; m0 < products[i].activations.rows; m0 += kMostShared) {
        const int64_t m_count = std::min(kMostShared, products[i].activations.rows - m0);
        ActivationTables a[kMostShared];
        for (int64_t m = 0; m < m_count; ++m) {
          a[m] = {bytes.get() + (table_begins[i] + (m0 + m) * weights.codes()) * kTable,
                  scales.get() + scale_begins[i] + (m0 + m) * weights.blocks()};
        }
        alignas(64) float sums[kMostShared * kTileRows];
        NIBBLE_DISPATCH(MultiplyTile)(weights, row, a, m_count, sums);
        for (int64_t r = 0; r < std::min(kTileRows, last - row); ++r) {
          const float scale = planes.Scale(row + r);
          for (int64_t m = 0; m < m_count; ++m) {
            products[i].output.Put(m0 + m, row + r, scale * sums[m * kTileRows + r]);
          }
        }
      }
    }
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // HWY_ONCE
