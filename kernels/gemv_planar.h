// Products of few activation rows with the canonical planes of planar schemes: int8 activations,
// integer dots, bound by the speed at which the weights arrive from memory.
//
// A byte of codes of 4 bits holds two columns, of 2 bits four, of 1 bit eight: its phases.
// Activations are laid out by phase once, so that the bytes of a phase, shifted and masked, meet
// the activations of their columns without being moved.
#ifndef NIBBLE_KERNELS_GEMV_PLANAR_H_
#define NIBBLE_KERNELS_GEMV_PLANAR_H_

#include <cstdint>
#include <span>

#include "kernels/codec_planar.h"
#include "kernels/matmul.h"

namespace nibble {

// Weights of a planar scheme as integer products see them: w = scale * (stored code - zero).
class PlanarInt8 {
 public:
  // Whether there are integer products for these planes: integer codes and NF4, FP4 and other
  // tables of 16 values that 8 bits hold well; scales for the tensor, for rows, or for groups of
  // 32, 64, 128, ... columns without an index.
  static bool Takes(const PlanarPlanes& planes);

  explicit PlanarInt8(const PlanarPlanes& planes);

  const PlanarPlanes& planes() const { return planes_; }
  int64_t rows() const { return planes_.rows; }
  // Codes that share a byte; those of 3, 5, 6 and 7 bits are spread to a byte each.
  int phases() const { return phases_; }
  bool is_spread() const { return 8 % planes_.scheme.bits != 0; }
  // Columns of a scale; 0: all.
  int64_t group() const { return group_; }
  // Stored codes are, without a sign, code ^ flip or an entry of `table`: code + offset.
  uint8_t flip() const { return flip_; }
  int offset() const { return offset_; }
  bool has_table() const { return has_table_; }
  const uint8_t* table() const { return table_; }
  // What the scale of the table's entries is.
  float table_scale() const { return table_scale_; }
  // The dynamic map of double quantization.
  const float* map() const { return map_; }

 private:
  PlanarPlanes planes_;
  int phases_ = 1;
  int64_t group_ = 0;
  uint8_t flip_ = 0;
  int offset_ = 0;
  bool has_table_ = false;
  float table_scale_ = 1;
  alignas(16) uint8_t table_[16] = {};
  float map_[256] = {};
};

// Activations rounded to int8: for each 32 columns scale = max|a| / 127, codes = round(a / scale).
// Where one of 32 activations is not finite, their scale is NaN, and so is every sum.
struct PlanarActivations {
  int64_t bytes = 0;                   // of codes in a phase, a multiple of 64
  int64_t groups = 0;                  // of weight scales in a row
  const int8_t* codes = nullptr;       // [M, phases, bytes]: column `phases * byte + phase`
  const float* lane_scales = nullptr;  // [M, bytes / 4]: of the columns of four bytes
  const float* sums = nullptr;         // [M, groups]: sums of scale * code over a weight group
};

Status MatmulInt8Planar(std::span<const Product<const PlanarInt8*>> products,
                        const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMV_PLANAR_H_
