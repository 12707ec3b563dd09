// Planar schemes: codes, scales and zeros in planes of their own. One description covers absmax,
// zero-point, per-tensor, per-channel, group-wise, NF4, FP4, FP8, GPTQ, AWQ, HQQ and int8 layouts,
// and additive codebooks.
#ifndef NIBBLE_SCHEME_H_
#define NIBBLE_SCHEME_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/dtype.h"
#include "nibble/status.h"

namespace nibble {

// What a code stands for before it is scaled.
enum class Code : uint8_t {
  kUniform,  // an integer
  kNf4,      // 16 quantiles of the normal distribution (QLoRA, arXiv 2305.14314)
  kFp4,      // 4-bit float, e2m1, as bitsandbytes scales it
  kF8E4M3,
  kF8E5M2,
  kTable,  // a caller's table of 2^bits floats
  // `vector` weights at once: the sum of an entry from each of `codebooks` learned tables of 2^bits
  // vectors (AQLM, arXiv 2401.06118)
  kAdditive,
};

enum class Granularity : uint8_t {
  kTensor,   // one scale
  kChannel,  // one scale a row
  kGroup,    // one scale for `group_size` consecutive weights of a row; the last group may be short
};

struct Scheme {
  Code code = Code::kUniform;
  uint8_t bits = 4;  // 1 to 8; 4 for nf4 and fp4, 8 for fp8; 8 or 16 for additive codebooks
  // Uniform codes: true: two's complement q in [-(2^(b-1) - 1), 2^(b-1) - 1], w = scale * q.
  // false: q in [0, 2^b - 1], w = scale * (q - zero).
  bool symmetric = true;
  Granularity granularity = Granularity::kGroup;
  int32_t group_size = 64;          // of kGroup
  DType scale_dtype = DType::kF32;  // f32, f16 or bf16
  DType zero_dtype = DType::kU8;    // asymmetric: u8 (an integer code) or f32, f16 (any value)
  // Scales are themselves stored in 8 bits: bitsandbytes' dynamic map over blocks of 256 scales
  // whose mean is taken off first (arXiv 2305.14314, section 3).
  bool double_quant = false;
  // Each column has an index of its group (GPTQ's act-order): an i32 plane of `cols` entries.
  bool has_group_index = false;
  // Of kAdditive, whose scales are by channel; 1 for all others, a code of which is one weight's.
  uint8_t codebooks = 1;  // 1 to 8
  uint8_t vector = 1;     // 8, 16 or 32; the last vector of a row may be short

  friend bool operator==(const Scheme&, const Scheme&) = default;
};

// Refuses contradictions: bits that the code cannot have, a group of no weights, ...
Status CheckScheme(const Scheme& scheme);

// "int4 sym g64 f16", "nf4 g64 double", "int8 asym channel", "f8_e4m3 tensor"; additive codebooks
// as AQLM writes them, codebooks x bits g vector: "2x8g8 channel f16"
std::string SchemeName(const Scheme& scheme);

// The inverse of SchemeName; also accepts the words in any order and letter case, and additive
// codebooks without "channel".
Result<Scheme> ParseScheme(std::string_view name);

// Groups in a row of `cols` weights: 1 for kTensor and kChannel.
int64_t GroupsPerRow(const Scheme& scheme, int64_t cols);

// Bits per weight of a rows x cols matrix, scales, zeros and tables included.
double SchemeBitsPerWeight(const Scheme& scheme, int64_t rows, int64_t cols);

}  // namespace nibble

#endif  // NIBBLE_SCHEME_H_
