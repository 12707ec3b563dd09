// From a format's number to its codec.
#ifndef NIBBLE_KERNELS_VISIT_CODEC_H_
#define NIBBLE_KERNELS_VISIT_CODEC_H_

#include "kernels/codec.h"
#include "nibble/format.h"

namespace nibble {

#define NIBBLE_VISIT_kScalar(Enum)
#define NIBBLE_VISIT_kActivation(Enum)
#define NIBBLE_VISIT_kInteger(Enum)
#define NIBBLE_VISIT_kWeight(Enum) \
  case Format::k##Enum:            \
    visitor(Codec##Enum{});        \
    return true;
#define NIBBLE_VISIT_kDecodeOnly(Enum) NIBBLE_VISIT_kWeight(Enum)

// Calls visitor(codec) with the codec of a block format that can be decoded; returns false for any
// other format.
template <class Visitor>
bool VisitCodec(Format format, const Visitor& visitor) {
  switch (format) {
#define NIBBLE_FORMAT(id, Enum, name, Block, weights, use) NIBBLE_VISIT_##use(Enum)
#include "nibble/formats.def"
    default:
      return false;
  }
}

#undef NIBBLE_VISIT_kScalar
#undef NIBBLE_VISIT_kActivation
#undef NIBBLE_VISIT_kInteger
#undef NIBBLE_VISIT_kWeight
#undef NIBBLE_VISIT_kDecodeOnly

}  // namespace nibble

#endif  // NIBBLE_KERNELS_VISIT_CODEC_H_
