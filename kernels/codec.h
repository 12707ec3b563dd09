// Codecs: the meaning of each block format, once, for host and device.
//
// A block of any format is a run of small integer codes cut into groups; every weight is
//
//     w = scale(group) * code - min(group)        (the subtraction only where kHasMin)
//
// with one rounding for each of the two operations: this is the order of the reference decoder, to
// the bit. Codecs whose format is a float scale times a float codebook choose integer codes by
// moving a power of two into the scale, which is exact.
//
// A codec has
//   Block                                   its struct in nibble/blocks.h
//   kWeights, kGroup, kHasMin               weights in a block, in a group; whether min() counts
//   static int Code(const Block&, int i)    the code of weight i, in [-128, 127]
//   static float Scale(const Block&, int g) the scale of group g
//   static float Min(const Block&, int g)   what is subtracted from group g, where kHasMin
//
// These are random access and slow on purpose: the oracle. Kernels unpack whole vectors and are
// compared with this over every byte pattern.
#ifndef NIBBLE_KERNELS_CODEC_H_
#define NIBBLE_KERNELS_CODEC_H_

#include "kernels/codec_iq.h"      // points of codebooks
#include "kernels/codec_k.h"       // super-blocks of 256
#include "kernels/codec_simple.h"  // blocks of 32, and ternary

namespace nibble {

// Weight i of a block.
template <class Codec>
constexpr NIBBLE_HD float DecodeWeight(const typename Codec::Block& block, int i) {
  const int group = i / Codec::kGroup;
  const float product = Codec::Scale(block, group) * static_cast<float>(Codec::Code(block, i));
  if constexpr (Codec::kHasMin) return product - Codec::Min(block, group);
  return product;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CODEC_H_
