// Packing on the device: a thread makes a word of a record.
#include "cuda/element.h"
#include "cuda/pack.h"
#include "cuda/products.h"
#include "cuda/status.h"
#include "cuda/weights.h"

namespace nibble::cuda {
namespace {

constexpr int kPackThreads = 256;

template <class Format, class Source>
__global__ void __launch_bounds__(kPackThreads)
    PackKernel(Source source, const __grid_constant__ PackedMatrix matrix, uint32_t* records) {
  const int words = matrix.template record_bytes<Format>() / 4;
  const int64_t per_tile = matrix.template records_per_tile<Format>();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  const int64_t record = at / words;
  if (record >= matrix.row_tiles() * per_tile) return;
  records[at] = RecordWord<Format>(source, matrix, record / per_tile, record % per_tile,
                                   static_cast<int>(at % words));
}

// The largest magnitude of weights, as the bits of a float, whose order is that of numbers here.
template <class Format>
__global__ void __launch_bounds__(kPackThreads)
    LargestKernel(const __grid_constant__ PackedMatrix matrix, uint32_t* largest) {
  constexpr int kPlaces = Format::kSteps * 8;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  const int64_t record = at / kPlaces;
  float mine = 0;
  if (record < matrix.row_tiles() * matrix.template records_per_tile<Format>()) {
    const int place = static_cast<int>(at % kPlaces), step = place / 8;
    const uint8_t* bytes = matrix.records + record * matrix.template record_bytes<Format>();
    mine = LargestUnderScales<Format>(matrix, bytes, step / kPanelSteps, step % kPanelSteps,
                                      place % 8);
  }
  const uint32_t most = __reduce_max_sync(0xFFFFFFFFu, __float_as_uint(mine));
  if (threadIdx.x % 32 == 0) atomicMax(largest, most);
}

__global__ void MultiplierKernel(const uint32_t* largest, float* multiplier) {
  const float found = MultiplierFor(__uint_as_float(*largest));
  multiplier[0] = found;
  multiplier[1] = 1.0f / found;
  multiplier[2] = 0.0f;
  multiplier[3] = 1.0f;
}

__global__ void __launch_bounds__(kPackThreads)
    ArrangeKernel(const __grid_constant__ Activations activations, const int32_t* rows,
                  int64_t tokens, const int32_t* order, DType type, int64_t stride, void* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  const int64_t token = at / stride, col = at % stride;
  if (token >= tokens) return;
  const int64_t row = rows == nullptr ? token : rows[token];
  float x = 0;
  if (col < activations.cols && row >= 0 && row < activations.rows) {
    x = activations.At(row, order == nullptr ? col : order[col]);
  }
  StoreElement(out, type, at, x);
}

}  // namespace

Status LaunchPack(const QuantizedTensor& weights, const PackedPlan& packed, cudaStream_t stream) {
  const PackedMatrix& matrix = packed.matrix;
  const PlanarPlanes planes = weights.is_block_format() ? PlanarPlanes() : PlanesOf(weights);
  return VisitPackSource(
      packed, weights, planes, matrix.order, [&](auto format, const auto& source) -> Status {
        using Format = decltype(format);
        const int64_t words = matrix.row_tiles() * matrix.records_per_tile<Format>() *
                              (matrix.record_bytes<Format>() / 4);
        if (words / kPackThreads >= INT32_MAX) {
          return Unsupported("pack: a matrix too large for one launch");
        }
        PackKernel<Format><<<BlocksFor(words, kPackThreads), kPackThreads, 0, stream>>>(
            source, matrix, reinterpret_cast<uint32_t*>(const_cast<uint8_t*>(matrix.records)));
        return LaunchStatus("pack");
      });
}

Status LaunchFindMultiplier(const PackedPlan& packed, uint32_t* scratch, float* multiplier,
                            cudaStream_t stream) {
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(scratch, 0, sizeof(*scratch), stream));
  return VisitPackedFormat(packed.kind, [&](auto format) -> Status {
    using Format = decltype(format);
    const int64_t places =
        packed.matrix.row_tiles() * packed.matrix.records_per_tile<Format>() * (Format::kSteps * 8);
    LargestKernel<Format>
        <<<BlocksFor(places, kPackThreads), kPackThreads, 0, stream>>>(packed.matrix, scratch);
    MultiplierKernel<<<1, 1, 0, stream>>>(scratch, multiplier);
    return LaunchStatus("pack");
  });
}

Status LaunchArrange(const Activations& activations, const int32_t* rows, int64_t tokens,
                     const int32_t* order, DType type, int64_t stride, void* out,
                     cudaStream_t stream) {
  const int64_t count = tokens * stride;
  if (count / kPackThreads >= INT32_MAX) return Unsupported("matmul: too many activations");
  ArrangeKernel<<<BlocksFor(count, kPackThreads), kPackThreads, 0, stream>>>(
      activations, rows, tokens, order, type, stride, out);
  return LaunchStatus("matmul");
}

}  // namespace nibble::cuda
