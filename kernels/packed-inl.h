// Packed tiles (kernels/pack_layout.h) to vectors of codes, scales and minima, sixteen rows at
// once, for the target being compiled.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_KERNELS_PACKED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_PACKED_INL_H_
#undef NIBBLE_KERNELS_PACKED_INL_H_
#else
#define NIBBLE_KERNELS_PACKED_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "hwy/highway.h"
#include "kernels/dispatch.h"
#include "kernels/pack_layout.h"
#include "kernels/unpack_blocks-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sixteen rows in one vector, or in several passes of fewer lanes.
using DF = hn::CappedTag<float, kPackRows>;
using DI = hn::RebindToSigned<DF>;
using D8 = hn::Repartition<uint8_t, DF>;
using DS8 = hn::Repartition<int8_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using V8 = hn::Vec<D8>;

// body(0), ..., body(kCount - 1), each number a constant: what arrays hold stays in registers.
template <int kCount, class Body>
HWY_INLINE void Unroll(const Body& body) {
  [&]<int... kNumbers>(std::integer_sequence<int, kNumbers...>) NIBBLE_INLINE_LAMBDA {
    (body(std::integral_constant<int, kNumbers>()), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

template <int kShift>
HWY_INLINE V8 ShiftBytesRight(V8 bytes) {
  // A shift of wider lanes: the caller masks what comes over from the neighbour.
  const hn::Repartition<uint32_t, D8> d32;
  return hn::BitCast(D8(), hn::ShiftRight<kShift>(hn::BitCast(d32, bytes)));
}

template <int kShift>
HWY_INLINE V8 ShiftBytesLeft(V8 bytes) {
  const hn::Repartition<uint32_t, D8> d32;
  return hn::BitCast(D8(), hn::ShiftLeft<kShift>(hn::BitCast(d32, bytes)));
}

// The bits of quad kQuad in a plane of kBits, at bit kTo of each byte.
template <int kBits, int kQuad, int kTo>
HWY_INLINE V8 LoadPlane(const uint8_t* plane) {
  constexpr QuadPlace place = PlaceOf(kBits, kQuad);
  V8 bytes = hn::LoadU(D8(), plane + 64 * place.vector);
  if constexpr (kBits == 8) return bytes;
  constexpr int kShift = place.shift - kTo;
  if constexpr (kShift > 0) bytes = ShiftBytesRight<kShift>(bytes);
  if constexpr (kShift < 0) bytes = ShiftBytesLeft<-kShift>(bytes);
  return hn::And(bytes, hn::Set(D8(), static_cast<uint8_t>(((1u << kBits) - 1) << kTo)));
}

// A format's table, with its offset.
template <class Packed>
inline constexpr std::array<uint8_t, 16> kStoredTable = [] {
  std::array<uint8_t, 16> table = {};
  for (size_t i = 0; i < 16; ++i)
    table[i] = static_cast<uint8_t>(Packed::kTable[i] + Packed::kOffset);
  return table;
}();

// The stored codes of quad kQuad: four columns of every row, without a sign.
template <class Packed, int kQuad>
HWY_INLINE V8 LoadQuad(const uint8_t* chunk) {
  V8 codes = LoadPlane<Packed::kLowBits, kQuad, 0>(chunk);
  if constexpr (Packed::kHighBits > 0) {
    codes = hn::Or(
        codes, LoadPlane<Packed::kHighBits, kQuad, Packed::kLowBits>(chunk + Packed::kLowBytes));
  }
  if constexpr (Packed::kHasTable) {
    codes = hn::TableLookupBytes(hn::LoadDup128(D8(), kStoredTable<Packed>.data()), codes);
  }
  return codes;
}

// A half for each row of the pass.
HWY_INLINE VF LoadHalves(const uint8_t* from) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<uint16_t, DF> du;
  return hn::PromoteTo(DF(),
                       hn::BitCast(dh, hn::LoadU(du, reinterpret_cast<const uint16_t*>(from))));
}

HWY_INLINE VI LoadUnsigned(const uint8_t* from) {
  return hn::PromoteTo(DI(), hn::LoadU(hn::Rebind<uint8_t, DF>(), from));
}

// Scales of group g and, where the format has them, minima (of the rows of a pass that begins at
// `row`).
struct Scale {
  VF scale, min;
};
template <class Packed>
HWY_INLINE Scale LoadScale(const uint8_t* block, size_t row, int g) {
  constexpr PackedScale kScale = Packed::kScale;
  const DF df;
  constexpr int kBytes = (Packed::kHasMin ? 4 : 2) * kPackRows;
  const uint8_t* bytes = block + kBytes + g * kPackRows + row;
  if constexpr (kScale == PackedScale::kExponent) {
    const VF scale = PowersOfTwo(df, LoadUnsigned(block + row));
    return {scale, scale};
  } else if constexpr (kScale == PackedScale::kHalf) {
    const VF d = LoadHalves(block + 2 * row);
    return {d, d};
  } else if constexpr (kScale == PackedScale::kHalfMin) {
    return {LoadHalves(block + 2 * row), hn::Neg(LoadHalves(block + 2 * kPackRows + 2 * row))};
  } else if constexpr (kScale == PackedScale::kSuper) {
    VF d = LoadHalves(block + 2 * row);
    if constexpr (Packed::kScaleUnit != 1) d = hn::Mul(d, hn::Set(df, Packed::kScaleUnit));
    const hn::Rebind<int8_t, DF> d8;
    const VI raw = hn::PromoteTo(DI(), hn::LoadU(d8, reinterpret_cast<const int8_t*>(bytes)));
    const VF scale = hn::Mul(d, hn::ConvertTo(df, raw));
    return {scale, scale};
  } else {
    const VF d = LoadHalves(block + 2 * row);
    const VF dmin = LoadHalves(block + 2 * kPackRows + 2 * row);
    VI raw = LoadUnsigned(bytes);
    VI raw_min = raw;
    if constexpr (kScale == PackedScale::kSuperMin) {
      raw_min = LoadUnsigned(bytes + Packed::kGroups * kPackRows);
    } else {
      raw = hn::And(raw, hn::Set(DI(), 15));
      raw_min = hn::ShiftRight<4>(raw_min);
    }
    return {hn::Mul(d, hn::ConvertTo(df, raw)), hn::Mul(dmin, hn::ConvertTo(df, raw_min))};
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_PACKED_INL_H_
