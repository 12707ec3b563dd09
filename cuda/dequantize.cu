// Dequantize: every thread decodes four neighbouring weights, so that stores are whole and
// coalesced; loads of codes hit the first cache.
#include "cuda/operations.h"
#include "cuda/status.h"
#include "cuda/weights.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

template <class Source>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(Source source, int64_t rows, int64_t cols, void* out, DType dtype,
                 int64_t row_stride, bool aligned) {
  __shared__ float shared[Source::kSharedBytes / sizeof(float) + 1];
  source.Prepare(shared);
  const int64_t quads = (cols + 3) / 4;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= rows * quads) return;
  const int64_t row = item / quads, col = item % quads * 4;
  const int64_t at = row * row_stride + col;
  if (col + 4 > cols) {
    for (int64_t c = col; c < cols; ++c) {
      StoreElement(out, dtype, row * row_stride + c, source.Weight(row, c));
    }
    return;
  }
  const float4 weights = {source.Weight(row, col), source.Weight(row, col + 1),
                          source.Weight(row, col + 2), source.Weight(row, col + 3)};
  StoreFour(out, dtype, at, weights, aligned);
}

}  // namespace

Status Dequantize(const QuantizedTensor& tensor, const MutableTensorView& out,
                  const ParallelFor& parallel) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(out, "output"));
  if (out.rows != tensor.rows() || out.cols != tensor.cols()) {
    return InvalidArgument("output of another shape than the tensor");
  }
  const int64_t items = out.rows * ((out.cols + 3) / 4);
  if (items > int64_t{INT32_MAX} * kThreads)
    return Unsupported("a matrix too large for one launch");
  NIBBLE_RETURN_IF_ERROR(VisitSource(tensor, [&](auto source) {
    DecodeKernel<<<BlocksFor(items, kThreads), kThreads, 0, StreamOf(parallel.stream)>>>(
        source, out.rows, out.cols, out.data, out.dtype, out.row_stride, IsAlignedToFour(out));
  }));
  return LaunchStatus("dequantize");
}

}  // namespace nibble::cuda
