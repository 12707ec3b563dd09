// Weights packed for tensor cores: which bits lie where, for host and device.
//
// Weights are cut into tiles of 16 rows, and tiles into records of kCols columns, each of which is
// everything that a warp needs for them: codes, then scales. Records lie tile by tile, in the order
// of their columns, so that a warp reads a stream of neighbouring bytes.
//
// A record is kCols / 16 steps, and a step is the left operand of one 16 x 8 x 16 product. Lane l
// of a warp (g = l / 4, t = l % 4) holds eight codes of a step: code c = 2 p + i is that of
//
//     row g + 8 (p % 2), column 16 step + 2 t + 8 (p / 2) + i
//
// which is the order of the operand's four registers, for mma.sync and for wgmma alike. Codes of
// more than four but less than eight bits are cut into a low and a high plane. In a plane, a lane's
// words lie in 16-byte parts: [part][lane][16 bytes], so that a load of a warp is 512 neighbouring
// bytes.
//
// Every weight is scale * value - min, where a value is a small integer, one of 16 entries of a
// book, or a float of eight bits.
#ifndef NIBBLE_CUDA_PACKED_FORMAT_H_
#define NIBBLE_CUDA_PACKED_FORMAT_H_

#include <cstdint>

#include "nibble/dtype.h"

namespace nibble::cuda {

inline constexpr int kLanes = 32, kTileRows = 16, kStepCols = 16, kStepCodes = 8;

enum class Values : uint8_t {
  kInteger,  // the code less Format::kOffset
  kBook,     // 16 entries
  kE4M3,     // NaN codes are read as 480, and infinities of kE5M2 may be as 65536
  kE5M2,
};

enum class Scales : uint8_t {
  kGroup,        // f16 or f32 for each group, of 16, 32, 64 or 128 columns
  kGroupMin,     // and a minimum, or a zero by which the scale is multiplied, beside each
  kSuper,        // f16 for the record, times a signed byte for each group
  kSuperMin,     // two f16, times bytes for scale and minimum
  kSuperNibble,  // two f16, times the low and the high nibble of a byte
};

// One way of packing. kGroup: columns under one scale of super-scaled records, else 0.
template <Values kValues_, int kLow_, int kHigh_, Scales kScales_, int kGroup_ = 0>
struct PackedFormat {
  static constexpr Values kValues = kValues_;
  static constexpr Scales kScales = kScales_;
  static constexpr int kLow = kLow_, kHigh = kHigh_, kBits = kLow + kHigh;
  static constexpr bool kIsSuper = kScales >= Scales::kSuper;
  static constexpr bool kHasMin = kScales == Scales::kGroupMin || kScales >= Scales::kSuperMin;
  static constexpr int kCols = kIsSuper ? 256 : 128;
  static constexpr int kSteps = kCols / kStepCols;
  static constexpr int kGroup = kGroup_;
  // Bytes of smaller scales for each row of a record.
  static constexpr int kSubBytes =
      !kIsSuper ? 0 : kCols / kGroup * (kScales == Scales::kSuperMin ? 2 : 1);

  // What is taken from an integer code. Eight bits always pass a signed byte's middle.
  static constexpr int kOffset = kValues != Values::kInteger ? 0
                                 : kBits == 8 || !kHasMin    ? 1 << (kBits - 1)
                                                             : 0;

  static constexpr int kLowBytes = 2 * kCols * kLow, kHighBytes = 2 * kCols * kHigh;
  static constexpr int kCodeBytes = kLowBytes + kHighBytes;
  static constexpr int kSuperBytes = kHasMin ? 64 : 32;
  static constexpr int kSuperScaleBytes = kSuperBytes + kTileRows * kSubBytes;

  // Row tiles that a warp of the small-M kernel takes together.
  static constexpr int kWarpTiles = kCodeBytes <= 1024 ? 2 : 1;
  static constexpr int kStages = kCodeBytes <= 2048 ? 4 : 3;
};

// q4_0, int4; the same with minima or zeros; ...
using PackedU4 = PackedFormat<Values::kInteger, 4, 0, Scales::kGroup>;
using PackedU8 = PackedFormat<Values::kInteger, 8, 0, Scales::kGroup>;
using PackedU2Min = PackedFormat<Values::kInteger, 2, 0, Scales::kGroupMin>;
using PackedU3Min = PackedFormat<Values::kInteger, 2, 1, Scales::kGroupMin>;
using PackedU4Min = PackedFormat<Values::kInteger, 4, 0, Scales::kGroupMin>;
using PackedU5Min = PackedFormat<Values::kInteger, 4, 1, Scales::kGroupMin>;
using PackedU6Min = PackedFormat<Values::kInteger, 4, 2, Scales::kGroupMin>;
using PackedU8Min = PackedFormat<Values::kInteger, 8, 0, Scales::kGroupMin>;
using PackedBook = PackedFormat<Values::kBook, 4, 0, Scales::kGroup>;
using PackedE4M3 = PackedFormat<Values::kE4M3, 8, 0, Scales::kGroup>;
using PackedE5M2 = PackedFormat<Values::kE5M2, 8, 0, Scales::kGroup>;
using PackedQ2_K = PackedFormat<Values::kInteger, 2, 0, Scales::kSuperNibble, 16>;
using PackedQ3_K = PackedFormat<Values::kInteger, 2, 1, Scales::kSuper, 16>;
using PackedQ4_K = PackedFormat<Values::kInteger, 4, 0, Scales::kSuperMin, 32>;
using PackedQ5_K = PackedFormat<Values::kInteger, 4, 1, Scales::kSuperMin, 32>;
using PackedQ6_K = PackedFormat<Values::kInteger, 4, 2, Scales::kSuper, 16>;
using PackedIQ4_XS = PackedFormat<Values::kBook, 4, 0, Scales::kSuper, 32>;

#define NIBBLE_CUDA_FORMATS(X) \
  X(U4)                        \
  X(U8)                        \
  X(U2Min)                     \
  X(U3Min)                     \
  X(U4Min)                     \
  X(U5Min)                     \
  X(U6Min)                     \
  X(U8Min)                     \
  X(Book)                      \
  X(E4M3)                      \
  X(E5M2)                      \
  X(Q2_K)                      \
  X(Q3_K)                      \
  X(Q4_K)                      \
  X(Q5_K)                      \
  X(Q6_K)                      \
  X(IQ4_XS)

enum class PackedKind : uint8_t {
#define NIBBLE_CUDA_ENUM(Name) k##Name,
  NIBBLE_CUDA_FORMATS(NIBBLE_CUDA_ENUM)
#undef NIBBLE_CUDA_ENUM
};

// Calls visitor(PackedName{}).
template <class Visitor>
auto VisitPackedFormat(PackedKind kind, const Visitor& visitor) {
  switch (kind) {
#define NIBBLE_CUDA_CASE(Name) \
  case PackedKind::k##Name:    \
    return visitor(Packed##Name{});
    NIBBLE_CUDA_FORMATS(NIBBLE_CUDA_CASE)
#undef NIBBLE_CUDA_CASE
  }
  return visitor(PackedU4{});
}

// The entries of a book as 16-bit floats: four words of low bytes, four of high bytes.
struct Book {
  uint32_t words[8] = {};
};

// Packed weights, as kernels are told of them.
struct PackedMatrix {
  const uint8_t* records = nullptr;  // [row tile][record], 16-byte aligned
  const int32_t* order = nullptr;    // the activations' column of each packed column; null: itself
  int64_t rows = 0, cols = 0;
  int32_t panel_groups = 1;  // groups of 128 columns, of kGroup and kGroupMin: 1, 2, 4 or 8
  bool wide_scales = false;  // kGroup, kGroupMin: scales are f32, else f16
  bool min_is_zero = false;  // kGroupMin: what lies beside a scale is multiplied by it
  float largest_value = 0;   // magnitude of a value, before it is scaled
  // In device memory: a power of two that brings the largest weights to about 2^10, where f16 is
  // exact enough for scales that are small themselves; its inverse, 0 and 1.
  const float* multiplier = nullptr;
  Book book_f16, book_bf16;

  NIBBLE_HD int64_t row_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  template <class Format>
  NIBBLE_HD int64_t records_per_tile() const {
    return (cols + Format::kCols - 1) / Format::kCols;
  }
  template <class Format>
  NIBBLE_HD int record_bytes() const {
    if constexpr (Format::kIsSuper) return Format::kCodeBytes + Format::kSuperScaleBytes;
    return Format::kCodeBytes + panel_groups * scale_stride() * (Format::kHasMin ? 2 : 1);
  }
  // Bytes of the scales of one group, for the 16 rows.
  NIBBLE_HD int scale_stride() const { return wide_scales ? 64 : 32; }
};

// Row and column, within a record, of code c of a lane in a step.
struct CodePlace {
  int row;
  int col;
};
constexpr NIBBLE_HD CodePlace PlaceOf(int lane, int step, int c) {
  const int pair = c / 2;
  return {lane / 4 + 8 * (pair % 2), kStepCols * step + 2 * (lane % 4) + 8 * (pair / 2) + c % 2};
}

// Word and shift, among a lane's words of a plane of `bits`, of code c of a step. The codes of a
// pair lie 16 bits apart, so that a shift and a mask make two halves of a register of them; bytes
// and the codes of books lie as they come.
struct BitPlace {
  int word;
  int shift;
};
template <int kBits, bool kIsBook>
constexpr NIBBLE_HD BitPlace BitsOf(int step, int c) {
  if constexpr (kBits == 8) return {2 * step + c / 4, 8 * (c % 4)};
  if constexpr (kIsBook) return {step, 4 * c};
  constexpr int kStepsPerWord = 4 / (kBits % 8 == 0 ? 4 : kBits);
  return {step / kStepsPerWord,
          16 * (c % 2) + 4 * kBits * (step % kStepsPerWord) + kBits * (c / 2)};
}

// Words of a lane in a plane, and where in the plane, in bytes, word w lies.
constexpr NIBBLE_HD int LaneWords(int bits, int cols) { return bits * cols / 64; }
constexpr NIBBLE_HD int WordOffset(int bits, int cols, int lane, int w) {
  return LaneWords(bits, cols) == 2 ? 8 * lane + 4 * w : w / 4 * 512 + 16 * lane + w % 4 * 4;
}
// The inverse: lane and word at a place in the plane, in words.
struct WordPlace {
  int lane;
  int word;
};
constexpr NIBBLE_HD WordPlace WordAt(int bits, int cols, int at) {
  if (LaneWords(bits, cols) == 2) return {at / 2, at % 2};
  return {at % 128 / 4, at / 128 * 4 + at % 4};
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_PACKED_FORMAT_H_
