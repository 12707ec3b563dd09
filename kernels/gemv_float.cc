#include "kernels/gemv_float.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"
#include "kernels/float_targets.h"
#include "kernels/round_rows.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv_float.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/unpack-inl.h"  // NIBBLE_HAVE_F16_CONVERSION

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// kM activation rows times the rows of four streams: sums[m * kStreams + s]. The sums of a block of
// columns begin anew, as those of MatmulF32 do.
template <class T, int kM>
HWY_INLINE void MultiplyStreams(const std::byte* const* rows, int64_t cols, const float* a,
                                int64_t a_stride, float* sums) {
  static_assert(kM <= 2 && kStreams == 4);
  const hn::ScalableTag<float> df;
  const hn::Rebind<T, decltype(df)> dw;
  using V = hn::Vec<decltype(df)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const T* w0 = reinterpret_cast<const T*>(rows[0]);
  const T* w1 = reinterpret_cast<const T*>(rows[1]);
  const T* w2 = reinterpret_cast<const T*>(rows[2]);
  const T* w3 = reinterpret_cast<const T*>(rows[3]);
  V t00 = hn::Zero(df), t01 = t00, t02 = t00, t03 = t00;
  V t10 = t00, t11 = t00, t12 = t00, t13 = t00;
  for (int64_t col = 0; col < cols; col += kBlockCols) {
    const int64_t end = HWY_MIN(cols, col + kBlockCols);
    V s00 = hn::Zero(df), s01 = s00, s02 = s00, s03 = s00;
    V s10 = s00, s11 = s00, s12 = s00, s13 = s00;
    const auto step = [&](auto load, int64_t k) HWY_ATTR {
      const auto widen = [&](const T* w) HWY_ATTR {
        if constexpr (std::is_same_v<T, float>) {
          return load(df, w + k);
        } else {
          return hn::PromoteTo(df, load(dw, w + k));
        }
      };
      const V v0 = widen(w0), v1 = widen(w1), v2 = widen(w2), v3 = widen(w3);
      const V a0 = load(df, a + k);
      s00 = hn::MulAdd(a0, v0, s00);
      s01 = hn::MulAdd(a0, v1, s01);
      s02 = hn::MulAdd(a0, v2, s02);
      s03 = hn::MulAdd(a0, v3, s03);
      if constexpr (kM > 1) {
        const V a1 = load(df, a + a_stride + k);
        s10 = hn::MulAdd(a1, v0, s10);
        s11 = hn::MulAdd(a1, v1, s11);
        s12 = hn::MulAdd(a1, v2, s12);
        s13 = hn::MulAdd(a1, v3, s13);
      }
    };
    // As bytes: the address may be odd, which not even pointers to larger numbers take.
    const auto load_whole = [](auto d, const auto* p) HWY_ATTR {
      const hn::Repartition<uint8_t, decltype(d)> bytes;
      return hn::BitCast(d, hn::LoadU(bytes, reinterpret_cast<const uint8_t*>(p)));
    };
    // A cache line of each stream at a time.
    const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    int64_t k = col;
    for (; k + line <= end; k += line) {
      constexpr int kAhead = 1024 / static_cast<int>(sizeof(T));
      hwy::Prefetch(w0 + k + kAhead);
      hwy::Prefetch(w1 + k + kAhead);
      hwy::Prefetch(w2 + k + kAhead);
      hwy::Prefetch(w3 + k + kAhead);
      for (int64_t i = 0; i < line; i += lanes) step(load_whole, k + i);
    }
    for (; k + lanes <= end; k += lanes) step(load_whole, k);
    if (k < end) {
      const size_t rest = static_cast<size_t>(end - k);
      const auto load_rest = [rest](auto d, const auto* p) HWY_ATTR {
        alignas(64) hn::TFromD<decltype(d)> numbers[hn::MaxLanes(d)];
        std::memset(numbers, 0, sizeof(numbers));
        std::memcpy(numbers, p, rest * sizeof(*p));
        return hn::Load(d, numbers);
      };
      step(load_rest, k);
    }
    t00 = hn::Add(t00, s00), t01 = hn::Add(t01, s01);
    t02 = hn::Add(t02, s02), t03 = hn::Add(t03, s03);
    if constexpr (kM > 1) {
      t10 = hn::Add(t10, s10), t11 = hn::Add(t11, s11);
      t12 = hn::Add(t12, s12), t13 = hn::Add(t13, s13);
    }
  }
  sums[0] = hn::ReduceSum(df, t00), sums[1] = hn::ReduceSum(df, t01);
  sums[2] = hn::ReduceSum(df, t02), sums[3] = hn::ReduceSum(df, t03);
  if constexpr (kM > 1) {
    sums[4] = hn::ReduceSum(df, t10), sums[5] = hn::ReduceSum(df, t11);
    sums[6] = hn::ReduceSum(df, t12), sums[7] = hn::ReduceSum(df, t13);
  }
}

template <class T>
void MultiplyFloats(const std::byte* const* rows, int64_t cols, const float* a, int64_t a_stride,
                    int64_t m_count, float* sums) {
  int64_t m = 0;
  for (; m + 2 <= m_count; m += 2) {
    MultiplyStreams<T, 2>(rows, cols, a + m * a_stride, a_stride, sums + m * kStreams);
  }
  if (m < m_count) {
    MultiplyStreams<T, 1>(rows, cols, a + m * a_stride, a_stride, sums + m * kStreams);
  }
}

using MultiplyFloatsFunction = void (*)(const std::byte* const* rows, int64_t cols, const float* a,
                                        int64_t a_stride, int64_t m_count, float* sums);

MultiplyFloatsFunction FindMultiplyFloats(Format format) {
  switch (format) {
    case Format::kF32:
      return MultiplyFloats<float>;
#if NIBBLE_HAVE_F16_CONVERSION
    case Format::kF16:
      return MultiplyFloats<hwy::float16_t>;
#endif
    case Format::kBF16:
      return MultiplyFloats<hwy::bfloat16_t>;
    default:
      return nullptr;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(FindMultiplyFloats);

bool HasGemvFloat(Format format) { return NIBBLE_DISPATCH(FindMultiplyFloats)(format) != nullptr; }

Status MatmulFloatRows(std::span<const Product<BlockWeights>> products,
                       const ParallelFor& parallel) {
  // Activations as f32 rows one after another: they are few.
  const RoundedLayout layout(
      products, [](size_t) { return true; }, [&](size_t i) { return products[i].weights.cols; });
  auto values = hwy::AllocateAligned<float>(static_cast<size_t>(layout.elements()));
  if (!values) return OutOfMemory("matmul: no memory for activations");
  NIBBLE_RETURN_IF_ERROR(
      RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
        const int64_t cols = products[i].weights.cols;
        std::copy_n(row, cols, values.get() + layout.Begin(i) + m * cols);
      }));
  const auto row_count = [&](size_t i) { return products[i].weights.rows; };
  const auto multiply = [&](size_t i, const int64_t* n, int count) {
    const BlockWeights& weights = products[i].weights;
    const int64_t cols = weights.cols, m_rows = products[i].activations.rows;
    const int64_t row_bytes = cols * GetFormatInfo(weights.format).block_bytes;
    // Where rows do not fill all streams, the first one runs several times.
    const std::byte* rows[kStreams];
    for (int s = 0; s < kStreams; ++s) rows[s] = weights.blocks + n[s < count ? s : 0] * row_bytes;
    for (int64_t m0 = 0; m0 < m_rows; m0 += kMostGemvRows) {
      const int64_t m_count = std::min<int64_t>(kMostGemvRows, m_rows - m0);
      float sums[kMostGemvRows * kStreams];
      NIBBLE_DISPATCH(FindMultiplyFloats)
      (weights.format)(rows, cols, values.get() + layout.Begin(i) + m0 * cols, cols, m_count, sums);
      for (int64_t m = 0; m < m_count; ++m) {
        for (int s = 0; s < count; ++s) {
          products[i].output.Put(m0 + m, n[s], sums[m * kStreams + s]);
        }
      }
    }
  };
  ForStreams(products.size(), row_count, parallel, multiply);
  return OkStatus();
}

}  // namespace nibble
#endif  // HWY_ONCE
