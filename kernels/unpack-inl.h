// Blocks to vectors: codes as int8 in the order of the weights, scales and minima as floats by
// group, for the target being compiled. What each block means is said in kernels/codec.h; this is
// equal to it, bit for bit, and made of a few primitives that the formats share.
//
//   void UnpackCodes(const Block& b, int8_t* codes)                  codes[kWeights]
//   void UnpackScales(const Block& b, float* scales, float* mins)    [kWeights / kGroup] each; mins
//                                                                    written where the codec
//                                                                    kHasMin
//   void VisitCodes(D d, const Block& b, sink)                       for products, which need not
//                                                                    store the codes:
//     sink(d, stored, place) gets codes place, place + 1, ... of the block as a vector of unsigned
//     bytes, each code plus kStoredOffset<Block>. Vectors have the length of D, which is Bytes32 or
//     for super-blocks kWide<Block> one of 64 bytes. Then places are not columns but stand in the
//     order kWideOrder<Block>.
//
// Included once per target, from files that Highway's foreach_target.h compiles.
#if defined(NIBBLE_KERNELS_UNPACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_UNPACK_INL_H_
#undef NIBBLE_KERNELS_UNPACK_INL_H_
#else
#define NIBBLE_KERNELS_UNPACK_INL_H_
#endif

#include "kernels/unpack_blocks-inl.h"
#include "kernels/unpack_iq-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Block>
HWY_INLINE void UnpackCodes(const Block& b, int8_t* codes) {
  VisitCodes(Bytes32(), b, [codes](auto d, auto stored, size_t i) HWY_ATTR {
    StoreCodes(d, hn::Sub(stored, hn::Set(d, kStoredOffset<Block>)), codes + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_KERNELS_UNPACK_INL_H_
