#include "kernels/pack_planar.h"

#include "kernels/pack_bf16.h"

namespace nibble {

PlanarRows::PlanarRows(const PlanarPlanes& planes)
    : planes_(planes), book_(MakePlanarCodebook(planes.scheme, planes.table)) {}

WeightRows PlanarRows::rows() const {
  WeightRows weights;
  weights.rows = planes_.rows;
  weights.cols = planes_.cols;
  weights.unit = kBlockCols;  // a multiple of 8 codes, which begin at a byte
  weights.source = this;
  weights.decode = Decode;
  weights.decode_bf16 = DecodeBf16ByFloat;
  weights.piece_cols = kBlockCols;
  weights.codes = reinterpret_cast<const std::byte*>(planes_.codes);
  weights.row_bytes = PlanarRowBytes(planes_.scheme.bits, planes_.cols);
  return weights;
}

void PlanarRows::Decode(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                        float* out) {
  const PlanarRows& self = *static_cast<const PlanarRows*>(weights.source);
  const PlanarPlanes& p = self.planes_;
  uint8_t codes[kBlockCols];
  UnpackCodes(p.codes + row * weights.row_bytes + col / 8 * p.scheme.bits, p.scheme.bits, count,
              codes);
  PlanarGroup groups[kBlockCols];
  size_t n = 0;
  for (int64_t i = 0; i < count; ++n) {
    const int64_t group = p.Group(col + i);
    if (p.group_index != nullptr) {
      while (i < count && p.Group(col + i) == group) ++i;
    } else if (p.scheme.granularity == Granularity::kGroup) {
      i = std::min(count, (group + 1) * p.scheme.group_size - col);
    } else {
      i = count;
    }
    const int64_t at = p.ScaleAt(row, group);
    groups[n] = {i, p.Scale(at), p.Zero(at)};
  }
  DecodeCodes(self.book_, {groups, n}, codes, out);
}

}  // namespace nibble
