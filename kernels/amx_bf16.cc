// GemmBf16 on the AMX tile unit, in raw intrinsics: Highway has no target for it.
#include "kernels/amx.h"
#include "kernels/gemm_bf16.h"

#include "hwy/base.h"

#if HWY_ARCH_X86_64 && defined(__linux__)

#include <immintrin.h>

#include "kernels/convert.h"

// GCC takes the deliberately undefined values of its own intrinsics for mistakes.
HWY_DIAGNOSTICS(push)
#if HWY_COMPILER_GCC_ACTUAL
HWY_DIAGNOSTICS_OFF(disable : 4700, ignored "-Wmaybe-uninitialized")
#endif
HWY_PUSH_ATTRIBUTES("amx-tile,amx-bf16,avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include "kernels/avx512_transpose-inl.h"

namespace nibble {
namespace {

constexpr int kTileStride = 64;  // bytes of a tile's row

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

void Enter() { _tile_loadconfig(&kTileConfig); }

void Leave() { _tile_release(); }

inline __m512i ToBf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The first `count` (at most 32) elements of a row of activations as bf16, the rest zero.
inline __m512i LoadBf16(const void* row, DType type, int64_t count) {
  const uint32_t mask = count >= 32 ? 0xFFFFFFFFu : (1u << count) - 1;
  const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
  switch (type) {
    case DType::kBF16:
      return _mm512_maskz_loadu_epi16(mask, row);
    case DType::kF16: {
      const __m512i halves = _mm512_maskz_loadu_epi16(mask, row);
      return ToBf16(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
                    _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
    }
    default: {
      const float* values = static_cast<const float*>(row);
      const __m512 first = _mm512_maskz_loadu_ps(low, values);
      // No address beyond the row is formed, even under an empty mask.
      const __m512 second =
          high != 0 ? _mm512_maskz_loadu_ps(high, values + 16) : _mm512_setzero_ps();
      return ToBf16(first, second);
    }
  }
}

void Pack(const ActivationRows& activations, int64_t m0, int64_t m_count, int64_t col,
          int64_t count, uint16_t* slab) {
  const int64_t element = static_cast<int64_t>(DTypeBytes(activations.dtype));
  for (int64_t k = 0; k < count; k += kChunkCols) {
    for (int64_t tile = 0; tile < 2; ++tile) {
      __m512i rows[16];
      for (int64_t i = 0; i < kTileRows; ++i) {
        const int64_t m = tile * kTileRows + i;
        rows[i] = m < m_count ? LoadBf16(static_cast<const std::byte*>(activations.Row(m0 + m)) +
                                             (col + k) * element,
                                         activations.dtype, count - k)
                              : _mm512_setzero_si512();
      }
      Transpose16x16(rows);
      for (int64_t i = 0; i < kTileRows; ++i) {
        _mm512_store_si512(slab + i * kChunkCols, rows[i]);
      }
      slab += kTileElements;
    }
  }
}

inline void AddLines(const Addition& addition, int64_t first, int64_t last) {
  for (int64_t i = first * 16; i < last * 16; i += 16) {
    __m512 sum = _mm512_load_ps(addition.sums + i);
    if (!addition.first) sum = _mm512_add_ps(sum, _mm512_load_ps(addition.totals + i));
    _mm512_store_ps(addition.totals + i, sum);
  }
}

void Add(const Addition& addition) {
  if (addition.sums != nullptr) AddLines(addition, 0, kSumElements / 16);
}

// The four sums stay in tiles 0-3; of each chunk two weight tiles (4, 5) and two activation tiles
// (6, 7) are loaded. Weights are marked as passing by, so that they do not push the activations out
// of the first-level cache. Sums begin at zero and are added to their totals by vectors, a few
// after each chunk: loading totals into tiles would stall the tile unit, and so would asking for
// cache lines ahead of their use.
template <int kNTiles, int kMTiles, bool kAdd>
void MultiplyTiles(const uint16_t* panel, const uint16_t* slab, int64_t chunks, float* sums,
                   const Addition& before) {
  constexpr int64_t kPanelTile = kTileRows * kPanelStride;
  constexpr int64_t kStrideBytes = kPanelStride * 2;
  constexpr int64_t kLines = kSumElements / 16, kLinesPerChunk = 4;
  _tile_zero(0);
  if constexpr (kMTiles > 1) _tile_zero(1);
  if constexpr (kNTiles > 1) _tile_zero(2);
  if constexpr (kNTiles > 1 && kMTiles > 1) _tile_zero(3);
  const Addition addition = before;
  int64_t line = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    _tile_stream_loadd(4, panel, kStrideBytes);
    _tile_loadd(6, slab, kTileStride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kMTiles > 1) {
      _tile_loadd(7, slab + kTileElements, kTileStride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kNTiles > 1) {
      _tile_stream_loadd(5, panel + kPanelTile, kStrideBytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kMTiles > 1) _tile_dpbf16ps(3, 5, 7);
    }
    panel += kChunkCols;
    slab += kChunkElements;
    if (kAdd && line < kLines) {
      AddLines(addition, line, line + kLinesPerChunk);
      line += kLinesPerChunk;
    }
  }
  if (kAdd) AddLines(addition, line, kLines);
  _tile_stored(0, sums, kTileStride);
  if constexpr (kMTiles > 1) _tile_stored(1, sums + kTileSums, kTileStride);
  if constexpr (kNTiles > 1) _tile_stored(2, sums + 2 * kTileSums, kTileStride);
  if constexpr (kNTiles > 1 && kMTiles > 1) _tile_stored(3, sums + 3 * kTileSums, kTileStride);
}

void Multiply(const uint16_t* panel, const uint16_t* slab, int64_t chunks, int n_tiles, int m_tiles,
              float* sums, const Addition& before) {
  if (n_tiles == 2 && m_tiles == 2) {
    if (before.sums != nullptr) {
      MultiplyTiles<2, 2, true>(panel, slab, chunks, sums, before);
    } else {
      MultiplyTiles<2, 2, false>(panel, slab, chunks, sums, before);
    }
    return;
  }
  Add(before);
  if (n_tiles == 2) {
    MultiplyTiles<2, 1, false>(panel, slab, chunks, sums, before);
  } else if (m_tiles == 2) {
    MultiplyTiles<1, 2, false>(panel, slab, chunks, sums, before);
  } else {
    MultiplyTiles<1, 1, false>(panel, slab, chunks, sums, before);
  }
}

void Store(const float* totals, const ProductOutput& output, int64_t m0, int64_t m_count,
           int64_t n0, int64_t n_count) {
  for (int64_t n_tile = 0; n_tile * kTileRows < n_count; ++n_tile) {
    const int64_t n = n_tile * kTileRows;
    const __mmask16 mask =
        n_count - n >= 16 ? __mmask16{0xFFFF} : static_cast<__mmask16>((1u << (n_count - n)) - 1);
    const __m512 bias = output.bias != nullptr ? _mm512_maskz_loadu_ps(mask, output.bias + n0 + n)
                                               : _mm512_setzero_ps();
    for (int64_t m_tile = 0; m_tile * kTileRows < m_count; ++m_tile) {
      const float* tile = totals + (2 * n_tile + m_tile) * kTileSums;
      __m512i rows[16];
      for (int i = 0; i < 16; ++i) rows[i] = _mm512_load_si512(tile + 16 * i);
      Transpose16x16(rows);
      const int64_t count = std::min(kTileRows, m_count - m_tile * kTileRows);
      for (int64_t i = 0; i < count; ++i) {
        float* out = output.Row(m0 + m_tile * kTileRows + i) + n0 + n;
        __m512 sum = _mm512_castsi512_ps(rows[i]);
        if (output.bias != nullptr) sum = _mm512_add_ps(sum, bias);
        if (output.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
        _mm512_mask_storeu_ps(out, mask, sum);
      }
    }
  }
}

constexpr GemmBf16 kAmx = {Enter, Leave, Pack, Multiply, Add, Store};

}  // namespace
}  // namespace nibble

HWY_POP_ATTRIBUTES
HWY_DIAGNOSTICS(pop)

#endif  // HWY_ARCH_X86_64 && __linux__

namespace nibble {

const GemmBf16* AmxGemmBf16() {
#if HWY_ARCH_X86_64 && defined(__linux__)
  if (GetAmxSupport().bf16) return &kAmx;
#endif
  return nullptr;
}

}  // namespace nibble
