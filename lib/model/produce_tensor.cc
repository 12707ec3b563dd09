#include "lib/model/produce_tensor.h"

#include <algorithm>

namespace nibble {
namespace {

// Mean squares of the inputs of matrix m of a tensor; empty where nothing is known. The older
// format stacks the experts of a layer in one row of statistics.
std::vector<float> ImportanceOf(const LayerStatistics* layer, int64_t m, int64_t cols) {
  if (layer == nullptr) return {};
  const int64_t count = layer->matrices() == 1 ? layer->counts[0] : layer->counts[m];
  if (count <= 0) return {};
  const auto first = layer->sum_squares.begin() + m * cols;
  std::vector<float> means(first, first + cols);
  for (float& mean : means) mean /= static_cast<float>(count);
  return means;
}

}  // namespace

std::optional<DType> ScalarType(Format format) {
  switch (format) {
    case Format::kF32:
      return DType::kF32;
    case Format::kF16:
      return DType::kF16;
    case Format::kBF16:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

int64_t RowsPerPiece(int64_t cols) {
  constexpr int64_t kPieceWeights = 1 << 21;
  return std::max<int64_t>(1, kPieceWeights / std::max<int64_t>(1, cols));
}

std::string HashOf(const ImportanceMatrix& importance) {
  ContentHash hash;
  for (const auto& [name, layer] : importance.layers) {
    hash.AddString(name);
    hash.AddNumber(static_cast<uint64_t>(layer.cols));
    for (const int64_t count : layer.counts) hash.AddNumber(static_cast<uint64_t>(count));
    hash.Add(std::as_bytes(std::span(layer.sum_squares)));
  }
  return hash.Hex();
}

ProgressMeter::ProgressMeter(const ModelRunOptions& options, size_t count, uint64_t weights)
    : options_(options) {
  progress_.count = count;
  progress_.weights_total = weights;
}

Status ProgressMeter::Begin(std::string_view tensor) {
  if (begun_) ++progress_.index;
  begun_ = true;
  progress_.tensor = tensor;
  return Report();
}

Status ProgressMeter::Advance(uint64_t weights) {
  progress_.weights_done += weights;
  return Report();
}

Status ProgressMeter::Report() const {
  if (options_.progress && !options_.progress(progress_)) return Cancelled("cancelled");
  return OkStatus();
}

Status ProduceTensor(const ModelSource& source, const TensorTask& tensor, const ModelRecipe& recipe,
                     const ParallelFor& parallel, ContentHash& source_hash, ProgressMeter& meter,
                     const std::function<Status(std::span<const std::byte>)>& sink) {
  const ModelTensor& in = *tensor.source;
  const Format to = tensor.choice.format;
  const int64_t cols = in.cols();
  const int64_t rows = in.dims.size() > 1 ? in.dims[1] : 1;  // of one matrix
  const int64_t matrices = rows == 0 ? 0 : in.rows() / rows;
  const std::string where = source.paths()[0] + ": " + in.name;
  NIBBLE_RETURN_IF_ERROR(meter.Begin(in.name));
  NIBBLE_ASSIGN_OR_RETURN(const Buffer data, source.Read(in));
  NIBBLE_ASSIGN_OR_RETURN(const size_t in_bytes, FormatBytes(in.format, in.rows(), cols));
  if (data.size() != in_bytes) return InternalError("the source gave another size than it told");
  source_hash.BeginTensor(in);
  source_hash.Add(data.bytes());

  const std::optional<DType> scalar = ScalarType(in.format);
  const bool copy = to == in.format && !scalar;  // what has no floats to check passes as it is
  const int64_t step = std::min(RowsPerPiece(cols), rows);
  const size_t in_row = in.rows() == 0 ? 0 : in_bytes / static_cast<size_t>(in.rows());
  NIBBLE_ASSIGN_OR_RETURN(const size_t out_bytes, FormatBytes(to, copy ? 0 : step, cols));
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::Allocate(out_bytes));
  NIBBLE_ASSIGN_OR_RETURN(Tensor decoded,
                          Tensor::Allocate(DType::kF32, copy || scalar ? 0 : step, cols));
  const LayerStatistics* layer =
      recipe.importance != nullptr && GetFormatInfo(to).use == FormatUse::kWeight
          ? recipe.importance->Find(in.name)
          : nullptr;

  for (int64_t m = 0; m < matrices; ++m) {
    const std::vector<float> importance = ImportanceOf(copy ? nullptr : layer, m, cols);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      const int64_t row = m * rows + first;
      const std::span<const std::byte> piece = data.bytes().subspan(
          static_cast<size_t>(row) * in_row, static_cast<size_t>(count) * in_row);
      if (copy) {
        NIBBLE_RETURN_IF_ERROR(sink(piece));
      } else {
        TensorView weights = {piece.data(), scalar.value_or(DType::kF32), count, cols, cols};
        if (!scalar) {
          MutableTensorView floats = decoded.mutable_view();
          floats.rows = count;
          NIBBLE_RETURN_IF_ERROR(Dequantize(in.format, piece, floats, parallel).WithContext(where));
          weights = floats;
        }
        QuantizeOptions options;
        options.importance = importance;
        options.non_finite = recipe.non_finite;
        options.first_row = row;
        options.parallel = parallel;
        const std::span<std::byte> blocks = out.mutable_bytes().first(
            out_bytes / static_cast<size_t>(step) * static_cast<size_t>(count));
        NIBBLE_RETURN_IF_ERROR(QuantizeTo(weights, to, blocks, options).WithContext(where));
        NIBBLE_RETURN_IF_ERROR(sink(blocks));
      }
      NIBBLE_RETURN_IF_ERROR(meter.Advance(static_cast<uint64_t>(count * cols)));
    }
  }
  source.Release(in);
  return OkStatus();
}

}  // namespace nibble
