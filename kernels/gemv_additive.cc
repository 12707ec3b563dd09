#include "kernels/gemv_additive.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hwy/cache_control.h"
#include "kernels/convert.h"
#include "kernels/int8_targets.h"
#include "kernels/work_memory.h"

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
// Weight rows whose codes go through a table together, and such tiles that one call multiplies:
// packed, all of them take a table from the second cache at once.
constexpr int64_t kTileRows = kCodeTileRows;
constexpr int64_t kTiles = 4;
constexpr int64_t kTaskRows = kTiles * kTileRows;
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
    float* dot = dots + i * kTable;
    // Vectors are of 8 weights or a multiple.
    for (int64_t k = 0; k < vector; k += 8) {
      const float* x = a + i / codebooks * vector + k;
      const float* columns = weights.columns() + (i % codebooks * vector + k) * kTable;
      const VF x0 = hn::Set(df, x[0]), x1 = hn::Set(df, x[1]), x2 = hn::Set(df, x[2]),
               x3 = hn::Set(df, x[3]), x4 = hn::Set(df, x[4]), x5 = hn::Set(df, x[5]),
               x6 = hn::Set(df, x[6]), x7 = hn::Set(df, x[7]);
      const bool last = k + 8 == vector;
      for (int64_t e = 0; e < kTable; e += lanes) {
        const auto column = [&](int64_t j) NIBBLE_INLINE_LAMBDA {
          return hn::Load(df, columns + j * kTable + e);
        };
        VF sum = k == 0 ? hn::Mul(x0, column(0)) : hn::MulAdd(x0, column(0), hn::Load(df, dot + e));
        sum = hn::MulAdd(x1, column(1), sum);
        sum = hn::MulAdd(x2, column(2), sum);
        sum = hn::MulAdd(x3, column(3), sum);
        sum = hn::MulAdd(x4, column(4), sum);
        sum = hn::MulAdd(x5, column(5), sum);
        sum = hn::MulAdd(x6, column(6), sum);
        sum = hn::MulAdd(x7, column(7), sum);
        hn::Store(sum, df, dot + e);
        if (!last) continue;
        most = hn::Max(most, hn::Abs(sum));
        poison = hn::MulAdd(sum, hn::Zero(df), poison);
      }
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

// sums[m * kTaskRows + r] = activation row m times weight row `first` + r, without its scale, of
// `rows` <= kTaskRows.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL && HWY_MAX_BYTES == 64

// A table of 256 bytes is looked up for 64 weight rows at once, which wants code i of 64 rows in a
// vector: of codes that are not packed so, 16 bytes of 64 rows are transposed in registers.

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

// A table: 256 bytes.
struct Table {
  V8 v0, v1, v2, v3;
};
HWY_INLINE Table LoadTable(const uint8_t* HWY_RESTRICT bytes) {
  const D8 d;
  return {hn::Load(d, bytes), hn::Load(d, bytes + 64), hn::Load(d, bytes + 128),
          hn::Load(d, bytes + 192)};
}

// Sums of a block for 64 rows on their way: those of the odd rows, and 256 times these beside the
// even ones'.
struct BlockSums {
  V16 both, odd;
};

HWY_INLINE void LookUp(const Table& table, V8 codes, BlockSums& sums) {
  const D8 d;
  const DS8 ds;
  const D16 d16;
  const auto index = hn::IndicesFromVec(d, hn::And(codes, hn::Set(d, 127)));
  const auto low = hn::BitCast(ds, hn::TwoTablesLookupLanes(d, table.v0, table.v1, index));
  const auto high = hn::BitCast(ds, hn::TwoTablesLookupLanes(d, table.v2, table.v3, index));
  const V16 x = hn::BitCast(d16, hn::IfNegativeThenElse(hn::BitCast(ds, codes), high, low));
  sums.both = hn::Add(sums.both, x);
  sums.odd = hn::Add(sums.odd, hn::ShiftRight<8>(x));
}

// Adds those of `count` codes to the sums of a tile: even rows 0 .. 30, 32 .. 62, odd rows
// likewise.
HWY_INLINE void EndBlock(float scale, int64_t count, BlockSums& block, float* HWY_RESTRICT sums) {
  const DF df;
  const DI di;
  const DS16 ds;
  const D16 d16;
  const auto by = hn::Set(df, scale);
  const auto offset = hn::Set(ds, static_cast<int16_t>(128 * count));
  const auto even = hn::Sub(block.both, hn::ShiftLeft<8>(block.odd));
  const auto add = [&](auto x, int64_t at) NIBBLE_INLINE_LAMBDA {
    hn::Store(hn::MulAdd(by, hn::ConvertTo(df, x), hn::Load(df, sums + at)), df, sums + at);
  };
  const auto e = hn::Sub(hn::BitCast(ds, even), offset);
  const auto o = hn::Sub(hn::BitCast(ds, block.odd), offset);
  add(hn::PromoteLowerTo(di, e), 0);
  add(hn::PromoteUpperTo(di, e), 16);
  add(hn::PromoteLowerTo(di, o), 32);
  add(hn::PromoteUpperTo(di, o), 48);
  block = {hn::Zero(d16), hn::Zero(d16)};
}

// Packed tiles, from the first one's codes on. A block's codes stay in the first cache for all
// activation rows.
template <int kCount>
HWY_INLINE void MultiplyPacked(const AdditiveTables& weights, const uint8_t* HWY_RESTRICT codes,
                               const ActivationTables* a, int64_t m_count, float* sums) {
  const D8 d;
  const D16 d16;
  const int64_t block_codes = weights.block_codes(), all = weights.codes();
  for (int64_t at = 0, b = 0; at < all; at += block_codes, ++b) {
    const int64_t end = HWY_MIN(all, at + block_codes);
    for (int64_t m = 0; m < m_count; ++m) {
      BlockSums block[kCount];
      for (BlockSums& each : block) each = {hn::Zero(d16), hn::Zero(d16)};
      for (int64_t i = at; i < end; ++i) {
        const Table table = LoadTable(a[m].bytes + i * kTable);
        for (int n = 0; n < kCount; ++n) {
          LookUp(table, hn::LoadU(d, codes + (n * all + i) * kTileRows), block[n]);
        }
      }
      for (int n = 0; n < kCount; ++n) {
        EndBlock(a[m].scales[b], end - at, block[n], sums + m * kTaskRows + n * kTileRows);
      }
    }
  }
}

// Rows of codes, at most a tile of them.
void MultiplyRows(const AdditiveTables& weights, const uint8_t* HWY_RESTRICT codes, int64_t rows,
                  const ActivationTables* a, int64_t m_count, float* sums) {
  const D16 d16;
  const int64_t block_codes = weights.block_codes(), all = weights.codes();
  BlockSums blocks[kMostShared];
  for (BlockSums& each : blocks) each = {hn::Zero(d16), hn::Zero(d16)};
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
    for (int64_t m = 0; m < m_count; ++m) {
      BlockSums block = blocks[m];
      int64_t b = at / block_codes, in_block = at - b * block_codes;
      for (int64_t i = 0; i < count; ++i) {
        LookUp(LoadTable(a[m].bytes + (at + i) * kTable), v[i], block);
        if (++in_block == block_codes || at + i + 1 == all) {
          EndBlock(a[m].scales[b++], in_block, block, sums + m * kTaskRows);
          in_block = 0;
        }
      }
      blocks[m] = block;
    }
  }
}

void MultiplyTiles(const AdditiveTables& weights, int64_t first, int64_t rows,
                   const ActivationTables* a, int64_t m_count, float* HWY_RESTRICT sums) {
  const int64_t all = weights.codes();
  const bool packed = weights.tiles() != nullptr;
  const uint8_t* codes = (packed ? weights.tiles() : weights.planes().codes) + first * all;
  alignas(64) float ordered[kMostShared * kTaskRows] = {};
  if (packed && rows > kTaskRows - kTileRows) {
    MultiplyPacked<kTiles>(weights, codes, a, m_count, ordered);
  } else {
    for (int64_t r = 0; r < rows; r += kTileRows, codes += all * kTileRows) {
      if (packed) {
        MultiplyPacked<1>(weights, codes, a, m_count, ordered + r);
      } else {
        MultiplyRows(weights, codes, HWY_MIN(kTileRows, rows - r), a, m_count, ordered + r);
      }
    }
  }
  for (int64_t i = 0; i < m_count * kTaskRows; ++i) {
    const int64_t r = i % kTileRows;
    sums[i] = ordered[i - r + r % 2 * 32 + r / 2];
  }
}

#else

// The sum of `count` codes of a weight row, `stride` bytes apart, through the tables from `table`
// on.
HWY_INLINE int64_t Dot(const uint8_t* HWY_RESTRICT codes, int64_t stride,
                       const uint8_t* HWY_RESTRICT table, int64_t count) {
  int32_t dots[2] = {};
  int64_t i = 0;
  for (; i + 2 <= count; i += 2, table += 2 * kTable) {
    dots[0] += table[codes[i * stride]];
    dots[1] += table[kTable + codes[(i + 1) * stride]];
  }
  if (i < count) dots[0] += table[codes[i * stride]];
  return dots[0] + dots[1] - 128 * count;
}

void MultiplyTiles(const AdditiveTables& weights, int64_t first, int64_t rows,
                   const ActivationTables* a, int64_t m_count, float* HWY_RESTRICT sums) {
  const int64_t all = weights.codes();
  const int64_t block_codes = weights.block_codes();
  const bool packed = weights.tiles() != nullptr;
  const uint8_t* codes = (packed ? weights.tiles() : weights.planes().codes) + first * all;
  const int64_t stride = packed ? kTileRows : 1;
  std::fill_n(sums, m_count * kTaskRows, 0.0f);
  // The tables of a block stay in the first cache while all rows go through them.
  for (int64_t at = 0, block = 0; at < all; at += block_codes, ++block) {
    const int64_t count = HWY_MIN(block_codes, all - at);
    for (int64_t m = 0; m < m_count; ++m) {
      const float scale = a[m].scales[block];
      const uint8_t* table = a[m].bytes + at * kTable;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = packed ? r / kTileRows * kTileRows * all + r % kTileRows : r * all;
        const uint8_t* from = codes + row + at * stride;
        sums[m * kTaskRows + r] += scale * static_cast<float>(Dot(from, stride, table, count));
      }
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
HWY_EXPORT(MultiplyTiles);

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
  WorkMemory memory;
  const auto bytes_part = memory.Add<uint8_t>(tables * kTable);
  const auto scales_part = memory.Add<float>(blocks);
  const auto dots_part = memory.Add<float>(workers * most_codes * kTable);
  if (!memory.Allocate()) return OutOfMemory("matmul: no memory for tables");
  uint8_t* bytes = memory.At(bytes_part);
  float *scales = memory.At(scales_part), *dots = memory.At(dots_part);

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
       dots + worker * most_codes * kTable,
       bytes + (table_begins[i] + m * weights.codes() + code) * kTable,
       scales + scale_begins[i] + m * weights.blocks() + b);
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
    for (int64_t row = task * task_rows; row < last; row += kTaskRows) {
      const int64_t rows = std::min(kTaskRows, last - row);
      for (int64_t m0 = 0; m0 < products[i].activations.rows; m0 += kMostShared) {
        const int64_t m_count = std::min(kMostShared, products[i].activations.rows - m0);
        ActivationTables a[kMostShared];
        for (int64_t m = 0; m < m_count; ++m) {
          a[m] = {bytes + (table_begins[i] + (m0 + m) * weights.codes()) * kTable,
                  scales + scale_begins[i] + (m0 + m) * weights.blocks()};
        }
        float sums[kMostShared * kTaskRows];
        NIBBLE_DISPATCH(MultiplyTiles)(weights, row, rows, a, m_count, sums);
        for (int64_t r = 0; r < rows; ++r) {
          const float scale = planes.Scale(row + r);
          for (int64_t m = 0; m < m_count; ++m) {
            products[i].output.Put(m0 + m, row + r, scale * sums[m * kTaskRows + r]);
          }
        }
      }
    }
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // HWY_ONCE
