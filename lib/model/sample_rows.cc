#include "lib/model/sample_rows.h"

#include <algorithm>

#include "nibble/quantize.h"

namespace nibble {

Result<Tensor> SampleRows(const ModelSource& source, const ModelTensor& tensor, int64_t weights) {
  const int64_t cols = tensor.cols(), rows = tensor.rows();
  const int64_t count = std::clamp<int64_t>(weights / cols, 1, rows);
  NIBBLE_ASSIGN_OR_RETURN(const Buffer data, source.Read(tensor));
  NIBBLE_ASSIGN_OR_RETURN(const size_t row_bytes, FormatBytes(tensor.format, 1, cols));
  NIBBLE_ASSIGN_OR_RETURN(Tensor sample, Tensor::Allocate(DType::kF32, count, cols));
  for (int64_t i = 0; i < count; ++i) {
    // The middle of each of `count` equal parts.
    const int64_t row = (2 * i + 1) * rows / (2 * count);
    MutableTensorView out = sample.mutable_view();
    out.data = out.Row(i);
    out.rows = 1;
    NIBBLE_RETURN_IF_ERROR(Dequantize(
        tensor.format, data.bytes().subspan(static_cast<size_t>(row) * row_bytes, row_bytes), out));
  }
  source.Release(tensor);
  return sample;
}

}  // namespace nibble
