// LLM.int8(): columns with large activations multiply in f32, all others as int8.
#include "cuda/element.cuh"
#include "cuda/operations.h"
#include "cuda/products.h"
#include "cuda/status.h"
#include "cuda/weights.cuh"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

constexpr int kTokensAtOnce = 4;  // that share a weight

// flags[col]: whether a magnitude in it is not below the threshold.
__global__ void __launch_bounds__(kThreads)
    FindOutliersKernel(const __grid_constant__ Activations activations, float threshold,
                       uint8_t* flags) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= activations.cols) return;
  bool found = false;
  for (int64_t row = 0; row < activations.rows && !found; ++row) {
    found = !(fabsf(activations.At(row, col)) < threshold);
  }
  flags[col] = found;
}

// One block: the flagged columns, ascending, behind their number.
__global__ void __launch_bounds__(kThreads)
    ListColumnsKernel(const uint8_t* flags, int64_t cols, int32_t* count, int32_t* columns) {
  __shared__ int before[kWarps + 1];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, warp = thread / kLanes;
  int32_t total = 0;
  for (int64_t begin = 0; begin < cols; begin += kThreads) {
    const bool flagged = begin + thread < cols && flags[begin + thread] != 0;
    const unsigned ballot = __ballot_sync(0xFFFFFFFFu, flagged);
    if (lane == 0) before[warp + 1] = __popc(ballot);
    __syncthreads();
    int place = total + __popc(ballot & ((1u << lane) - 1));
    for (int w = 0; w < warp; ++w) place += before[w + 1];
    if (flagged) columns[place] = static_cast<int32_t>(begin + thread);
    for (int w = 0; w < kWarps; ++w) total += before[w + 1];
    __syncthreads();
  }
  if (thread == 0) *count = total;
}

// out += activations x weights^T over the listed columns. A warp takes a row of weights and some
// tokens.
__global__ void __launch_bounds__(kThreads)
    AddColumnsKernel(const __grid_constant__ Activations activations,
                     const __grid_constant__ PlanarPlanes weights, const int32_t* count,
                     const int32_t* columns, float* out, int64_t out_stride) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= weights.rows || *count == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const float scale = weights.Scale(weights.ScaleAt(row, 0));
  const uint8_t* codes = weights.codes + row * weights.cols;
  for (int64_t first = int64_t{blockIdx.y} * kTokensAtOnce; first < activations.rows;
       first += int64_t{gridDim.y} * kTokensAtOnce) {
    float sums[kTokensAtOnce] = {};
    for (int i = lane; i < *count; i += kLanes) {
      const int32_t col = columns[i];
      const float weight = scale * static_cast<float>(static_cast<int8_t>(codes[col]));
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t) {
        if (first + t < activations.rows) {
          sums[t] = fmaf(weight, activations.At(first + t, col), sums[t]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTokensAtOnce; ++t) {
      for (int step = 16; step > 0; step /= 2) {
        sums[t] += __shfl_xor_sync(0xFFFFFFFFu, sums[t], step);
      }
      if (lane == 0 && first + t < activations.rows) out[(first + t) * out_stride + row] += sums[t];
    }
  }
}

}  // namespace

Status MatmulLlmInt8(const TensorView& activations, const QuantizedTensor& weights,
                     const MutableTensorView& out, float threshold, const MatmulOptions& options) {
  MatmulOptions regular = options;
  regular.precision = Precision::kInt8PerRow;
  const bool takes = TakesBytes(weights, activations.dtype, regular);
  if (!takes || weights.scheme().code != Code::kUniform || weights.device() != Device::kCuda) {
    return Unsupported(
        "LLM.int8() products need weights \"int8 sym\" by channel or tensor, in device memory");
  }
  NIBBLE_RETURN_IF_ERROR(CheckOperands(activations, weights.rows(), weights.cols(), out, options));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceLimits limits, Limits());
  void* stream = options.parallel.stream;
  const cudaStream_t queue = StreamOf(stream);
  const Activations source = {activations.data, activations.dtype,      activations.rows,
                              activations.cols, activations.row_stride, false};
  // The number of columns, their list, and their flags.
  const size_t cols = static_cast<size_t>(activations.cols);
  NIBBLE_ASSIGN_OR_RETURN(Buffer found, Allocate((1 + cols) * sizeof(int32_t) + cols, stream));
  auto* count = reinterpret_cast<int32_t*>(found.data());
  int32_t* columns = count + 1;
  auto* flags = reinterpret_cast<uint8_t*>(columns + cols);
  FindOutliersKernel<<<BlocksFor(source.cols, kThreads), kThreads, 0, queue>>>(source, threshold,
                                                                               flags);
  ListColumnsKernel<<<1, kThreads, 0, queue>>>(flags, source.cols, count, columns);
  NIBBLE_RETURN_IF_ERROR(LaunchStatus("matmul"));
  NIBBLE_RETURN_IF_ERROR(MatmulBytes(activations, weights, out, regular, limits, flags));
  const int64_t tokens = (source.rows + kTokensAtOnce - 1) / kTokensAtOnce;
  const dim3 grid(BlocksFor(weights.rows(), kWarps),
                  static_cast<unsigned>(tokens < 65535 ? tokens : 65535));
  AddColumnsKernel<<<grid, kThreads, 0, queue>>>(source, PlanesOnDevice(weights), count, columns,
                                                 static_cast<float*>(out.data), out.row_stride);
  return LaunchStatus("matmul");
}

}  // namespace nibble::cuda
