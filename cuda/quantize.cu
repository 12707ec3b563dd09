// Quantize to the formats and schemes whose codes follow from a group's range: the choices of the
// CPU, one rounding an operation, so the same bytes.
#include <algorithm>
#include <string>
#include <utility>

#include "cuda/element.cuh"
#include "cuda/operations.h"
#include "cuda/status.h"
#include "kernels/codec_planar.h"
#include "kernels/planar_fit.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// What kernels report: the first weight that cannot be quantized, the first scale that its type
// cannot hold, as row * width + place; kNone where there is none.
struct Findings {
  unsigned long long bad_weight;
  unsigned long long bad_scale;
};
constexpr unsigned long long kNone = ~0ull;

// A matrix to be quantized; weights beyond `limit` are reported, or clamped to `clamp_to`.
struct Weights {
  const void* data;
  DType dtype;
  int64_t rows, cols, row_stride;
  float limit;
  float clamp_to;
  bool clamp;
  Findings* findings;

  __device__ float Load(int64_t row, int64_t col) const {
    const float x = LoadElement(data, dtype, row * row_stride + col);
    if (fabsf(x) <= limit) return x;
    if (!clamp) {
      atomicMin(&findings->bad_weight, static_cast<unsigned long long>(row * cols + col));
      return 0.0f;
    }
    return x != x ? 0.0f : fminf(fmaxf(x, -clamp_to), clamp_to);
  }
};

__device__ float WarpMax(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ float WarpMin(float x) {
  for (int step = 16; step > 0; step /= 2) x = fminf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// 1 / d as the CPU has it, and whether no code can be had under it.
__device__ float Reciprocal(float d) { return d == 0.0f ? 0.0f : 1.0f / d; }
__device__ bool Overflows(float reciprocal) {
  return fabsf(reciprocal) == __int_as_float(0x7F800000);
}

// One block of 32 weights is a warp's; lane i has weight i.
__device__ void EncodeLane(float w, int lane, BlockQ8_0& block) {
  const float d = WarpMax(fabsf(w)) / 127.0f;
  const float inverse = Reciprocal(d);
  block.qs[lane] =
      static_cast<int8_t>(Overflows(inverse) ? 0 : static_cast<int>(roundf(w * inverse)));
  if (lane == 0) block.d = ToF16(d);
}

__device__ void EncodeLane(float w, int lane, BlockQ4_0& block) {
  // The first weight of the largest magnitude, with its sign, becomes code 0.
  const float magnitude = WarpMax(fabsf(w));
  const unsigned largest = __ballot_sync(kAllLanes, fabsf(w) == magnitude);
  const float d = __shfl_sync(kAllLanes, w, __ffs(static_cast<int>(largest)) - 1) / -8.0f;
  const float inverse = Reciprocal(d);
  const int code = Overflows(inverse) ? 0 : min(static_cast<int>(w * inverse + 8.5f), 15);
  const int high = __shfl_down_sync(kAllLanes, code, 16);
  if (lane < 16) block.qs[lane] = static_cast<uint8_t>(code | high << 4);
  if (lane == 0) block.d = ToF16(d);
}

template <class Block>
__global__ void __launch_bounds__(kThreads)
    EncodeBlocksKernel(Weights weights, Block* blocks, int64_t block_count) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (at >= block_count) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t per_row = weights.cols / 32;
  EncodeLane(weights.Load(at / per_row, at % per_row * 32 + lane), lane, blocks[at]);
}

__global__ void __launch_bounds__(kThreads)
    ConvertKernel(Weights weights, void* out, DType dtype, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  StoreElement(out, dtype, i, weights.Load(i / weights.cols, i % weights.cols));
}

// Where a planar tensor is written.
struct PlanarOut {
  Scheme scheme;
  int64_t groups;      // in a row
  int64_t group_size;  // weights
  uint8_t* codes;
  uint8_t* scales;  // of scale_dtype; with double quantization f32, before they are coded
  uint8_t* zeros;
};

__device__ void StorePlane(uint8_t* plane, DType dtype, int64_t i, float x) {
  if (dtype == DType::kU8) {
    plane[i] = static_cast<uint8_t>(x);
  } else {
    StoreElement(plane, dtype, i, x);
  }
}

__device__ void FitAndStore(const PlanarOut& out, const PlanarCodebook& book, Range range,
                            int64_t at, Findings* findings) {
  const ScaleZero fit = FitRange(out.scheme, book, range);
  if (!(fabsf(fit.scale) <= 3.40282347e38f)) {
    atomicMin(&findings->bad_scale, static_cast<unsigned long long>(at));
  }
  StorePlane(out.scales, out.scheme.scale_dtype, at, fit.scale);
  if (!out.scheme.symmetric) StorePlane(out.zeros, out.scheme.zero_dtype, at, fit.zero);
}

// A warp finds the range of each group, and its scale and zero; with `ranges`, of one scale for the
// whole matrix, it leaves the range of a row there instead.
__global__ void __launch_bounds__(kThreads)
    FitKernel(Weights weights, PlanarOut out, const __grid_constant__ PlanarCodebook book,
              Range* ranges) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (at >= weights.rows * out.groups) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = at / out.groups;
  const int64_t begin = at % out.groups * out.group_size;
  const int64_t end = min(weights.cols, begin + out.group_size);
  float low = weights.Load(row, begin), high = low;
  for (int64_t c = begin + lane; c < end; c += 32) {
    const float x = weights.Load(row, c);
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
  low = WarpMin(low);
  high = WarpMax(high);
  if (lane != 0) return;
  if (ranges != nullptr) {
    ranges[row] = {low, high};
  } else {
    FitAndStore(out, book, {low, high}, at, weights.findings);
  }
}

// One warp joins the rows' ranges.
__global__ void FitTensorKernel(const Range* ranges, int64_t rows, PlanarOut out,
                                const __grid_constant__ PlanarCodebook book, Findings* findings) {
  float low = ranges[0].min, high = ranges[0].max;
  for (int64_t r = threadIdx.x; r < rows; r += 32) {
    low = fminf(low, ranges[r].min);
    high = fmaxf(high, ranges[r].max);
  }
  low = WarpMin(low);
  high = WarpMax(high);
  if (threadIdx.x == 0) FitAndStore(out, book, {low, high}, 0, findings);
}

__device__ uint32_t ChooseCode(const Scheme& s, const PlanarCodebook& book, float x, float scale,
                               float zero) {
  if (book.values_count > 0) {
    return book
        .code_of_rank[NearestRank(book.midpoints, book.values_count, x * InverseScale(scale))];
  }
  const float divisor = scale != 0.0f ? scale : 1.0f;
  if (s.code == Code::kF8E4M3) return FloatToF8E4M3(x / divisor);
  if (s.code == Code::kF8E5M2) return FloatToF8E5M2(x / divisor);
  const int code = ChooseInteger(x, divisor, zero, book.low, book.high);
  return static_cast<uint32_t>(code) & ((1u << s.bits) - 1);
}

// A thread packs eight weights of a row, whose codes begin and end at bytes.
__global__ void __launch_bounds__(kThreads)
    ChooseKernel(Weights weights, PlanarOut out, const __grid_constant__ PlanarCodebook book) {
  const int64_t eights = (weights.cols + 7) / 8;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= weights.rows * eights) return;
  const int64_t row = item / eights, begin = item % eights * 8;
  const int count = static_cast<int>(min(static_cast<int64_t>(8), weights.cols - begin));
  const Scheme& s = out.scheme;
  uint64_t packed = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t at =
        s.granularity == Granularity::kTensor ? 0 : row * out.groups + (begin + i) / out.group_size;
    const float scale = LoadElement(out.scales, s.scale_dtype, at);
    const float zero = s.symmetric ? 0.0f : LoadPlaneFloat(out.zeros, s.zero_dtype, at);
    const uint64_t code = ChooseCode(s, book, weights.Load(row, begin + i), scale, zero);
    packed |= code << (i * s.bits);
  }
  uint8_t* to = out.codes + row * PlanarRowBytes(s.bits, weights.cols) + begin / 8 * s.bits;
  for (int byte = 0; byte < (count * s.bits + 7) / 8; ++byte) {
    to[byte] = static_cast<uint8_t>(packed >> (8 * byte));
  }
}

// Double quantization. The mean is a sum from the first scale to the last, as on the CPU: its value
// depends on the order, so one thread takes it.
__global__ void MeanKernel(const float* scales, int64_t count, uint8_t* super_scales) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(scales[i]);
  StoreElement(super_scales, DType::kF32, (count + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock,
               static_cast<float>(sum / static_cast<double>(count)));
}

// A thread block codes one super-block of scales, a thread each.
__global__ void __launch_bounds__(kScalesPerSuperBlock)
    CodeScalesKernel(const float* scales, int64_t count, uint8_t* codes, uint8_t* super_scales) {
  __shared__ float midpoints[256], maxima[kScalesPerSuperBlock / 32];
  const unsigned t = threadIdx.x;
  if (t < 255) midpoints[t] = (DynamicMapValue(t) + DynamicMapValue(t + 1)) / 2.0f;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kScalesPerSuperBlock + t;
  const float mean = LoadElement(super_scales, DType::kF32, gridDim.x);
  const float difference = at < count ? scales[at] - mean : 0.0f;
  const float warp_maximum = WarpMax(fabsf(difference));
  if (t % 32 == 0) maxima[t / 32] = warp_maximum;
  __syncthreads();
  float maximum = 0;
  for (float m : maxima) maximum = fmaxf(maximum, m);
  if (t == 0) StoreElement(super_scales, DType::kF32, blockIdx.x, maximum);
  if (at < count) {
    codes[at] =
        static_cast<uint8_t>(NearestRank(midpoints, 256, difference * InverseScale(maximum)));
  }
}

// Findings in device memory, with nothing found yet.
Result<Buffer> MakeFindings(void* stream) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Allocate(sizeof(Findings), stream));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaMemsetAsync(buffer.data(), 0xFF, sizeof(Findings), StreamOf(stream)));
  return buffer;
}

// Waits for the stream and tells what was found.
Status Report(const Buffer& buffer, void* stream, const std::string& kind, int64_t first_row,
              int64_t cols, int64_t groups) {
  Findings findings;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(&findings, buffer.data(), sizeof(findings),
                                              cudaMemcpyDeviceToHost, StreamOf(stream)));
  NIBBLE_RETURN_IF_ERROR(Synchronize(stream));
  if (findings.bad_weight != kNone) {
    const int64_t place = static_cast<int64_t>(findings.bad_weight);
    return InvalidArgument("row " + std::to_string(first_row + place / cols) + ", column " +
                           std::to_string(place % cols) +
                           ": not finite, or beyond the largest magnitude that " + kind + " holds");
  }
  if (findings.bad_scale != kNone) {
    const int64_t place = static_cast<int64_t>(findings.bad_scale);
    return InvalidArgument(kind + ": the scale of row " +
                           std::to_string(first_row + place / groups) + ", group " +
                           std::to_string(place % groups) + " is beyond what its type holds");
  }
  return OkStatus();
}

float LargestFinite(DType t) {
  return t == DType::kF16 ? 65504.0f : t == DType::kBF16 ? ToFloat(BF16{0x7F7F}) : 3.40282347e38f;
}

Weights WeightsOf(const TensorView& view, float limit, const QuantizeOptions& options,
                  Buffer* findings) {
  return {view.data,
          view.dtype,
          view.rows,
          view.cols,
          view.row_stride,
          limit,
          std::min(limit, LargestFinite(view.dtype)),
          options.non_finite == NonFinite::kClamp,
          reinterpret_cast<Findings*>(findings->data())};
}

}  // namespace

Status QuantizeTo(const TensorView& weights, Format format, std::span<std::byte> out,
                  const QuantizeOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, FormatBytes(format, weights.rows, weights.cols));
  const char* name = GetFormatInfo(format).name;
  if (out.size() != bytes || reinterpret_cast<uintptr_t>(out.data()) % 4 != 0) {
    return InvalidArgument(std::string("output: not the bytes that ") + name +
                           " needs, or not aligned to 4 bytes");
  }
  if (!options.importance.empty()) {
    return Unsupported(std::string("quantizing to ") + name + " by importance, on the device");
  }
  void* stream = options.parallel.stream;
  const cudaStream_t queue = StreamOf(stream);
  NIBBLE_ASSIGN_OR_RETURN(Buffer findings, MakeFindings(stream));
  const float limit = format == Format::kF32 || format == Format::kBF16
                          ? LargestFinite(format == Format::kF32 ? DType::kF32 : DType::kBF16)
                          : 65504.0f;
  const Weights source = WeightsOf(weights, limit, options, &findings);
  const int64_t count = weights.rows * weights.cols;
  if (count / kThreads >= INT32_MAX) return Unsupported("a matrix too large for one launch");
  const auto scalars = [&](DType dtype) {
    ConvertKernel<<<BlocksFor(count, kThreads), kThreads, 0, queue>>>(source, out.data(), dtype,
                                                                      count);
  };
  switch (format) {
    case Format::kQ8_0:
      EncodeBlocksKernel<<<BlocksFor(count, kThreads), kThreads, 0, queue>>>(
          source, reinterpret_cast<BlockQ8_0*>(out.data()), count / 32);
      break;
    case Format::kQ4_0:
      EncodeBlocksKernel<<<BlocksFor(count, kThreads), kThreads, 0, queue>>>(
          source, reinterpret_cast<BlockQ4_0*>(out.data()), count / 32);
      break;
    case Format::kF32:
      scalars(DType::kF32);
      break;
    case Format::kF16:
      scalars(DType::kF16);
      break;
    case Format::kBF16:
      scalars(DType::kBF16);
      break;
    default:
      return Unsupported(std::string("quantizing to ") + name + " on the device");
  }
  NIBBLE_RETURN_IF_ERROR(LaunchStatus("quantize"));
  if (options.non_finite == NonFinite::kClamp) return OkStatus();
  return Report(findings, stream, name, options.first_row, weights.cols, 1);
}

Result<QuantizedTensor> QuantizePlanar(const TensorView& weights, const Scheme& scheme,
                                       const QuantizeOptions& options,
                                       std::span<const float> table) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  const std::string name = SchemeName(scheme);
  if (!options.importance.empty() || scheme.has_group_index || scheme.code == Code::kTable) {
    return Unsupported(name + ": importance, group index and tables, on the device");
  }
  void* stream = options.parallel.stream;
  const cudaStream_t queue = StreamOf(stream);
  const int64_t rows = weights.rows, cols = weights.cols;
  const int64_t groups = GroupsPerRow(scheme, cols);
  const bool one_scale = scheme.granularity == Granularity::kTensor;
  const int64_t scale_count = one_scale ? 1 : rows * groups;
  if (rows * cols / 8 >= INT32_MAX) return Unsupported("a matrix too large for one launch");

  std::array<Buffer, kPlaneCount> planes;
  for (int p = 0; p < kPlaneCount; ++p) {
    NIBBLE_ASSIGN_OR_RETURN(const size_t bytes,
                            PlaneBytes(scheme, static_cast<Plane>(p), rows, cols));
    NIBBLE_ASSIGN_OR_RETURN(planes[static_cast<size_t>(p)], Allocate(bytes, stream));
  }
  const auto plane = [&](Plane p) {
    return reinterpret_cast<uint8_t*>(planes[static_cast<size_t>(p)].data());
  };
  Buffer exact_scales, ranges;
  PlanarOut out = {scheme,
                   groups,
                   scheme.granularity == Granularity::kGroup ? scheme.group_size : cols,
                   plane(Plane::kCodes),
                   plane(Plane::kScales),
                   plane(Plane::kZeros)};
  if (scheme.double_quant) {
    NIBBLE_ASSIGN_OR_RETURN(exact_scales, Allocate(static_cast<size_t>(scale_count) * 4, stream));
    out.scales = reinterpret_cast<uint8_t*>(exact_scales.data());
  }
  if (one_scale) {
    NIBBLE_ASSIGN_OR_RETURN(ranges, Allocate(static_cast<size_t>(rows) * sizeof(Range), stream));
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer findings, MakeFindings(stream));
  const Weights source = WeightsOf(weights, LargestFinite(DType::kF32), options, &findings);
  const PlanarCodebook book = MakePlanarCodebook(scheme, nullptr);
  Range* row_ranges = reinterpret_cast<Range*>(ranges.data());

  FitKernel<<<BlocksFor(rows * groups, kThreads / 32), kThreads, 0, queue>>>(source, out, book,
                                                                             row_ranges);
  if (one_scale) {
    FitTensorKernel<<<1, 32, 0, queue>>>(row_ranges, rows, out, book, source.findings);
  }
  ChooseKernel<<<BlocksFor(rows * ((cols + 7) / 8), kThreads), kThreads, 0, queue>>>(source, out,
                                                                                     book);
  if (scheme.double_quant) {
    const float* exact = reinterpret_cast<const float*>(exact_scales.data());
    MeanKernel<<<1, 1, 0, queue>>>(exact, scale_count, plane(Plane::kSuperScales));
    CodeScalesKernel<<<BlocksFor(scale_count, kScalesPerSuperBlock), kScalesPerSuperBlock, 0,
                       queue>>>(exact, scale_count, plane(Plane::kScales),
                                plane(Plane::kSuperScales));
  }
  NIBBLE_RETURN_IF_ERROR(LaunchStatus("quantize"));
  NIBBLE_RETURN_IF_ERROR(Report(findings, stream, name, options.first_row, cols, groups));
  return QuantizedTensor::Create(scheme, rows, cols, std::move(planes));
}

}  // namespace nibble::cuda
