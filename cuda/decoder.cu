// What a decoder computes between its matrix products, on the device.
#include "cuda/decoder.h"

#include <string>

#include "cuda/decoder_operations.h"
#include "cuda/element.h"
#include "cuda/status.h"
#include "cuda/weights.h"

namespace nibble::cuda {
namespace {

// --- Kernels

template <class Source>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(Source source, const int32_t* tokens, int64_t cols, float scale, float* out) {
  __shared__ float shared[Source::kSharedBytes / sizeof(float) + 1];
  source.Prepare(static_cast<int>(threadIdx.x), kThreads, shared);
  __syncthreads();
  const int64_t row = blockIdx.x, token = tokens[row];
  for (int64_t col = threadIdx.x; col < cols; col += kThreads) {
    out[row * cols + col] = source.Weight(token, col) * scale;
  }
}

__global__ void __launch_bounds__(kThreads) RmsNormKernel(RmsNormRow norm) {
  __shared__ float shared[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  norm.x += blockIdx.x * norm.width;
  norm.out += blockIdx.x * norm.width;
  norm.AddSquares(DeviceWarp{thread % kLanes}, thread / kLanes, shared);
  __syncthreads();
  norm.Write(thread, shared);
}

// visit(i) for every i < count, by a grid of any size.
template <class Visit>
__device__ void ForAll(int64_t count, const Visit& visit) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    visit(i);
  }
}
__global__ void __launch_bounds__(kThreads) AddKernel(float* x, const float* y, int64_t count) {
  ForAll(count, [&](int64_t i) { x[i] += y[i]; });
}
__global__ void __launch_bounds__(kThreads)
    GateKernel(Activation activation, float* gate, const float* up, int64_t count) {
  ForAll(count, [&](int64_t i) { gate[i] = Gated(activation, gate[i], up[i]); });
}
__global__ void __launch_bounds__(kThreads) SoftCapKernel(float* x, int64_t count, float cap) {
  ForAll(count, [&](int64_t i) { x[i] = SoftCapped(x[i], cap); });
}

// A thread moves its columns of all rows, first to last: none is overwritten before it is read.
__global__ void __launch_bounds__(kThreads)
    KeepRowsKernel(const int32_t* rows, int64_t count, int64_t width, float* x) {
  ForAll(width, [&](int64_t col) {
    for (int64_t i = 0; i < count; ++i) x[i * width + col] = x[rows[i] * width + col];
  });
}

// A warp takes a head of a row.
__global__ void __launch_bounds__(kThreads)
    StoreKernel(const __grid_constant__ DecoderBatch batch,
                const __grid_constant__ AttentionLayer layer, float* query, float* key,
                const float* value) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + thread / kLanes;
  const int64_t heads = layer.heads + layer.kv_heads;
  if (at >= batch.rows * heads) return;
  StoreHead(DeviceWarp{thread % kLanes}, batch, layer, at / heads, at % heads, query, key, value);
}

template <int kParts>
__global__ void __launch_bounds__(kThreads)
    AttendKernel(const __grid_constant__ DecoderBatch batch,
                 const __grid_constant__ AttentionLayer layer, const float* query, float* out) {
  __shared__ WarpAttention<kParts> shared[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const AttentionBlock<kParts> block(batch, layer, blockIdx.x, query, out);
  block.AddKeys(DeviceWarp{thread % kLanes}, thread / kLanes, shared);
  __syncthreads();
  block.Combine(thread, shared);
}

__global__ void __launch_bounds__(kThreads) LikeliestKernel(LikeliestRow row, int32_t* out) {
  __shared__ Candidate shared[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  row.logits += blockIdx.x * row.count;
  row.Find(DeviceWarp{thread % kLanes}, thread / kLanes, shared);
  __syncthreads();
  if (thread == 0) out[blockIdx.x] = LikeliestRow::Choose(shared);
}

// --- Launches

constexpr int64_t kMostBlocks = 1 << 14;  // of those that go round

unsigned RoundBlocks(int64_t count) {
  return static_cast<unsigned>(Least((count + kThreads - 1) / kThreads, kMostBlocks));
}
Status CheckBlocks(int64_t blocks) {
  return blocks <= INT32_MAX ? OkStatus() : Unsupported("decoder: too many rows for one launch");
}

Status Embed(const QuantizedTensor& table, const int32_t* tokens, int64_t rows, float scale,
             float* out, void* stream) {
  NIBBLE_RETURN_IF_ERROR(CheckBlocks(rows));
  NIBBLE_RETURN_IF_ERROR(VisitSource(table, [&](auto source) {
    EmbedKernel<<<static_cast<unsigned>(rows), kThreads, 0, StreamOf(stream)>>>(
        source, tokens, table.cols(), scale, out);
  }));
  return LaunchStatus("embed");
}

Status RmsNorm(const float* x, const float* weight, int64_t rows, int64_t width, float eps,
               float* out, void* stream) {
  NIBBLE_RETURN_IF_ERROR(CheckBlocks(rows));
  RmsNormKernel<<<static_cast<unsigned>(rows), kThreads, 0, StreamOf(stream)>>>(
      RmsNormRow{x, weight, width, eps, out});
  return LaunchStatus("norm");
}

Status Add(float* x, const float* y, int64_t count, void* stream) {
  AddKernel<<<RoundBlocks(count), kThreads, 0, StreamOf(stream)>>>(x, y, count);
  return LaunchStatus("add");
}

Status Gate(Activation activation, float* gate, const float* up, int64_t count, void* stream) {
  GateKernel<<<RoundBlocks(count), kThreads, 0, StreamOf(stream)>>>(activation, gate, up, count);
  return LaunchStatus("activation");
}

Status SoftCap(float* x, int64_t count, float cap, void* stream) {
  SoftCapKernel<<<RoundBlocks(count), kThreads, 0, StreamOf(stream)>>>(x, count, cap);
  return LaunchStatus("soft cap");
}

Status KeepRows(const int32_t* rows, int64_t count, int64_t width, float* x, void* stream) {
  KeepRowsKernel<<<RoundBlocks(width), kThreads, 0, StreamOf(stream)>>>(rows, count, width, x);
  return LaunchStatus("rows");
}

Status Store(const DecoderBatch& batch, const AttentionLayer& layer, float* query, float* key,
             const float* value, void* stream) {
  const int64_t warps = batch.rows * (layer.heads + layer.kv_heads);
  NIBBLE_RETURN_IF_ERROR(CheckBlocks(warps));
  StoreKernel<<<BlocksFor(warps, kWarps), kThreads, 0, StreamOf(stream)>>>(batch, layer, query, key,
                                                                           value);
  return LaunchStatus("cache");
}

Status Attend(const DecoderBatch& batch, const AttentionLayer& layer, const float* query,
              float* out, void* stream) {
  const int64_t dims = Largest(layer.head_dim, layer.value_dim);
  if (dims > kMostHeadDims) {
    return Unsupported("attention: heads of more than " + std::to_string(kMostHeadDims) +
                       " dimensions");
  }
  NIBBLE_RETURN_IF_ERROR(CheckBlocks(batch.rows * layer.heads));
  const auto kernel = dims <= 64    ? AttendKernel<2>
                      : dims <= 128 ? AttendKernel<4>
                                    : AttendKernel<8>;
  kernel<<<static_cast<unsigned>(batch.rows * layer.heads), kThreads, 0, StreamOf(stream)>>>(
      batch, layer, query, out);
  return LaunchStatus("attention");
}

Status Likeliest(const float* logits, int64_t rows, int64_t cols, int32_t* out, void* stream) {
  NIBBLE_RETURN_IF_ERROR(CheckBlocks(rows));
  LikeliestKernel<<<static_cast<unsigned>(rows), kThreads, 0, StreamOf(stream)>>>(
      LikeliestRow{logits, cols}, out);
  return LaunchStatus("likeliest");
}

}  // namespace

void SetLaunches(DecoderBackend* decoder) {
  decoder->embed = Embed;
  decoder->rms_norm = RmsNorm;
  decoder->add = Add;
  decoder->gate = Gate;
  decoder->soft_cap = SoftCap;
  decoder->store = Store;
  decoder->attend = Attend;
  decoder->keep_rows = KeepRows;
  decoder->likeliest = Likeliest;
}

}  // namespace nibble::cuda
