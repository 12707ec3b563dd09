// The blocks of the GGUF family as they lie in memory and on disk: one struct a format, no padding,
// little endian. w denotes a decoded weight, q its code; rows are cut into blocks along `cols`.
#ifndef NIBBLE_BLOCKS_H_
#define NIBBLE_BLOCKS_H_

#include <cstdint>

#include "nibble/dtype.h"

namespace nibble {

// --- 32 weights, one scale: nibble j holds weight j (low half) and weight j + 16 (high half), so
// --- that one 16-byte load and two masks give two vectors in weight order.

struct BlockQ4_0 {  // w = d * (q - 8)
  F16 d;
  uint8_t qs[16];
};

struct BlockQ4_1 {  // w = d * q + m
  F16 d;
  F16 m;
  uint8_t qs[16];
};

struct BlockQ5_0 {  // w = d * (q - 16); bit i of the little-endian qh is bit 4 of q[i]
  F16 d;
  uint8_t qh[4];
  uint8_t qs[16];
};

struct BlockQ5_1 {  // w = d * q + m
  F16 d;
  F16 m;
  uint8_t qh[4];
  uint8_t qs[16];
};

struct BlockQ8_0 {  // w = d * q
  F16 d;
  int8_t qs[32];
};

struct BlockQ8_1 {  // activations: w = d * q; s = d * sum(q) serves formats with a minimum
  F16 d;
  F16 s;
  int8_t qs[32];
};

struct BlockIQ4_NL {  // w = d * kIq4Values[q]: a codebook denser near zero
  F16 d;
  uint8_t qs[16];
};

struct BlockMXFP4 {  // OCP microscaling: w = 2^(e - 127) * fp4(q), 17 bytes
  uint8_t e;
  uint8_t qs[16];
};

// --- 256 weights: 16 groups of 16 or 8 groups of 32 with small integer scales of their own, under
// --- one or two half-precision super-scales.

struct BlockQ2_K {  // w = d * (scales[g] & 15) * q - dmin * (scales[g] >> 4), groups of 16
  uint8_t scales[16];
  uint8_t qs[64];  // 2 bits: byte 32 * (i / 128) + i % 32, shift 2 * (i % 128 / 32)
  F16 d;
  F16 dmin;
};

struct BlockQ3_K {     // w = d * (scale[g] - 32) * (q - 4), groups of 16
  uint8_t hmask[32];   // bit i / 32 of byte i % 32 is bit 2 of q[i]
  uint8_t qs[64];      // low two bits, as in q2_K
  uint8_t scales[12];  // 16 scales of 6 bits: low nibbles in 8 bytes, pairs of high bits in 4
  F16 d;
};

struct BlockQ4_K {  // w = d * scale[g] * q - dmin * min[g], groups of 32
  F16 d;
  F16 dmin;
  uint8_t scales[12];  // 8 scales and 8 minima of 6 bits
  uint8_t qs[128];     // 4 bits: byte 32 * (i / 64) + i % 32, low nibble first
};

struct BlockQ5_K {  // as q4_K with a fifth bit
  F16 d;
  F16 dmin;
  uint8_t scales[12];
  uint8_t qh[32];  // bit i / 32 of byte i % 32 is bit 4 of q[i]
  uint8_t qs[128];
};

struct BlockQ6_K {  // w = d * scales[g] * (q - 32), groups of 16
  uint8_t ql[128];  // low 4 bits: byte 64 * (i / 128) + i % 64, nibble i % 128 / 64
  uint8_t qh[64];   // high 2 bits: byte 32 * (i / 128) + i % 32, shift 2 * (i % 128 / 32)
  int8_t scales[16];
  F16 d;
};

struct BlockQ8_K {  // activations: w = d * q; bsums[g] = sum of 16 codes
  float d;
  int8_t qs[256];
  int16_t bsums[16];
};

struct BlockIQ4_XS {  // w = d * (scale[g] - 32) * kIq4Values[q], groups of 32
  F16 d;
  uint16_t scales_h;    // high 2 bits of the 8 scales
  uint8_t scales_l[4];  // low 4 bits
  uint8_t qs[128];      // byte 16 * (i / 32) + i % 16, nibble i % 32 / 16
};

struct BlockTQ1_0 {  // w = d * (q - 1), ternary, five digits a byte
  uint8_t qs[48];
  uint8_t qh[4];
  F16 d;
};

struct BlockTQ2_0 {  // w = d * (q - 1), ternary, two bits a weight
  uint8_t qs[64];
  F16 d;
};

// --- 256 weights drawn from codebooks of 4- or 8-dimensional points; decoded only.

struct BlockIQ2_XXS {
  F16 d;
  uint16_t qs[32];
};

struct BlockIQ2_XS {
  F16 d;
  uint16_t qs[32];
  uint8_t scales[8];
};

struct BlockIQ2_S {
  F16 d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t scales[8];
};

struct BlockIQ3_XXS {
  F16 d;
  uint8_t qs[96];
};

struct BlockIQ3_S {
  F16 d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};

struct BlockIQ1_S {
  F16 d;
  uint8_t qs[32];
  uint16_t qh[8];
};

struct BlockIQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];
  uint8_t scales[8];  // the half-precision d lies in their four top nibbles
};

}  // namespace nibble

#endif  // NIBBLE_BLOCKS_H_
