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
// with panel after panel, which stream past them from the second level. A block's panels and its
// sums for a slab's rows fill three quarters of that one. What remains comes from beyond: the next
// 32 activation rows, which are asked for ahead. Few activation rows are multiplied with one panel
// over many columns instead, and their sums stay in tiles.
//
// Slower, with AMX: panels that stay while activations pass by, because those fill as much of the
// second-level cache as the panels and as many lines again, asked for ahead; decoding the next
// panel between the products of this one, which costs what it saves (loads of tiles wait behind
// those of codes); asking for the next block's codes between products, since each line that comes
// from memory holds one of the sixteen buffers that loads of tiles need; finished sums that go to
// the output between products, for the same reason; sums of all columns in tiles where activations
// are many, with both operands from the second level, which delivers 48 of the 64 bytes a cycle
// that this needs; sums that are loaded into tiles. Large pages change nothing. With numbers that
// change from tile to tile the processor's clock falls: a loop of products of tiles that all lie in
// the first-level cache reaches nine tenths of one that loads none.
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
  int64_t piece_chunks;  // that are decoded at a time, a divisor of a block's
  int64_t few_rows;      // up to which all activation rows meet 32 weight rows after another
};

// Weights: chunks [chunk, chunk + chunk_count) of rows [row, row + row_count).
struct TilePart {
  int64_t row = 0, row_count = 0, chunk = 0, chunk_count = 0;
};

// Up to so many activation rows may meet 32 weight rows over kDeepChunks at a time.
inline constexpr int64_t kMostFewRows = 128;
inline constexpr int64_t kDeepChunks = 128;

// The weight rows of a block where products have at most so many activation rows.
inline int64_t BlockRows(int64_t activation_rows) {
  constexpr int64_t kMostBlockRows = 512;
  const int64_t row_bytes =
      kBlockChunks * kChunkBytes + 4 * std::min(kSlabRows, RoundUp(activation_rows, kPairRows));
  const int64_t rows = SecondLevelCacheBytes() / 4 * 3 / row_bytes;
  return std::clamp(rows / kPairRows * kPairRows, kPairRows, kMostBlockRows);
}

// What a worker needs in memory.
template <class Sum>
struct TileMemory {
  uint8_t* panels;  // of a block
  Sum* sums;        // of a product
  Sum* totals;      // of a block, by activation rows, then by panel
};

// That of all workers, for blocks of `block_rows` weight rows and products of at most
// `activation_rows`.
template <class Sum>
class TileScratch {
 public:
  TileScratch(WorkMemory* memory, int workers, int64_t block_rows, int64_t activation_rows)
      : panel_bytes_(std::max(block_rows / kPairRows * kPanelBytes, kDeepChunks * kPairBytes)),
        sums_(kPairSums + block_rows * std::min(kSlabRows, RoundUp(activation_rows, kPairRows))),
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

// A task's products over `chunks`, block after block: decoded rows over a range of chunks, which
// all activation rows meet.
template <class Sum, class Decode, class Store>
class TileProduct {
 public:
  // decode(piece, next, panel) decodes a piece of a panel and may ask for the codes of the next
  // one; store(totals, m, m_count, n, n_count) writes a pair's totals out.
  TileProduct(const TileUnit<Sum>& unit, int64_t chunks, const uint8_t* slabs, const TileTask& task,
              int64_t block_rows, const Decode& decode, const Store& store,
              const TileMemory<Sum>& memory)
      : unit_(unit),
        decode_(decode),
        store_(store),
        slabs_(slabs),
        memory_(memory),
        task_(task),
        chunks_(chunks),
        padded_m_(RoundUp(task.m_rows, kPairRows)),
        few_(IsFew(task, chunks)),
        most_rows_(few_ ? kPairRows : block_rows),
        most_chunks_(few_ ? kDeepChunks : kBlockChunks) {}

  void Run() {
    unit_.enter();
    block_ = BlockAt(task_.n0, 0);
    piece_ = FirstPiece(block_);
    while (block_.row_count > 0) {
      if (few_) {
        MultiplyDeep();
      } else {
        MultiplyWide();
      }
      block_ = After(block_);
    }
    unit_.leave();
  }

 private:
  // For each 32 weight rows all activations are read, which must stay in the second-level cache.
  static bool IsFew(const TileTask& task, int64_t chunks) {
    if (task.m_rows <= kPairRows) return true;
    return task.m_rows <= task.few_rows &&
           SlabBytes(task.m_rows, chunks) <= SecondLevelCacheBytes() / 2;
  }

  // Blocks and pieces in their order, which ends with no rows.
  TilePart BlockAt(int64_t row, int64_t chunk) const {
    return {row, std::min(most_rows_, task_.n0 + task_.n_rows - row), chunk,
            std::min(most_chunks_, chunks_ - chunk)};
  }
  TilePart After(const TilePart& block) const {
    const int64_t chunk = block.chunk + block.chunk_count;
    return chunk < chunks_ ? BlockAt(block.row, chunk) : BlockAt(block.row + block.row_count, 0);
  }
  TilePart FirstPiece(const TilePart& block) const {
    return {block.row, std::min(kPairRows, block.row_count), block.chunk,
            std::min(task_.piece_chunks, block.chunk_count)};
  }
  TilePart NextPiece(const TilePart& piece) const {
    const int64_t chunk = piece.chunk + piece.chunk_count, end = block_.chunk + block_.chunk_count;
    if (chunk < end) {
      return {piece.row, piece.row_count, chunk, std::min(task_.piece_chunks, end - chunk)};
    }
    const int64_t row = piece.row + piece.row_count,
                  rows_left = block_.row + block_.row_count - row;
    if (rows_left == 0) return FirstPiece(After(block_));
    return {row, std::min(kPairRows, rows_left), block_.chunk,
            std::min(task_.piece_chunks, block_.chunk_count)};
  }

  uint8_t* Panel(int64_t r, int64_t chunk) const {
    // No other activation rows will need it: it need not leave the first-level cache.
    if (task_.m_rows <= kPairRows) return memory_.panels;
    return memory_.panels + r / kPairRows * kPanelBytes + (chunk - block_.chunk) * kPairBytes;
  }
  const uint8_t* Slab(int64_t m, int64_t chunk) const {
    const int64_t first = chunk / kBlockChunks * kBlockChunks;
    return slabs_ +
           (first * padded_m_ + m * std::min(kBlockChunks, chunks_ - first)) * kChunkBytes +
           (chunk - first) * kPairBytes;
  }
  Sum* Totals(int64_t m, int64_t r) const {
    return memory_.totals +
           (m / kPairRows * DivideUp(block_.row_count, kPairRows) + r / kPairRows) * kPairSums;
  }
  int64_t Rows(int64_t r) const { return std::min(kPairRows, block_.row_count - r); }
  int64_t ActivationRows(int64_t m) const { return std::min(kPairRows, task_.m_rows - m); }
  static int Tiles(int64_t rows) { return rows > kTileRows ? 2 : 1; }
  bool last() const { return block_.chunk + block_.chunk_count == chunks_; }

  // Decodes what comes next, in the panels of the block.
  void DecodePiece() {
    const TilePart piece = piece_;
    piece_ = NextPiece(piece);
    decode_(piece, piece_, Panel(piece.row - block_.row, piece.chunk));
  }

  // A block of one panel, whose sums stay in the tile unit. The first 32 activation rows meet each
  // piece as soon as it is decoded: the processor then does both at once.
  void MultiplyDeep() {
    const int64_t end = block_.chunk + block_.chunk_count;
    for (int64_t m = 0; m < task_.m_rows; m += kPairRows) {
      const int64_t most = m == 0 ? task_.piece_chunks : kBlockChunks;
      for (int64_t chunk = block_.chunk; chunk < end; chunk += most) {
        const int64_t count = std::min(most, end - chunk);
        if (m == 0) DecodePiece();
        unit_.accumulate(Panel(0, chunk), Slab(m, chunk), count, Tiles(block_.row_count),
                         Tiles(ActivationRows(m)), chunk == block_.chunk,
                         chunk + count == end ? memory_.sums : nullptr);
      }
      const Sum* totals = memory_.sums;
      if (chunks_ > kDeepChunks) {
        unit_.add({memory_.sums, Totals(m, 0), block_.chunk == 0});
        totals = Totals(m, 0);
      }
      if (last()) store_(totals, task_.m0 + m, ActivationRows(m), block_.row, block_.row_count);
    }
  }

  // A block of many panels: 32 activation rows meet all of them before the next 32 do, and their
  // finished sums go out in stretches of `row_count`, as each row of the output lies on pages of
  // its own.
  void MultiplyWide() {
    // With fewer panels than these the next activation rows are not asked for.
    constexpr int64_t kFewestPanelsToAsk = 4;
    const int64_t panels = DivideUp(block_.row_count, kPairRows);
    const int64_t pieces = panels * DivideUp(block_.chunk_count, task_.piece_chunks);
    for (int64_t i = 0; i < pieces; ++i) DecodePiece();
    for (int64_t m = 0; m < task_.m_rows; m += kPairRows) {
      const uint8_t* slab = Slab(m, block_.chunk);
      Addition<Sum> before;
      Ahead ahead{slab + block_.chunk_count * kPairBytes,
                  panels < kFewestPanelsToAsk ? 0 : DivideUp(kPairRows, panels)};
      for (int64_t r = 0; r < block_.row_count; r += kPairRows) {
        unit_.multiply(Panel(r, block_.chunk), slab, block_.chunk_count, Tiles(Rows(r)),
                       Tiles(ActivationRows(m)), memory_.sums, before, ahead);
        before = {memory_.sums, Totals(m, r), block_.chunk == 0};
        ahead.next += block_.chunk_count * ahead.lines * kChunkBytes;
      }
      unit_.add(before);
      for (int64_t r = 0; last() && r < block_.row_count; r += kPairRows) {
        store_(Totals(m, r), task_.m0 + m, ActivationRows(m), block_.row + r, Rows(r));
      }
    }
  }

  const TileUnit<Sum>& unit_;
  const Decode& decode_;
  const Store& store_;
  const uint8_t* slabs_;
  TileMemory<Sum> memory_;
  TileTask task_;
  int64_t chunks_, padded_m_;
  bool few_;
  int64_t most_rows_, most_chunks_;  // of a block
  TilePart block_, piece_;
};

// A task's products: see TileProduct.
template <class Sum, class Decode, class Store>
void MultiplyTileTask(const TileUnit<Sum>& unit, int64_t chunks, const uint8_t* slabs,
                      const TileTask& task, int64_t block_rows, const Decode& decode,
                      const Store& store, const TileMemory<Sum>& memory) {
  TileProduct<Sum, Decode, Store>(unit, chunks, slabs, task, block_rows, decode, store, memory)
      .Run();
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMM_TILES_H_
