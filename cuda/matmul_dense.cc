// Products of many tokens by dequantized weights and cuBLAS.
#include <algorithm>

#include "cuda/blas.h"
#include "cuda/dense_plan.h"
#include "cuda/operations.h"
#include "cuda/products.h"
#include "cuda/status.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

constexpr float kZero = 0.0f, kOne = 1.0f;

// out (+)= bias, and whether the product is to be added to `out` then.
Result<bool> BeginOutput(std::span<const float> bias, int64_t tokens, bool accumulate, float* out,
                         int64_t out_stride, cudaStream_t stream) {
  if (bias.empty()) return accumulate;
  NIBBLE_RETURN_IF_ERROR(LaunchBias(bias.data(), static_cast<int64_t>(bias.size()), tokens,
                                    accumulate, out, out_stride, stream));
  return true;
}

// product.out (+)= ..., `rows` of weights at a time, which decode(first, rows, to) writes to rows
// of weight_stride elements.
template <class Decode>
Status MultiplyDecoded(DenseProduct product, Stream stream, const Decode& decode) {
  const int64_t all = product.rows, most = DenseRows(all, product.weight_stride);
  // Goes back to the stream's pool behind the products.
  NIBBLE_ASSIGN_OR_RETURN(Buffer weights,
                          Allocate(static_cast<size_t>(most * product.weight_stride) * 2, stream));
  product.weights = weights.data();
  float* const out = product.out;
  for (int64_t first = 0; first < all; first += most) {
    product.rows = std::min(most, all - first);
    product.out = out + first;
    NIBBLE_RETURN_IF_ERROR(decode(first, product.rows, weights));
    NIBBLE_RETURN_IF_ERROR(MultiplyDense(product, StreamOf(stream)));
  }
  return OkStatus();
}

}  // namespace

Result<Arranged> Arrange(const Activations& from, DType type, const int32_t* rows, int64_t tokens,
                         const int32_t* order, Stream stream) {
  if (from.dtype == type && from.is_aligned && order == nullptr && rows == nullptr) {
    return Arranged{from, Buffer()};
  }
  const int64_t stride = (from.cols + 7) / 8 * 8;
  Arranged to;
  NIBBLE_ASSIGN_OR_RETURN(
      to.memory, Allocate(static_cast<size_t>(tokens * stride) * DTypeBytes(type), stream));
  NIBBLE_RETURN_IF_ERROR(
      LaunchArrange(from, rows, tokens, order, type, stride, to.memory.data(), StreamOf(stream)));
  to.activations = {to.memory.data(), type, tokens, from.cols, stride, true};
  return to;
}

Status MultiplyPackedDense(const PackedPlan& packed, const Activations& activations,
                           const ProductMember& member, Stream stream) {
  const PackedMatrix& matrix = packed.matrix;
  const bool is_f16 = activations.dtype == DType::kF16;
  std::span<const float> bias;
  if (member.bias != nullptr) bias = {member.bias, static_cast<size_t>(matrix.rows)};
  NIBBLE_ASSIGN_OR_RETURN(const bool accumulate,
                          BeginOutput(bias, member.tokens, member.accumulate, member.out,
                                      member.out_stride, StreamOf(stream)));
  const int64_t stride = VisitPackedFormat(packed.kind, [&](auto format) {
    using Format = decltype(format);
    return matrix.records_per_tile<Format>() * Format::kCols;
  });
  DenseProduct product = {};
  product.type = activations.dtype;
  product.rows = matrix.rows;
  product.cols = matrix.cols;
  product.weight_stride = stride;
  product.activations = activations.data;
  product.tokens = member.tokens;
  product.activation_stride = activations.stride;
  product.out = member.out;
  product.out_stride = member.out_stride;
  product.scalars_on_device = is_f16;
  product.alpha = is_f16 ? matrix.multiplier + 1 : &kOne;
  product.beta = is_f16 ? matrix.multiplier + (accumulate ? 3 : 2) : accumulate ? &kOne : &kZero;
  return MultiplyDecoded(product, stream, [&](int64_t first, int64_t rows, Buffer& to) {
    return LaunchUnpack(packed, activations.dtype, first, rows,
                        reinterpret_cast<uint16_t*>(to.data()), stride, StreamOf(stream));
  });
}

bool TakesDense(const QuantizedTensor& weights, const TensorView& activations,
                const MatmulOptions& options) {
  if (options.precision == Precision::kF32) return false;
  const bool halves = weights.is_block_format() && HalvesOf(activations.dtype) == weights.format();
  const int64_t from = DenseFrom::Or(halves ? kDenseTokensOfHalves : kDenseTokensOfCanonical);
  return activations.rows >= from && HasBlas(StreamOf(options.parallel.stream));
}

Status MultiplyCanonicalDense(const TensorView& activations, const QuantizedTensor& weights,
                              const MutableTensorView& out, const MatmulOptions& options) {
  Stream stream = options.parallel.stream;
  const DType type = OperandType(activations.dtype);
  NIBBLE_ASSIGN_OR_RETURN(
      const Arranged arranged,
      Arrange(ActivationsOf(activations), type, nullptr, activations.rows, nullptr, stream));
  auto* to = static_cast<float*>(out.data);
  NIBBLE_ASSIGN_OR_RETURN(const bool accumulate,
                          BeginOutput(options.bias, out.rows, options.accumulate, to,
                                      out.row_stride, StreamOf(stream)));
  DenseProduct product = {};
  product.type = type;
  product.rows = weights.rows();
  product.cols = weights.cols();
  product.weight_stride = (weights.cols() + 7) / 8 * 8;
  product.activations = arranged.activations.data;
  product.tokens = activations.rows;
  product.activation_stride = arranged.activations.stride;
  product.out = to;
  product.out_stride = out.row_stride;
  product.alpha = &kOne;
  product.beta = accumulate ? &kOne : &kZero;
  if (weights.is_block_format() && weights.format() == HalvesOf(activations.dtype)) {
    product.weights = weights.plane(Plane::kCodes).data();
    product.weight_stride = weights.cols();
    return MultiplyDense(product, StreamOf(stream));
  }
  const auto decode = [&](int64_t first, int64_t rows, Buffer& halves) {
    return DequantizeRows(
        weights, first,
        {halves.data(), type, rows, weights.cols(), product.weight_stride, Device::kCuda},
        options.parallel);
  };
  return MultiplyDecoded(product, stream, decode);
}

}  // namespace nibble::cuda
