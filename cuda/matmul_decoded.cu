// The plain product: exact decoded weights, f32. The oracle of the fast kernels, and what serves
// every format and scheme they do not.
#include "cuda/operations.h"
#include "cuda/status.h"
#include "cuda/weights.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // eight warps, an output column each
constexpr int kRows = 4;       // activation rows that share a decoded weight

template <class Source>
__global__ void __launch_bounds__(kThreads)
    ProductKernel(Source source, const void* activations, DType dtype, int64_t m_rows,
                  int64_t activation_stride, int64_t n_rows, int64_t cols, const float* bias,
                  bool accumulate, float* out, int64_t out_stride) {
  __shared__ float shared[Source::kSharedBytes / sizeof(float) + 1];
  source.Prepare(static_cast<int>(threadIdx.x), kThreads, shared);
  __syncthreads();
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t m0 = static_cast<int64_t>(blockIdx.y) * kRows;
  if (n >= n_rows) return;
  float sums[kRows] = {};
  for (int64_t col = threadIdx.x % 32; col < cols; col += 32) {
    const float weight = source.Weight(n, col);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (m0 + m < m_rows) {
        sums[m] = fmaf(weight, LoadElement(activations, dtype, (m0 + m) * activation_stride + col),
                       sums[m]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    for (int step = 16; step > 0; step /= 2) {
      sums[m] += __shfl_xor_sync(0xFFFFFFFFu, sums[m], step);
    }
    if (threadIdx.x % 32 != 0 || m0 + m >= m_rows) continue;
    float* to = out + (m0 + m) * out_stride + n;
    const float sum = bias == nullptr ? sums[m] : sums[m] + bias[n];
    *to = accumulate ? *to + sum : sum;
  }
}

}  // namespace

Status MatmulDecoded(const TensorView& activations, const QuantizedTensor& weights,
                     const MutableTensorView& out, const MatmulOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckOperands(activations, weights.rows(), weights.cols(), out, options));
  const int64_t m_blocks = (activations.rows + kRows - 1) / kRows;
  if (m_blocks > 65535 || weights.rows() / 8 >= INT32_MAX) {
    return Unsupported("matmul: more rows than one launch takes");
  }
  const dim3 grid(BlocksFor(weights.rows(), kThreads / 32), static_cast<unsigned>(m_blocks));
  NIBBLE_RETURN_IF_ERROR(VisitSource(weights, [&](auto source) {
    ProductKernel<<<grid, kThreads, 0, StreamOf(options.parallel.stream)>>>(
        source, activations.data, activations.dtype, activations.rows, activations.row_stride,
        weights.rows(), weights.cols(), options.bias.empty() ? nullptr : options.bias.data(),
        options.accumulate, static_cast<float*>(out.data), out.row_stride);
  }));
  return LaunchStatus("matmul");
}

}  // namespace nibble::cuda
