#include "nibble/quantize.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>

#include "kernels/convert.h"
#include "kernels/dequantize.h"
#include "kernels/encode.h"
#include "lib/quantize/checks.h"
#include "lib/quantize/planar.h"
#include "nibble/backend.h"

namespace nibble {
namespace {

// Rows a task takes: enough weights that handing it out costs nothing, few enough that the last
// tasks end together.
int64_t RowsPerTask(int64_t rows, int64_t cols, int workers) {
  constexpr int64_t kWeights = 1 << 15;
  const int64_t cheap = std::max<int64_t>(1, kWeights / cols);
  const int64_t fair = std::max<int64_t>(1, rows / (8 * std::max(1, workers)));
  return std::min(cheap, fair);
}

// Calls function(first_row, last_row, worker) over all rows.
template <class Function>
void ForRows(int64_t rows, int64_t cols, const ParallelFor& parallel, const Function& function) {
  const int64_t step = RowsPerTask(rows, cols, parallel.workers);
  parallel((rows + step - 1) / step, [&](int64_t task, int worker) {
    function(task * step, std::min(rows, (task + 1) * step), worker);
  });
}

// Whether elements of `dtype` may be read in place at every row.
bool IsAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % DTypeBytes(view.dtype) == 0;
}

void Clamp(float* row, int64_t cols, float limit) {
  for (int64_t i = 0; i < cols; ++i) {
    row[i] = std::isnan(row[i]) ? 0 : std::clamp(row[i], -limit, limit);
  }
}

Status BeyondError(float value, int64_t row, int64_t col, const FormatInfo& info, float limit) {
  const std::string where = "row " + std::to_string(row) + ", column " + std::to_string(col);
  if (!std::isfinite(value)) {
    return InvalidArgument(std::string(std::isnan(value) ? "NaN" : "infinity") + " at " + where);
  }
  char text[64];
  std::snprintf(text, sizeof(text), "%g at ", static_cast<double>(value));
  std::string message = text + where + " is beyond the largest magnitude that " + info.name;
  std::snprintf(text, sizeof(text), " holds, %g", static_cast<double>(limit));
  return InvalidArgument(message + text);
}

}  // namespace

Status QuantizeTo(TensorView weights, Format format, std::span<std::byte> out,
                  const QuantizeOptions& options) {
  if (weights.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(weights.device));
    return backend->quantize_to(weights, format, out, options);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, FormatBytes(format, weights.rows, weights.cols));
  const FormatInfo& info = GetFormatInfo(format);
  if (!info.can_encode()) return Unsupported(std::string("cannot quantize to ") + info.name);
  if (out.size() != bytes) {
    return InvalidArgument("output of " + std::to_string(out.size()) + " bytes where " + info.name +
                           " needs " + std::to_string(bytes));
  }
  if (out.data() == nullptr) return InvalidArgument("output: null pointer");
  NIBBLE_RETURN_IF_ERROR(CheckImportance(options.importance, weights.cols));

  const int64_t cols = weights.cols;
  const size_t row_bytes = bytes / static_cast<size_t>(weights.rows);
  const float* importance = options.importance.empty() ? nullptr : options.importance.data();
  const float limit = LargestMagnitude(format);
  const bool in_place = weights.dtype == DType::kF32 && IsAligned(weights);
  const bool is_copy = in_place && format == Format::kF32;
  const int workers = std::max(1, options.parallel.workers);
  const bool is_searched = IsSearched(format, importance != nullptr);
  const int64_t batch = is_searched ? std::min(BatchRows(cols), weights.rows) : 1;
  NIBBLE_ASSIGN_OR_RETURN(Tensor scratch, Tensor::Allocate(DType::kF32, workers * batch, cols));

  // The first row with a weight that cannot be quantized: the same row for any order of tasks,
  // since only rows behind one that is known are skipped.
  std::atomic<int64_t> bad_row{weights.rows};
  // Row r as floats that the format can carry: in place, or in `copy`; nullptr where it has none.
  const auto prepare = [&](int64_t r, float* copy) -> const float* {
    const float* row = static_cast<const float*>(weights.Row(r));
    if (!in_place) {
      ConvertToFloat(weights.dtype, weights.Row(r), cols, copy);
      row = copy;
    }
    if (FirstBeyond(row, cols, limit) == cols) return row;
    if (options.non_finite == NonFinite::kError) return nullptr;
    if (in_place) std::copy(row, row + cols, copy);
    Clamp(copy, cols, std::min(limit, LargestFinite(weights.dtype)));
    return copy;
  };
  ForRows(weights.rows, cols, options.parallel, [&](int64_t first, int64_t last, int worker) {
    std::array<const float*, kMaxBatchRows> rows;
    for (int64_t r = first; r < last && r < bad_row.load(std::memory_order_relaxed);) {
      const int64_t begin = r;
      std::byte* to = out.data() + static_cast<size_t>(r) * row_bytes;
      // A copy and its check in one pass: both are bound by memory.
      if (is_copy && StreamWithin(static_cast<const float*>(weights.Row(r)), cols, limit, to)) {
        ++r;
        continue;
      }
      size_t count = 0;
      for (; r < last && r < begin + batch; ++r) {
        rows[count] = prepare(
            r, static_cast<float*>(scratch.mutable_view().Row(worker * batch + (r - begin))));
        if (rows[count++] != nullptr) continue;
        int64_t known = bad_row.load();
        while (r < known && !bad_row.compare_exchange_weak(known, r)) {
        }
        return;
      }
      EncodeRows(format, {rows.data(), count}, cols, importance, to);
    }
  });
  if (const int64_t r = bad_row.load(); r < weights.rows) {
    float* copy = static_cast<float*>(scratch.mutable_view().Row(0));
    ConvertToFloat(weights.dtype, weights.Row(r), cols, copy);
    const int64_t col = FirstBeyond(copy, cols, limit);
    return BeyondError(copy[col], options.first_row + r, col, info, limit);
  }
  return OkStatus();
}

Result<QuantizedTensor> Quantize(TensorView weights, Format format,
                                 const QuantizeOptions& options) {
  if (weights.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(weights.device));
    NIBBLE_RETURN_IF_ERROR(CheckView(weights, "weights"));
    NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, FormatBytes(format, weights.rows, weights.cols));
    NIBBLE_ASSIGN_OR_RETURN(Buffer out, backend->allocate(bytes, options.parallel.stream));
    NIBBLE_RETURN_IF_ERROR(backend->quantize_to(weights, format, out.mutable_bytes(), options));
    return QuantizedTensor::Create(format, weights.rows, weights.cols, std::move(out));
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor,
                          QuantizedTensor::Allocate(format, weights.rows, weights.cols));
  NIBBLE_RETURN_IF_ERROR(
      QuantizeTo(weights, format, tensor.plane(Plane::kCodes).mutable_bytes(), options));
  return tensor;
}

Status Dequantize(Format format, std::span<const std::byte> blocks, MutableTensorView out,
                  const ParallelFor& parallel) {
  if (out.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(
        const QuantizedTensor tensor,
        QuantizedTensor::Create(format, out.rows, out.cols, Buffer::Borrow(blocks, out.device)));
    return Dequantize(tensor, out, parallel);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(out, "output"));
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, FormatBytes(format, out.rows, out.cols));
  const FormatInfo& info = GetFormatInfo(format);
  if (!info.can_decode()) return Unsupported(std::string(info.name) + " does not hold weights");
  if (blocks.size() != bytes) {
    return InvalidArgument(std::to_string(blocks.size()) + " bytes of " + info.name +
                           " where the shape needs " + std::to_string(bytes));
  }
  if (blocks.data() == nullptr) return InvalidArgument("blocks: null pointer");

  const size_t row_bytes = bytes / static_cast<size_t>(out.rows);
  const bool in_place = out.dtype == DType::kF32 && IsAligned(out);
  ForRows(out.rows, out.cols, parallel, [&](int64_t first, int64_t last, int) {
    // Other types go through a piece of float that stays in the first cache.
    constexpr int64_t kPiece = 2048;
    float piece[kPiece];
    for (int64_t r = first; r < last; ++r) {
      const std::byte* row = blocks.data() + static_cast<size_t>(r) * row_bytes;
      if (in_place) {
        DecodeRow(format, row, out.cols, static_cast<float*>(out.Row(r)));
        continue;
      }
      for (int64_t c = 0; c < out.cols; c += kPiece) {
        const int64_t count = std::min(kPiece, out.cols - c);
        DecodeRow(format, row + static_cast<size_t>(c / info.block_weights) * info.block_bytes,
                  count, piece);
        ConvertFromFloat(
            out.dtype, piece, count,
            static_cast<std::byte*>(out.Row(r)) + static_cast<size_t>(c) * DTypeBytes(out.dtype));
      }
    }
  });
  return OkStatus();
}

Status Dequantize(const QuantizedTensor& tensor, MutableTensorView out,
                  const ParallelFor& parallel) {
  if (out.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(out.device));
    return backend->dequantize(tensor, out, parallel);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(out, "output"));
  if (out.rows != tensor.rows() || out.cols != tensor.cols()) {
    return InvalidArgument("output of " + std::to_string(out.rows) + " x " +
                           std::to_string(out.cols) + " for a tensor of " +
                           std::to_string(tensor.rows()) + " x " + std::to_string(tensor.cols()));
  }
  if (tensor.device() != Device::kCpu) return Unsupported("the tensor is not in host memory");
  if (!tensor.is_block_format()) return DequantizePlanar(tensor, out, parallel);
  return Dequantize(tensor.format(), tensor.plane(Plane::kCodes).bytes(), out, parallel);
}

}  // namespace nibble
