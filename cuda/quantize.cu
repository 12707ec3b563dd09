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
    return Checked(LoadElement(data, dtype, row * row_stride + col), row, col);
  }
  // Four neighbours; `aligned`: rows begin at multiples of 16 bytes.
  __device__ float4 LoadFour(int64_t row, int64_t col, bool aligned) const {
    if (!aligned || dtype != DType::kF32) {
      return {Load(row, col), Load(row, col + 1), Load(row, col + 2), Load(row, col + 3)};
    }
    const float4 x =
        *reinterpret_cast<const float4*>(static_cast<const float*>(data) + row * row_stride + col);
    return {Checked(x.x, row, col), Checked(x.y, row, col + 1), Checked(x.z, row, col + 2),
            Checked(x.w, row, col + 3)};
  }
  __device__ float Checked(float x, int64_t row, int64_t col) const {
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

// The largest of eight neighbouring lanes, each of which has four weights of a block of 32.
__device__ float EightMax(float x) {
  for (int step = 4; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ float Magnitude(const float4& w) {
  return fmaxf(fmaxf(fabsf(w.x), fabsf(w.y)), fmaxf(fabsf(w.z), fabsf(w.w)));
}

// Blocks are aligned to two bytes.
__device__ void StoreWord(uint8_t* to, uint32_t word) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  halves[0] = static_cast<uint16_t>(word);
  halves[1] = static_cast<uint16_t>(word >> 16);
}

// Lane `part` of the eight of a block has weights 4 part .. + 3; `store`: there is such a block.
__device__ void EncodeQuad(const float4& w, int part, bool store, BlockQ8_0* block) {
  const float d = EightMax(Magnitude(w)) / 127.0f;
  const float inverse = Reciprocal(d);
  const auto code = [&](float x) {
    return Overflows(inverse) ? 0u
                              : static_cast<uint32_t>(static_cast<int>(roundf(x * inverse))) & 0xFF;
  };
  if (!store) return;
  StoreWord(reinterpret_cast<uint8_t*>(block->qs) + 4 * part,
            code(w.x) | code(w.y) << 8 | code(w.z) << 16 | code(w.w) << 24);
  if (part == 0) block->d = ToF16(d);
}

__device__ void EncodeQuad(const float4& w, int part, bool store, BlockQ4_0* block) {
  // The first weight of the largest magnitude, with its sign, becomes code 0.
  const float magnitude = EightMax(Magnitude(w));
  const float mine = fabsf(w.x) == magnitude   ? w.x
                     : fabsf(w.y) == magnitude ? w.y
                     : fabsf(w.z) == magnitude ? w.z
                                               : w.w;
  const unsigned lane = threadIdx.x % 32, first_of_block = lane / 8 * 8;
  const unsigned have = __ballot_sync(kAllLanes, fabsf(mine) == magnitude);
  const int from = __ffs(static_cast<int>(have >> first_of_block & 0xFFu)) - 1;
  const float d =
      __shfl_sync(kAllLanes, mine, static_cast<int>(first_of_block) + max(from, 0)) / -8.0f;
  const float inverse = Reciprocal(d);
  const auto code = [&](float x) {
    return Overflows(inverse)
               ? 0u
               : static_cast<uint32_t>(min(static_cast<int>(x * inverse + 8.5f), 15));
  };
  const uint32_t codes = code(w.x) | code(w.y) << 8 | code(w.z) << 16 | code(w.w) << 24;
  const uint32_t high = __shfl_down_sync(kAllLanes, codes, 4);  // of the weights 16 further
  if (!store || part >= 4) return;
  StoreWord(block->qs + 4 * part, codes | high << 4);
  if (part == 0) block->d = ToF16(d);
}

// A thread takes four weights of a row; rows follow one another along y.
template <class Block>
__global__ void __launch_bounds__(kThreads)
    EncodeBlocksKernel(Weights weights, Block* blocks, bool aligned) {
  const int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t per_row = weights.cols / 32;
  const bool store = quad / 8 < per_row;
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    const float4 w = store ? weights.LoadFour(row, 4 * quad, aligned) : float4{};
    EncodeQuad(w, static_cast<int>(quad % 8), store, blocks + row * per_row + quad / 8);
  }
}

__global__ void __launch_bounds__(kThreads) ConvertKernel(Weights weights, void* out, DType dtype) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= weights.cols) return;
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    StoreElement(out, dtype, row * weights.cols + col, weights.Load(row, col));
  }
}

// Blocks of threads for `items` along a row, and for rows.
dim3 GridOf(int64_t items, int64_t rows) {
  return dim3(BlocksFor(items, kThreads), static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
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

// What ChooseKernel looks up, in shared memory: the values between codes, and codes by rank.
struct Ranks {
  float midpoints[256];
  uint8_t code_of_rank[256];
};

__device__ uint32_t ChooseCode(const Scheme& s, const PlanarCodebook& book, const Ranks& ranks,
                               float x, float scale, float zero) {
  if (book.values_count > 0) {
    return ranks
        .code_of_rank[NearestRank(ranks.midpoints, book.values_count, x * InverseScale(scale))];
  }
  const float divisor = scale != 0.0f ? scale : 1.0f;
  if (s.code == Code::kF8E4M3) return FloatToF8E4M3(x / divisor);
  if (s.code == Code::kF8E5M2) return FloatToF8E5M2(x / divisor);
  const int code = ChooseInteger(x, divisor, zero, book.low, book.high);
  return static_cast<uint32_t>(code) & ((1u << s.bits) - 1);
}

// A thread packs eight weights of a row, whose codes begin and end at bytes; rows follow one
// another along y.
__global__ void __launch_bounds__(kThreads)
    ChooseKernel(Weights weights, PlanarOut out, const __grid_constant__ PlanarCodebook book,
                 bool aligned) {
  __shared__ Ranks ranks;
  for (int i = static_cast<int>(threadIdx.x); i < book.values_count; i += kThreads) {
    ranks.midpoints[i] = book.midpoints[i];
    ranks.code_of_rank[i] = book.code_of_rank[i];
  }
  __syncthreads();
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (begin >= weights.cols) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(8), weights.cols - begin));
  const Scheme& s = out.scheme;
  const int64_t first_group = begin / out.group_size;
  const int to_next_group =
      static_cast<int>(min(static_cast<int64_t>(8), (first_group + 1) * out.group_size - begin));
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    float x[8];
    if (count == 8) {
      const float4 low = weights.LoadFour(row, begin, aligned);
      const float4 high = weights.LoadFour(row, begin + 4, aligned);
      x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
      x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = i < count ? weights.Load(row, begin + i) : 0.0f;
    }
    float scale = 0, zero = 0;
    uint64_t packed = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i >= count) break;
      if (i == 0 || i >= to_next_group) {
        const int64_t group = i < to_next_group ? first_group : (begin + i) / out.group_size;
        const int64_t at = s.granularity == Granularity::kTensor ? 0 : row * out.groups + group;
        scale = LoadElement(out.scales, s.scale_dtype, at);
        zero = s.symmetric ? 0.0f : LoadPlaneFloat(out.zeros, s.zero_dtype, at);
      }
      const uint64_t code = ChooseCode(s, book, ranks, x[i], scale, zero);
      packed |= code << (i * s.bits);
    }
    uint8_t* to = out.codes + row * PlanarRowBytes(s.bits, weights.cols) + begin / 8 * s.bits;
    const int bytes = (count * s.bits + 7) / 8;
    if (bytes == 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(packed);
    } else if (bytes == 8 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
      *reinterpret_cast<uint64_t*>(to) = packed;
    } else {
      for (int byte = 0; byte < bytes; ++byte)
        to[byte] = static_cast<uint8_t>(packed >> (8 * byte));
    }
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
    ConvertKernel<<<GridOf(weights.cols, weights.rows), kThreads, 0, queue>>>(source, out.data(),
                                                                              dtype);
  };
  switch (format) {
    case Format::kQ8_0:
      EncodeBlocksKernel<<<GridOf(weights.cols / 4, weights.rows), kThreads, 0, queue>>>(
          source, reinterpret_cast<BlockQ8_0*>(out.data()), IsAlignedTo16Bytes(weights));
      break;
    case Format::kQ4_0:
      EncodeBlocksKernel<<<GridOf(weights.cols / 4, weights.rows), kThreads, 0, queue>>>(
          source, reinterpret_cast<BlockQ4_0*>(out.data()), IsAlignedTo16Bytes(weights));
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
  if (!options.importance.empty() || scheme.has_group_index || scheme.code == Code::kTable ||
      scheme.code == Code::kAdditive) {
    return Unsupported(name + ": importance, group index, tables and codebooks, on the device");
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
  ChooseKernel<<<GridOf((cols + 7) / 8, rows), kThreads, 0, queue>>>(source, out, book,
                                                                     IsAlignedTo16Bytes(weights));
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
