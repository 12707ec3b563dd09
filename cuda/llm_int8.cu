// LLM.int8(): columns with large activations multiply in f32, all others as int8.
#include "cuda/element.h"
#include "cuda/operations.h"
#include "cuda/products.h"
#include "cuda/round_row.h"
#include "cuda/status.h"
#include "cuda/weights.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

// flags[col]: whether the column is an outlier.
__global__ void __launch_bounds__(kThreads)
    FindOutliersKernel(const __grid_constant__ Activations activations, float threshold,
                       uint8_t* flags) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col < activations.cols) flags[col] = IsOutlier(activations, col, threshold);
}

__global__ void __launch_bounds__(kThreads)
    ListColumnsKernel(const __grid_constant__ FlaggedColumns flagged, int32_t* count) {
  __shared__ int counts[kWarps];
  const int thread = static_cast<int>(threadIdx.x), index = thread / kLanes;
  const DeviceWarp warp = {thread % kLanes};
  int32_t placed = 0;
  for (int64_t begin = 0; begin < flagged.cols; begin += kThreads) {
    flagged.Count(warp, index, begin, counts);
    __syncthreads();
    placed = flagged.Place(warp, index, begin, placed, counts);
    __syncthreads();
  }
  if (thread == 0) *count = placed;
}

// A warp takes a row of weights and some tokens at a time.
__global__ void __launch_bounds__(kThreads)
    AddColumnsKernel(const __grid_constant__ Activations activations,
                     const __grid_constant__ PlanarPlanes weights, const int32_t* count,
                     const int32_t* columns, float* out, int64_t out_stride) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= weights.rows || *count == 0) return;
  const DeviceWarp warp = {static_cast<int>(threadIdx.x) % kLanes};
  for (int64_t first = int64_t{blockIdx.y} * kTokensAtOnce; first < activations.rows;
       first += int64_t{gridDim.y} * kTokensAtOnce) {
    AddColumns(warp, activations, weights, columns, *count, row, first, out, out_stride);
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
  ListColumnsKernel<<<1, kThreads, 0, queue>>>(FlaggedColumns{flags, source.cols, columns}, count);
  NIBBLE_RETURN_IF_ERROR(LaunchStatus("matmul"));
  NIBBLE_RETURN_IF_ERROR(MatmulBytes(activations, weights, out, regular, limits, flags));
  const int64_t tokens = (source.rows + kTokensAtOnce - 1) / kTokensAtOnce;
  const dim3 grid(BlocksFor(weights.rows(), kWarps),
                  static_cast<unsigned>(tokens < 65535 ? tokens : 65535));
  AddColumnsKernel<<<grid, kThreads, 0, queue>>>(source, PlanesOf(weights), count, columns,
                                                 static_cast<float*>(out.data), out.row_stride);
  return LaunchStatus("matmul");
}

}  // namespace nibble::cuda
