// Products in tiles of 16 x 16 sums: the layouts of their operands and the order of the work, for
// any type of number of which a tile unit multiplies 64 bytes of a row at a time.
//
// Weights are never transposed. Where they decode to rows they are the left operand: sums are
// [n, m], and the activations, packed once for all weights, and the finished sums are transposed.
// Where sixteen of their rows decode to columns they are the right one, sums are [m, n], and
// nothing is transposed. Below, layouts are those of the left one; "rows" of the right one's tiles
// are columns, 4 bytes of each of sixteen rows.
//
//   chunk   columns whose numbers fill 64 bytes of a row
//   panel   32 weight rows of a block of up to 16 chunks, chunk after chunk, two tiles each; a tile
//           is 16 rows of 64 bytes
//   slab    activations of the same block, 32 activation rows after another; of those chunk after
//           chunk, two tiles each; a tile is 16 rows of 4 bytes for each activation row
//   sums    four tiles of 16 x 16, (n tile, m tile) = (0, 0), (0, 1), (1, 0), (1, 1)
//
// 32 activation rows of a block fill two thirds of a first-level cache of 48 KiB and are multiplied
// with panel after panel, which stream past them from the second level. A step's panels and its
// sums for a slab's rows fill three quarters of that one. What remains comes from beyond: the next
// 32 activation rows, which are asked for ahead.
//
// Slower, with AMX: panels that stay while activations pass by, because those fill as much of the
// second-level cache as the panels and as many lines again, asked for ahead; decoding the next
// panel between the products of this one, which costs what it saves (loads of tiles wait behind
// those of codes); sums of all columns in tiles, with both operands from the second level, which
// delivers 48 of the 64 bytes a cycle that this needs; sums that are loaded into tiles.
#ifndef NIBBLE_KERNELS_GEMM_TILES_H_
#define NIBBLE_KERNELS_GEMM_TILES_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cache_sizes.h"
#include "kernels/matmul.h"
#include "kernels/work_memory.h"

namespace nibble {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kPairRows = 2 * kTileRows;
inline constexpr int64_t kChunkBytes = 64;
inline constexpr int64_t kTileBytes = kTileRows * kChunkBytes;
inline constexpr int64_t kPairBytes = 2 * kTileBytes;  // both tiles of a chunk
inline constexpr int64_t kBlockChunks = 16;
inline constexpr int64_t kPanelBytes = kBlockChunks * kPairBytes;
inline constexpr int64_t kTileSums = kTileRows * kTileRows;
inline constexpr int64_t kPairSums = 4 * kTileSums;

// totals = (first ? 0 : totals) + sums, of kPairSums each; nothing where sums is null.
template <class Sum>
struct Addition {
  const Sum* sums = nullptr;
  Sum* totals = nullptr;
  bool first = false;
};

// Memory that will be read soon: so many lines of 64 bytes for each chunk.
struct Ahead {
  const uint8_t* next = nullptr;
  int64_t lines = 0;
};

template <class Sum>
struct TileUnit {
  // Around the use of the others on a thread.
  void (*enter)();
  void (*leave)();
  // sums = panel x slab^T over `chunks`, for n_tiles x m_tiles of the tiles, and meanwhile the
  // addition of the product before and asking for `ahead`.
  void (*multiply)(const uint8_t* panel, const uint8_t* slab, int64_t chunks, int n_tiles,
                   int m_tiles, Sum* sums, const Addition<Sum>& before, const Ahead& ahead);
  void (*add)(const Addition<Sum>& addition);
  // Adds panel x slab^T to sums that stay in the unit until they go to `sums`, where it is not
  // null; `first`: they begin at zero. Nothing else may use the unit meanwhile.
  void (*accumulate)(const uint8_t* panel, const uint8_t* slab, int64_t chunks, int n_tiles,
                     int m_tiles, bool first, Sum* sums);
};

// Activation rows of a slab.
inline constexpr int64_t kSlabRows = 512;

inline int64_t SlabBytes(int64_t rows, int64_t chunks) {
  return RoundUp(rows, kPairRows) * chunks * kChunkBytes;
}

// Calls function(chunk, count, place) for each block of chunks of activation rows [m, m + 32) with
// where it lies in the slabs: for each 512 rows, for each block, 32 rows after another.
template <class Function>
void ForSlabBlocks(int64_t rows, int64_t chunks, int64_t m, const Function& function) {
  const int64_t slab_m = m / kSlabRows * kSlabRows;
  const int64_t slab_rows = RoundUp(std::min(kSlabRows, rows - slab_m), kPairRows);
  for (int64_t chunk = 0; chunk < chunks; chunk += kBlockChunks) {
    const int64_t count = std::min(kBlockChunks, chunks - chunk);
    function(chunk, count,
             (slab_m * chunks + chunk * slab_rows + (m - slab_m) * count) * kChunkBytes);
  }
}

// One task's part of a product: weight rows [n0, n0 + n_rows) by one slab's activation rows.
struct TileTask {
  int64_t n0, n_rows, m0, m_rows;
  // Chunks of a step with at most kPairRows activation rows. Half a block keeps panel and slab in
  // the first-level cache; where rows are decoded one by one, what each call costs weighs more.
  int64_t few_chunks = kBlockChunks;
};

// Weights that are decoded together: chunks [chunk, chunk + chunk_count) of rows
// [row, row + row_count).
struct TileStep {
  int64_t row, row_count, chunk, chunk_count;
};

// The weight rows of a step where products have at most so many activation rows.
inline int64_t StepRows(int64_t activation_rows) {
  // Panels that are used so few times should not leave the first-level cache.
  constexpr int64_t kFewRows = 64;
  constexpr int64_t kMostStepRows = 512;
  if (activation_rows <= kFewRows) return kPairRows;
  const int64_t row_bytes =
      kBlockChunks * kChunkBytes + 4 * std::min(kSlabRows, RoundUp(activation_rows, kPairRows));
  const int64_t rows = SecondLevelCacheBytes() / 4 * 3 / row_bytes;
  return std::clamp(rows / kPairRows * kPairRows, kPairRows, kMostStepRows);
}

// What a worker needs in memory.
template <class Sum>
struct TileMemory {
  uint8_t* panels;  // of a step
  Sum* sums;        // of a product
  Sum* totals;      // of a step, by activation rows, then by panel
};

// That of all workers, for steps of `step_rows` weight rows and products of at most
// `activation_rows`.
template <class Sum>
class TileScratch {
 public:
  TileScratch(WorkMemory* memory, int workers, int64_t step_rows, int64_t activation_rows)
      : panel_bytes_(step_rows / kPairRows * kPanelBytes),
        sums_(kPairSums + step_rows * std::min(kSlabRows, RoundUp(activation_rows, kPairRows))),
        panels_part_(memory->Add<uint8_t>(workers * panel_bytes_)),
        sums_part_(memory->Add<Sum>(workers * sums_)) {}

  TileMemory<Sum> Of(const WorkMemory& memory, int worker) const {
    Sum* sums = memory.At(sums_part_) + worker * sums_;
    return {memory.At(panels_part_) + worker * panel_bytes_, sums, sums + kPairSums};
  }

 private:
  int64_t panel_bytes_, sums_;
  WorkMemory::Part<uint8_t> panels_part_;
  WorkMemory::Part<Sum> sums_part_;
};

// Multiplies a decoded step with the slab's rows. 32 activation rows meet all panels before the
// next 32 do, and their finished sums go out in stretches of `row_count`: each row of the output
// lies on pages of its own.
template <class Sum, class Store>
void MultiplyTileStep(const TileUnit<Sum>& unit, const uint8_t* slab, const TileTask& task,
                      const TileStep& step, bool last, const Store& store,
                      const TileMemory<Sum>& memory) {
  // With fewer panels than these the next activation rows are not asked for.
  constexpr int64_t kFewestPanelsToAsk = 4;
  const int64_t panels = DivideUp(step.row_count, kPairRows);
  const int64_t slab_bytes = step.chunk_count * kPairBytes;
  Sum* totals = memory.totals;
  for (int64_t m = 0; m < task.m_rows; m += kPairRows, slab += slab_bytes) {
    const int64_t m_count = std::min(kPairRows, task.m_rows - m);
    Sum* m_totals = totals;
    Addition<Sum> before;
    Ahead ahead{slab + slab_bytes, panels < kFewestPanelsToAsk ? 0 : DivideUp(kPairRows, panels)};
    const uint8_t* panel = memory.panels;
    for (int64_t r = 0; r < step.row_count; r += kPairRows, panel += kPanelBytes) {
      unit.multiply(panel, slab, step.chunk_count, step.row_count - r > kTileRows ? 2 : 1,
                    m_count > kTileRows ? 2 : 1, memory.sums, before, ahead);
      before = {memory.sums, totals, step.chunk == 0};
      totals += kPairSums;
      ahead.next += step.chunk_count * ahead.lines * kChunkBytes;
    }
    unit.add(before);
    for (int64_t r = 0; last && r < step.row_count; r += kPairRows, m_totals += kPairSums) {
      store(m_totals, task.m0 + m, m_count, step.row + r, std::min(kPairRows, step.row_count - r));
    }
  }
}

// A task of at most kPairRows activation rows: 32 weight rows after another, whose sums stay in the
// tile unit over all chunks.
template <class Sum, class Decode, class Store>
void MultiplyFewRows(const TileUnit<Sum>& unit, int64_t chunks, const uint8_t* slab,
                     const TileTask& task, const Decode& decode, const Store& store,
                     const TileMemory<Sum>& memory) {
  const int64_t step_chunks = task.few_chunks;
  const int64_t end = task.n0 + task.n_rows;
  const int m_tiles = task.m_rows > kTileRows ? 2 : 1;
  for (int64_t row = task.n0; row < end; row += kPairRows) {
    const int64_t row_count = std::min(kPairRows, end - row);
    for (int64_t chunk = 0; chunk < chunks; chunk += step_chunks) {
      const int64_t count = std::min(step_chunks, chunks - chunk);
      const bool last = chunk + count == chunks;
      TileStep next = {row, row_count, chunk + count,
                       std::min(step_chunks, chunks - chunk - count)};
      if (last) {
        next = {row + row_count, std::min(kPairRows, end - row - row_count), 0,
                std::min(step_chunks, chunks)};
      }
      decode(TileStep{row, row_count, chunk, count}, next, memory.panels);
      unit.accumulate(memory.panels, slab + chunk * kPairBytes, count,
                      row_count > kTileRows ? 2 : 1, m_tiles, chunk == 0,
                      last ? memory.sums : nullptr);
    }
    store(memory.sums, task.m0, task.m_rows, row, row_count);
  }
}

// A task's products over `chunks`. decode(step, next, panels) makes the panels of a step and may
// ask for the codes of the next; store(totals, m, m_count, n, n_count) writes a pair's totals out.
template <class Sum, class Decode, class Store>
void MultiplyTileTask(const TileUnit<Sum>& unit, int64_t chunks, const uint8_t* slabs,
                      const TileTask& task, int64_t step_rows, const Decode& decode,
                      const Store& store, const TileMemory<Sum>& memory) {
  const int64_t padded_m = RoundUp(task.m_rows, kPairRows), end = task.n0 + task.n_rows;
  TileStep step{task.n0, std::min(step_rows, task.n_rows), 0, std::min(kBlockChunks, chunks)};
  unit.enter();
  if (task.m_rows <= kPairRows) {
    MultiplyFewRows(unit, chunks, slabs, task, decode, store, memory);
    return unit.leave();
  }
  while (step.row < end) {
    TileStep next = step;
    next.chunk += step.chunk_count;
    if (next.chunk == chunks) {
      next.row += step.row_count;
      next.row_count = std::min(step_rows, end - next.row);
      next.chunk = 0;
    }
    next.chunk_count = std::min(kBlockChunks, chunks - next.chunk);
    decode(step, next, memory.panels);
    MultiplyTileStep(unit, slabs + step.chunk * kChunkBytes * padded_m, task, step, next.chunk == 0,
                     store, memory);
    step = next;
  }
  unit.leave();
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_TILES_H_
