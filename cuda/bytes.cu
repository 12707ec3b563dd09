// Products of bytes: the rounding of activations, the kernel of cuda/bytes.h, and a plain one for
// weights whose rows are not aligned.
#include "cuda/bytes.h"

#include "cuda/element.h"
#include "cuda/launch.cuh"
#include "cuda/operations.h"
#include "cuda/products.h"
#include "cuda/round_row.h"
#include "cuda/status.h"
#include "cuda/unit_kernel.cuh"
#include "cuda/weights.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

template <DType kType, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    BytesKernel(const __grid_constant__ BytesArguments args) {
  RunUnits<BytesBlock<kType, kTokens>>(args);
}

// A warp takes a row of weights, of any alignment, and all tokens.
template <DType kType>
__global__ void __launch_bounds__(kThreads)
    PlainBytesKernel(const __grid_constant__ BytesArguments args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= args.weights.rows) return;
  const uint8_t* weights = args.weights.codes + row * args.weights.cols;
  const float scale = args.ScaleOf(row);
  for (int64_t token = 0; token < args.tokens; ++token) {
    const uint8_t* activations = args.activations + token * args.activation_stride;
    SumOf<kType> sum = 0;
    for (int64_t col = threadIdx.x % kLanes; col < args.weights.cols; col += kLanes) {
      if constexpr (kType == DType::kI8) {
        sum += static_cast<int8_t>(weights[col]) * static_cast<int8_t>(activations[col]);
      } else {
        sum = fmaf(F8E4M3ToFloat(weights[col]), F8E4M3ToFloat(activations[col]), sum);
      }
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    if (threadIdx.x % kLanes == 0) args.Store(token, row, scale, static_cast<float>(sum));
  }
}

template <DType kType>
__global__ void __launch_bounds__(kThreads)
    RoundKernel(const __grid_constant__ RoundRow<kType> round) {
  __shared__ uint32_t most[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  round.FindLargest(DeviceWarp{thread % kLanes}, thread / kLanes, blockIdx.x, most);
  __syncthreads();
  round.Write(thread, blockIdx.x, most);
}

template <DType kType>
Status LaunchBytes(BytesArguments args, const DeviceLimits& limits, cudaStream_t stream) {
  const auto is_aligned = [](const void* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 16 == 0;
  };
  const PlanarPlanes& w = args.weights;
  args.plan = PlanBytes(w.rows, w.cols, args.tokens, limits);
  const BytesPlan& plan = args.plan;
  if (!is_aligned(w.codes, w.cols) || !is_aligned(args.activations, args.activation_stride) ||
      (kType == DType::kF8E4M3 && !limits.has_float8) || plan.blocks == 0 ||
      plan.blocks > INT32_MAX) {
    PlainBytesKernel<kType><<<BlocksFor(w.rows, kWarps), kThreads, 0, stream>>>(args);
    return LaunchStatus("matmul");
  }
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits));
  const auto launch = [&]<int kTokens>() {
    return LaunchKernel<BytesKernel<kType, kTokens>>(grid, kThreads, plan.shared_bytes, plan.splits,
                                                     stream, args);
  };
  if (plan.tokens == 64) return launch.template operator()<64>();
  if (plan.tokens == 128) return launch.template operator()<128>();
  return launch.template operator()<256>();
}

}  // namespace

bool TakesBytes(const QuantizedTensor& weights, DType activations, const MatmulOptions& options) {
  if (weights.is_block_format()) return false;
  const Scheme& s = weights.scheme();
  const bool is_int8 = s.code == Code::kUniform && s.bits == 8 && s.symmetric;
  if (!is_int8 && s.code != Code::kF8E4M3) return false;
  if (s.granularity == Granularity::kGroup || weights.cols() > kMostByteCols) return false;
  if (activations == DType::kI8) return is_int8;
  if (activations == DType::kF8E4M3) return !is_int8;
  return options.precision == Precision::kInt8PerRow;
}

Status MatmulBytes(const TensorView& activations, const QuantizedTensor& weights,
                   const MutableTensorView& out, const MatmulOptions& options,
                   const DeviceLimits& limits, const uint8_t* skipped) {
  const cudaStream_t stream = StreamOf(options.parallel.stream);
  const bool is_int8 = weights.scheme().code == Code::kUniform;
  if (activations.rows > INT32_MAX) return Unsupported("matmul: too many activation rows");
  BytesArguments args = {};
  args.tokens = activations.rows;
  args.weights = PlanesOf(weights);
  args.bias = options.bias.empty() ? nullptr : options.bias.data();
  args.out = static_cast<float*>(out.data);
  args.out_stride = out.row_stride;
  args.accumulate = options.accumulate;
  Buffer codes, scales;  // go back to the stream's pool behind the kernels
  if (DTypeBytes(activations.dtype) == 1) {
    args.activations = static_cast<const uint8_t*>(activations.data);
    args.activation_stride = activations.row_stride;
    args.activation_scales = options.activation_scales.data();
    args.one_activation_scale = options.activation_scales.size() == 1;
  } else {
    args.activation_stride = (activations.cols + 15) / 16 * 16;
    NIBBLE_ASSIGN_OR_RETURN(codes,
                            Allocate(static_cast<size_t>(args.tokens * args.activation_stride),
                                     options.parallel.stream));
    NIBBLE_ASSIGN_OR_RETURN(scales, Allocate(static_cast<size_t>(args.tokens) * sizeof(float),
                                             options.parallel.stream));
    auto* to = reinterpret_cast<uint8_t*>(codes.data());
    auto* rounded_scales = reinterpret_cast<float*>(scales.data());
    args.activations = to;
    args.activation_scales = rounded_scales;
    const Activations source = {activations.data, activations.dtype,      activations.rows,
                                activations.cols, activations.row_stride, false};
    const unsigned blocks = static_cast<unsigned>(args.tokens);
    if (is_int8) {
      RoundKernel<DType::kI8><<<blocks, kThreads, 0, stream>>>(
          RoundRow<DType::kI8>{source, skipped, args.activation_stride, to, rounded_scales});
    } else {
      RoundKernel<DType::kF8E4M3><<<blocks, kThreads, 0, stream>>>(
          RoundRow<DType::kF8E4M3>{source, skipped, args.activation_stride, to, rounded_scales});
    }
    NIBBLE_RETURN_IF_ERROR(LaunchStatus("matmul"));
  }
  return is_int8 ? LaunchBytes<DType::kI8>(args, limits, stream)
                 : LaunchBytes<DType::kF8E4M3>(args, limits, stream);
}

}  // namespace nibble::cuda
