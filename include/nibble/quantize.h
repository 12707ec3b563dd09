// Quantize and dequantize matrices on the caller's buffers, with the caller's threads.
#ifndef NIBBLE_QUANTIZE_H_
#define NIBBLE_QUANTIZE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/format.h"
#include "nibble/parallel.h"
#include "nibble/quantized_tensor.h"
#include "nibble/scheme.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

enum class NonFinite : uint8_t {
  kError,  // an error that names row and column
  kClamp,  // NaN becomes 0; infinities, and magnitudes that the format's half-precision scales
           // cannot carry (beyond 65504), the largest that both the input's type and the format
           // hold
};

// How the scales and zeros of planar integer codes are chosen.
enum class ScaleChoice : uint8_t {
  kRange,          // from the range of the weights; by search where there is importance
  kHalfQuadratic,  // by half-quadratic optimisation (HQQ): robust to outliers, needs no data
};

struct QuantizeOptions {
  // Mean square of the layer's input by column (`cols` values, finite, >= 0): errors of a column
  // count by it. Empty: all count alike.
  std::span<const float> importance = {};
  // Of schemes with has_group_index: the group of each column, `cols` values in [0, GroupsPerRow).
  std::span<const int32_t> group_index = {};
  // kHalfQuadratic: of integer codes with a zero, by channel or group, and without importance.
  ScaleChoice scales = ScaleChoice::kRange;
  NonFinite non_finite = NonFinite::kError;
  int64_t first_row = 0;  // the number of row 0 in messages, for matrices that come in pieces
  ParallelFor parallel = {};
};

// Quantizes `weights` (f32, f16 or bf16, [rows, cols]) to a block format. The bytes depend on the
// weights, the format and the options alone: not on the threads, the compiler or the processor. A
// weight larger than the format can hold is treated as `non_finite` says.
Result<QuantizedTensor> Quantize(TensorView weights, Format format,
                                 const QuantizeOptions& options = {});

// The same into `out`, which holds exactly FormatBytes(format, rows, cols) bytes of any alignment.
Status QuantizeTo(TensorView weights, Format format, std::span<std::byte> out,
                  const QuantizeOptions& options = {});

// Quantizes to a planar scheme by rounding to nearest: absmax, q = round(w / max|w| * (2^(b-1) -
// 1)), or zero-point, q = round((w - min) / (max - min) * (2^b - 1)), or the nearest value of a
// codebook. Codes are chosen under the scale as it is stored, rounded to scale_dtype. Importance
// moves the scales and zeros of channels and groups of integer codes and codebooks to where the
// weighted error is least; f8 codes and per-tensor scales it leaves as they are. NF4 and FP4 give
// the codes and scales of bitsandbytes, which runs over the flattened matrix: the same where the
// group divides `cols`; for others, hand in the matrix as one row. An integer zero point, u8,
// widens the range to hold 0. `table` holds the 2^bits values of Code::kTable, finite and
// ascending.
Result<QuantizedTensor> Quantize(TensorView weights, const Scheme& scheme,
                                 const QuantizeOptions& options = {},
                                 std::span<const float> table = {});

// Writes the decoded weights to `out` (f32, f16 or bf16, the same rows and cols). In f32 the result
// is exact to the bit on every machine.
Status Dequantize(const QuantizedTensor& tensor, MutableTensorView out,
                  const ParallelFor& parallel = {});

// The same straight from blocks in the caller's memory, of any alignment.
Status Dequantize(Format format, std::span<const std::byte> blocks, MutableTensorView out,
                  const ParallelFor& parallel = {});

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_H_
