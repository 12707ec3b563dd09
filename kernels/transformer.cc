#include "kernels/transformer.h"

#include <cmath>
#include <cstddef>
#include <type_traits>

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/transformer.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE float Dot(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, size_t n) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  V s0 = hn::Zero(d), s1 = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    s0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), s0);
    s1 = hn::MulAdd(hn::LoadU(d, a + i + lanes), hn::LoadU(d, b + i + lanes), s1);
  }
  for (; i + lanes <= n; i += lanes) {
    s0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), s0);
  }
  if (i < n) s1 = hn::MulAdd(hn::LoadN(d, a + i, n - i), hn::LoadN(d, b + i, n - i), s1);
  return hn::ReduceSum(d, hn::Add(s0, s1));
}

// Calls f(vector of each array, ...) over all elements and stores the result to out.
template <class F>
HWY_INLINE void Transform(const float* a, const float* b, size_t n, float* out, const F& f) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(f(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, out + i);
  }
  if (i < n) {
    hn::StoreN(f(hn::LoadN(d, a + i, n - i), hn::LoadN(d, b + i, n - i)), d, out + i, n - i);
  }
}

void RmsNormImpl(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const size_t count = static_cast<size_t>(n);
  const float mean = Dot(x, x, count) / static_cast<float>(n);
  const V scale = hn::Set(D(), 1.0f / std::sqrt(mean + eps));
  Transform(x, weight, count, out,
            [&](V v, V w) HWY_ATTR { return hn::Mul(hn::Mul(v, scale), w); });
}

void AddToImpl(float* x, const float* y, int64_t n) {
  Transform(x, y, static_cast<size_t>(n), x, [](V a, V b) HWY_ATTR { return hn::Add(a, b); });
}

void SiluMultiplyImpl(const float* gate, const float* up, int64_t n, float* out) {
  const D d;
  const V one = hn::Set(d, 1.0f);
  Transform(gate, up, static_cast<size_t>(n), out, [&](V g, V u) HWY_ATTR {
    return hn::Mul(hn::Div(g, hn::Add(one, hn::Exp(d, hn::Neg(g)))), u);
  });
}

void GeluMultiplyImpl(const float* gate, const float* up, int64_t n, float* out) {
  const D d;
  const V half = hn::Set(d, 0.5f), one = hn::Set(d, 1.0f);
  const V root = hn::Set(d, 0.79788456080286535588f), cubic = hn::Set(d, 0.044715f);
  Transform(gate, up, static_cast<size_t>(n), out, [&](V g, V u) HWY_ATTR {
    const V inner = hn::Mul(hn::Mul(root, g), hn::MulAdd(hn::Mul(cubic, g), g, one));
    return hn::Mul(hn::Mul(hn::Mul(half, g), hn::Add(one, hn::Tanh(d, inner))), u);
  });
}

// cap * tanh(x / cap)
HWY_INLINE V Capped(V x, V cap, V inverse) {
  return hn::Mul(cap, hn::Tanh(D(), hn::Mul(x, inverse)));
}

void SoftCapImpl(float* x, int64_t n, float cap) {
  const V limit = hn::Set(D(), cap), inverse = hn::Set(D(), 1.0f / cap);
  Transform(x, x, static_cast<size_t>(n), x,
            [&](V v, V) HWY_ATTR { return Capped(v, limit, inverse); });
}

void RopeImpl(float* x, const float* cosines, const float* sines, int64_t pairs, bool half_split) {
  const D d;
  const size_t lanes = hn::Lanes(d), count = static_cast<size_t>(pairs);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V c = hn::LoadU(d, cosines + i), s = hn::LoadU(d, sines + i);
    V a, b;
    if (half_split) {
      a = hn::LoadU(d, x + i);
      b = hn::LoadU(d, x + count + i);
    } else {
      hn::LoadInterleaved2(d, x + 2 * i, a, b);
    }
    const V ra = hn::Sub(hn::Mul(a, c), hn::Mul(b, s));
    const V rb = hn::Add(hn::Mul(a, s), hn::Mul(b, c));
    if (half_split) {
      hn::StoreU(ra, d, x + i);
      hn::StoreU(rb, d, x + count + i);
    } else {
      hn::StoreInterleaved2(ra, rb, d, x + 2 * i);
    }
  }
  for (; i < count; ++i) {
    float& a = half_split ? x[i] : x[2 * i];
    float& b = half_split ? x[count + i] : x[2 * i + 1];
    const float ra = a * cosines[i] - b * sines[i];
    b = a * sines[i] + b * cosines[i];
    a = ra;
  }
}

// Keys that are looked at together, and rows of queries that share what is loaded of them.
constexpr size_t kKeys = 32;
constexpr size_t kRows = 4;

// out [keys of kKeys columns] by dimension: out[d * kKeys + j] = key[j * dims + d].
HWY_INLINE void TransposeKeys(const float* HWY_RESTRICT key, size_t keys, size_t dims,
                              float* HWY_RESTRICT out) {
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<uint64_t, 2> d2;
  const size_t whole_keys = keys / 4 * 4, whole_dims = dims / 4 * 4;
  for (size_t j = 0; j < whole_keys; j += 4) {
    for (size_t i = 0; i < whole_dims; i += 4) {
      const float* from = key + j * dims + i;
      const auto a = hn::LoadU(d4, from), b = hn::LoadU(d4, from + dims);
      const auto c = hn::LoadU(d4, from + 2 * dims), e = hn::LoadU(d4, from + 3 * dims);
      const auto ab_low = hn::BitCast(d2, hn::InterleaveLower(d4, a, b));
      const auto ab_high = hn::BitCast(d2, hn::InterleaveUpper(d4, a, b));
      const auto ce_low = hn::BitCast(d2, hn::InterleaveLower(d4, c, e));
      const auto ce_high = hn::BitCast(d2, hn::InterleaveUpper(d4, c, e));
      float* to = out + i * kKeys + j;
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, ab_low, ce_low)), d4, to);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, ab_low, ce_low)), d4, to + kKeys);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, ab_high, ce_high)), d4, to + 2 * kKeys);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, ab_high, ce_high)), d4, to + 3 * kKeys);
    }
  }
  for (size_t j = 0; j < keys; ++j) {
    for (size_t i = j < whole_keys ? whole_dims : 0; i < dims; ++i) {
      out[i * kKeys + j] = key[j * dims + i];
    }
  }
}

// out[r] = factors[r] * out[r] + sum over k of a[r, k] * b[k], for kM rows (1 or kRows) and n
// columns; out is not read where `factors` is null.
template <size_t kM>
HWY_INLINE void MultiplySmall(const float* HWY_RESTRICT a, size_t a_stride, size_t depth,
                              const float* HWY_RESTRICT b, size_t b_stride, size_t n,
                              const float* factors, float* HWY_RESTRICT out, size_t out_stride) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto begin = [&](size_t r, V& s0, V& s1) HWY_ATTR {
      if (r >= kM || factors == nullptr) return;
      const V factor = hn::Set(d, factors[r]);
      s0 = hn::Mul(factor, hn::LoadU(d, out + r * out_stride + i));
      s1 = hn::Mul(factor, hn::LoadU(d, out + r * out_stride + i + lanes));
    };
    V s00 = hn::Zero(d), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00,
      s31 = s00;
    begin(0, s00, s01);
    begin(1, s10, s11);
    begin(2, s20, s21);
    begin(3, s30, s31);
    for (size_t k = 0; k < depth; ++k) {
      const V b0 = hn::LoadU(d, b + k * b_stride + i);
      const V b1 = hn::LoadU(d, b + k * b_stride + i + lanes);
      const auto add = [&](size_t r, V& s0, V& s1) HWY_ATTR {
        const V weight = hn::Set(d, a[r * a_stride + k]);
        s0 = hn::MulAdd(weight, b0, s0);
        s1 = hn::MulAdd(weight, b1, s1);
      };
      add(0, s00, s01);
      if constexpr (kM > 1) add(1, s10, s11);
      if constexpr (kM > 2) add(2, s20, s21);
      if constexpr (kM > 3) add(3, s30, s31);
    }
    const auto end = [&](size_t r, V s0, V s1) HWY_ATTR {
      if (r >= kM) return;
      hn::StoreU(s0, d, out + r * out_stride + i);
      hn::StoreU(s1, d, out + r * out_stride + i + lanes);
    };
    end(0, s00, s01);
    end(1, s10, s11);
    end(2, s20, s21);
    end(3, s30, s31);
  }
  for (; i < n; i += lanes) {
    const size_t count = HWY_MIN(lanes, n - i);
    for (size_t r = 0; r < kM; ++r) {
      float* to = out + r * out_stride + i;
      V sum = factors ? hn::Mul(hn::Set(d, factors[r]), hn::LoadN(d, to, count)) : hn::Zero(d);
      for (size_t k = 0; k < depth; ++k) {
        sum = hn::MulAdd(hn::Set(d, a[r * a_stride + k]), hn::LoadN(d, b + k * b_stride + i, count),
                         sum);
      }
      hn::StoreN(sum, d, to, count);
    }
  }
}

// Turns the scores of keys [begin, end) into weights exp(score - maximum), those of all others into
// zeros; returns what the earlier weighted sums are to be multiplied by.
HWY_INLINE float Weigh(size_t begin, size_t end, float soft_cap, float* HWY_RESTRICT scores,
                       AttentionState* state) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  if (begin >= end) {
    for (size_t j = 0; j < kKeys; j += lanes) hn::StoreU(hn::Zero(d), d, scores + j);
    return 1.0f;
  }
  const V lowest = hn::Set(d, hwy::LowestValue<float>());
  const V low = hn::Set(d, static_cast<float>(begin)), high = hn::Set(d, static_cast<float>(end));
  if (soft_cap > 0) {
    const V cap = hn::Set(d, soft_cap), inverse = hn::Set(d, 1.0f / soft_cap);
    for (size_t j = 0; j < kKeys; j += lanes) {
      hn::StoreU(Capped(hn::LoadU(d, scores + j), cap, inverse), d, scores + j);
    }
  }
  V top = lowest;
  for (size_t j = 0; j < kKeys; j += lanes) {
    const V index = hn::Iota(d, static_cast<float>(j));
    const auto seen = hn::And(hn::Ge(index, low), hn::Lt(index, high));
    const V score = hn::IfThenElse(seen, hn::LoadU(d, scores + j), lowest);
    hn::StoreU(score, d, scores + j);
    top = hn::Max(top, score);
  }
  const float largest = hn::ReduceMax(d, top);
  float shrink = 1.0f;
  if (largest > state->maximum) {
    shrink = std::exp(state->maximum - largest);  // 0 for the first tile
    state->maximum = largest;
    state->sum *= shrink;
  }
  const V maximum = hn::Set(d, state->maximum);
  V sum = hn::Zero(d);
  for (size_t j = 0; j < kKeys; j += lanes) {
    const V score = hn::LoadU(d, scores + j);
    const V weight = hn::IfThenElseZero(hn::Gt(score, lowest), hn::Exp(d, hn::Sub(score, maximum)));
    hn::StoreU(weight, d, scores + j);
    sum = hn::Add(sum, weight);
  }
  state->sum += hn::ReduceSum(d, sum);
  return shrink;
}

// A tile of at most kKeys keys for kM rows, whose scores are in `scores`.
template <size_t kM>
HWY_INLINE void AddValues(const float* value, size_t base, size_t keys, size_t value_dims,
                          const int32_t* first, const int32_t* last, float soft_cap,
                          float* HWY_RESTRICT scores, AttentionState* states, float* output) {
  float factors[kM];
  for (size_t r = 0; r < kM; ++r) {
    const auto inside = [&](int32_t end) {
      const size_t at = static_cast<size_t>(HWY_MAX(end, 0));
      return at <= base ? 0 : HWY_MIN(at - base, keys);
    };
    factors[r] = Weigh(inside(first[r]), inside(last[r]), soft_cap, scores + r * kKeys, states + r);
  }
  MultiplySmall<kM>(scores, kKeys, keys, value, value_dims, value_dims, factors, output,
                    value_dims);
}

void AttendTileImpl(const float* query, int64_t rows, const float* key, const float* value,
                    int64_t keys, int64_t key_dims, int64_t value_dims, const int32_t* first,
                    const int32_t* last, float soft_cap, float* HWY_RESTRICT scratch,
                    AttentionState* states, float* output) {
  static_assert(AttendScratch(1) - AttendScratch(0) == kKeys && AttendScratch(0) == kRows * kKeys);
  const size_t kd = static_cast<size_t>(key_dims), vd = static_cast<size_t>(value_dims);
  const size_t row_count = static_cast<size_t>(rows), key_count = static_cast<size_t>(keys);
  float* scores = scratch;
  float* keys_by_dim = scratch + kRows * kKeys;
  for (size_t base = 0; base < key_count; base += kKeys) {
    const size_t count = HWY_MIN(kKeys, key_count - base);
    const float* tile = key + base * kd;
    const float* tile_values = value + base * vd;
    const bool transposed = row_count >= 3;  // for fewer it does not pay
    if (transposed) TransposeKeys(tile, count, kd, keys_by_dim);
    size_t r = 0;
    const auto attend = [&]<size_t kM>(std::integral_constant<size_t, kM>) HWY_ATTR {
      const float* q = query + r * kd;
      if (transposed) {
        MultiplySmall<kM>(q, kd, kd, keys_by_dim, kKeys, kKeys, nullptr, scores, kKeys);
      } else {
        for (size_t j = 0; j < count; ++j) scores[j] = Dot(q, tile + j * kd, kd);
      }
      AddValues<kM>(tile_values, base, count, vd, first + r, last + r, soft_cap, scores, states + r,
                    output + r * vd);
      r += kM;
    };
    while (r + kRows <= row_count) attend(std::integral_constant<size_t, kRows>());
    if (r + 3 == row_count) attend(std::integral_constant<size_t, 3>());
    while (r < row_count) attend(std::integral_constant<size_t, 1>());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(RmsNormImpl);
HWY_EXPORT(AddToImpl);
HWY_EXPORT(SiluMultiplyImpl);
HWY_EXPORT(GeluMultiplyImpl);
HWY_EXPORT(SoftCapImpl);
HWY_EXPORT(RopeImpl);
HWY_EXPORT(AttendTileImpl);

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormImpl)(x, weight, n, eps, out);
}
void AddTo(float* x, const float* y, int64_t n) { HWY_DYNAMIC_DISPATCH(AddToImpl)(x, y, n); }
void SiluMultiply(const float* gate, const float* up, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMultiplyImpl)(gate, up, n, out);
}
void GeluMultiply(const float* gate, const float* up, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(GeluMultiplyImpl)(gate, up, n, out);
}
void SoftCap(float* x, int64_t n, float cap) { HWY_DYNAMIC_DISPATCH(SoftCapImpl)(x, n, cap); }
void Rope(float* x, const float* cosines, const float* sines, int64_t pairs, bool half_split) {
  HWY_DYNAMIC_DISPATCH(RopeImpl)(x, cosines, sines, pairs, half_split);
}
void AttendTile(const float* query, int64_t rows, const float* key, const float* value,
                int64_t keys, int64_t key_dims, int64_t value_dims, const int32_t* first,
                const int32_t* last, float soft_cap, float* scratch, AttentionState* states,
                float* output) {
  HWY_DYNAMIC_DISPATCH(AttendTileImpl)
  (query, rows, key, value, keys, key_dims, value_dims, first, last, soft_cap, scratch, states,
   output);
}

}  // namespace nibble
#endif  // HWY_ONCE
