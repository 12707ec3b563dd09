// TileUnit on AMX, in raw intrinsics: Highway has no target for it. Included where AMX and AVX-512
// are switched on for what follows.
#ifndef NIBBLE_KERNELS_AMX_TILES_INL_H_
#define NIBBLE_KERNELS_AMX_TILES_INL_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm_tiles.h"

namespace nibble {
namespace {

// Operand 46 of the instruction set's LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// Static, because GCC tells its optimiser only of the first word that the instruction reads.
const TileConfig kTileConfig;

void EnterTiles() { _tile_loadconfig(&kTileConfig); }
void LeaveTiles() {
  _tile_release();
  _mm_sfence();  // orders the streaming stores before whatever tells others that the task is done
}

inline __m512 AddSums(const float* sums, const float* totals) {
  return _mm512_add_ps(_mm512_load_ps(sums), _mm512_load_ps(totals));
}
inline __m512 AddSums(const int32_t* sums, const int32_t* totals) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_load_si512(sums), _mm512_load_si512(totals)));
}

template <class Sum>
inline void AddLines(const Addition<Sum>& addition, int64_t first, int64_t last) {
  for (int64_t i = first * 16; i < last * 16; i += 16) {
    const __m512 sum = addition.first ? _mm512_load_ps(addition.sums + i)
                                      : AddSums(addition.sums + i, addition.totals + i);
    _mm512_store_ps(addition.totals + i, sum);
  }
}

template <class Sum>
void AddTiles(const Addition<Sum>& addition) {
  if (addition.sums != nullptr) AddLines(addition, 0, kPairSums / 16);
}

// The four sums stay in tiles 0-3; of each chunk two weight tiles (4, 5) and two activation tiles
// (6, 7) are loaded; Dots::D046() adds the product of tiles 4 and 6 to tile 0, and so on. Weights
// are marked as passing by, so that they do not push the activations out of the first-level cache:
// without the mark, 32 rows of a block do not stay there. Their loads stand as far apart as they
// can: one after another they wait for the second-level cache. Sums begin at zero and are added to
// their totals by vectors, a few after each pair of products: loading totals into tiles would stall
// the tile unit.
template <class Dots, class Sum, int kNTiles, int kMTiles, bool kAdd>
void MultiplyTiles(const uint8_t* panel, const uint8_t* slab, int64_t chunks, Sum* sums,
                   const Addition<Sum>& before, const Ahead& ahead) {
  constexpr int64_t kLines = kPairSums / 16, kLinesPerPair = 2;
  _tile_zero(0);
  if constexpr (kMTiles > 1) _tile_zero(1);
  if constexpr (kNTiles > 1) _tile_zero(2);
  if constexpr (kNTiles > 1 && kMTiles > 1) _tile_zero(3);
  const Addition<Sum> addition = before;
  const uint8_t* next = ahead.next;
  const int64_t ahead_lines = ahead.lines;
  int64_t line = 0;
  const auto add = [&] {
    if (!kAdd || line == kLines) return;
    AddLines(addition, line, line + kLinesPerPair);
    line += kLinesPerPair;
  };
  for (int64_t c = 0; c < chunks; ++c) {
    _tile_stream_loadd(4, panel, kChunkBytes);
    _tile_loadd(6, slab, kChunkBytes);
    Dots::D046();
    if constexpr (kMTiles > 1) {
      _tile_loadd(7, slab + kTileBytes, kChunkBytes);
      Dots::D147();
    }
    add();
    if constexpr (kNTiles > 1) {
      _tile_stream_loadd(5, panel + kTileBytes, kChunkBytes);
      Dots::D256();
      if constexpr (kMTiles > 1) Dots::D357();
    }
    add();
    panel += kPairBytes;
    slab += kPairBytes;
    for (int64_t i = 0; i < ahead_lines; ++i, next += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
    }
  }
  if (kAdd) AddLines(addition, line, kLines);
  _tile_stored(0, sums, kChunkBytes);
  if constexpr (kMTiles > 1) _tile_stored(1, sums + kTileSums, kChunkBytes);
  if constexpr (kNTiles > 1) _tile_stored(2, sums + 2 * kTileSums, kChunkBytes);
  if constexpr (kNTiles > 1 && kMTiles > 1) _tile_stored(3, sums + 3 * kTileSums, kChunkBytes);
}

template <class Dots, class Sum>
void MultiplyPair(const uint8_t* panel, const uint8_t* slab, int64_t chunks, int n_tiles,
                  int m_tiles, Sum* sums, const Addition<Sum>& before, const Ahead& ahead) {
  if (n_tiles == 2 && m_tiles == 2) {
    if (before.sums != nullptr) {
      MultiplyTiles<Dots, Sum, 2, 2, true>(panel, slab, chunks, sums, before, ahead);
    } else {
      MultiplyTiles<Dots, Sum, 2, 2, false>(panel, slab, chunks, sums, before, ahead);
    }
    return;
  }
  AddTiles(before);
  if (n_tiles == 2) {
    MultiplyTiles<Dots, Sum, 2, 1, false>(panel, slab, chunks, sums, before, ahead);
  } else if (m_tiles == 2) {
    MultiplyTiles<Dots, Sum, 1, 2, false>(panel, slab, chunks, sums, before, ahead);
  } else {
    MultiplyTiles<Dots, Sum, 1, 1, false>(panel, slab, chunks, sums, before, ahead);
  }
}

template <class Dots, class Sum>
constexpr TileUnit<Sum> kTileUnit = {EnterTiles, LeaveTiles, MultiplyPair<Dots, Sum>,
                                     AddTiles<Sum>};

}  // namespace
}  // namespace nibble

#endif  // NIBBLE_KERNELS_AMX_TILES_INL_H_
