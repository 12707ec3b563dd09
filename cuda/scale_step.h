// Values of a step of a record under their scales, rounded to 16-bit floats: what tensor cores and
// dequantized matrices take, for device and host.
#ifndef NIBBLE_CUDA_SCALE_STEP_H_
#define NIBBLE_CUDA_SCALE_STEP_H_

#include <cstdint>

#include "cuda/decode_record.h"
#include "cuda/half2.h"
#include "cuda/warp.h"

namespace nibble::cuda {

// Scales and minima of a group, of rows g and g + 8, twice each. `multiplier`: of all weights
// (PackedMatrix::multiplier), or 1.
template <class Format, DType kType>
struct ScalePairs {
  uint32_t scale[2], min[2];

  NIBBLE_HD static ScalePairs Of(const GroupScales& group, float multiplier) {
    ScalePairs pairs = {};
    NIBBLE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float scale = group.scale[i] * multiplier, min = -group.min[i] * multiplier;
      pairs.scale[i] = Pair<kType>(scale, scale);
      if constexpr (Format::kHasMin) pairs.min[i] = Pair<kType>(min, min);
    }
    return pairs;
  }

  NIBBLE_HD LeftOperand Scaled(LeftOperand values) const {
    NIBBLE_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      if constexpr (Format::kHasMin) {
        values.v[pair] = MultiplyAdd2<kType>(values.v[pair], scale[pair % 2], min[pair % 2]);
      } else {
        values.v[pair] = Multiply2<kType>(values.v[pair], scale[pair % 2]);
      }
    }
    return values;
  }
};

// A warp: all weights of a record, as the kernel of cuda/gemm.h has them, to the rows of `out` from
// `first_row` on, of `stride` elements, an even number; columns that the record has beyond the
// matrix's are written too.
template <class Format, DType kType, class Warp>
NIBBLE_HD inline void UnpackRecord(const Warp& warp, const PackedMatrix& weights, int64_t row_tile,
                                   int64_t record, int64_t first_row, uint16_t* out,
                                   int64_t stride) {
  const int64_t at = row_tile * weights.template records_per_tile<Format>() + record;
  const uint8_t* bytes = weights.records + at * weights.template record_bytes<Format>();
  const Book& book = kType == DType::kF16 ? weights.book_f16 : weights.book_bf16;
  const float multiplier = kType == DType::kF16 ? *weights.multiplier : 1.0f;
  NIBBLE_NO_UNROLL
  for (int panel = 0; panel < Format::kCols / kPanelCols; ++panel) {
    warp.Each([&](int lane) {
      LaneCodes<Format> codes;
      LaneScales<Format> scales;
      ScalePairs<Format, kType> pairs;
      codes.Load(bytes, lane, panel);
      scales.Load(bytes, lane, panel);
      NIBBLE_UNROLL
      for (int step = 0; step < kPanelSteps; ++step) {
        if (step == 0 || EndsGroup<Format>(weights, step - 1)) {
          pairs = ScalePairs<Format, kType>::Of(scales.Get(weights, step, lane), multiplier);
        }
        const LeftOperand two = pairs.Scaled(DecodeStep<Format, kType>(codes, step, book));
        NIBBLE_UNROLL
        for (int pair = 0; pair < 4; ++pair) {
          const CodePlace place = PlaceOf(lane, step, 2 * pair);
          const int64_t row = row_tile * kTileRows + place.row;
          if (row >= weights.rows) continue;
          const int64_t col = record * Format::kCols + panel * kPanelCols + place.col;
          *reinterpret_cast<uint32_t*>(out + (row - first_row) * stride + col) = two.v[pair];
        }
      }
    });
  }
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_SCALE_STEP_H_
