// 32 activations to int8, for the target being compiled.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_KERNELS_ROUND32_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ROUND32_INL_H_
#undef NIBBLE_KERNELS_ROUND32_INL_H_
#else
#define NIBBLE_KERNELS_ROUND32_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct Rounded32 {
  float scale;      // max|a| / 127; NaN where an activation is not finite
  int32_t sums[2];  // of the first and of the last sixteen codes
};

// codes = round(a / scale), the first sixteen to `first`, the others to `last`.
HWY_INLINE Rounded32 Round32(const float* HWY_RESTRICT values, int8_t* HWY_RESTRICT first,
                             int8_t* HWY_RESTRICT last) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  const size_t lanes = hn::Lanes(df);
  auto most = hn::Zero(df), poison = hn::Zero(df);
  for (size_t i = 0; i < 32; i += lanes) {
    const auto v = hn::LoadU(df, values + i);
    most = hn::Max(most, hn::Abs(v));
    poison = hn::MulAdd(v, hn::Zero(df), poison);  // NaN where a value is not finite
  }
  const float largest = hn::ReduceMax(df, most), nan = hn::ReduceSum(df, poison);
  const auto inverse = hn::Set(df, largest > 0 && nan == 0 ? 127.0f / largest : 0.0f);
  Rounded32 rounded = {nan == 0 ? largest / 127.0f : nan, {0, 0}};
  for (size_t half = 0; half < 2; ++half) {
    int8_t* codes = half == 0 ? first : last;
    auto sum = hn::Zero(di);
    for (size_t i = 0; i < 16; i += lanes) {
      const auto v = hn::LoadU(df, values + 16 * half + i);
      const auto q = hn::DemoteTo(d8, hn::NearestInt(hn::Mul(v, inverse)));
      hn::StoreU(q, d8, codes + i);
      // Of the codes, which are small even where an activation is not finite.
      sum = hn::Add(sum, hn::PromoteTo(di, q));
    }
    rounded.sums[half] = hn::ReduceSum(di, sum);
  }
  return rounded;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_ROUND32_INL_H_
