// Dequantize: a thread decodes eight neighbouring weights, which lie under one scale in most
// formats, so that it is found once and stores are whole; loads of codes hit the first cache.
#include <algorithm>

#include "cuda/operations.h"
#include "cuda/status.h"
#include "cuda/weights.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 14;  // more only prepare their sources more often

template <class Source>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(Source source, int64_t first_row, int64_t rows, int64_t cols, void* out,
                 DType dtype, int64_t row_stride, bool aligned) {
  __shared__ float shared[Source::kSharedBytes / sizeof(float) + 1];
  source.Prepare(static_cast<int>(threadIdx.x), kThreads, shared);
  __syncthreads();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    for (int64_t col = first; col < cols; col += int64_t{8} * kThreads * gridDim.x) {
      const int64_t at = row * row_stride + col;
      if (col + 8 > cols) {
        for (int64_t c = col; c < cols; ++c) {
          StoreElement(out, dtype, row * row_stride + c, source.Weight(first_row + row, c));
        }
        continue;
      }
      float weights[8];
      source.Eight(first_row + row, col, weights);
      StoreEight(out, dtype, at, weights, aligned);
    }
  }
}

}  // namespace

Status Dequantize(const QuantizedTensor& tensor, const MutableTensorView& out,
                  const ParallelFor& parallel) {
  if (out.rows != tensor.rows()) return InvalidArgument("output of another shape than the tensor");
  return DequantizeRows(tensor, 0, out, parallel);
}

Status DequantizeRows(const QuantizedTensor& tensor, int64_t first, const MutableTensorView& out,
                      const ParallelFor& parallel) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(out, "output"));
  if (out.rows > tensor.rows() - first || out.cols != tensor.cols()) {
    return InvalidArgument("output of another shape than the tensor");
  }
  const int64_t across = std::min<int64_t>(BlocksFor((out.cols + 7) / 8, kThreads), kMostBlocks);
  const int64_t down =
      std::clamp<int64_t>(kMostBlocks / across, 1, std::min<int64_t>(out.rows, 65535));
  const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down));
  NIBBLE_RETURN_IF_ERROR(VisitSource(tensor, [&](auto source) {
    DecodeKernel<<<grid, kThreads, 0, StreamOf(parallel.stream)>>>(
        source, first, out.rows, out.cols, out.data, out.dtype, out.row_stride,
        IsAlignedTo16Bytes(out));
  }));
  return LaunchStatus("dequantize");
}

}  // namespace nibble::cuda
