#include "kernels/convert.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convert.cc"
#include "hwy/foreach_target.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/unpack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

using Floats = hn::ScalableTag<float>;
using Halves = hn::Rebind<uint16_t, Floats>;

// Element i of an array of any alignment.
template <class T>
HWY_INLINE T LoadScalar(const void* from, int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(from) + static_cast<size_t>(i) * sizeof(T),
              sizeof(T));
  return value;
}

template <class T>
HWY_INLINE void StoreScalar(T value, void* to, int64_t i) {
  std::memcpy(static_cast<std::byte*>(to) + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
}

// out[i] = the float of element i: vectors by widen(bits), what is left by ToFloat(Scalar).
template <class Scalar, class Widen>
HWY_INLINE void ToFloats(const void* in, int64_t count, float* out, const Widen& widen) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = hn::LoadU(Halves(), static_cast<const uint16_t*>(in) + i);
    hn::StoreU(widen(bits), Floats(), out + i);
  }
  for (; i < count; ++i) out[i] = ToFloat(LoadScalar<Scalar>(in, i));
}

// Element i of `out` = in[i]: vectors by bits narrow(floats), what is left by to_scalar(float).
template <class Narrow, class ToScalar>
HWY_INLINE void FromFloats(const float* in, int64_t count, void* out, const Narrow& narrow,
                           const ToScalar& to_scalar) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = narrow(hn::LoadU(Floats(), in + i));
    hn::StoreU(bits, Halves(), static_cast<uint16_t*>(out) + i);
  }
  for (; i < count; ++i) StoreScalar(to_scalar(in[i]), out, i);
}

void HalvesToFloats(const void* in, int64_t count, float* out) {
#if NIBBLE_HAVE_F16_CONVERSION
  const hn::Rebind<hwy::float16_t, Floats> dh;
  ToFloats<F16>(in, count, out,
                [=](auto bits) HWY_ATTR { return hn::PromoteTo(Floats(), hn::BitCast(dh, bits)); });
#else
  for (int64_t i = 0; i < count; ++i) out[i] = ToFloat(LoadScalar<F16>(in, i));
#endif
}

void BFloatsToFloats(const void* in, int64_t count, float* out) {
  const hn::RebindToUnsigned<Floats> d32;
  ToFloats<BF16>(in, count, out, [=](auto bits) HWY_ATTR {
    return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
  });
}

void FloatsToHalves(const float* in, int64_t count, void* out) {
#if NIBBLE_HAVE_F16_CONVERSION
  const hn::Rebind<hwy::float16_t, Floats> dh;
  FromFloats(
      in, count, out, [=](auto x) HWY_ATTR { return hn::BitCast(Halves(), hn::DemoteTo(dh, x)); },
      [](float x) { return ToF16(x); });
#else
  for (int64_t i = 0; i < count; ++i) StoreScalar(ToF16(in[i]), out, i);
#endif
}

// Integer arithmetic on every target: the instruction that some have takes denormals for zeros.
void FloatsToBFloats(const float* in, int64_t count, void* out) {
  const hn::RebindToUnsigned<Floats> d32;
  const auto one = hn::Set(d32, 1u), half = hn::Set(d32, 0x7FFFu), quiet = hn::Set(d32, 0x40u);
  FromFloats(
      in, count, out,
      [=](auto x) HWY_ATTR {
        const auto bits = hn::BitCast(d32, x);
        const auto top = hn::ShiftRight<16>(bits);
        const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, half), hn::And(top, one)));
        const auto is_nan = hn::RebindMask(d32, hn::IsNaN(x));
        return hn::TruncateTo(Halves(), hn::IfThenElse(is_nan, hn::Or(top, quiet), rounded));
      },
      [](float x) { return ToBF16(x); });
}

int64_t FirstBeyondIn(const float* values, int64_t count, float limit) {
  const Floats df;
  const auto bound = hn::Set(df, limit);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t i = 0;
  // Four vectors a test; then one by one from where the test failed.
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    const auto a = hn::Le(hn::Abs(hn::LoadU(df, values + i)), bound);
    const auto b = hn::Le(hn::Abs(hn::LoadU(df, values + i + lanes)), bound);
    const auto c = hn::Le(hn::Abs(hn::LoadU(df, values + i + 2 * lanes)), bound);
    const auto d = hn::Le(hn::Abs(hn::LoadU(df, values + i + 3 * lanes)), bound);
    if (!hn::AllTrue(df, hn::And(hn::And(a, b), hn::And(c, d)))) break;
  }
  for (; i < count; ++i) {
    if (!(std::fabs(values[i]) <= limit)) return i;
  }
  return count;
}

bool StreamWithinIn(const float* in, int64_t count, float limit, std::byte* out) {
  const Floats df;
  const auto bound = hn::Set(df, limit);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t bytes = lanes * int64_t{sizeof(float)};
  const int64_t beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out)) & (bytes - 1);
  const auto copy = [&](int64_t first, int64_t last) {
    if (first == last) return true;
    std::memcpy(out + first * sizeof(float), in + first,
                static_cast<size_t>(last - first) * sizeof(float));
    return FirstBeyondIn(in + first, last - first, limit) == last - first;
  };
  if (beyond % int64_t{sizeof(float)} != 0) return copy(0, count);
  // Whole vectors are streamed, what lies before the first and behind the last is not.
  const int64_t head = std::min(count, ((bytes - beyond) & (bytes - 1)) / int64_t{sizeof(float)});
  const bool head_within = copy(0, head);
  // Magnitudes as integers have the same order, and NaN comes last.
  const hn::RebindToUnsigned<decltype(df)> du;
  auto largest = hn::Zero(du);
  int64_t i = head;
  float* to = reinterpret_cast<float*>(out);
  for (; i + lanes <= count; i += lanes) {
    const auto x = hn::LoadU(df, in + i);
    hn::Stream(x, df, to + i);
    largest = hn::Max(largest, hn::BitCast(du, hn::Abs(x)));
  }
  hwy::FlushStream();
  return head_within && hn::AllTrue(du, hn::Le(largest, hn::BitCast(du, bound))) && copy(i, count);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(HalvesToFloats);
HWY_EXPORT(BFloatsToFloats);
HWY_EXPORT(FloatsToHalves);
HWY_EXPORT(FloatsToBFloats);
HWY_EXPORT(FirstBeyondIn);
HWY_EXPORT(StreamWithinIn);

void ConvertToFloat(DType from, const void* in, int64_t count, float* out) {
  switch (from) {
    case DType::kF16:
      return NIBBLE_DISPATCH(HalvesToFloats)(in, count, out);
    case DType::kBF16:
      return NIBBLE_DISPATCH(BFloatsToFloats)(in, count, out);
    default:
      std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
  }
}

void ConvertFromFloat(DType to, const float* in, int64_t count, void* out) {
  switch (to) {
    case DType::kF16:
      return NIBBLE_DISPATCH(FloatsToHalves)(in, count, out);
    case DType::kBF16:
      return NIBBLE_DISPATCH(FloatsToBFloats)(in, count, out);
    default:
      std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
  }
}

int64_t FirstBeyond(const float* values, int64_t count, float limit) {
  return NIBBLE_DISPATCH(FirstBeyondIn)(values, count, limit);
}

bool StreamWithin(const float* in, int64_t count, float limit, std::byte* out) {
  return NIBBLE_DISPATCH(StreamWithinIn)(in, count, limit, out);
}

}  // namespace nibble
#endif
