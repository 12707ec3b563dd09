// TilesW8A8 on the AMX tile unit, in raw intrinsics: Highway has no target for it.
#include "kernels/amx.h"
#include "kernels/gemm_w8a8.h"

#include "hwy/base.h"

#if HWY_ARCH_X86_64 && defined(__linux__)

#include <immintrin.h>

#include <algorithm>

// GCC takes the deliberately undefined values of its own intrinsics for mistakes.
HWY_DIAGNOSTICS(push)
#if HWY_COMPILER_GCC_ACTUAL
HWY_DIAGNOSTICS_OFF(disable : 4700, ignored "-Wmaybe-uninitialized")
HWY_DIAGNOSTICS_OFF(disable : 4700, ignored "-Wuninitialized")
#endif
HWY_PUSH_ATTRIBUTES("amx-tile,amx-int8,avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "kernels/avx512_transpose-inl.h"

namespace nibble {
namespace {

constexpr int kTileStride = 64;  // bytes of a tile's row
constexpr int kTileBytes = 16 * kTileStride;
constexpr int64_t kRows = 32;  // of a panel and a slab

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
void Leave() {
  _tile_release();
  _mm_sfence();  // orders the streaming stores before whatever tells others that the task is done
}

void PackActivations(const W8A8Rows& a, int64_t m0, int8_t* slab) {
  const int64_t m_count = std::min(kRows, a.rows - m0);
  for (int64_t k = 0; k < a.stride; k += 64) {
    for (int64_t tile = 0; tile < 2; ++tile, slab += kTileBytes) {
      __m512i rows[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t m = tile * 16 + i;
        rows[i] = m < m_count ? _mm512_loadu_si512(a.codes + (m0 + m) * a.stride + k)
                              : _mm512_setzero_si512();
      }
      Transpose16x16(rows);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(slab + i * kTileStride, rows[i]);
    }
  }
}

void PackWeights(const int8_t* rows, int64_t row_bytes, int64_t n_count, int64_t cols,
                 int8_t* panel) {
  for (int64_t n = 0; n < kRows; ++n) {
    int8_t* to = panel + n * kTileStride;
    const int8_t* row = rows + n * row_bytes;
    for (int64_t k = 0; k < cols; k += 64, to += 2 * kTileBytes) {
      const int64_t rest = n < n_count ? std::min<int64_t>(64, cols - k) : 0;
      const __mmask64 mask = rest == 64 ? ~uint64_t{0} : (uint64_t{1} << rest) - 1;
      _mm512_store_si512(
          to, rest > 0 ? _mm512_maskz_loadu_epi8(mask, row + k) : _mm512_setzero_si512());
    }
  }
}

// The sums of a tile, a row for each weight row: scaled, and turned to a row for each activation.
void StoreTile(const int32_t* sums, const W8A8Rows& a, const float* weight_scales,
               const ProductOutput& output, int64_t m0, int64_t m_count, int64_t n0,
               int64_t n_count) {
  const __mmask16 mask = static_cast<__mmask16>(n_count >= 16 ? 0xFFFF : (1u << n_count) - 1);
  const __m512 by = _mm512_loadu_ps(weight_scales);
  __m512i rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(sums + 16 * i);
  Transpose16x16(rows);
  for (int64_t m = 0; m < std::min<int64_t>(16, m_count); ++m) {
    float* out = output.Row(m0 + m) + n0;
    __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(rows[m]),
                               _mm512_mul_ps(by, _mm512_set1_ps(a.scales[m0 + m])));
    if (output.bias != nullptr) {
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, output.bias + n0));
    }
    if (output.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
    if (mask == 0xFFFF && !output.accumulate && reinterpret_cast<uintptr_t>(out) % 64 == 0) {
      // Past the caches: whole lines that were not read before, of an output larger than them.
      _mm512_stream_ps(out, sum);
    } else {
      _mm512_mask_storeu_ps(out, mask, sum);
    }
  }
}

// The slab stays in the first-level cache, panels pass by.
void Multiply(const int8_t* panel, const int8_t* slab, int64_t chunks, bool first, int32_t* sums) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kTileStride);
    _tile_loadd(1, sums + 256, kTileStride);
    _tile_loadd(2, sums + 512, kTileStride);
    _tile_loadd(3, sums + 768, kTileStride);
  }
  const char* next = reinterpret_cast<const char*>(sums + kW8A8Sums);
  for (int64_t c = 0; c < chunks; ++c, panel += 2 * kTileBytes, slab += 2 * kTileBytes) {
    // The sums of the next product, which lie behind these.
    for (int i = 0; i < 4; ++i) __builtin_prefetch(next + 64 * i, 1, 3);
    next += 256;
    _tile_loadd(6, slab, kTileStride);
    _tile_stream_loadd(4, panel, kTileStride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, slab + kTileBytes, kTileStride);
    _tile_dpbssd(1, 4, 7);
    _tile_stream_loadd(5, panel + kTileBytes, kTileStride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums, kTileStride);
  _tile_stored(1, sums + 256, kTileStride);
  _tile_stored(2, sums + 512, kTileStride);
  _tile_stored(3, sums + 768, kTileStride);
}

void Store(const int32_t* sums, const W8A8Rows& a, const float* weight_scales,
           const ProductOutput& output, int64_t m0, int64_t m_count, int64_t n0, int64_t n_count) {
  for (int tile = 0; tile < 4; ++tile) {
    const int64_t n = tile / 2 * 16, m = tile % 2 * 16;
    if (n < n_count && m < m_count) {
      StoreTile(sums + 256 * tile, a, weight_scales + n, output, m0 + m, m_count - m, n0 + n,
                n_count - n);
    }
  }
}

constexpr TilesW8A8 kAmx = {Enter, Leave, PackActivations, PackWeights, Multiply, Store};

}  // namespace
}  // namespace nibble

HWY_POP_ATTRIBUTES
HWY_DIAGNOSTICS(pop)

#endif  // HWY_ARCH_X86_64 && __linux__

namespace nibble {

const TilesW8A8* AmxW8A8() {
#if HWY_ARCH_X86_64 && defined(__linux__)
  if (GetAmxSupport().int8) return &kAmx;
#endif
  return nullptr;
}

}  // namespace nibble
