#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/gemv_planar.h"

namespace nibble {
namespace {

// Entries of 16 values in 8 bits; returns their scale, or 0 where rounding would lose more than a
// ten-thousandth of their squares.
float RoundTable(const PlanarPlanes& planes, uint8_t* table) {
  float most = 0;
  for (uint32_t i = 0; i < 16; ++i) {
    const float value = std::fabs(CodeValue(planes.scheme, i, planes.table));
    if (!std::isfinite(value)) return 0;
    most = std::max(most, value);
  }
  const float scale = most / 127.0f;
  float error = 0, square = 0;
  for (uint32_t i = 0; i < 16; ++i) {
    const float value = CodeValue(planes.scheme, i, planes.table);
    const float code = scale > 0 ? std::nearbyint(value / scale) : 0.0f;
    table[i] = static_cast<uint8_t>(static_cast<int>(code) + 128);
    error += (value - code * scale) * (value - code * scale);
    square += value * value;
  }
  return error < 1e-4f * square ? scale : 0;
}

}  // namespace

bool PlanarInt8::Takes(const PlanarPlanes& planes) {
  const Scheme& s = planes.scheme;
  if (planes.group_index != nullptr) return false;
  if (s.granularity == Granularity::kGroup &&
      (s.group_size < 32 || !std::has_single_bit(static_cast<uint32_t>(s.group_size)))) {
    return false;
  }
  if (s.code == Code::kUniform) return true;
  uint8_t table[16];
  return s.bits == 4 && s.symmetric && RoundTable(planes, table) > 0;
}

PlanarInt8::PlanarInt8(const PlanarPlanes& planes) : planes_(planes) {
  const Scheme& s = planes.scheme;
  phases_ = is_spread() ? 1 : 8 / s.bits;
  group_ = s.granularity == Granularity::kGroup ? s.group_size : 0;
  if (s.code != Code::kUniform) {
    has_table_ = true;
    offset_ = 128;
    table_scale_ = RoundTable(planes, table_);
  } else if (s.symmetric) {
    // The sign bit of each of a byte's codes.
    offset_ = 1 << (s.bits - 1);
    for (int bit = s.bits - 1; bit < 8; bit += is_spread() ? 8 : s.bits) {
      flip_ = static_cast<uint8_t>(flip_ | 1 << bit);
    }
  }
  for (uint32_t i = 0; s.double_quant && i < 256; ++i) map_[i] = DynamicMapValue(i);
}

}  // namespace nibble
