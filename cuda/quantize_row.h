// Quantizing to the formats and schemes whose codes follow from a group's range: the kernels but
// for their barriers, for device and host. The choices of the CPU, one rounding an operation, so
// the same bytes.
#ifndef NIBBLE_CUDA_QUANTIZE_ROW_H_
#define NIBBLE_CUDA_QUANTIZE_ROW_H_

#include <cmath>
#include <cstdint>

#include "cuda/element.h"
#include "cuda/packed_format.h"
#include "cuda/warp.h"
#include "kernels/codec_planar.h"
#include "kernels/planar_fit.h"
#include "nibble/blocks.h"

namespace nibble::cuda {

// --- Weights on their way into a quantizer -------------------------------------------------------

// What kernels report: the first weight that cannot be quantized, the first scale that its type
// cannot hold, as row * width + place; kNone where there is none.
struct Findings {
  unsigned long long bad_weight;
  unsigned long long bad_scale;
};
inline constexpr unsigned long long kNone = ~0ull;

NIBBLE_HD inline void ReportFirst(unsigned long long* first, int64_t place) {
  const auto value = static_cast<unsigned long long>(place);
#if defined(__CUDA_ARCH__)
  atomicMin(first, value);
#else
  if (value < *first) *first = value;
#endif
}

struct alignas(16) Floats4 {
  float v[4];
};

// A matrix to be quantized; weights beyond `limit` are reported, or clamped to `clamp_to`.
struct Weights {
  const void* data;
  DType dtype;
  int64_t rows, cols, row_stride;
  float limit;
  float clamp_to;
  bool clamp;
  Findings* findings;

  NIBBLE_HD float Load(int64_t row, int64_t col) const {
    return Checked(LoadElement(data, dtype, row * row_stride + col), row, col);
  }
  // Four neighbours; `aligned`: rows begin at multiples of 16 bytes.
  NIBBLE_HD Floats4 LoadFour(int64_t row, int64_t col, bool aligned) const {
    Floats4 four;
    if (aligned && dtype == DType::kF32) {
      four = *reinterpret_cast<const Floats4*>(static_cast<const float*>(data) + row * row_stride +
                                               col);
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) four.v[i] = Checked(four.v[i], row, col + i);
    } else {
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) four.v[i] = Load(row, col + i);
    }
    return four;
  }

 private:
  NIBBLE_HD float Checked(float x, int64_t row, int64_t col) const {
    if (fabsf(x) <= limit) return x;
    if (!clamp) {
      ReportFirst(&findings->bad_weight, row * cols + col);
      return 0.0f;
    }
    return x != x ? 0.0f : fminf(fmaxf(x, -clamp_to), clamp_to);
  }
};

// --- q8_0 and q4_0 -------------------------------------------------------------------------------

NIBBLE_HD inline float Magnitude(const Floats4& w) {
  return fmaxf(fmaxf(fabsf(w.v[0]), fabsf(w.v[1])), fmaxf(fabsf(w.v[2]), fabsf(w.v[3])));
}

// Blocks are aligned to two bytes.
NIBBLE_HD inline void StoreWord(uint8_t* to, uint32_t word) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  halves[0] = static_cast<uint16_t>(word);
  halves[1] = static_cast<uint16_t>(word >> 16);
}

// A warp: four blocks of 32, lane l having weights 4 (l % 8) .. + 3 of block l / 8, which is null
// where there is none.
template <class Warp>
NIBBLE_HD inline void EncodeBlocks(const Warp& warp,
                                   const typename Warp::template Lanes<Floats4>& w,
                                   const typename Warp::template Lanes<BlockQ8_0*>& blocks) {
  typename Warp::template Lanes<float> largest;
  warp.Each([&](int lane) { largest[lane] = Magnitude(w[lane]); });
  for (int step = 4; step > 0; step /= 2) {
    const auto others = Exchange(warp, largest, step);
    warp.Each([&](int lane) { largest[lane] = fmaxf(largest[lane], others[lane]); });
  }
  warp.Each([&](int lane) {
    if (blocks[lane] == nullptr) return;
    const float d = largest[lane] / 127.0f, inverse = ReciprocalOf(d);
    uint32_t codes = 0;
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float code = IsInfinite(inverse) ? 0.0f : roundf(w[lane].v[i] * inverse);
      codes |= (static_cast<uint32_t>(static_cast<int>(code)) & 0xFF) << (8 * i);
    }
    StoreWord(reinterpret_cast<uint8_t*>(blocks[lane]->qs) + 4 * (lane % 8), codes);
    if (lane % 8 == 0) blocks[lane]->d = ToF16(d);
  });
}

template <class Warp>
NIBBLE_HD inline void EncodeBlocks(const Warp& warp,
                                   const typename Warp::template Lanes<Floats4>& w,
                                   const typename Warp::template Lanes<BlockQ4_0*>& blocks) {
  // The first weight of the largest magnitude, with its sign, becomes code 0.
  typename Warp::template Lanes<float> chosen;
  typename Warp::template Lanes<int> places;
  warp.Each([&](int lane) {
    const Floats4& x = w[lane];
    const float magnitude = Magnitude(x);
    chosen[lane] = fabsf(x.v[0]) == magnitude   ? x.v[0]
                   : fabsf(x.v[1]) == magnitude ? x.v[1]
                   : fabsf(x.v[2]) == magnitude ? x.v[2]
                                                : x.v[3];
    places[lane] = lane;
  });
  for (int step = 4; step > 0; step /= 2) {
    const auto others = Exchange(warp, chosen, step);
    const auto other_places = Exchange(warp, places, step);
    warp.Each([&](int lane) {
      const float mine = fabsf(chosen[lane]), other = fabsf(others[lane]);
      if (other > mine || (other == mine && other_places[lane] < places[lane])) {
        chosen[lane] = others[lane];
        places[lane] = other_places[lane];
      }
    });
  }
  typename Warp::template Lanes<uint32_t> codes;
  warp.Each([&](int lane) {
    const float inverse = ReciprocalOf(chosen[lane] / -8.0f);
    codes[lane] = 0;
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int code = IsInfinite(inverse) ? 0 : static_cast<int>(w[lane].v[i] * inverse + 8.5f);
      codes[lane] |= static_cast<uint32_t>(code < 15 ? code : 15) << (8 * i);
    }
  });
  const auto high = Exchange(warp, codes, 4);  // of the weights 16 further
  warp.Each([&](int lane) {
    if (blocks[lane] == nullptr || lane % 8 >= 4) return;
    StoreWord(blocks[lane]->qs + 4 * (lane % 8), codes[lane] | high[lane] << 4);
    if (lane % 8 == 0) blocks[lane]->d = ToF16(chosen[lane] / -8.0f);
  });
}

// A warp: 128 weights of a row, from column `col` on, as far as there are any.
template <class Block, class Warp>
NIBBLE_HD inline void EncodeWeights(const Warp& warp, const Weights& weights, int64_t row,
                                    int64_t col, bool aligned, Block* blocks) {
  typename Warp::template Lanes<Floats4> w;
  typename Warp::template Lanes<Block*> to;
  warp.Each([&](int lane) {
    const int64_t at = col + 4 * lane;
    const bool is_there = at < weights.cols;
    w[lane] = is_there ? weights.LoadFour(row, at, aligned) : Floats4{};
    to[lane] = is_there ? blocks + row * (weights.cols / 32) + at / 32 : nullptr;
  });
  EncodeBlocks(warp, w, to);
}

// --- Planar schemes: scales and zeros ------------------------------------------------------------

// Where a planar tensor is written.
struct PlanarOut {
  Scheme scheme;
  int64_t groups;      // in a row
  int64_t group_size;  // weights
  uint8_t* codes;
  uint8_t* scales;  // of scale_dtype; with double quantization f32, before they are coded
  uint8_t* zeros;
};

NIBBLE_HD inline Range Joined(Range a, Range b) {
  return {fminf(a.min, b.min), fmaxf(a.max, b.max)};
}

// A warp: of columns [begin, end) of a row, each `parts`-th stretch of 32 of them.
template <class Warp>
NIBBLE_HD inline Range RangeOfPart(const Warp& warp, const Weights& weights, int64_t row,
                                   int64_t begin, int64_t end, int part, int parts) {
  typename Warp::template Lanes<float> low, high;
  warp.Each([&](int lane) {
    const float first = weights.Load(row, begin);
    Range range = {first, first};
    for (int64_t col = begin + part * kLanes + lane; col < end; col += parts * kLanes) {
      const float x = weights.Load(row, col);
      range = Joined(range, {x, x});
    }
    low[lane] = range.min;
    high[lane] = range.max;
  });
  return {ReduceLanes(warp, low, [](float x, float y) { return fminf(x, y); }),
          ReduceLanes(warp, high, [](float x, float y) { return fmaxf(x, y); })};
}

// A warp: of the weights of a group.
template <class Warp>
NIBBLE_HD inline Range RangeOfGroup(const Warp& warp, const Weights& weights, const PlanarOut& out,
                                    int64_t row, int64_t group) {
  const int64_t begin = group * out.group_size, left = weights.cols - begin;
  const int64_t count = out.group_size < left ? out.group_size : left;
  return RangeOfPart(warp, weights, row, begin, begin + count, 0, 1);
}

NIBBLE_HD inline Range RangeOfAll(const Range* ranges, int64_t first, int64_t count, int64_t step) {
  Range range = ranges[0];
  for (int64_t i = first; i < count; i += step) range = Joined(range, ranges[i]);
  return range;
}

// How many groups of a row a block takes: enough for its warps and threads, and so many that their
// codes begin at bytes.
NIBBLE_HD inline int64_t GroupsOfBlock(int64_t group_size, int threads) {
  const int64_t wanted = (int64_t{8} * threads + group_size - 1) / group_size;
  return (wanted + 7) / 8 * 8;
}

NIBBLE_HD inline void StorePlane(uint8_t* plane, DType dtype, int64_t i, float x) {
  if (dtype == DType::kU8) {
    plane[i] = static_cast<uint8_t>(x);
  } else {
    StoreElement(plane, dtype, i, x);
  }
}

// Scale and zero number `at`.
NIBBLE_HD inline void FitAndStore(const PlanarOut& out, const PlanarCodebook& book, Range range,
                                  int64_t at, Findings* findings) {
  const ScaleZero fit = FitRange(out.scheme, book, range);
  if (!(fabsf(fit.scale) <= 3.40282347e38f)) ReportFirst(&findings->bad_scale, at);
  StorePlane(out.scales, out.scheme.scale_dtype, at, fit.scale);
  if (!out.scheme.symmetric) StorePlane(out.zeros, out.scheme.zero_dtype, at, fit.zero);
}

// --- Planar schemes: codes -----------------------------------------------------------------------

// What is looked up for each code, in memory that a block shares: the values between codes, and
// codes by rank.
struct Ranks {
  float midpoints[256];
  uint8_t code_of_rank[256];

  NIBBLE_HD void Fill(int thread, int threads, const PlanarCodebook& book) {
    for (int i = thread; i < book.values_count; i += threads) {
      midpoints[i] = book.midpoints[i];
      code_of_rank[i] = book.code_of_rank[i];
    }
  }
};

NIBBLE_HD inline uint32_t ChooseCode(const Scheme& s, const PlanarCodebook& book,
                                     const Ranks& ranks, float x, float scale, float zero) {
  if (book.values_count > 0) {
    return ranks
        .code_of_rank[NearestRank(ranks.midpoints, book.values_count, x * InverseScale(scale))];
  }
  const float divisor = scale != 0.0f ? scale : 1.0f;
  if (s.code == Code::kF8E4M3) return FloatToF8E4M3(x / divisor);
  if (s.code == Code::kF8E5M2) return FloatToF8E5M2(x / divisor);
  const int code = ChooseInteger(x, divisor, zero, book.low, book.high);
  return static_cast<uint32_t>(code) & ((1u << s.bits) - 1);
}

// A thread: eight weights of a row from column `begin` on, a multiple of eight, so that their codes
// begin and end at bytes; as far as there are any.
NIBBLE_HD inline void ChooseEight(const Weights& weights, const PlanarOut& out,
                                  const PlanarCodebook& book, const Ranks& ranks, int64_t row,
                                  int64_t begin, bool aligned) {
  const int64_t left = weights.cols - begin;
  const int count = left < 8 ? static_cast<int>(left) : 8;
  const Scheme& s = out.scheme;
  float x[8];
  if (count == 8) {
    NIBBLE_UNROLL
    for (int part = 0; part < 2; ++part) {
      const Floats4 four = weights.LoadFour(row, begin + 4 * part, aligned);
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) x[4 * part + i] = four.v[i];
    }
  } else {
    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = i < count ? weights.Load(row, begin + i) : 0.0f;
  }
  const int64_t first_group = begin / out.group_size;
  const int64_t to_next_group = (first_group + 1) * out.group_size - begin;
  float scale = 0, zero = 0;
  uint64_t packed = 0;
  NIBBLE_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i >= count) break;
    if (i == 0 || i >= to_next_group) {
      const int64_t group = i < to_next_group ? first_group : (begin + i) / out.group_size;
      const int64_t at = s.granularity == Granularity::kTensor ? 0 : row * out.groups + group;
      scale = LoadElement(out.scales, s.scale_dtype, at);
      zero = s.symmetric ? 0.0f : LoadPlaneFloat(out.zeros, s.zero_dtype, at);
    }
    const uint64_t code = ChooseCode(s, book, ranks, x[i], scale, zero);
    packed |= code << (i * s.bits);
  }
  uint8_t* to = out.codes + row * PlanarRowBytes(s.bits, weights.cols) + begin / 8 * s.bits;
  const int bytes = (count * s.bits + 7) / 8;
  if (bytes == 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(packed);
  } else if (bytes == 8 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint64_t*>(to) = packed;
  } else {
    for (int byte = 0; byte < bytes; ++byte) to[byte] = static_cast<uint8_t>(packed >> (8 * byte));
  }
}

// --- Planar schemes: double quantization ---------------------------------------------------------

// Scales that are themselves coded, super-block by super-block, by blocks of as many threads.
struct ScaleCoder {
  const float* scales;
  int64_t count;
  double* sums;           // of the super-blocks
  uint8_t* codes;         // one a scale
  uint8_t* super_scales;  // the super-blocks' maxima, then the mean

  NIBBLE_HD int64_t super_blocks() const {
    return (count + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock;
  }

  // What a thread adds to the sum of its block by SumLanes (kernels/planar_fit.h).
  NIBBLE_HD double ScaleOf(int64_t block, int thread) const {
    const int64_t at = block * kScalesPerSuperBlock + thread;
    return at < count ? static_cast<double>(scales[at]) : 0.0;
  }
  // The same of the block that sums all sums.
  NIBBLE_HD double SumsOf(int thread) const {
    double sum = 0;
    for (int64_t i = thread; i < super_blocks(); i += kScalesPerSuperBlock) sum += sums[i];
    return sum;
  }
  NIBBLE_HD void StoreMean(double sum) const {
    StoreElement(super_scales, DType::kF32, super_blocks(),
                 static_cast<float>(sum / static_cast<double>(count)));
  }

  // Then, from the differences to the mean: a warp leaves the largest of its own in `maxima`, and
  // fills its part of the values between codes; behind a barrier, every thread writes.
  static constexpr int kSuperBlockWarps = kScalesPerSuperBlock / kLanes;
  template <class Warp>
  NIBBLE_HD void FindMaximum(const Warp& warp, int index, int64_t block, float* midpoints,
                             float* maxima) const {
    typename Warp::template Lanes<float> magnitudes;
    warp.Each([&](int lane) {
      const int thread = index * kLanes + lane;
      const auto code = static_cast<uint32_t>(thread);
      if (code < 255) midpoints[code] = (DynamicMapValue(code) + DynamicMapValue(code + 1)) / 2.0f;
      magnitudes[lane] = fabsf(Difference(block, thread));
    });
    const float largest =
        ReduceLanes(warp, magnitudes, [](float a, float b) { return fmaxf(a, b); });
    warp.Each([&](int lane) {
      if (lane == 0) maxima[index] = largest;
    });
  }
  NIBBLE_HD void Write(int thread, int64_t block, const float* midpoints,
                       const float* maxima) const {
    float maximum = 0;
    for (int w = 0; w < kSuperBlockWarps; ++w) maximum = fmaxf(maximum, maxima[w]);
    if (thread == 0) StoreElement(super_scales, DType::kF32, block, maximum);
    const int64_t at = block * kScalesPerSuperBlock + thread;
    if (at >= count) return;
    codes[at] = static_cast<uint8_t>(
        NearestRank(midpoints, 256, Difference(block, thread) * InverseScale(maximum)));
  }

 private:
  NIBBLE_HD float Difference(int64_t block, int thread) const {
    const int64_t at = block * kScalesPerSuperBlock + thread;
    if (at >= count) return 0.0f;
    return scales[at] - LoadElement(super_scales, DType::kF32, super_blocks());
  }
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_QUANTIZE_ROW_H_
