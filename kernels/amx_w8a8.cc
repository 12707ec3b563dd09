// TilesW8A8 on the AMX tile unit.
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
#include "kernels/amx_tiles-inl.h"
#include "kernels/avx512_transpose-inl.h"

namespace nibble {
namespace {

struct Int8Dots {
  static void D046() { _tile_dpbssd(0, 4, 6); }
  static void D147() { _tile_dpbssd(1, 4, 7); }
  static void D256() { _tile_dpbssd(2, 5, 6); }
  static void D357() { _tile_dpbssd(3, 5, 7); }
};

void Pack(const W8A8Rows& a, int64_t m0, int64_t chunk, int64_t count, uint8_t* slab) {
  const int64_t m_count = std::min(kPairRows, a.rows - m0);
  for (int64_t c = chunk; c < chunk + count; ++c) {
    for (int64_t tile = 0; tile < 2; ++tile, slab += kTileBytes) {
      __m512i rows[16];
      for (int64_t i = 0; i < kTileRows; ++i) {
        const int64_t m = tile * kTileRows + i;
        rows[i] = m < m_count ? _mm512_loadu_si512(a.codes + (m0 + m) * a.stride + c * kChunkBytes)
                              : _mm512_setzero_si512();
      }
      Transpose16x16(rows);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(slab + i * kChunkBytes, rows[i]);
    }
  }
}

void Decode(const int8_t* rows, const int8_t* next, int64_t row_bytes, int64_t n_count,
            int64_t cols, uint8_t* panel) {
  for (int64_t n = 0; n < n_count; ++n) {
    uint8_t* to = panel + n * kChunkBytes;
    const int8_t* row = rows + n * row_bytes;
    for (int64_t k = 0; k < cols; k += kChunkBytes, to += kPairBytes) {
      const int64_t rest = std::min(kChunkBytes, cols - k);
      _mm_prefetch(next + n * row_bytes + k, _MM_HINT_T0);
      const __mmask64 mask = rest == 64 ? ~uint64_t{0} : (uint64_t{1} << rest) - 1;
      _mm512_store_si512(to, _mm512_maskz_loadu_epi8(mask, row + k));
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

void Store(const int32_t* totals, const W8A8Rows& a, const float* weight_scales,
           const ProductOutput& output, int64_t m0, int64_t m_count, int64_t n0, int64_t n_count) {
  for (int tile = 0; tile < 4; ++tile) {
    const int64_t n = tile / 2 * 16, m = tile % 2 * 16;
    if (n < n_count && m < m_count) {
      StoreTile(totals + kTileSums * tile, a, weight_scales + n, output, m0 + m, m_count - m,
                n0 + n, n_count - n);
    }
  }
}

constexpr TilesW8A8 kAmx = {kTileUnit<Int8Dots, int32_t>, Pack, Decode, Store};

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
