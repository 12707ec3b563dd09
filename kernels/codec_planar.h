// The codec of planar schemes: what the planes of a QuantizedTensor mean, once, for host and
// device.
//
// Every weight is one of
//
//     w = scale * (q - zero)      integer codes with a zero
//     w = scale * value(q)        all others
//
// in float, one rounding for each operation; additive codebooks sum a value of each, from the first
// to the last. Random access and slow on purpose: the oracle. Kernels
// decode whole rows and are compared with this.
#ifndef NIBBLE_KERNELS_CODEC_PLANAR_H_
#define NIBBLE_KERNELS_CODEC_PLANAR_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "nibble/dtype.h"
#include "nibble/scheme.h"

namespace nibble {

// --- Packing -------------------------------------------------------------------------------------

// Bytes of a row of codes.
constexpr NIBBLE_HD int64_t PlanarRowBytes(int bits, int64_t cols) {
  return cols / 8 * bits + (cols % 8 * bits + 7) / 8;
}

// Code i of a stream of `bits`-bit codes, lowest bits first. Reads only the bytes that hold it.
constexpr NIBBLE_HD uint32_t PlanarCode(const uint8_t* stream, int bits, int64_t i) {
  const uint8_t* at = stream + i / 8 * bits + i % 8 * bits / 8;
  const int shift = static_cast<int>(i % 8 * bits % 8);
  uint32_t window = at[0];
  if (shift + bits > 8) window |= static_cast<uint32_t>(at[1]) << 8;
  return (window >> shift) & ((1u << bits) - 1);
}

// Codes of a row: one a weight, or for each vector of weights one a codebook.
constexpr NIBBLE_HD int64_t CodesPerRow(const Scheme& s, int64_t cols) {
  return (cols / s.vector + (cols % s.vector != 0)) * s.codebooks;
}

// The two's complement value of a `bits`-bit code.
constexpr NIBBLE_HD int SignExtend(uint32_t code, int bits) {
  const uint32_t sign = 1u << (bits - 1);
  return static_cast<int>(code ^ sign) - static_cast<int>(sign);
}

// --- Codebooks -----------------------------------------------------------------------------------

// NF4: quantiles of the normal distribution with an exact zero, scaled to [-1, 1]; ascending
// (arXiv 2305.14314, appendix E).
constexpr NIBBLE_HD float Nf4Value(uint32_t code) {
  constexpr float kValues[16] = {-1.0f,           -0.69619280099f, -0.52507305145f, -0.39491748809f,
                                 -0.28444138169f, -0.18477343023f, -0.09105003625f, 0.0f,
                                 0.07958029956f,  0.16093020141f,  0.24611230195f,  0.33791524172f,
                                 0.44070982933f,  0.56261700392f,  0.72295683622f,  1.0f};
  return kValues[code & 15];
}

// FP4 as bitsandbytes has it: a sign and the magnitudes {0, 1/16, 8, 12, 4, 6, 2, 3} / 12.
constexpr NIBBLE_HD float Fp4Value(uint32_t code) {
  constexpr float kTwelfths[8] = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};
  const float magnitude = kTwelfths[code & 7] / 12.0f;
  return (code & 8) != 0 ? 0.0f - magnitude : magnitude;
}

// The code of rank r where FP4's values are sorted ascending; +0 (code 0) before -0 (code 8), which
// decode alike.
constexpr NIBBLE_HD uint32_t Fp4CodeOfRank(int rank) {
  constexpr uint8_t kCodes[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  return kCodes[rank & 15];
}

// --- Planes of scales, zeros and tables ----------------------------------------------------------

// Element i of a little-endian plane of any alignment.
constexpr NIBBLE_HD float LoadPlaneFloat(const uint8_t* plane, DType dtype, int64_t i) {
  if (dtype == DType::kU8) return static_cast<float>(plane[i]);
  if (dtype == DType::kF32) {
    const uint8_t* at = plane + 4 * i;
    return std::bit_cast<float>(at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 |
                                uint32_t{at[3]} << 24);
  }
  const uint8_t* at = plane + 2 * i;
  const uint16_t bits = static_cast<uint16_t>(at[0] | at[1] << 8);
  return dtype == DType::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
}

// What a code stands for before it is scaled. `table`: the plane of Code::kTable.
constexpr NIBBLE_HD float CodeValue(const Scheme& scheme, uint32_t code, const uint8_t* table) {
  switch (scheme.code) {
    case Code::kNf4:
      return Nf4Value(code);
    case Code::kFp4:
      return Fp4Value(code);
    case Code::kF8E4M3:
      return F8E4M3ToFloat(static_cast<uint8_t>(code));
    case Code::kF8E5M2:
      return F8E5M2ToFloat(static_cast<uint8_t>(code));
    case Code::kTable:
      return LoadPlaneFloat(table, DType::kF32, code);
    default:
      return static_cast<float>(scheme.symmetric ? SignExtend(code, scheme.bits)
                                                 : static_cast<int>(code));
  }
}

// Element `i` of entry `code` of a codebook. `table`: the plane of Code::kAdditive.
constexpr NIBBLE_HD float CodebookValue(const Scheme& s, int codebook, uint32_t code, int64_t i,
                                        const uint8_t* table) {
  const int64_t entry = (int64_t{codebook} << s.bits) + code;
  return LoadPlaneFloat(table, s.scale_dtype, entry * s.vector + i);
}

// Double quantization: 256 scales share a maximum, and each is a code of the dynamic map.
inline constexpr int64_t kScalesPerSuperBlock = 256;

// The signed dynamic map (arXiv 1511.04561), ascending: 127 negative values, 0 at code 127, 127
// positive values, and 1. The positive ones come in decades 10^-6 to 10^0: decade e holds the 2^e
// midpoints of as many equal steps over [0.1, 1]. Steps are rounded to float and their multiples
// added in double, which gives the values bitsandbytes has where its tensor library fuses the two.
constexpr NIBBLE_HD float DynamicMapValue(uint32_t code) {
  if (code == 127) return 0.0f;
  if (code == 255) return 1.0f;
  constexpr float kDecades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  const uint32_t rank = code > 127 ? code - 127 : 127 - code;  // 1 .. 127 from zero outwards
  const int e = std::bit_width(rank) - 1;
  const int steps = 1 << e;
  const int j = static_cast<int>(rank) - steps;
  const float step = (1.0f - 0.1f) / static_cast<float>(steps);
  // The upper half of the boundaries counts down from 1.
  float boundary[2] = {};
  for (int k = 0; k < 2; ++k) {
    const int i = j + k;
    boundary[k] =
        i < (steps + 1) / 2
            ? static_cast<float>(static_cast<double>(0.1f) + static_cast<double>(step) * i)
            : static_cast<float>(1.0 - static_cast<double>(step) * (steps - i));
  }
  const float magnitude = kDecades[e] * ((boundary[0] + boundary[1]) / 2.0f);
  return code > 127 ? magnitude : 0.0f - magnitude;
}

// Scale i of `count` whose codes are `codes`; `super` is the plane kSuperScales.
constexpr NIBBLE_HD float DoubleQuantScale(const uint8_t* codes, const uint8_t* super,
                                           int64_t count, int64_t i) {
  const int64_t blocks = (count + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock;
  const float maximum = LoadPlaneFloat(super, DType::kF32, i / kScalesPerSuperBlock);
  const float mean = LoadPlaneFloat(super, DType::kF32, blocks);
  return DynamicMapValue(codes[i]) * maximum + mean;
}

// --- A weight ------------------------------------------------------------------------------------

// The planes of a matrix, wherever they lie. Those that the scheme does not have are null.
struct PlanarPlanes {
  Scheme scheme;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t groups = 0;  // in a row
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* zeros = nullptr;
  const uint8_t* group_index = nullptr;  // i32
  const uint8_t* table = nullptr;
  const uint8_t* super_scales = nullptr;

  // Bytes of a row of codes.
  constexpr NIBBLE_HD int64_t row_bytes() const {
    return PlanarRowBytes(scheme.bits, CodesPerRow(scheme, cols));
  }
  // Scales of the matrix.
  constexpr NIBBLE_HD int64_t scale_count() const {
    return scheme.granularity == Granularity::kTensor ? 1 : rows * groups;
  }
  // Where the scale of a group lies among them.
  constexpr NIBBLE_HD int64_t ScaleAt(int64_t row, int64_t group) const {
    return scheme.granularity == Granularity::kTensor ? 0 : row * groups + group;
  }
  constexpr NIBBLE_HD float Scale(int64_t at) const {
    return scheme.double_quant ? DoubleQuantScale(scales, super_scales, scale_count(), at)
                               : LoadPlaneFloat(scales, scheme.scale_dtype, at);
  }
  constexpr NIBBLE_HD float Zero(int64_t at) const {
    return scheme.symmetric ? 0.0f : LoadPlaneFloat(zeros, scheme.zero_dtype, at);
  }
  constexpr NIBBLE_HD int64_t Group(int64_t col) const {
    if (group_index != nullptr) {
      const uint8_t* at = group_index + 4 * col;
      return static_cast<int32_t>(at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 |
                                  uint32_t{at[3]} << 24);
    }
    return scheme.granularity == Granularity::kGroup ? col / scheme.group_size : 0;
  }
};

// Weight (row, col).
constexpr NIBBLE_HD float DecodePlanarWeight(const PlanarPlanes& p, int64_t row, int64_t col) {
  const Scheme& s = p.scheme;
  const uint8_t* stream = p.codes + row * p.row_bytes();
  const int64_t at = p.ScaleAt(row, p.Group(col));
  if (s.code == Code::kAdditive) {
    float sum = 0;
    for (int c = 0; c < s.codebooks; ++c) {
      const uint32_t code = PlanarCode(stream, s.bits, col / s.vector * s.codebooks + c);
      const float value = CodebookValue(s, c, code, col % s.vector, p.table);
      sum = c == 0 ? value : sum + value;
    }
    return p.Scale(at) * sum;
  }
  const float value = CodeValue(s, PlanarCode(stream, s.bits, col), p.table);
  if (s.symmetric) return p.Scale(at) * value;
  return p.Scale(at) * (value - p.Zero(at));
}

// --- Choosing codes ------------------------------------------------------------------------------

// The range of the integer codes of a scheme.
constexpr NIBBLE_HD int MaxCode(const Scheme& s) {
  return s.symmetric ? (1 << (s.bits - 1)) - 1 : (1 << s.bits) - 1;
}
constexpr NIBBLE_HD int MinCode(const Scheme& s) { return s.symmetric ? -MaxCode(s) : 0; }

// The integer nearest to x / scale + zero in [low, high], ties to even. Adding 1.5 * 2^23 leaves no
// room for a fraction, so that float addition itself rounds, on every machine alike; the caller
// replaces a scale of 0 by 1.
constexpr NIBBLE_HD int ChooseInteger(float x, float scale, float zero, float low, float high) {
  constexpr float kRounder = 12582912.0f;
  float position = x / scale + zero;
  position = position > low ? position : low;
  position = position < high ? position : high;
  return static_cast<int>((position + kRounder) - kRounder);
}

// What nearest-value search multiplies by: 1 / scale, finite for every scale (bitsandbytes' bound).
constexpr NIBBLE_HD float InverseScale(float scale) {
  return 1.0f / (scale > 1e-38f ? scale : 1e-38f);
}

// The rank, among `count` ascending values, of the one nearest to x; a tie goes to the lower one.
// `midpoints` are the count - 1 means of neighbours.
constexpr NIBBLE_HD int NearestRank(const float* midpoints, int count, float x) {
  int low = 0, high = count - 1;  // the rank is the number of midpoints below x
  while (low < high) {
    const int middle = (low + high) / 2;
    if (midpoints[middle] < x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CODEC_PLANAR_H_
