#include "kernels/pack_planar.h"

#include "kernels/pack_bf16.h"

namespace nibble {

PlanarRows::PlanarRows(const PlanarPlanes& planes)
    : matrix_{planes, MakePlanarCodebook(planes.scheme, planes.table)} {
  for (uint32_t i = 0; planes.scheme.double_quant && i < 256; ++i) {
    matrix_.scale_map[i] = DynamicMapValue(i);
  }
  decode_bf16_ = FindDecodePlanarBf16(matrix_);
}

WeightRows PlanarRows::rows() const {
  const PlanarPlanes& p = matrix_.planes;
  WeightRows weights;
  weights.rows = p.rows;
  weights.cols = p.cols;
  weights.unit = 8;  // codes, which begin at a byte
  weights.source = this;
  weights.decode = Decode;
  weights.decode_bf16 = decode_bf16_ != nullptr ? DecodeBf16 : DecodeBf16ByFloat;
  weights.piece_cols = kBlockCols;  // what each call costs weighs more
  weights.codes = reinterpret_cast<const std::byte*>(p.codes);
  weights.row_bytes = PlanarRowBytes(p.scheme.bits, p.cols);
  return weights;
}

void PlanarRows::DecodeBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                            uint16_t* out, int64_t stride) {
  const PlanarRows& self = *static_cast<const PlanarRows*>(weights.source);
  self.decode_bf16_(self.matrix_, row, col, count, out, stride);
}

void PlanarRows::Decode(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                        float* out) {
  const PlanarRows& self = *static_cast<const PlanarRows*>(weights.source);
  const PlanarPlanes& p = self.matrix_.planes;
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
  DecodeCodes(self.matrix_.book, {groups, n}, codes, out);
}

}  // namespace nibble
