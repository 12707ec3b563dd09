// Decoders of planar schemes: each turns a vector of codes into weights. Included once per target,
// after Highway.
#if defined(NIBBLE_KERNELS_PLANAR_DECODERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_PLANAR_DECODERS_INL_H_
#undef NIBBLE_KERNELS_PLANAR_DECODERS_INL_H_
#else
#define NIBBLE_KERNELS_PLANAR_DECODERS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/planar.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DU8 = hn::Rebind<uint8_t, DF>;  // as many codes as a vector has floats
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
using VU8 = hn::Vec<DU8>;

struct DecodeSymmetric {
  explicit DecodeSymmetric(const PlanarCodebook& book) : sign(1 << (book.bits - 1)) {}
  HWY_INLINE VF operator()(VU8 codes, VF scale, VF) const {
    const DI di;
    const auto bit = hn::Set(di, sign);
    const auto q = hn::Sub(hn::Xor(hn::PromoteTo(di, codes), bit), bit);
    return hn::Mul(scale, hn::ConvertTo(DF(), q));
  }
  int32_t sign;
};

struct DecodeAsymmetric {
  explicit DecodeAsymmetric(const PlanarCodebook&) {}
  HWY_INLINE VF operator()(VU8 codes, VF scale, VF zero) const {
    const VF q = hn::ConvertTo(DF(), hn::PromoteTo(DI(), codes));
    return hn::Mul(scale, hn::Sub(q, zero));
  }
};

// 8-bit floats: moved into place with another exponent; subnormals, which would need a leading one,
// get it and lose it again. Exact. (Through half precision it would be shorter, but Highway's
// fallback for machines that have none makes numbers of infinities.)
template <int kExponentBits, int kMantissaBits>
struct DecodeF8 {
  explicit DecodeF8(const PlanarCodebook&) {}
  HWY_INLINE VF operator()(VU8 codes, VF scale, VF) const {
    constexpr uint32_t kBias = (1u << (kExponentBits - 1)) - 1;
    constexpr uint32_t kRebase = (127 - kBias) << 23;
    constexpr bool kInfinities = kExponentBits == 5;  // e4m3 has one NaN and no more
    const DF df;
    const DU du;
    const VU code = hn::PromoteTo(du, codes);
    const VU magnitude = hn::And(code, hn::Set(du, 0x7F));
    const VU placed = hn::ShiftLeft<23 - kMantissaBits>(magnitude);
    const VU normal = hn::Add(placed, hn::Set(du, kRebase));
    const VU one = hn::Set(du, kRebase + (1u << 23));
    const VU subnormal =
        hn::BitCast(du, hn::Sub(hn::BitCast(df, hn::Add(placed, one)), hn::BitCast(df, one)));
    const auto is_subnormal = hn::Lt(magnitude, hn::Set(du, 1u << kMantissaBits));
    const VU special =
        kInfinities ? hn::Or(normal, hn::Set(du, 0x7F800000u)) : hn::Set(du, 0x7FC00000u);
    const auto is_special = hn::Ge(magnitude, hn::Set(du, kInfinities ? 0x7Cu : 0x7Fu));
    const VU value =
        hn::IfThenElse(is_special, special, hn::IfThenElse(is_subnormal, subnormal, normal));
    const VU sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80)));
    return hn::Mul(scale, hn::BitCast(df, hn::Or(value, sign)));
  }
};

struct DecodeTable {
  explicit DecodeTable(const PlanarCodebook& book) : values(book.values) {}
  HWY_INLINE VF operator()(VU8 codes, VF scale, VF) const {
    return hn::Mul(scale, hn::GatherIndex(DF(), values, hn::PromoteTo(DI(), codes)));
  }
  const float* values;
};

#if HWY_MAX_BYTES == 64 && !HWY_HAVE_SCALABLE
struct DecodeOf16 {
  explicit DecodeOf16(const PlanarCodebook& book) : table(hn::Load(DF(), book.values)) {}
  HWY_INLINE VF operator()(VU8 codes, VF scale, VF) const {
    const auto index = hn::IndicesFromVec(DF(), hn::PromoteTo(DI(), codes));
    return hn::Mul(scale, hn::TableLookupLanes(table, index));
  }
  VF table;
};
#elif HWY_MAX_BYTES == 32 && !HWY_HAVE_SCALABLE
struct DecodeOf16 {
  explicit DecodeOf16(const PlanarCodebook& book)
      : low(hn::Load(DF(), book.values)), high(hn::Load(DF(), book.values + 8)) {}
  HWY_INLINE VF operator()(VU8 codes, VF scale, VF) const {
    const auto index = hn::IndicesFromVec(DF(), hn::PromoteTo(DI(), codes));
    return hn::Mul(scale, hn::TwoTablesLookupLanes(DF(), low, high, index));
  }
  VF low, high;
};
#else
using DecodeOf16 = DecodeTable;
#endif

// Calls function(decoder) with the one of a scheme.
template <class Function>
void VisitDecoder(const PlanarCodebook& book, const Function& function) {
  switch (book.code) {
    case Code::kUniform:
      return book.symmetric ? function(DecodeSymmetric(book)) : function(DecodeAsymmetric(book));
    case Code::kF8E4M3:
      return function(DecodeF8<4, 3>(book));
    case Code::kF8E5M2:
      return function(DecodeF8<5, 2>(book));
    default:
      return book.values_count <= 16 ? function(DecodeOf16(book)) : function(DecodeTable(book));
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
