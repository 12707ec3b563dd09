// From the bits of a record (cuda/packed_format.h) to operands and scales, for a lane of a warp, on
// device and host.
#ifndef NIBBLE_CUDA_DECODE_RECORD_H_
#define NIBBLE_CUDA_DECODE_RECORD_H_

#include <cstdint>

#include "cuda/half2.h"
#include "cuda/packed_format.h"
#include "cuda/warp.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

// A lane decodes a panel of a record at a time: eight steps, half of a record of 256 columns.
inline constexpr int kPanelCols = 128, kPanelSteps = kPanelCols / kStepCols;

// The words of a plane of `kBits` that a lane has of a panel.
template <int kBits, int kCols>
NIBBLE_HD inline void LoadPlane(const uint8_t* plane, int lane, int panel, uint32_t* words) {
  constexpr int kWords = LaneWords(kBits, kPanelCols);
  if constexpr (kWords == 2) {
    const Words2 two =
        *reinterpret_cast<const Words2*>(plane + WordOffset(kBits, kCols, lane, 2 * panel));
    words[0] = two.v[0];
    words[1] = two.v[1];
  } else {
    NIBBLE_UNROLL
    for (int w = 0; w < kWords; w += 4) {
      const Words4 four = *reinterpret_cast<const Words4*>(
          plane + WordOffset(kBits, kCols, lane, kWords * panel + w));
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) words[w + i] = four.v[i];
    }
  }
}

// All words of a lane.
template <class Format>
struct LaneCodes {
  uint32_t low[LaneWords(Format::kLow, kPanelCols)];
  uint32_t high[Format::kHigh == 0 ? 1 : LaneWords(Format::kHigh, kPanelCols)];

  NIBBLE_HD void Load(const uint8_t* record, int lane, int panel) {
    LoadPlane<Format::kLow, Format::kCols>(record, lane, panel, low);
    if constexpr (Format::kHigh > 0) {
      LoadPlane<Format::kHigh, Format::kCols>(record + Format::kLowBytes, lane, panel, high);
    }
  }
};

// The two codes of a pair, each in a half, moved left, and other bits beside them.
template <int kBits>
NIBBLE_HD inline uint32_t PairBits(const uint32_t* words, int step, int pair, int shift_left,
                                   uint32_t others) {
  const BitPlace at = BitsOf<kBits, false>(step, 2 * pair);
  const int right = at.shift - shift_left;
  const uint32_t word = words[at.word];
  return MaskAndSet(right >= 0 ? word >> right : word << -right,
                    (0x00010001u * ((1u << kBits) - 1)) << shift_left, others);
}

// Integer codes become 16-bit floats by an exponent put before them: 1024 + code in f16, 128 + code
// in bf16, where a subtraction takes the rest away, without rounding.
template <class Format, DType kType>
NIBBLE_HD inline uint32_t IntegerPair(const LaneCodes<Format>& codes, int step, int pair) {
  constexpr bool kIsF16 = kType == DType::kF16;
  constexpr uint32_t kMagic = kIsF16 ? 0x64006400u : 0x43004300u;
  if constexpr (Format::kBits == 8) {
    const uint32_t word = codes.low[2 * step + pair / 2];
    const uint32_t selector = pair % 2 == 0 ? 0x4140u : 0x4342u;
    if constexpr (kIsF16) {
      return Subtract2<kType>(Permute(word, 0x64646464u, selector), 0x64806480u);  // 1024 + 128
    } else {
      // 128 and the low seven bits; the top one says whether 128 or 256 is taken away.
      const uint32_t bytes = Permute(word, 0u, selector);
      return Subtract2<kType>(MaskAndSet(bytes, 0x007F007Fu, kMagic),
                              0x43804380u ^ (bytes & 0x00800080u));
    }
  } else {
    uint32_t bits = PairBits<Format::kLow>(codes.low, step, pair, 0, kMagic);
    if constexpr (Format::kHigh > 0) {
      bits = PairBits<Format::kHigh>(codes.high, step, pair, Format::kLow, bits);
    }
    // One unit of the last place is 1 in either type, so that the offset adds to the bits.
    return Subtract2<kType>(bits, kMagic + Format::kOffset * 0x00010001u);
  }
}

// Floats of eight bits are the upper bits of an f16, or become one, or a bf16, by a shift and a
// power of two that makes up for the other bias; subnormal ones too.
template <class Format, DType kType>
NIBBLE_HD inline uint32_t Float8Pair(const LaneCodes<Format>& codes, int step, int pair) {
  constexpr bool kIsF16 = kType == DType::kF16, kIsE4M3 = Format::kValues == Values::kE4M3;
  const uint32_t word = codes.low[2 * step + pair / 2];
  const uint32_t bits = Permute(word, 0u, pair % 2 == 0 ? 0x1404u : 0x3424u);
  if constexpr (!kIsE4M3 && kIsF16) return bits;
  constexpr int kShift = kIsF16 ? 1 : kIsE4M3 ? 4 : 3;
  // 2^8 in f16; 2^120 and 2^112 in bf16.
  constexpr uint32_t kPower = kIsF16 ? 0x5C005C00u : kIsE4M3 ? 0x7B807B80u : 0x77807780u;
  return Multiply2<kType>((bits & 0x80008000u) | ((bits & 0x7F007F00u) >> kShift), kPower);
}

// Two lookups in eight bytes, chosen between by the codes' top bits, for each half of an entry.
NIBBLE_HD inline void BookPairs(uint32_t codes, const Book& book, uint32_t* pairs) {
  const uint32_t low_bits = codes & 0x7777u;
  const uint32_t choice = ((codes >> 1) & 0x4444u) | 0x3210u;
  const uint32_t low = Permute(Permute(book.words[0], book.words[1], low_bits),
                               Permute(book.words[2], book.words[3], low_bits), choice);
  const uint32_t high = Permute(Permute(book.words[4], book.words[5], low_bits),
                                Permute(book.words[6], book.words[7], low_bits), choice);
  pairs[0] = Permute(low, high, 0x5140u);
  pairs[1] = Permute(low, high, 0x7362u);
}

// The values of a step, without their scales.
template <class Format, DType kType>
NIBBLE_HD inline LeftOperand DecodeStep(const LaneCodes<Format>& codes, int step,
                                        const Book& book) {
  LeftOperand left;
  if constexpr (Format::kValues == Values::kBook) {
    BookPairs(codes.low[step], book, left.v);
    BookPairs(codes.low[step] >> 16, book, left.v + 2);
  } else {
    NIBBLE_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      if constexpr (Format::kValues == Values::kInteger) {
        left.v[pair] = IntegerPair<Format, kType>(codes, step, pair);
      } else {
        left.v[pair] = Float8Pair<Format, kType>(codes, step, pair);
      }
    }
  }
  return left;
}

// Scales and minima of a group, of rows g and g + 8 of a lane.
struct GroupScales {
  float scale[2];
  float min[2];
};

// What a lane keeps of the scales of a panel.
template <class Format>
struct LaneScales {
  // Bytes of the smaller scales of a row of a panel, and where its minima are, if elsewhere.
  static constexpr int kSub = Format::kIsSuper ? kPanelCols / Format::kGroup : 0;
  static constexpr bool kHasSubMin = Format::kScales == Scales::kSuperMin;

  const uint8_t* at;  // of kGroup and kGroupMin
  float super[2], super_min[2];
  uint32_t sub[2][2], sub_min[2];

  NIBBLE_HD void Load(const uint8_t* record, int lane, int panel) {
    const int g = lane / 4;
    at = record + Format::kCodeBytes;
    if constexpr (Format::kIsSuper) {
      const uint32_t d = *reinterpret_cast<const uint32_t*>(at + 4 * g);
      const uint32_t m = Format::kHasMin ? *reinterpret_cast<const uint32_t*>(at + 32 + 4 * g) : 0u;
      NIBBLE_UNROLL
      for (int i = 0; i < 2; ++i) {
        super[i] = HalfToFloat<DType::kF16>(d >> (16 * i));
        super_min[i] = HalfToFloat<DType::kF16>(m >> (16 * i));
        const uint8_t* bytes =
            at + Format::kSuperBytes + (g + 8 * i) * Format::kSubBytes + kSub * panel;
        if constexpr (kSub == 8) {
          const Words2 two = *reinterpret_cast<const Words2*>(bytes);
          sub[i][0] = two.v[0];
          sub[i][1] = two.v[1];
        } else {
          sub[i][0] = *reinterpret_cast<const uint32_t*>(bytes);
          if constexpr (kHasSubMin) {
            sub_min[i] = *reinterpret_cast<const uint32_t*>(bytes + Format::kSubBytes / 2);
          }
        }
      }
    }
  }

  // Of the group that the given step of the panel belongs to.
  NIBBLE_HD GroupScales Get(const PackedMatrix& matrix, int step, int lane) const {
    GroupScales result = {};
    if constexpr (Format::kIsSuper) {
      const int group = step * kStepCols / Format::kGroup;
      NIBBLE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t word = sub[i][group / 4];
        if constexpr (Format::kScales == Scales::kSuper) {
          result.scale[i] = super[i] * ByteToFloat(word, group % 4, 128.0f);
        } else if constexpr (kHasSubMin) {
          result.scale[i] = super[i] * ByteToFloat(word, group % 4, 0.0f);
          result.min[i] = super_min[i] * ByteToFloat(sub_min[i], group % 4, 0.0f);
        } else {
          result.scale[i] = super[i] * ByteToFloat(word & 0x0F0F0F0Fu, group % 4, 0.0f);
          result.min[i] = super_min[i] * ByteToFloat((word >> 4) & 0x0F0F0F0Fu, group % 4, 0.0f);
        }
      }
    } else {
      const int stride = matrix.scale_stride();
      const uint8_t* here = at + step * matrix.panel_groups / kPanelSteps * stride;
      LoadTwo(here, matrix.wide_scales, lane / 4, result.scale);
      if constexpr (Format::kHasMin) {
        LoadTwo(here + matrix.panel_groups * stride, matrix.wide_scales, lane / 4, result.min);
        if (matrix.min_is_zero) {
          result.min[0] *= result.scale[0];
          result.min[1] *= result.scale[1];
        }
      }
    }
    return result;
  }

 private:
  NIBBLE_HD static void LoadTwo(const uint8_t* at, bool wide, int g, float* two) {
    if (wide) {
      const Words2 words = *reinterpret_cast<const Words2*>(at + 8 * g);
      two[0] = std::bit_cast<float>(words.v[0]);
      two[1] = std::bit_cast<float>(words.v[1]);
    } else {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(at + 4 * g);
      two[0] = HalfToFloat<DType::kF16>(word);
      two[1] = HalfToFloat<DType::kF16>(word >> 16);
    }
  }
};

// Whether a group ends with a step.
template <class Format>
NIBBLE_HD inline bool EndsGroup(const PackedMatrix& matrix, int step) {
  if constexpr (Format::kIsSuper) return (step + 1) % (Format::kGroup / kStepCols) == 0;
  return (step + 1) * matrix.panel_groups % kPanelSteps == 0;
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_DECODE_RECORD_H_
