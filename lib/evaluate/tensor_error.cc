#include "nibble/tensor_error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nibble/quantize.h"

namespace nibble {
namespace {

ErrorSums CompareRows(const float* a, const float* b, int64_t cols) {
  ErrorSums sums;
  sums.weights = static_cast<uint64_t>(cols);
  for (int64_t i = 0; i < cols; ++i) {
    const double x = a[i], y = b[i];
    sums.aa += x * x;
    sums.bb += y * y;
    sums.ab += x * y;
    sums.error += (x - y) * (x - y);
    sums.largest = std::max(sums.largest, std::abs(x - y));
  }
  return sums;
}

// A window of rows of one tensor, decoded to floats.
class RowReader {
 public:
  static Result<RowReader> Open(const ModelSource& source, const ModelTensor& tensor,
                                int64_t window) {
    RowReader reader;
    reader.format_ = tensor.format;
    NIBBLE_ASSIGN_OR_RETURN(reader.data_, source.Read(tensor));
    NIBBLE_ASSIGN_OR_RETURN(reader.row_bytes_, FormatBytes(tensor.format, 1, tensor.cols()));
    NIBBLE_ASSIGN_OR_RETURN(reader.floats_, Tensor::Allocate(DType::kF32, window, tensor.cols()));
    return reader;
  }

  Status Read(int64_t first, int64_t count, const ParallelFor& parallel) {
    MutableTensorView view = floats_.mutable_view();
    view.rows = count;
    return Dequantize(format_,
                      data_.bytes().subspan(static_cast<size_t>(first) * row_bytes_,
                                            static_cast<size_t>(count) * row_bytes_),
                      view, parallel);
  }
  const float* Row(int64_t r) const { return static_cast<const float*>(floats_.view().Row(r)); }

 private:
  Format format_ = Format::kF32;
  Buffer data_;
  size_t row_bytes_ = 0;
  Tensor floats_;
};

}  // namespace

void ErrorSums::Add(const ErrorSums& other) {
  weights += other.weights;
  aa += other.aa;
  bb += other.bb;
  ab += other.ab;
  error += other.error;
  largest = std::max(largest, other.largest);
}

double ErrorSums::Rmse() const {
  return weights == 0 ? 0 : std::sqrt(error / static_cast<double>(weights));
}

double ErrorSums::Nmse() const {
  if (error == 0) return 0;
  return aa == 0 ? std::numeric_limits<double>::infinity() : error / aa;
}

double ErrorSums::SnrDb() const { return -10 * std::log10(Nmse()); }

double ErrorSums::Cosine() const {
  if (error == 0) return 1;
  return aa == 0 || bb == 0 ? 0 : ab / std::sqrt(aa * bb);
}

Result<ErrorSums> CompareTensors(const ModelSource& source_a, const ModelTensor& a,
                                 const ModelSource& source_b, const ModelTensor& b,
                                 const ParallelFor& parallel) {
  const int64_t rows = a.rows(), cols = a.cols();
  if (b.rows() != rows || b.cols() != cols) return InvalidArgument("the shapes differ");
  ErrorSums total;
  if (rows == 0 || cols == 0) return total;
  constexpr int64_t kWindowWeights = 1 << 21;
  const int64_t window = std::clamp<int64_t>(kWindowWeights / cols, 1, rows);
  NIBBLE_ASSIGN_OR_RETURN(RowReader reader_a, RowReader::Open(source_a, a, window));
  NIBBLE_ASSIGN_OR_RETURN(RowReader reader_b, RowReader::Open(source_b, b, window));
  std::vector<ErrorSums> sums(static_cast<size_t>(window));
  for (int64_t first = 0; first < rows; first += window) {
    const int64_t count = std::min(window, rows - first);
    NIBBLE_RETURN_IF_ERROR(reader_a.Read(first, count, parallel));
    NIBBLE_RETURN_IF_ERROR(reader_b.Read(first, count, parallel));
    parallel(count, [&](int64_t r, int) {
      sums[static_cast<size_t>(r)] = CompareRows(reader_a.Row(r), reader_b.Row(r), cols);
    });
    // In row order, so that the sums do not hang on the threads.
    for (int64_t r = 0; r < count; ++r) {
      const ErrorSums& row = sums[static_cast<size_t>(r)];
      total.Add(row);
      if (row.Nmse() > total.worst_row_nmse) {
        total.worst_row_nmse = row.Nmse();
        total.worst_row = first + r;
      }
    }
  }
  source_a.Release(a);
  source_b.Release(b);
  return total;
}

}  // namespace nibble
