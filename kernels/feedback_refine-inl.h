// Codes and scales once more, group by group, each group given the errors of all other columns.
//
// With the error e of a row and its gradient g = e H, the error of group G's columns that would be
// best, all others given, is e_G - y with y = H_GG^-1 g_G: the group's codes are to be near q_G +
// y, in the norm of H_GG. The feedback run over H_GG = R R^T finds them, for some integer scales
// around the present ones; a lane keeps what it finds where y H_GG y^T = y g_G falls. Then each
// code alone, then the super-scales, by least squares. The error of a row never rises.
//
// Included once a Highway target.
#if defined(NIBBLE_KERNELS_FEEDBACK_REFINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_FEEDBACK_REFINE_INL_H_
#undef NIBBLE_KERNELS_FEEDBACK_REFINE_INL_H_
#else
#define NIBBLE_KERNELS_FEEDBACK_REFINE_INL_H_
#endif

#include "kernels/feedback-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One block of a tile of rows and what the refinement keeps of it.
template <class F>
struct RefineTile {
  BlockRun<F> run;                                    // codes, errors, scales
  HWY_ALIGN float weight[F::kWeights * kMaxLanes];    // w
  HWY_ALIGN float gradient[F::kWeights * kMaxLanes];  // (e H) of the block's columns
};

// gradient += change H, for `count` columns from `first` on.
template <class F, class D>
HWY_INLINE void MoveGradient(D d, const float* change, size_t first, size_t count,
                             const RefineChunk& chunk, size_t block, float* gradient) {
  const size_t lanes = hn::Lanes(d);
  const size_t stride = static_cast<size_t>(chunk.hessian_stride);
  const float* rows = chunk.hessian + (block + first) * stride + block;
  for (size_t j = 0; j < F::kWeights; ++j) {
    auto g = hn::Load(d, gradient + j * lanes);
    for (size_t k = 0; k < count; ++k) {
      g = hn::Add(g, hn::Mul(hn::Load(d, change + k * lanes), hn::Set(d, rows[k * stride + j])));
    }
    hn::Store(g, d, gradient + j * lanes);
  }
}

template <class F, class D, class V = FloatVec<D>>
HWY_INLINE GroupCoder<F, D> CoderOf(D d, const TileScales& scales, size_t g) {
  const size_t at = g * hn::Lanes(d);
  return GroupCoder<F, D>(d, hn::Mul(hn::Load(d, scales.d), hn::Load(d, scales.scale + at)),
                          hn::Mul(hn::Load(d, scales.min_d), hn::Load(d, scales.min + at)));
}

// A group's codes and integers, all other columns given.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void RefineGroupCodes(D d, const RefineChunk& chunk, size_t block, size_t g, int reach,
                                 RefineTile<F>& tile) {
  const size_t lanes = hn::Lanes(d), first = g * F::kGroup;
  HWY_ALIGN float target[F::kGroup * kMaxLanes];
  HWY_ALIGN float codes[F::kGroup * kMaxLanes];
  HWY_ALIGN float residual[F::kGroup * kMaxLanes];
  const float* factor = chunk.factors + (block + first) * F::kGroup;
  const float* inverse = chunk.inverses + (block + first) * F::kGroup;
  const float* gradient = tile.gradient + first * lanes;
  float* errors = tile.run.errors + first * lanes;
  const float* weight = tile.weight + first * lanes;
  V now = hn::Zero(d);
  for (size_t j = 0; j < F::kGroup; ++j) {
    V y = hn::Zero(d);
    for (size_t k = 0; k < F::kGroup; ++k) {
      y = hn::Add(
          y, hn::Mul(hn::Load(d, gradient + k * lanes), hn::Set(d, inverse[k * F::kGroup + j])));
    }
    now = hn::Add(now, hn::Mul(y, hn::Load(d, gradient + j * lanes)));
    const V q = hn::Sub(hn::Load(d, weight + j * lanes), hn::Load(d, errors + j * lanes));
    hn::Store(hn::Add(q, y), d, target + j * lanes);
  }
  const GroupTile group{target, target, factor, F::kGroup, chunk.diagonals + block + first};
  TileScales& scales = tile.run.scales;
  const V super = hn::Load(d, scales.d), super_min = hn::Load(d, scales.min_d);
  V scale = hn::Load(d, scales.scale + g * lanes), min = hn::Load(d, scales.min + g * lanes);
  if constexpr (F::kGroups > 1) RefineGroup<F>(d, group, super, super_min, reach, scale, min);
  const GroupCoder<F, D> coder(d, hn::Mul(super, scale), hn::Mul(super_min, min));
  const V loss = RunGroup<F>(d, group, coder, codes, residual);
  const auto better = hn::Lt(loss, now);
  if (hn::AllFalse(d, better)) return;
  hn::Store(hn::IfThenElse(better, scale, hn::Load(d, scales.scale + g * lanes)), d,
            scales.scale + g * lanes);
  hn::Store(hn::IfThenElse(better, min, hn::Load(d, scales.min + g * lanes)), d,
            scales.min + g * lanes);
  KeepLanes(d, better, codes, F::kGroup, tile.run.codes + first * lanes);
  for (size_t j = 0; j < F::kGroup; ++j) {
    const V old = hn::Load(d, errors + j * lanes);
    const V q = coder.Decode(d, hn::Load(d, codes + j * lanes));
    const V fresh = hn::IfThenElse(better, hn::Sub(hn::Load(d, weight + j * lanes), q), old);
    hn::Store(fresh, d, errors + j * lanes);
    hn::Store(hn::Sub(fresh, old), d, residual + j * lanes);
  }
  MoveGradient<F>(d, residual, first, F::kGroup, chunk, block, tile.gradient);
}

// Each code of a group alone: to q_j + g_j / H_jj.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void RefineCodes(D d, const RefineChunk& chunk, size_t block, size_t g,
                            RefineTile<F>& tile) {
  const size_t lanes = hn::Lanes(d);
  const GroupCoder<F, D> coder = CoderOf<F>(d, tile.run.scales, g);
  for (size_t j = g * F::kGroup; j < (g + 1) * F::kGroup; ++j) {
    const float diagonal =
        chunk.hessian[(block + j) * static_cast<size_t>(chunk.hessian_stride) + block + j];
    const V gradient = hn::Load(d, tile.gradient + j * lanes);
    const V weight = hn::Load(d, tile.weight + j * lanes);
    const V old = hn::Load(d, tile.run.errors + j * lanes);
    const V h = hn::Set(d, diagonal);
    const V code = coder.Code(d, hn::Add(hn::Sub(weight, old), hn::Div(gradient, h)));
    const V fresh = hn::Sub(weight, coder.Decode(d, code));
    const V change = hn::Sub(fresh, old);
    // The error moves by change (2 g + change H_jj).
    const V gain = hn::Mul(change, hn::Add(hn::Add(gradient, gradient), hn::Mul(change, h)));
    const auto better = hn::Lt(gain, hn::Zero(d));
    if (hn::AllFalse(d, better)) continue;
    float* codes = tile.run.codes + j * lanes;
    hn::Store(hn::IfThenElse(better, code, hn::Load(d, codes)), d, codes);
    hn::Store(hn::IfThenElse(better, fresh, old), d, tile.run.errors + j * lanes);
    HWY_ALIGN float moved[kMaxLanes];
    hn::Store(hn::IfThenElseZero(better, change), d, moved);
    MoveGradient<F>(d, moved, j, 1, chunk, block, tile.gradient);
  }
}

// d and min_d by least squares, all codes and integers given.
template <class F, class D, class V = FloatVec<D>>
HWY_INLINE void RefineSuperScales(D d, const RefineChunk& chunk, size_t block,
                                  RefineTile<F>& tile) {
  const size_t lanes = hn::Lanes(d);
  const size_t stride = static_cast<size_t>(chunk.hessian_stride);
  HWY_ALIGN float a[F::kWeights * kMaxLanes];
  TileScales& scales = tile.run.scales;
  for (size_t j = 0; j < F::kWeights; ++j) {
    const V scale = hn::Load(d, scales.scale + j / F::kGroup * lanes);
    hn::Store(hn::Mul(scale, hn::Load(d, tile.run.codes + j * lanes)), d, a + j * lanes);
  }
  const V zero = hn::Zero(d);
  V aa = zero, ab = zero, bb = zero, ga = zero, gb = zero;
  const float* hessian = chunk.hessian + block * stride + block;
  for (size_t j = 0; j < F::kWeights; ++j) {
    const V aj = hn::Load(d, a + j * lanes), g = hn::Load(d, tile.gradient + j * lanes);
    V ha = zero, hb = zero;
    for (size_t k = 0; k < F::kWeights; ++k) {
      const V h = hn::Set(d, hessian[k * stride + j]);
      ha = hn::Add(ha, hn::Mul(hn::Load(d, a + k * lanes), h));
      if constexpr (F::kAffine) {
        hb = hn::Add(hb, hn::Mul(hn::Load(d, scales.min + k / F::kGroup * lanes), h));
      }
    }
    aa = hn::Add(aa, hn::Mul(aj, ha));
    ga = hn::Add(ga, hn::Mul(aj, g));
    if constexpr (F::kAffine) {
      const V bj = hn::Load(d, scales.min + j / F::kGroup * lanes);
      ab = hn::Add(ab, hn::Mul(aj, hb));
      bb = hn::Add(bb, hn::Mul(bj, hb));
      gb = hn::Add(gb, hn::Mul(bj, g));
    }
  }
  // e' = e - x a + y b: the error moves by -2 x ga + 2 y gb + x^2 aa - 2 x y ab + y^2 bb.
  const V super = hn::Load(d, scales.d), super_min = hn::Load(d, scales.min_d);
  V fresh = super, fresh_min = super_min, x = zero, y = zero;
  if constexpr (F::kAffine) {
    const V both = DivByDeterminant(d, hn::Sub(hn::Mul(ga, bb), hn::Mul(gb, ab)), aa, bb, ab);
    x = hn::IfThenElse(hn::Eq(bb, zero), DivOrZero(d, ga, aa), both);
    fresh = RoundToF16(d, hn::Add(super, x));
    x = hn::Sub(fresh, super);
    y = DivOrZero(d, hn::Sub(hn::Mul(x, ab), gb), bb);
    fresh_min = RoundToF16(d, hn::Add(super_min, y));
    y = hn::Sub(fresh_min, super_min);
  } else {
    fresh = RoundToF16(d, hn::Add(super, DivOrZero(d, ga, aa)));
    x = hn::Sub(fresh, super);
  }
  const V two = hn::Set(d, 2.0f);
  V gain = hn::Mul(x, hn::Sub(hn::Mul(x, aa), hn::Mul(two, ga)));
  gain =
      hn::Add(gain, hn::Mul(y, hn::Add(hn::Mul(y, bb), hn::Mul(two, hn::Sub(gb, hn::Mul(x, ab))))));
  const auto better = hn::Lt(gain, zero);
  if (hn::AllFalse(d, better)) return;
  hn::Store(hn::IfThenElse(better, fresh, super), d, scales.d);
  hn::Store(hn::IfThenElse(better, fresh_min, super_min), d, scales.min_d);
  HWY_ALIGN float change[F::kWeights * kMaxLanes];
  for (size_t g = 0; g < F::kGroups; ++g) {
    const GroupCoder<F, D> coder = CoderOf<F>(d, scales, g);
    for (size_t j = g * F::kGroup; j < (g + 1) * F::kGroup; ++j) {
      const V q = coder.Decode(d, hn::Load(d, tile.run.codes + j * lanes));
      const V error = hn::Sub(hn::Load(d, tile.weight + j * lanes), q);
      hn::Store(hn::Sub(error, hn::Load(d, tile.run.errors + j * lanes)), d, change + j * lanes);
      hn::Store(error, d, tile.run.errors + j * lanes);
    }
  }
  MoveGradient<F>(d, change, 0, F::kWeights, chunk, block, tile.gradient);
}

// Between rows of arrays and tiles of lanes.
template <class F, class D>
void LoadTile(D d, const RefineChunk& chunk, int64_t first, size_t b, RefineTile<F>& tile) {
  const size_t lanes = hn::Lanes(d);
  const float *weight[kMaxLanes], *gradient[kMaxLanes], *errors[kMaxLanes];
  for (size_t l = 0; l < lanes; ++l) {
    // Lanes past the end repeat the last row.
    const int64_t r = std::min(first + static_cast<int64_t>(l), chunk.rows - 1);
    weight[l] = chunk.weights + r * chunk.row_stride + b;
    gradient[l] = chunk.gradients + r * chunk.cols + b;
    errors[l] = chunk.errors + r * chunk.row_stride + b;
    const BlockState& state = chunk.states[r * chunk.state_stride + b / F::kWeights];
    tile.run.scales.d[l] = state.d;
    tile.run.scales.min_d[l] = state.min_d;
    for (size_t g = 0; g < F::kGroups; ++g) {
      tile.run.scales.scale[g * lanes + l] = state.scale[g];
      tile.run.scales.min[g * lanes + l] = state.min[g];
    }
    for (size_t i = 0; i < F::kWeights; ++i) tile.run.codes[i * lanes + l] = state.codes[i];
  }
  TransposeIn(weight, lanes, F::kWeights, tile.weight);
  TransposeIn(gradient, lanes, F::kWeights, tile.gradient);
  TransposeIn(errors, lanes, F::kWeights, tile.run.errors);
}

template <class F, class D>
void RefineRows(D d, const RefineChunk& chunk, const RefineOptions& options) {
  const size_t lanes = hn::Lanes(d), cols = static_cast<size_t>(chunk.cols);
  hwy::AlignedFreeUniquePtr<RefineTile<F>[]> tile = hwy::AllocateAligned<RefineTile<F>>(1);
  for (int64_t first = 0; first < chunk.rows; first += static_cast<int64_t>(lanes)) {
    for (size_t b = 0; b < cols; b += F::kWeights) {
      LoadTile(d, chunk, first, b, tile[0]);
      for (int pass = 0; pass < options.passes; ++pass) {
        for (size_t g = 0; g < F::kGroups; ++g) {
          RefineGroupCodes(d, chunk, b, g, options.reach, tile[0]);
        }
        RefineSuperScales(d, chunk, b, tile[0]);
        for (size_t g = 0; g < F::kGroups; ++g) RefineCodes(d, chunk, b, g, tile[0]);
      }
      HWY_ALIGN float errors[F::kWeights * kMaxLanes];
      TransposeOut(tile[0].run.errors, lanes, F::kWeights, errors, F::kWeights);
      for (size_t l = 0; l < lanes && first + static_cast<int64_t>(l) < chunk.rows; ++l) {
        const int64_t r = first + static_cast<int64_t>(l);
        std::memcpy(chunk.errors + r * chunk.row_stride + b, errors + l * F::kWeights,
                    F::kWeights * sizeof(float));
        SaveLane<F>(tile[0].run, lanes, l,
                    chunk.states[r * chunk.state_stride + static_cast<int64_t>(b / F::kWeights)]);
        PackLane<F>(tile[0].run, lanes, l,
                    chunk.blocks + static_cast<size_t>(r) * chunk.block_stride +
                        b / F::kWeights * sizeof(typename F::Block));
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_FEEDBACK_REFINE_INL_H_
