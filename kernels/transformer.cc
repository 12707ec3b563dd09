#include "kernels/transformer.h"

#include <cmath>
#include <cstddef>

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

void AttendTileImpl(const float* query, int64_t rows, const float* key, const float* value,
                    int64_t keys, int64_t key_dims, int64_t value_dims, const int32_t* first,
                    const int32_t* last, float* HWY_RESTRICT scores, AttentionState* states,
                    float* output) {
  const D d;
  const size_t lanes = hn::Lanes(d);
  const size_t kd = static_cast<size_t>(key_dims), vd = static_cast<size_t>(value_dims);
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t begin = first[r], end = last[r];
    if (begin >= end) continue;
    const float* q = query + r * key_dims;
    float* out = output + r * value_dims;
    AttentionState& state = states[r];
    float maximum = state.maximum;
    for (int32_t j = begin; j < end; ++j) {
      scores[j] = Dot(q, key + static_cast<size_t>(j) * kd, kd);
      maximum = scores[j] > maximum ? scores[j] : maximum;
    }
    if (maximum > state.maximum) {
      const float shrink = std::exp(state.maximum - maximum);  // 0 for the first tile
      state.maximum = maximum;
      state.sum *= shrink;
      const V factor = hn::Set(d, shrink);
      Transform(out, out, vd, out, [&](V v, V) HWY_ATTR { return hn::Mul(v, factor); });
    }
    const V top = hn::Set(d, maximum);
    V sum = hn::Zero(d);
    for (int32_t j = begin; j < end; j += static_cast<int32_t>(lanes)) {
      const size_t n = HWY_MIN(lanes, static_cast<size_t>(end - j));
      const V p = hn::Exp(d, hn::Sub(hn::LoadN(d, scores + j, n), top));
      hn::StoreN(p, d, scores + j, n);
      sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, n), p));
    }
    state.sum += hn::ReduceSum(d, sum);
    for (size_t i = 0; i < vd; i += lanes) {
      const size_t n = HWY_MIN(lanes, vd - i);
      V acc = hn::LoadN(d, out + i, n);
      for (int32_t j = begin; j < end; ++j) {
        acc = hn::MulAdd(hn::Set(d, scores[j]),
                         hn::LoadN(d, value + static_cast<size_t>(j) * vd + i, n), acc);
      }
      hn::StoreN(acc, d, out + i, n);
    }
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
void Rope(float* x, const float* cosines, const float* sines, int64_t pairs, bool half_split) {
  HWY_DYNAMIC_DISPATCH(RopeImpl)(x, cosines, sines, pairs, half_split);
}
void AttendTile(const float* query, int64_t rows, const float* key, const float* value,
                int64_t keys, int64_t key_dims, int64_t value_dims, const int32_t* first,
                const int32_t* last, float* scores, AttentionState* states, float* output) {
  HWY_DYNAMIC_DISPATCH(AttendTileImpl)
  (query, rows, key, value, keys, key_dims, value_dims, first, last, scores, states, output);
}

}  // namespace nibble
#endif  // HWY_ONCE
