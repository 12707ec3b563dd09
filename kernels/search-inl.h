// The search encoders: what each format searches, and the way from rows to blocks.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_SEARCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_SEARCH_INL_H_
#undef NIBBLE_KERNELS_SEARCH_INL_H_
#else
#define NIBBLE_KERNELS_SEARCH_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/encode.h"
#include "kernels/encode_k_pack.h"
#include "kernels/search_affine-inl.h"
#include "kernels/search_symmetric-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What is searched, a struct a format:
//   kStretches   candidates for a group's free scale; kImportanceStretches where errors have an
//                importance, for then the weights at the ends may count little
//   kLargestBecomes  the integers that the largest scale of a block is tried as
//   kReach       integers tried to either side of the free scale (and minimum)
//   kRounds      times that super-scales are fitted to the codes, kRoundReach integers tried after;
//                kImportanceRounds, where there is one, likewise
// Candidates stand in the order in which each, given those before it, lowers the error most, over
// groups of Gaussian, Laplace and trained weights; how many there are is a matter of time.
template <class BlockType, size_t groups, size_t group>
struct SearchedFormat {
  using Block = BlockType;
  static constexpr size_t kGroups = groups, kGroup = group, kWeights = groups * group;
};

struct SearchQ2_K : SearchedFormat<BlockQ2_K, 16, 16> {
  static constexpr bool kAffine = true;
  static constexpr float kLargest = 3, kLargestScale = 15;
  static constexpr Stretch kStretches[] = {{0.8f, 0.4f}, {0.6f, 0},    {0.4f, 0.4f},
                                           {0.2f, 0},    {1.0f, 0.8f}, {1.0f, 0.4f}};
  static constexpr Stretch kImportanceStretches[] = {{0.8f, 0.4f}, {0.6f, 0},    {1.0f, 0.8f},
                                                     {1.8f, 0.4f}, {1.6f, 1.4f}, {0.2f, 0.2f},
                                                     {0.2f, 0},    {2.2f, 1.0f}};
  static constexpr int kReach = 1, kRounds = 1, kImportanceRounds = 2, kRoundReach = 1;
};
struct SearchQ3_K : SearchedFormat<BlockQ3_K, 16, 16> {
  static constexpr bool kAffine = false;
  using Book = UniformBook<-4>;
  static constexpr float kScaleLow = -32, kScaleHigh = 31;
  static constexpr float kLargestBecomes[] = {-32};
  static constexpr float kStretches[] = {1.04f, 0.8f, 1.16f};
  static constexpr float kImportanceStretches[] = {1.04f, 1.28f, 0.8f, -1.12f, 0.96f, 1.6f, 1.12f};
  static constexpr int kReach = 0, kRounds = 0, kRoundReach = 0;
};
struct SearchQ4_K : SearchedFormat<BlockQ4_K, 8, 32> {
  static constexpr bool kAffine = true;
  static constexpr float kLargest = 15, kLargestScale = 63;
  static constexpr Stretch kStretches[] = {
      {0.4f, 0.2f},   {0.2f, 0.4f}, {0.4f, 0},    {-0.4f, -0.6f}, {0.2f, 0.2f}, {0.4f, -0.2f},
      {-0.2f, -0.2f}, {-0.6f, 0},   {0.4f, 0.4f}, {0.4f, 0.6f},   {0.6f, 0.2f}, {0, -0.2f}};
  static constexpr Stretch kImportanceStretches[] = {
      {0.4f, 0.2f},   {0.4f, 0.6f}, {0.6f, 0},    {0.4f, 0.4f}, {-0.4f, -0.6f},
      {-0.2f, -0.2f}, {1.4f, 0.2f}, {-0.6f, 0},   {2.0f, 1.8f}, {1.0f, 0.4f},
      {1.4f, 1.0f},   {1.8f, 0},    {0.2f, 0.2f}, {0.6f, -0.2f}};
  static constexpr int kReach = 1, kRounds = 1, kRoundReach = 1;
};
struct SearchQ5_K : SearchedFormat<BlockQ5_K, 8, 32> {
  static constexpr bool kAffine = true;
  static constexpr float kLargest = 31, kLargestScale = 63;
  static constexpr Stretch kStretches[] = {
      {0, 0},     {-0.4f, 0.2f}, {0, -0.2f},   {0.4f, 0.4f}, {-0.4f, -0.6f},
      {-0.4f, 0}, {0.2f, -0.2f}, {0.6f, 0.2f}, {0.4f, 0.6f}, {-0.6f, -0.6f}};
  static constexpr Stretch kImportanceStretches[] = {
      {0.2f, 0.2f},   {0.2f, -0.2f}, {-0.4f, 0.2f}, {0.2f, 0},    {0.8f, 0.8f},   {-0.6f, -0.6f},
      {-0.8f, -0.2f}, {1.4f, 0.4f},  {1.6f, 0},     {0.2f, 0.4f}, {-0.4f, -0.2f}, {1.4f, 0.8f}};
  static constexpr int kReach = 1, kRounds = 1, kRoundReach = 1;
};
struct SearchQ6_K : SearchedFormat<BlockQ6_K, 16, 16> {
  static constexpr bool kAffine = false;
  using Book = UniformBook<-32>;
  static constexpr float kScaleLow = -128, kScaleHigh = 127;
  static constexpr float kLargestBecomes[] = {-128};
  static constexpr float kStretches[] = {1.0f, 0.968f, 0.94f};
  static constexpr float kImportanceStretches[] = {1.004f, 0.968f, 0.936f, 0.904f, 1.028f};
  static constexpr int kReach = 1, kRounds = 1, kRoundReach = 1;
};
struct SearchIQ4_XS : SearchedFormat<BlockIQ4_XS, 8, 32> {
  static constexpr bool kAffine = false;
  using Book = Iq4Book;
  static constexpr float kScaleLow = -32, kScaleHigh = 31;
  static constexpr float kLargestBecomes[] = {-32, -31};
  static constexpr float kStretches[] = {1.015f, -0.895f, 1.075f, 0.955f, -0.955f, 0.865f,
                                         -0.85f, 0.985f,  1.045f, 0.82f,  1.105f,  -0.925f};
  static constexpr float kImportanceStretches[] = {1.015f,  -0.895f, 1.12f, 0.955f,  0.85f,
                                                   -1.03f,  1.24f,   1.06f, -0.955f, -0.85f,
                                                   -0.715f, -1.18f,  0.79f, 1.39f};
  static constexpr int kReach = 2, kRounds = 2, kRoundReach = 1;
};
struct SearchIQ4_NL : SearchedFormat<BlockIQ4_NL, 1, 32> {
  static constexpr bool kAffine = false;
  using Book = Iq4Book;
  static constexpr float kStretches[] = {1.015f, -0.895f, 1.075f, 0.955f, -0.955f, 0.865f,
                                         -0.85f, 0.985f,  1.045f, 0.82f,  1.105f,  -0.925f};
  static constexpr float kImportanceStretches[] = {1.015f,  -0.895f, 1.12f, 0.955f,  0.85f,
                                                   -1.03f,  1.24f,   1.06f, -0.955f, -0.85f,
                                                   -0.715f, -1.18f,  0.79f, 1.39f};
  static constexpr int kRounds = 2;
};
struct SearchQ4_0 : SearchedFormat<BlockQ4_0, 1, 32> {
  static constexpr bool kAffine = false;
  using Book = UniformBook<-8>;
  static constexpr float kImportanceStretches[] = {1.04f,  0.9f,  1.16f, 0.98f, 1.34f,  1.1f,
                                                   -1.06f, 0.78f, 0.86f, 1.24f, -1.18f, 0.94f};
  static constexpr int kRounds = 2;
};
struct SearchQ5_0 : SearchedFormat<BlockQ5_0, 1, 32> {
  static constexpr bool kAffine = false;
  using Book = UniformBook<-16>;
  static constexpr float kImportanceStretches[] = {1.01f, 0.94f, 1.06f, 0.88f, 1.13f, 0.99f,
                                                   0.82f, 1.2f,  1.03f, 1.09f, 0.92f, 0.96f};
  static constexpr int kRounds = 2;
};
// For error feedback alone: without it the format is encoded as ggml does.
struct SearchQ8_0 : SearchedFormat<BlockQ8_0, 1, 32> {
  static constexpr bool kAffine = false;
  using Book = UniformBook<-127, 127>;
  static constexpr float kImportanceStretches[] = {1.0f, 0.996f, 0.992f, 1.002f, 0.984f};
  static constexpr int kRounds = 2;
};
struct SearchQ4_1 : SearchedFormat<BlockQ4_1, 1, 32> {
  static constexpr bool kAffine = true;
  static constexpr float kLargest = 15;
  static constexpr Stretch kImportanceStretches[] = {
      {0.4f, 0.2f},   {0.4f, -0.2f}, {0.6f, 0.6f}, {0.4f, 0},    {-0.4f, 0.2f},
      {-0.6f, -0.6f}, {-0.2f, 0},    {1.2f, 1.2f}, {1.4f, 0.6f}, {1.4f, 0}};
  static constexpr int kRounds = 2;
};
struct SearchQ5_1 : SearchedFormat<BlockQ5_1, 1, 32> {
  static constexpr bool kAffine = true;
  static constexpr float kLargest = 31;
  static constexpr Stretch kImportanceStretches[] = {
      {0, 0},    {-0.4f, -0.6f}, {0.2f, 0.4f},   {0.4f, 0},    {-0.6f, 0},
      {1.0f, 0}, {1.0f, 0.6f},   {-0.8f, -0.6f}, {1.6f, 1.4f}, {-1.0f, -0.4f}};
  static constexpr int kRounds = 2;
};

// Brings the importances of each block to at most 2, by a power of two: choices do not change, and
// no product overflows.
template <class D, class V = FloatVec<D>>
HWY_INLINE void NormalizeImportance(D d, size_t weights, float* HWY_RESTRICT importance) {
  const hn::RebindToUnsigned<D> du;
  const size_t lanes = hn::Lanes(d);
  V largest = hn::Set(d, 0x1p-120f);
  for (size_t i = 0; i < weights * lanes; i += lanes) {
    largest = hn::Max(largest, hn::Load(d, importance + i));
  }
  // 2^-e as bits: the exponent field mirrored about that of 1.
  const auto exponent = hn::And(hn::BitCast(du, largest), hn::Set(du, 0x7F800000u));
  const auto mirrored = hn::Sub(hn::Set(du, 2 * 0x3F800000u), exponent);
  const V factor = hn::BitCast(d, hn::Max(mirrored, hn::Set(du, 0x00800000u)));
  for (size_t i = 0; i < weights * lanes; i += lanes) {
    hn::Store(hn::Mul(hn::Load(d, importance + i), factor), d, importance + i);
  }
}

// Searches the blocks of a tile and leaves them as words of codes and scales in `scales`.
template <class F, bool kWeighted, class D>
HWY_INLINE void SearchTile(D d, const Span& block, uint32_t* words,
                           SymmetricScales<F::kGroups>& scales) {
  if constexpr (F::kGroups == 1) {
    SearchSingleScale<F, kWeighted>(d, block, scales);
  } else {
    SearchSymmetric<F, kWeighted>(d, block, scales);
  }
  StoreSymmetricCodes<F>(d, block, scales, words);
}
template <class F, bool kWeighted, class D>
HWY_INLINE void SearchTile(D d, const Span& block, uint32_t* words,
                           AffineScales<F::kGroups>& scales) {
  if constexpr (F::kGroups == 1) {
    SearchSingleLine<F, kWeighted>(d, block, scales);
  } else {
    SearchAffine<F, kWeighted>(d, block, scales);
  }
  StoreAffineCodes<F>(d, block, scales, words);
}

// Lane l of what was found.
template <size_t kGroups>
HWY_INLINE void TakeLane(const SymmetricScales<kGroups>& scales, size_t lanes, size_t l,
                         FoundBlock& found) {
  found.d = scales.d[l];
  for (size_t g = 0; g < kGroups; ++g) {
    found.scale[g] = static_cast<int8_t>(scales.scale[g * lanes + l]);
  }
}
template <size_t kGroups>
HWY_INLINE void TakeLane(const AffineScales<kGroups>& scales, size_t lanes, size_t l,
                         FoundBlock& found) {
  found.d = scales.d[l];
  found.min_d = scales.min_d[l];
  for (size_t g = 0; g < kGroups; ++g) {
    found.scale[g] = static_cast<int8_t>(scales.scale[g * lanes + l]);
    found.min[g] = static_cast<int8_t>(scales.min[g * lanes + l]);
  }
}

// The value of weights that are all equal; else 0.
inline float ConstantOf(const float* weights, size_t count) {
  for (size_t i = 1; i < count; ++i) {
    if (weights[i] != weights[0]) return 0;
  }
  return weights[0];
}

template <class F, bool kWeighted, class D>
void EncodeSearched(D d, std::span<const float* const> rows, int64_t cols, const float* importance,
                    std::byte* out) {
  using Scales =
      std::conditional_t<F::kAffine, AffineScales<F::kGroups>, SymmetricScales<F::kGroups>>;
  const size_t lanes = hn::Lanes(d);
  const size_t row_blocks = static_cast<size_t>(cols) / F::kWeights;
  const size_t blocks = rows.size() * row_blocks;
  static_assert(sizeof(FoundBlock::codes) >= F::kWeights);
  HWY_ALIGN float x[F::kWeights * kMaxLanes];
  HWY_ALIGN float weight[kWeighted ? F::kWeights * kMaxLanes : 1];
  HWY_ALIGN float constant[kMaxLanes];
  HWY_ALIGN uint32_t words[F::kWeights / 4 * kMaxLanes];
  HWY_ALIGN uint32_t codes[kMaxLanes][F::kWeights / 4];
  Scales scales;
  for (size_t first = 0; first < blocks; first += lanes) {
    // Lanes past the end repeat the last block.
    const float* from[kMaxLanes];
    const float* weight_from[kMaxLanes];
    for (size_t l = 0; l < lanes; ++l) {
      const size_t b = std::min(first + l, blocks - 1);
      const size_t col = b % row_blocks * F::kWeights;
      from[l] = rows[b / row_blocks] + col;
      constant[l] = ConstantOf(from[l], F::kWeights);
      if constexpr (kWeighted) weight_from[l] = importance + col;
    }
    TransposeIn(from, lanes, F::kWeights, x);
    if constexpr (kWeighted) {
      TransposeIn(weight_from, lanes, F::kWeights, weight);
      NormalizeImportance(d, F::kWeights, weight);
    }
    SearchTile<F, kWeighted>(d, Span{x, weight, constant, from[0] + kBatchWeights}, words, scales);
    TransposeOut(words, lanes, F::kWeights / 4, codes[0], F::kWeights / 4);
    for (size_t l = 0; l < lanes && first + l < blocks; ++l) {
      FoundBlock found;
      TakeLane(scales, lanes, l, found);
      std::memcpy(found.codes, codes[l], F::kWeights);
      typename F::Block block;
      Pack(found, block);
      std::memcpy(out, &block, sizeof(block));
      out += sizeof(block);
    }
  }
}

template <class F, class D>
void EncodeEither(D d, std::span<const float* const> rows, int64_t cols, const float* importance,
                  std::byte* out) {
  if (importance != nullptr) return EncodeSearched<F, true>(d, rows, cols, importance, out);
  EncodeSearched<F, false>(d, rows, cols, nullptr, out);
}

// EncodeSearch with vectors of tag `d`, of at most kMaxLanes floats.
template <class D>
void EncodeSearchWith(D d, Format format, std::span<const float* const> rows, int64_t cols,
                      const float* importance, std::byte* out) {
  switch (format) {
    case Format::kQ2_K:
      return EncodeEither<SearchQ2_K>(d, rows, cols, importance, out);
    case Format::kQ3_K:
      return EncodeEither<SearchQ3_K>(d, rows, cols, importance, out);
    case Format::kQ4_K:
      return EncodeEither<SearchQ4_K>(d, rows, cols, importance, out);
    case Format::kQ5_K:
      return EncodeEither<SearchQ5_K>(d, rows, cols, importance, out);
    case Format::kQ6_K:
      return EncodeEither<SearchQ6_K>(d, rows, cols, importance, out);
    case Format::kIQ4_NL:
      return EncodeEither<SearchIQ4_NL>(d, rows, cols, importance, out);
    case Format::kIQ4_XS:
      return EncodeEither<SearchIQ4_XS>(d, rows, cols, importance, out);
    case Format::kQ4_0:
      return EncodeSearched<SearchQ4_0, true>(d, rows, cols, importance, out);
    case Format::kQ4_1:
      return EncodeSearched<SearchQ4_1, true>(d, rows, cols, importance, out);
    case Format::kQ5_0:
      return EncodeSearched<SearchQ5_0, true>(d, rows, cols, importance, out);
    case Format::kQ5_1:
      return EncodeSearched<SearchQ5_1, true>(d, rows, cols, importance, out);
    default:
      return;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_SEARCH_INL_H_
