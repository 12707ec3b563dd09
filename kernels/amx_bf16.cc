// GemmBf16 on the AMX tile unit.
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
#include "kernels/amx_tiles-inl.h"
#include "kernels/avx512_transpose-inl.h"

namespace nibble {
namespace {

// Weights on the left, as rows: sums are [n, m].
struct LeftDots {
  static void D046() { _tile_dpbf16ps(0, 4, 6); }
  static void D147() { _tile_dpbf16ps(1, 4, 7); }
  static void D256() { _tile_dpbf16ps(2, 5, 6); }
  static void D357() { _tile_dpbf16ps(3, 5, 7); }
};

// Weights on the right, as pairs of columns: sums are [m, n].
struct RightDots {
  static void D046() { _tile_dpbf16ps(0, 6, 4); }
  static void D147() { _tile_dpbf16ps(1, 7, 4); }
  static void D256() { _tile_dpbf16ps(2, 6, 5); }
  static void D357() { _tile_dpbf16ps(3, 7, 5); }
};

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

// The right operand is transposed, pairs of columns staying together.
template <bool kRight>
void Pack(const ActivationRows& activations, int64_t m0, int64_t m_count, int64_t col,
          int64_t count, uint8_t* slab) {
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
      if constexpr (kRight) Transpose16x16(rows);
      for (int64_t i = 0; i < kTileRows; ++i) {
        _mm512_store_si512(slab + i * kChunkBytes, rows[i]);
      }
      slab += kTileBytes;
    }
  }
}

template <bool kTransposed>
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
      if constexpr (kTransposed) Transpose16x16(rows);
      const int64_t count = std::min(kTileRows, m_count - m_tile * kTileRows);
      for (int64_t i = 0; i < count; ++i) {
        float* out = output.Row(m0 + m_tile * kTileRows + i) + n0 + n;
        __m512 sum = _mm512_castsi512_ps(rows[i]);
        if (output.bias != nullptr) sum = _mm512_add_ps(sum, bias);
        if (output.accumulate) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
        if (mask == 0xFFFF && !output.accumulate && reinterpret_cast<uintptr_t>(out) % 64 == 0) {
          // Past the caches: whole lines that were not read before.
          _mm512_stream_ps(out, sum);
        } else {
          _mm512_mask_storeu_ps(out, mask, sum);
        }
      }
    }
  }
}

constexpr GemmBf16 kOfRows = {kTileUnit<LeftDots, float>, Pack<true>, Store<true>};
constexpr GemmBf16 kOfPairs = {kTileUnit<RightDots, float>, Pack<false>, Store<false>};

}  // namespace
}  // namespace nibble

HWY_POP_ATTRIBUTES
HWY_DIAGNOSTICS(pop)

#endif  // HWY_ARCH_X86_64 && __linux__

namespace nibble {

const GemmBf16* AmxGemmBf16([[maybe_unused]] bool column_pairs) {
#if HWY_ARCH_X86_64 && defined(__linux__)
  if (GetAmxSupport().bf16) return column_pairs ? &kOfPairs : &kOfRows;
#endif
  return nullptr;
}

}  // namespace nibble
