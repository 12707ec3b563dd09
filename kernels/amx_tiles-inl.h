// TileUnit on AMX, in raw intrinsics: Highway has no target for it. Included where AMX and AVX-512
// are switched on for what follows.
#ifndef NIBBLE_KERNELS_AMX_TILES_INL_H_
#define NIBBLE_KERNELS_AMX_TILES_INL_H_

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

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

template <int kNTiles, int kMTiles>
inline void ZeroSums() {
  _tile_zero(0);
  if constexpr (kMTiles > 1) _tile_zero(1);
  if constexpr (kNTiles > 1) _tile_zero(2);
  if constexpr (kNTiles > 1 && kMTiles > 1) _tile_zero(3);
}

template <int kNTiles, int kMTiles, class Sum>
inline void StoreSums(Sum* sums) {
  _tile_stored(0, sums, kChunkBytes);
  if constexpr (kMTiles > 1) _tile_stored(1, sums + kTileSums, kChunkBytes);
  if constexpr (kNTiles > 1) _tile_stored(2, sums + 2 * kTileSums, kChunkBytes);
  if constexpr (kNTiles > 1 && kMTiles > 1) _tile_stored(3, sums + 3 * kTileSums, kChunkBytes);
}

// Loads a tile; operands that pass by do not push others out of the first-level cache, and come
// from the second level faster. (The intrinsics take a number's text for the tile.)
#define NIBBLE_LOAD_TILE(passes, tile, from)       \
  if constexpr (passes) {                          \
    _tile_stream_loadd(tile, (from), kChunkBytes); \
  } else {                                         \
    _tile_loadd(tile, (from), kChunkBytes);        \
  }

// The four sums stay in tiles 0-3; of a chunk two weight tiles (4, 5) and two activation tiles
// (6, 7) are loaded; Dots::D046() adds the product of tiles 4 and 6 to tile 0, and so on. Loads
// that may come from the second-level cache stand as far apart as they can: one after another they
// wait for it. between() is called twice.
template <class Dots, int kNTiles, int kMTiles, bool kPanelPasses, class Between>
inline void MultiplyChunk(const uint8_t* panel, const uint8_t* slab, const Between& between) {
  NIBBLE_LOAD_TILE(kPanelPasses, 4, panel)
  NIBBLE_LOAD_TILE(!kPanelPasses, 6, slab)
  Dots::D046();
  if constexpr (kMTiles > 1) {
    NIBBLE_LOAD_TILE(!kPanelPasses, 7, slab + kTileBytes)
    Dots::D147();
  }
  between();
  if constexpr (kNTiles > 1) {
    NIBBLE_LOAD_TILE(kPanelPasses, 5, panel + kTileBytes)
    Dots::D256();
    if constexpr (kMTiles > 1) Dots::D357();
  }
  between();
}

// Weights pass by: without the mark, 32 activation rows of a block do not stay in the first-level
// cache. Sums begin at zero and are added to their totals by vectors, a few after each pair of
// products: loading totals into tiles would stall the tile unit.
template <class Dots, class Sum, int kNTiles, int kMTiles, bool kAdd>
void MultiplyTiles(const uint8_t* panel, const uint8_t* slab, int64_t chunks, Sum* sums,
                   const Addition<Sum>& before, const Ahead& ahead) {
  constexpr int64_t kLines = kPairSums / 16, kLinesPerPair = 2;
  ZeroSums<kNTiles, kMTiles>();
  const Addition<Sum> addition = before;
  const uint8_t* next = ahead.next;
  const int64_t ahead_lines = ahead.lines;
  int64_t line = 0;
  const auto add = [&] {
    if (!kAdd || line == kLines) return;
    AddLines(addition, line, line + kLinesPerPair);
    line += kLinesPerPair;
  };
  for (int64_t c = 0; c < chunks; ++c, panel += kPairBytes, slab += kPairBytes) {
    MultiplyChunk<Dots, kNTiles, kMTiles, true>(panel, slab, add);
    for (int64_t i = 0; i < ahead_lines; ++i, next += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
    }
  }
  if (kAdd) AddLines(addition, line, kLines);
  StoreSums<kNTiles, kMTiles>(sums);
}

// Calls function(n tiles, m tiles), both as constants.
template <class Function>
inline void WithTileCounts(int n_tiles, int m_tiles, const Function& function) {
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  if (n_tiles == 2 && m_tiles == 2) return function(Two(), Two());
  if (n_tiles == 2) return function(Two(), One());
  if (m_tiles == 2) return function(One(), Two());
  function(One(), One());
}

template <class Dots, class Sum>
void MultiplyPair(const uint8_t* panel, const uint8_t* slab, int64_t chunks, int n_tiles,
                  int m_tiles, Sum* sums, const Addition<Sum>& before, const Ahead& ahead) {
  if (before.sums != nullptr && n_tiles == 2 && m_tiles == 2) {
    return MultiplyTiles<Dots, Sum, 2, 2, true>(panel, slab, chunks, sums, before, ahead);
  }
  AddTiles(before);
  WithTileCounts(n_tiles, m_tiles, [&](auto n, auto m) {
    MultiplyTiles<Dots, Sum, n, m, false>(panel, slab, chunks, sums, before, ahead);
  });
}

// Here weights have just been decoded, and activations pass by.
template <class Dots, class Sum>
void Accumulate(const uint8_t* panel, const uint8_t* slab, int64_t chunks, int n_tiles, int m_tiles,
                bool first, Sum* sums) {
  WithTileCounts(n_tiles, m_tiles, [&](auto n, auto m) {
    if (first) ZeroSums<n, m>();
    for (int64_t c = 0; c < chunks; ++c, panel += kPairBytes, slab += kPairBytes) {
      MultiplyChunk<Dots, n, m, false>(panel, slab, [] {});
    }
    if (sums != nullptr) StoreSums<n, m>(sums);
  });
}

template <class Dots, class Sum>
constexpr TileUnit<Sum> kTileUnit = {EnterTiles, LeaveTiles, MultiplyPair<Dots, Sum>, AddTiles<Sum>,
                                     Accumulate<Dots, Sum>};

}  // namespace
}  // namespace nibble

#endif  // NIBBLE_KERNELS_AMX_TILES_INL_H_
