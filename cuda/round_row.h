// Activations that are rounded to eight bits on the way to a product of bytes (cuda/bytes.h), and
// the columns of them that are not (LLM.int8()): the kernels but for their barriers, for device and
// host.
#ifndef NIBBLE_CUDA_ROUND_ROW_H_
#define NIBBLE_CUDA_ROUND_ROW_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/element.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"
#include "kernels/codec_planar.h"

namespace nibble::cuda {

// A block rounds a row as the CPU does: scale = max|row| / the largest code; a row with a value
// that is not finite has a scale that is none. First every warp finds its largest magnitude, then,
// behind a barrier, every thread writes.
template <DType kType>
struct RoundRow {
  static constexpr float kLargest = kType == DType::kI8 ? 127.0f : 448.0f;

  Activations activations;
  const uint8_t* skipped;  // columns that count as zeros, a byte for each; or null
  int64_t stride;          // of the rows of codes, zeros beyond the columns
  uint8_t* codes;
  float* scales;

  // The bits of a magnitude have the order of the numbers, infinity and NaN above them.
  template <class Warp>
  NIBBLE_HD void FindLargest(const Warp& warp, int index, int64_t row, uint32_t* most) const {
    typename Warp::template Lanes<uint32_t> largest;
    warp.Each([&](int lane) {
      uint32_t mine = 0;
      for (int64_t col = index * kLanes + lane; col < activations.cols; col += kThreads) {
        if (!IsTaken(col)) continue;
        const uint32_t bits = std::bit_cast<uint32_t>(activations.At(row, col)) & 0x7FFFFFFFu;
        mine = bits > mine ? bits : mine;
      }
      largest[lane] = mine;
    });
    const uint32_t found =
        ReduceLanes(warp, largest, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
    warp.Each([&](int lane) {
      if (lane == 0) most[index] = found;
    });
  }

  NIBBLE_HD void Write(int thread, int64_t row, const uint32_t* most) const {
    uint32_t bits = 0;
    for (int w = 0; w < kWarps; ++w) bits = most[w] > bits ? most[w] : bits;
    const bool is_finite = bits < 0x7F800000u;
    const float largest = std::bit_cast<float>(bits);
    const float inverse = is_finite && largest > 0 ? kLargest / largest : 0.0f;
    for (int64_t col = thread; col < stride; col += kThreads) {
      uint8_t code = 0;
      if (is_finite && IsTaken(col)) code = CodeOf(activations.At(row, col) * inverse);
      codes[row * stride + col] = code;
    }
    if (thread == 0) {
      scales[row] = is_finite ? largest / kLargest : std::bit_cast<float>(0x7FC00000u);
    }
  }

 private:
  NIBBLE_HD bool IsTaken(int64_t col) const {
    return col < activations.cols && (skipped == nullptr || skipped[col] == 0);
  }
  NIBBLE_HD static uint8_t CodeOf(float x) {
    if constexpr (kType == DType::kI8) {
      return static_cast<uint8_t>(static_cast<int>(rintf(fminf(fmaxf(x, -128.0f), 127.0f))));
    } else {
      return FloatToF8E4M3(x);
    }
  }
};

// Whether a magnitude in a column is not below the threshold.
NIBBLE_HD inline bool IsOutlier(const Activations& activations, int64_t col, float threshold) {
  bool found = false;
  for (int64_t row = 0; row < activations.rows && !found; ++row) {
    found = !(fabsf(activations.At(row, col)) < threshold);
  }
  return found;
}

// The flagged columns, ascending: one block goes through them, kThreads at a time. Warps count
// their own, then, behind a barrier, place them; behind another the next turn begins.
struct FlaggedColumns {
  const uint8_t* flags;
  int64_t cols;
  int32_t* columns;

  template <class Warp>
  NIBBLE_HD void Count(const Warp& warp, int index, int64_t begin, int* counts) const {
    const uint32_t mine = FlaggedOf(warp, index, begin);
    warp.Each([&](int lane) {
      if (lane == 0) counts[index] = std::popcount(mine);
    });
  }
  // `before`: columns placed in earlier turns. Returns those placed now too.
  template <class Warp>
  NIBBLE_HD int32_t Place(const Warp& warp, int index, int64_t begin, int32_t before,
                          const int* counts) const {
    const uint32_t mine = FlaggedOf(warp, index, begin);
    int32_t first = before, all = before;
    for (int w = 0; w < kWarps; ++w) {
      if (w < index) first += counts[w];
      all += counts[w];
    }
    warp.Each([&](int lane) {
      if ((mine >> lane & 1) == 0) return;
      columns[first + std::popcount(mine & ((1u << lane) - 1))] =
          static_cast<int32_t>(begin + index * kLanes + lane);
    });
    return all;
  }

 private:
  template <class Warp>
  NIBBLE_HD uint32_t FlaggedOf(const Warp& warp, int index, int64_t begin) const {
    typename Warp::template Lanes<bool> flagged;
    warp.Each([&](int lane) {
      const int64_t col = begin + index * kLanes + lane;
      flagged[lane] = col < cols && flags[col] != 0;
    });
    return Ballot(warp, flagged);
  }
};

inline constexpr int kTokensAtOnce = 4;  // that share a weight

// A warp: out += activations x weights^T over the listed columns, for a row of weights of int8 and
// some tokens from `first` on.
template <class Warp>
NIBBLE_HD inline void AddColumns(const Warp& warp, const Activations& activations,
                                 const PlanarPlanes& weights, const int32_t* columns, int count,
                                 int64_t row, int64_t first, float* out, int64_t out_stride) {
  const float scale = weights.Scale(weights.ScaleAt(row, 0));
  const uint8_t* codes = weights.codes + row * weights.cols;
  typename Warp::template Lanes<float> sums[kTokensAtOnce];
  warp.Each([&](int lane) {
    NIBBLE_UNROLL
    for (int t = 0; t < kTokensAtOnce; ++t) sums[t][lane] = 0;
    for (int i = lane; i < count; i += kLanes) {
      const int32_t col = columns[i];
      const float weight = scale * static_cast<float>(static_cast<int8_t>(codes[col]));
      NIBBLE_UNROLL
      for (int t = 0; t < kTokensAtOnce; ++t) {
        if (first + t < activations.rows) {
          sums[t][lane] = MultiplyAdd(weight, activations.At(first + t, col), sums[t][lane]);
        }
      }
    }
  });
  NIBBLE_UNROLL
  for (int t = 0; t < kTokensAtOnce; ++t) {
    const float sum = ReduceLanes(warp, sums[t], [](float a, float b) { return a + b; });
    warp.Each([&](int lane) {
      if (lane == 0 && first + t < activations.rows) out[(first + t) * out_stride + row] += sum;
    });
  }
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_ROUND_ROW_H_
