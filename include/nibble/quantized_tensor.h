// A quantized matrix in its canonical, machine-independent bytes.
#ifndef NIBBLE_QUANTIZED_TENSOR_H_
#define NIBBLE_QUANTIZED_TENSOR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>

#include "nibble/format.h"
#include "nibble/scheme.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// The planes of a QuantizedTensor. A block format has kCodes alone: its blocks, row by row.
enum class Plane : uint8_t {
  // Each row a stream of `bits`-bit codes, lowest bits first, padded to whole bytes: of each
  // weight,
  // or of each `vector` of weights one for each codebook.
  kCodes,
  kScales,       // [rows, groups] of scale_dtype ([1, 1] per tensor); u8 codes with double_quant
  kZeros,        // asymmetric: [rows, groups] of zero_dtype
  kGroupIndex,   // has_group_index: i32[cols]
  kTable,        // kTable: f32[2^bits]; kAdditive: [codebooks, 2^bits, vector] of scale_dtype
  kSuperScales,  // double_quant: f32[ceil(rows * groups / 256)] block maxima, then the mean (f32)
};
inline constexpr int kPlaneCount = 6;

class QuantizedTensor {
 public:
  QuantizedTensor() = default;

  // Planes of exactly the sizes that PlaneBytes tells; others are empty. A plane may own, share or
  // borrow its memory, so that a mapped file needs no copy.
  static Result<QuantizedTensor> Create(Format format, int64_t rows, int64_t cols, Buffer blocks);
  static Result<QuantizedTensor> Create(const Scheme& scheme, int64_t rows, int64_t cols,
                                        std::array<Buffer, kPlaneCount> planes);
  // Zeroed planes of its own.
  static Result<QuantizedTensor> Allocate(Format format, int64_t rows, int64_t cols);
  static Result<QuantizedTensor> Allocate(const Scheme& scheme, int64_t rows, int64_t cols);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  bool is_block_format() const { return std::holds_alternative<Format>(kind_); }
  Format format() const { return std::get<Format>(kind_); }         // of a block format
  const Scheme& scheme() const { return std::get<Scheme>(kind_); }  // of a planar scheme
  Device device() const { return planes_[0].device(); }

  const Buffer& plane(Plane p) const { return planes_[static_cast<int>(p)]; }
  Buffer& plane(Plane p) { return planes_[static_cast<int>(p)]; }

  // All planes together.
  size_t bytes() const;

 private:
  std::variant<Format, Scheme> kind_ = Format::kF32;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  std::array<Buffer, kPlaneCount> planes_;
};

// Bytes of one plane of a scheme; 0 for a plane it does not have.
Result<size_t> PlaneBytes(const Scheme& scheme, Plane plane, int64_t rows, int64_t cols);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZED_TENSOR_H_
