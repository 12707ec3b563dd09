// Packed weights dequantized to 16-bit floats for dense products, and the biases of those.
#include "cuda/element.h"
#include "cuda/products.h"
#include "cuda/scale_step.h"
#include "cuda/status.h"

namespace nibble::cuda {
namespace {

// A warp takes a record.
template <class Format, DType kType>
__global__ void __launch_bounds__(kThreads)
    UnpackKernel(const __grid_constant__ PackedMatrix weights, int64_t first_tile, int64_t tiles,
                 uint16_t* out, int64_t stride) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + thread / kLanes;
  const int64_t records = weights.template records_per_tile<Format>();
  if (at >= tiles * records) return;
  UnpackRecord<Format, kType>(DeviceWarp{thread % kLanes}, weights, first_tile + at / records,
                              at % records, first_tile * kTileRows, out, stride);
}

__global__ void __launch_bounds__(kThreads)
    BiasKernel(const float* bias, int64_t rows, bool accumulate, float* out, int64_t out_stride) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  float* to = out + static_cast<int64_t>(blockIdx.y) * out_stride + row;
  *to = accumulate ? *to + bias[row] : bias[row];
}

}  // namespace

Status LaunchUnpack(const PackedPlan& packed, DType type, int64_t first_row, int64_t rows,
                    uint16_t* out, int64_t stride, cudaStream_t stream) {
  const PackedMatrix& matrix = packed.matrix;
  return VisitPackedFormat(packed.kind, [&](auto format) -> Status {
    using Format = decltype(format);
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    const unsigned blocks = BlocksFor(tiles * matrix.records_per_tile<Format>(), kWarps);
    const auto kernel = type == DType::kF16 ? UnpackKernel<Format, DType::kF16>
                                            : UnpackKernel<Format, DType::kBF16>;
    kernel<<<blocks, kThreads, 0, stream>>>(matrix, first_row / kTileRows, tiles, out, stride);
    return LaunchStatus("matmul");
  });
}

Status LaunchBias(const float* bias, int64_t rows, int64_t tokens, bool accumulate, float* out,
                  int64_t out_stride, cudaStream_t stream) {
  for (int64_t first = 0; first < tokens; first += 65535) {
    const dim3 grid(BlocksFor(rows, kThreads), static_cast<unsigned>(Least(tokens - first, 65535)));
    BiasKernel<<<grid, kThreads, 0, stream>>>(bias, rows, accumulate, out + first * out_stride,
                                              out_stride);
  }
  return LaunchStatus("matmul");
}

}  // namespace nibble::cuda
