// 32 activations to int8, for the target being compiled.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_KERNELS_ROUND32_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ROUND32_INL_H_
#undef NIBBLE_KERNELS_ROUND32_INL_H_
#else
#define NIBBLE_KERNELS_ROUND32_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

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
  // The bits of magnitudes order as they do, and those of what is not finite are above all others.
  auto most = hn::Zero(di);
  for (size_t i = 0; i < 32; i += lanes) {
    most = hn::Max(most, hn::BitCast(di, hn::Abs(hn::LoadU(df, values + i))));
  }
  const int32_t bits = hn::ReduceMax(di, most);
  const bool finite = bits < 0x7F800000;
  const float largest = std::bit_cast<float>(bits);
  const auto inverse = hn::Set(df, finite && largest > 0 ? 127.0f / largest : 0.0f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Rounded32 rounded = {finite ? largest / 127.0f : nan, {0, 0}};
  for (size_t half = 0; half < 2; ++half) {
    int8_t* codes = half == 0 ? first : last;
    for (size_t i = 0; i < 16; i += lanes) {
      const auto v = hn::LoadU(df, values + 16 * half + i);
      hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(hn::Mul(v, inverse))), d8, codes + i);
    }
    // Of the codes, which are small even where an activation is not finite.
    const hn::FixedTag<uint8_t, 16> du8;
    const auto raised = hn::Xor(hn::LoadU(du8, reinterpret_cast<const uint8_t*>(codes)),
                                hn::Set(du8, uint8_t{128}));
    const hn::FixedTag<uint64_t, 2> d64;
    const uint64_t sum = hn::ReduceSum(d64, hn::SumsOf8(raised));
    rounded.sums[half] = static_cast<int32_t>(sum) - 16 * 128;
  }
  return rounded;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_ROUND32_INL_H_
