#include "kernels/round_planar.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/round_planar.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/round32-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// Byte i of phase p is code phases * i + p; `count` codes, a multiple of 64 * phases.
void SplitPhases(const int8_t* codes, int64_t count, int phases, int8_t* out, int64_t stride) {
  const hn::CappedTag<int8_t, 64> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (phases == 1) {
    std::memcpy(out, codes, static_cast<size_t>(count));
  } else if (phases == 2) {
    for (int64_t i = 0; i < count / 2; i += lanes) {
      auto even = hn::Undefined(d), odd = even;
      hn::LoadInterleaved2(d, codes + 2 * i, even, odd);
      hn::StoreU(even, d, out + i);
      hn::StoreU(odd, d, out + stride + i);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) out[i % phases * stride + i / phases] = codes[i];
  }
}

void RoundPlanarRow(const float* row, int64_t cols, int phases, int64_t group, int64_t bytes,
                    int64_t groups, int8_t* codes, float* lane_scales, float* sums) {
  constexpr int64_t kPiece = 512;
  std::memset(sums, 0, static_cast<size_t>(groups) * sizeof(float));
  for (int64_t k0 = 0; k0 < bytes * phases; k0 += kPiece) {
    int8_t piece[kPiece] = {};
    const int64_t piece_cols = HWY_MIN(kPiece, bytes * phases - k0);
    for (int64_t k = k0; k < k0 + piece_cols; k += 32) {
      float scale = 0;
      if (k < cols) {
        float last[32] = {};
        const float* values = row + k;
        if (cols - k < 32) {
          std::memcpy(last, values, static_cast<size_t>(cols - k) * sizeof(float));
          values = last;
        }
        int8_t* to = piece + (k - k0);
        const Rounded32 rounded = Round32(values, to, to + 16);
        scale = rounded.scale;
        sums[group > 0 ? k / group : 0] +=
            scale * static_cast<float>(rounded.sums[0] + rounded.sums[1]);
      }
      const int64_t lanes = 8 / phases;  // of 32 columns
      for (int64_t i = 0; i < lanes; ++i) lane_scales[k / 32 * lanes + i] = scale;
    }
    SplitPhases(piece, piece_cols, phases, codes + k0 / phases, bytes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(RoundPlanarRow);

void RoundPlanarRow(const float* row, int64_t cols, int phases, int64_t group, int64_t bytes,
                    int64_t groups, int8_t* codes, float* lane_scales, float* sums) {
  NIBBLE_DISPATCH(RoundPlanarRow)
  (row, cols, phases, group, bytes, groups, codes, lane_scales, sums);
}

}  // namespace nibble
#endif  // HWY_ONCE
