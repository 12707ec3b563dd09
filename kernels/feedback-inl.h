// Error feedback inside the searched block formats: codes are chosen one column after another, each
// for its weight plus what the errors before it ask of it.
//
// With the Hessian H = R R^T (R upper triangular, T = R / diag R unit upper, D = diag(R)^2) a row's
// output error is
//
//     e H e^T = sum_j D_j (v_j - q_j)^2,   v_j = w_j + sum_{k < j} e_k T_kj,   e = w - q
//
// (the LDL form of GPTQ, arXiv 2210.17323, as in QuIP, arXiv 2307.13304): the best code of column
// j, all others before it given, is the nearest to v_j. Scales are chosen by running just this over
// a group for each candidate, so that what they cost is measured with the feedback that will
// follow.
//
// Rows are independent and lie side by side, one a lane; see search_tile-inl.h.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_FEEDBACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_FEEDBACK_INL_H_
#undef NIBBLE_KERNELS_FEEDBACK_INL_H_
#else
#define NIBBLE_KERNELS_FEEDBACK_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "kernels/feedback.h"
#include "kernels/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A group's decoder: a line or a scale, by format.
template <class F, class D, class V = FloatVec<D>>
class GroupCoder {
 public:
  // `scale` and `min` in weights (super-scales multiplied in).
  HWY_INLINE GroupCoder(D d, V scale, V min)
      : scale_(scale), min_(min), inverse_(DivOrZero(d, hn::Set(d, 1.0f), scale)) {}

  HWY_INLINE V Code(D d, V v) const {
    if constexpr (F::kAffine) {
      return RoundWithin(d, hn::Mul(hn::Add(v, min_), inverse_), 0, F::kLargest);
    } else {
      return F::Book::Nearest(d, hn::Mul(v, inverse_));
    }
  }
  HWY_INLINE V Decode(D d, V code) const {
    const V product = hn::Mul(scale_, code);
    if constexpr (F::kAffine) return hn::Sub(product, min_);
    return product;
  }

 private:
  V scale_, min_, inverse_;
};

// The columns of one group in a tile of rows, with the factor's square that belongs to them.
struct GroupTile {
  const float* weight;    // [kGroup][lanes]: w
  const float* target;    // [kGroup][lanes]: w + feedback of all columns before the group
  const float* factor;    // T at the group's first row and column
  size_t stride;          // of T
  const float* diagonal;  // D of the group's columns
};

// Runs the feedback through a group under one decoder; returns sum_j D_j (v_j - q_j)^2. Leaves the
// errors e, and the codes where `codes` is not null.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V RunGroup(D d, const GroupTile& tile, const GroupCoder<F, D>& coder, float* codes,
                      float* errors) {
  const size_t lanes = hn::Lanes(d);
  V loss = hn::Zero(d);
  for (size_t j = 0; j < F::kGroup; ++j) {
    V v = hn::Load(d, tile.target + j * lanes);
    for (size_t k = 0; k < j; ++k) {
      const V t = hn::Set(d, tile.factor[k * tile.stride + j]);
      v = hn::Add(v, hn::Mul(hn::Load(d, errors + k * lanes), t));
    }
    const V code = coder.Code(d, v);
    const V q = coder.Decode(d, code);
    hn::Store(hn::Sub(hn::Load(d, tile.weight + j * lanes), q), d, errors + j * lanes);
    const V residual = hn::Sub(v, q);
    loss = hn::Add(loss, hn::Mul(hn::Set(d, tile.diagonal[j]), Square(d, residual)));
    if (codes != nullptr) hn::Store(code, d, codes + j * lanes);
  }
  return loss;
}

// Scales of a tile's blocks, lane by lane: integers (all 1 where there are no sub-scales) under d
// and min_d.
struct TileScales {
  HWY_ALIGN float d[kMaxLanes];
  HWY_ALIGN float min_d[kMaxLanes];
  HWY_ALIGN float scale[16 * kMaxLanes];
  HWY_ALIGN float min[16 * kMaxLanes];
};

// One block of a tile of rows.
struct BlockTile {
  const float* weight;  // [kWeights][lanes]
  const float* target;  // [kWeights][lanes]
  const float* factor;  // T at the block's first row and column
  size_t stride;
  const float* diagonal;
};

// Adds the feedback of a group's errors to the columns [from, to) of `target`.
template <class D>
HWY_INLINE void Propagate(D d, const float* errors, size_t group, const float* factor,
                          size_t stride, size_t from, size_t to, float* target) {
  const size_t lanes = hn::Lanes(d);
  for (size_t j = from; j < to; ++j) {
    auto v = hn::Load(d, target + j * lanes);
    for (size_t k = 0; k < group; ++k) {
      v = hn::Add(v, hn::Mul(hn::Load(d, errors + k * lanes), hn::Set(d, factor[k * stride + j])));
    }
    hn::Store(v, d, target + j * lanes);
  }
}

// The best integers of one group around `scale`, `min`, each measured by a run.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void RefineGroup(D d, const GroupTile& tile, V super, V super_min, int reach, V& scale,
                            V& min) {
  HWY_ALIGN float errors[F::kGroup * kMaxLanes];
  const V center_scale = scale, center_min = min;
  V best = hn::Set(d, 3e38f);
  const auto attempt = [&](V s, V m) HWY_ATTR {
    const GroupCoder<F, D> coder(d, hn::Mul(super, s), hn::Mul(super_min, m));
    const V loss = RunGroup<F>(d, tile, coder, nullptr, errors);
    const auto better = hn::Lt(loss, best);
    scale = hn::IfThenElse(better, s, scale);
    min = hn::IfThenElse(better, m, min);
    best = hn::Min(best, loss);
  };
  for (int i = -reach; i <= reach; ++i) {
    if constexpr (F::kAffine) {
      const V s = RoundWithin(d, hn::Add(center_scale, hn::Set(d, static_cast<float>(i))), 0,
                              F::kLargestScale);
      for (int j = -reach; j <= reach; ++j) {
        attempt(s, RoundWithin(d, hn::Add(center_min, hn::Set(d, static_cast<float>(j))), 0,
                               F::kLargestScale));
      }
    } else {
      attempt(RoundWithin(d, hn::Add(center_scale, hn::Set(d, static_cast<float>(i))), F::kScaleLow,
                          F::kScaleHigh),
              min);
    }
  }
}

// What a block's run leaves, lane by lane.
template <class F>
struct BlockRun {
  HWY_ALIGN float codes[F::kWeights * kMaxLanes];
  HWY_ALIGN float errors[F::kWeights * kMaxLanes];
  TileScales scales;
};

// Runs a block group by group under the given super-scales, improving the integers on the way.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V RunBlock(D d, const BlockTile& block, int reach, float* target, BlockRun<F>& run) {
  const size_t lanes = hn::Lanes(d);
  std::memcpy(target, block.target, F::kWeights * lanes * sizeof(float));
  const V super = hn::Load(d, run.scales.d), super_min = hn::Load(d, run.scales.min_d);
  V loss = hn::Zero(d);
  for (size_t g = 0; g < F::kGroups; ++g) {
    const size_t first = g * F::kGroup;
    const GroupTile tile{block.weight + first * lanes, target + first * lanes,
                         block.factor + first * block.stride + first, block.stride,
                         block.diagonal + first};
    V scale = hn::Load(d, run.scales.scale + g * lanes);
    V min = hn::Load(d, run.scales.min + g * lanes);
    if constexpr (F::kGroups > 1) {
      RefineGroup<F>(d, tile, super, super_min, reach, scale, min);
      hn::Store(scale, d, run.scales.scale + g * lanes);
      hn::Store(min, d, run.scales.min + g * lanes);
    }
    const GroupCoder<F, D> coder(d, hn::Mul(super, scale), hn::Mul(super_min, min));
    float* errors = run.errors + first * lanes;
    loss = hn::Add(loss, RunGroup<F>(d, tile, coder, run.codes + first * lanes, errors));
    Propagate(d, errors, F::kGroup, block.factor + first * block.stride, block.stride,
              first + F::kGroup, F::kWeights, target);
  }
  return loss;
}

// Super-scales refitted by least squares to a run's codes. The error of a fixed choice of codes is
// a quadratic in d and min_d: column j contributes D_j (y_j - d a_j + min_d b_j)^2 with a and b the
// integers (scale * code, min) after the same feedback as the weights.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void RefitBlock(D d, const BlockTile& block, const BlockRun<F>& run, TileScales& refit) {
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN float a[F::kWeights * kMaxLanes];
  HWY_ALIGN float b[F::kAffine ? F::kWeights * kMaxLanes : 1];
  const V zero = hn::Zero(d);
  V aa = zero, ab = zero, bb = zero, ra = zero, rb = zero;
  for (size_t g = 0; g < F::kGroups; ++g) {
    const V scale = hn::Load(d, run.scales.scale + g * lanes);
    for (size_t i = g * F::kGroup; i < (g + 1) * F::kGroup; ++i) {
      hn::Store(hn::Mul(scale, hn::Load(d, run.codes + i * lanes)), d, a + i * lanes);
    }
  }
  const V super = hn::Load(d, run.scales.d), super_min = hn::Load(d, run.scales.min_d);
  for (size_t j = 0; j < F::kWeights; ++j) {
    // v_j - q_j of the run, and how it moves with d and min_d.
    V va = hn::Load(d, a + j * lanes), vb = zero, r = hn::Load(d, block.target + j * lanes);
    if constexpr (F::kAffine) {
      vb = hn::Load(d, run.scales.min + j / F::kGroup * lanes);
      hn::Store(vb, d, b + j * lanes);
    }
    r = hn::Sub(r, hn::Sub(hn::Mul(super, va), hn::Mul(super_min, vb)));
    for (size_t k = 0; k < j; ++k) {
      const V t = hn::Set(d, block.factor[k * block.stride + j]);
      r = hn::Add(r, hn::Mul(hn::Load(d, run.errors + k * lanes), t));
      va = hn::Add(va, hn::Mul(hn::Load(d, a + k * lanes), t));
      if constexpr (F::kAffine) vb = hn::Add(vb, hn::Mul(hn::Load(d, b + k * lanes), t));
    }
    const V weight = hn::Set(d, block.diagonal[j]);
    const V wa = hn::Mul(weight, va);
    aa = hn::Add(aa, hn::Mul(wa, va));
    ra = hn::Add(ra, hn::Mul(wa, r));
    if constexpr (F::kAffine) {
      const V wb = hn::Mul(weight, vb);
      ab = hn::Add(ab, hn::Mul(wb, va));
      bb = hn::Add(bb, hn::Mul(wb, vb));
      rb = hn::Add(rb, hn::Mul(wb, r));
    }
  }
  refit = run.scales;
  V scale = hn::Add(super, DivOrZero(d, ra, aa));
  if constexpr (F::kAffine) {
    // min (ra - x aa + y ab, ...): d += x, min_d += y.
    const V both = DivByDeterminant(d, hn::Sub(hn::Mul(ra, bb), hn::Mul(rb, ab)), aa, bb, ab);
    const V delta = hn::IfThenElse(hn::Eq(bb, zero), DivOrZero(d, ra, aa), both);
    scale = RoundToF16(d, hn::Add(super, delta));
    const V moved = hn::Sub(scale, super);
    const V min_delta = DivOrZero(d, hn::Sub(hn::Mul(moved, ab), rb), bb);
    hn::Store(RoundToF16(d, hn::Add(super_min, min_delta)), d, refit.min_d);
  }
  hn::Store(RoundToF16(d, scale), d, refit.d);
}

// Copies the lanes where `mask` holds.
template <class D, class M>
HWY_INLINE void KeepLanes(D d, M mask, const float* from, size_t count, float* to) {
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < count * lanes; i += lanes) {
    hn::Store(hn::IfThenElse(mask, hn::Load(d, from + i), hn::Load(d, to + i)), d, to + i);
  }
}

template <class F, class D, class V = FloatVec<D>>
HWY_INLINE V SearchBlock(D d, const BlockTile& block, const float* weight_of_error,
                         const FeedbackOptions& options, BlockRun<F>& best) {
  // Where to begin: the search without feedback, errors weighed by D.
  HWY_ALIGN uint32_t unused[F::kWeights / 4 * kMaxLanes];
  HWY_ALIGN const float none[kMaxLanes] = {};  // no block is treated as constant
  const Span span{block.target, weight_of_error, none, block.target};
  if constexpr (F::kAffine) {
    AffineScales<F::kGroups> found;
    SearchTile<F, true>(d, span, unused, found);
    std::memcpy(best.scales.d, found.d, sizeof(found.d));
    std::memcpy(best.scales.min_d, found.min_d, sizeof(found.min_d));
    std::memcpy(best.scales.scale, found.scale, sizeof(found.scale));
    std::memcpy(best.scales.min, found.min, sizeof(found.min));
  } else {
    SymmetricScales<F::kGroups> found;
    SearchTile<F, true>(d, span, unused, found);
    std::memcpy(best.scales.d, found.d, sizeof(found.d));
    std::memcpy(best.scales.scale, found.scale, sizeof(found.scale));
    hn::Store(hn::Zero(d), d, best.scales.min_d);
    std::memset(best.scales.min, 0, sizeof(best.scales.min));
  }
  HWY_ALIGN float target[F::kWeights * kMaxLanes];
  V loss = RunBlock<F>(d, block, options.reach, target, best);
  BlockRun<F> attempt;
  for (int round = 0; round < options.rounds; ++round) {
    RefitBlock<F>(d, block, best, attempt.scales);
    const V attempt_loss = RunBlock<F>(d, block, options.round_reach, target, attempt);
    const auto better = hn::Lt(attempt_loss, loss);
    if (hn::AllFalse(d, better)) break;
    loss = hn::Min(loss, attempt_loss);
    KeepLanes(d, better, attempt.codes, F::kWeights, best.codes);
    KeepLanes(d, better, attempt.errors, F::kWeights, best.errors);
    KeepLanes(d, better, attempt.scales.d, 1, best.scales.d);
    KeepLanes(d, better, attempt.scales.min_d, 1, best.scales.min_d);
    KeepLanes(d, better, attempt.scales.scale, F::kGroups, best.scales.scale);
    KeepLanes(d, better, attempt.scales.min, F::kGroups, best.scales.min);
  }
  return loss;
}

// Lane l of a run as a block.
template <class F>
HWY_INLINE void PackLane(const BlockRun<F>& run, size_t lanes, size_t l, std::byte* out) {
  FoundBlock found;
  found.d = run.scales.d[l];
  found.min_d = run.scales.min_d[l];
  for (size_t g = 0; g < F::kGroups; ++g) {
    found.scale[g] = static_cast<int8_t>(run.scales.scale[g * lanes + l]);
    found.min[g] = static_cast<int8_t>(run.scales.min[g * lanes + l]);
  }
  for (size_t i = 0; i < F::kWeights; ++i) {
    const float code = run.codes[i * lanes + l];
    if constexpr (F::kAffine) {
      found.codes[i] = static_cast<uint8_t>(code);
    } else {
      found.codes[i] = F::Book::Pack(code);
    }
  }
  typename F::Block block;
  Pack(found, block);
  std::memcpy(out, &block, sizeof(block));
}

// The same, unpacked.
template <class F>
HWY_INLINE void SaveLane(const BlockRun<F>& run, size_t lanes, size_t l, BlockState& state) {
  state.d = run.scales.d[l];
  state.min_d = run.scales.min_d[l];
  for (size_t g = 0; g < F::kGroups; ++g) {
    state.scale[g] = run.scales.scale[g * lanes + l];
    state.min[g] = run.scales.min[g * lanes + l];
  }
  for (size_t i = 0; i < F::kWeights; ++i) state.codes[i] = run.codes[i * lanes + l];
}

template <class F, class D>
void EncodeChunk(D d, const FeedbackChunk& chunk, const FeedbackOptions& options, double* losses) {
  const size_t lanes = hn::Lanes(d), cols = static_cast<size_t>(chunk.cols);
  const size_t stride = static_cast<size_t>(chunk.factor_stride);
  hwy::AlignedFreeUniquePtr<float[]> weight = hwy::AllocateAligned<float>(cols * lanes);
  hwy::AlignedFreeUniquePtr<float[]> target = hwy::AllocateAligned<float>(cols * lanes);
  hwy::AlignedFreeUniquePtr<float[]> weight_of_error = hwy::AllocateAligned<float>(cols * lanes);
  hwy::AlignedFreeUniquePtr<BlockRun<F>[]> run = hwy::AllocateAligned<BlockRun<F>>(1);
  for (size_t j = 0; j < cols; ++j) {
    hn::Store(hn::Set(d, chunk.diagonal[j]), d, weight_of_error.get() + j * lanes);
  }
  for (size_t b = 0; b < cols; b += F::kWeights) {
    NormalizeImportance(d, F::kWeights, weight_of_error.get() + b * lanes);
  }
  for (int64_t first = 0; first < chunk.rows; first += static_cast<int64_t>(lanes)) {
    // Lanes past the end repeat the last row.
    const float* weight_from[kMaxLanes];
    const float* target_from[kMaxLanes];
    for (size_t l = 0; l < lanes; ++l) {
      const int64_t r = std::min(first + static_cast<int64_t>(l), chunk.rows - 1);
      weight_from[l] = chunk.weights + r * chunk.row_stride;
      target_from[l] = chunk.targets + r * chunk.row_stride;
    }
    TransposeIn(weight_from, lanes, cols, weight.get());
    TransposeIn(target_from, lanes, cols, target.get());
    for (size_t b = 0; b < cols; b += F::kWeights) {
      const BlockTile block{weight.get() + b * lanes, target.get() + b * lanes,
                            chunk.factor + b * stride + b, stride, chunk.diagonal + b};
      const auto loss =
          SearchBlock<F>(d, block, weight_of_error.get() + b * lanes, options, run[0]);
      Propagate(d, run[0].errors, F::kWeights, chunk.factor + b * stride, stride, b + F::kWeights,
                cols, target.get());
      HWY_ALIGN float lane_loss[kMaxLanes];
      hn::Store(loss, d, lane_loss);
      for (size_t l = 0; l < lanes && first + static_cast<int64_t>(l) < chunk.rows; ++l) {
        const int64_t r = first + static_cast<int64_t>(l);
        PackLane<F>(run[0], lanes, l,
                    chunk.blocks + static_cast<size_t>(r) * chunk.block_stride +
                        b / F::kWeights * sizeof(typename F::Block));
        if (chunk.states != nullptr) {
          SaveLane<F>(run[0], lanes, l,
                      chunk.states[r * chunk.state_stride + static_cast<int64_t>(b / F::kWeights)]);
        }
        float* errors = chunk.errors + r * chunk.row_stride + b;
        for (size_t i = 0; i < F::kWeights; ++i) errors[i] = run[0].errors[i * lanes + l];
        losses[r] += lane_loss[l];
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_FEEDBACK_INL_H_
