// Quantize to the formats and schemes of cuda/quantize_row.h.
#include "cuda/quantize_row.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cuda/operations.h"
#include "cuda/status.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kLanes;

__device__ DeviceWarp ThisWarp() { return {static_cast<int>(threadIdx.x) % kLanes}; }

// A warp takes 128 weights of a row; rows follow one another along y.
template <class Block>
__global__ void __launch_bounds__(kThreads)
    EncodeBlocksKernel(Weights weights, Block* blocks, bool aligned) {
  const int64_t col =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes) * (4 * kLanes);
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    EncodeWeights(ThisWarp(), weights, row, col, aligned, blocks);
  }
}

__global__ void __launch_bounds__(kThreads) ConvertKernel(Weights weights, void* out, DType dtype) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (col >= weights.cols) return;
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    StoreElement(out, dtype, row * weights.cols + col, weights.Load(row, col));
  }
}

// A block: the range of a row, for all threads.
__device__ Range RangeOfRow(const Weights& weights, int64_t row) {
  __shared__ Range parts[kWarps];
  const int index = static_cast<int>(threadIdx.x) / kLanes;
  const Range part = RangeOfPart(ThisWarp(), weights, row, 0, weights.cols, index, kWarps);
  __syncthreads();  // what was here before has been read
  if (threadIdx.x % kLanes == 0) parts[index] = part;
  __syncthreads();
  return RangeOfAll(parts, 0, kWarps, 1);
}

// A block takes some groups of a row, or all of a row with one: it finds scales, a warp for each
// group, then codes, from weights that are still in a cache. Rows follow one another along y.
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(Weights weights, PlanarOut out, const __grid_constant__ PlanarCodebook book,
                   bool aligned) {
  __shared__ Ranks ranks;
  const int thread = static_cast<int>(threadIdx.x);
  ranks.Fill(thread, kThreads, book);
  const int64_t count = out.groups == 1 ? 1 : GroupsOfBlock(out.group_size, kThreads);
  const int64_t first = blockIdx.x * count, last = min(out.groups, first + count);
  const int64_t end = min(weights.cols, last * out.group_size);
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    if (out.groups == 1) {
      const Range range = RangeOfRow(weights, row);
      if (thread == 0) FitAndStore(out, book, range, row, weights.findings);
    } else {
      for (int64_t group = first + thread / kLanes; group < last; group += kWarps) {
        const Range range = RangeOfGroup(ThisWarp(), weights, out, row, group);
        if (thread % kLanes == 0) {
          FitAndStore(out, book, range, row * out.groups + group, weights.findings);
        }
      }
    }
    __syncthreads();
    for (int64_t begin = first * out.group_size + 8 * thread; begin < end; begin += 8 * kThreads) {
      ChooseEight(weights, out, book, ranks, row, begin, aligned);
    }
  }
}

// One scale for the whole matrix: the rows' ranges, ...
__global__ void __launch_bounds__(kThreads) RangesKernel(Weights weights, Range* ranges) {
  for (int64_t row = blockIdx.x; row < weights.rows; row += gridDim.x) {
    const Range range = RangeOfRow(weights, row);
    if (threadIdx.x == 0) ranges[row] = range;
  }
}
// ... which one block joins, ...
__global__ void __launch_bounds__(kThreads)
    FitTensorKernel(const Range* ranges, int64_t rows, PlanarOut out,
                    const __grid_constant__ PlanarCodebook book, Findings* findings) {
  __shared__ Range parts[kThreads];
  parts[threadIdx.x] = RangeOfAll(ranges, threadIdx.x, rows, kThreads);
  __syncthreads();
  if (threadIdx.x != 0) return;
  FitAndStore(out, book, RangeOfAll(parts, 0, kThreads, 1), 0, findings);
}
// ... and codes.
__global__ void __launch_bounds__(kThreads)
    ChooseKernel(Weights weights, PlanarOut out, const __grid_constant__ PlanarCodebook book,
                 bool aligned) {
  __shared__ Ranks ranks;
  ranks.Fill(static_cast<int>(threadIdx.x), kThreads, book);
  __syncthreads();
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (begin >= weights.cols) return;
  for (int64_t row = blockIdx.y; row < weights.rows; row += gridDim.y) {
    ChooseEight(weights, out, book, ranks, row, begin, aligned);
  }
}

// Double quantization: blocks of a super-block's threads.
__device__ double SumOfBlock(double mine) {
  __shared__ double lanes[kScalesPerSuperBlock];
  const int thread = static_cast<int>(threadIdx.x);
  lanes[thread] = mine;
  for (int step = kScalesPerSuperBlock / 2; step > 0; step /= 2) {
    __syncthreads();
    AddUpper(lanes, thread, step);
  }
  return lanes[0];  // of thread 0
}
__global__ void __launch_bounds__(kScalesPerSuperBlock) SumKernel(ScaleCoder coder) {
  const double sum = SumOfBlock(coder.ScaleOf(blockIdx.x, static_cast<int>(threadIdx.x)));
  if (threadIdx.x == 0) coder.sums[blockIdx.x] = sum;
}
__global__ void __launch_bounds__(kScalesPerSuperBlock) MeanKernel(ScaleCoder coder) {
  const double sum = SumOfBlock(coder.SumsOf(static_cast<int>(threadIdx.x)));
  if (threadIdx.x == 0) coder.StoreMean(sum);
}
__global__ void __launch_bounds__(kScalesPerSuperBlock) CodeScalesKernel(ScaleCoder coder) {
  __shared__ float midpoints[256], maxima[ScaleCoder::kSuperBlockWarps];
  const int thread = static_cast<int>(threadIdx.x);
  coder.FindMaximum(ThisWarp(), thread / kLanes, blockIdx.x, midpoints, maxima);
  __syncthreads();
  coder.Write(thread, blockIdx.x, midpoints, maxima);
}

// Blocks of threads for `items` along a row, and for rows.
dim3 GridOf(int64_t items, int64_t rows) {
  return dim3(BlocksFor(items, kThreads), static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
}

// Findings in device memory, with nothing found yet.
Result<Buffer> MakeFindings(void* stream) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Allocate(sizeof(Findings), stream));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaMemsetAsync(buffer.data(), 0xFF, sizeof(Findings), StreamOf(stream)));
  return buffer;
}

// Waits for the stream and tells what was found.
Status ReportFound(const Buffer& buffer, void* stream, const std::string& kind, int64_t first_row,
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

// Whether no scale of finite weights of a type can be beyond what the scheme's type of scales
// holds. Magnitudes are at most those of the weights, but for ranges that they span to both sides.
bool ScalesAlwaysFit(const Scheme& scheme, DType weights) {
  const float largest = LargestFinite(weights) * (scheme.symmetric ? 1.0f : 2.0f);
  return largest <= LargestFinite(scheme.scale_dtype);
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
  return ReportFound(findings, stream, name, options.first_row, weights.cols, 1);
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
  Buffer exact_scales, sums, ranges;
  PlanarOut out = {scheme,
                   groups,
                   scheme.granularity == Granularity::kGroup ? scheme.group_size : cols,
                   plane(Plane::kCodes),
                   plane(Plane::kScales),
                   plane(Plane::kZeros)};
  if (scheme.double_quant) {
    NIBBLE_ASSIGN_OR_RETURN(exact_scales, Allocate(static_cast<size_t>(scale_count) * 4, stream));
    NIBBLE_ASSIGN_OR_RETURN(
        sums, Allocate(BlocksFor(scale_count, kScalesPerSuperBlock) * sizeof(double), stream));
    out.scales = reinterpret_cast<uint8_t*>(exact_scales.data());
  }
  if (one_scale) {
    NIBBLE_ASSIGN_OR_RETURN(ranges, Allocate(static_cast<size_t>(rows) * sizeof(Range), stream));
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer findings, MakeFindings(stream));
  const Weights source = WeightsOf(weights, LargestFinite(DType::kF32), options, &findings);
  const PlanarCodebook book = MakePlanarCodebook(scheme, nullptr);
  Range* row_ranges = reinterpret_cast<Range*>(ranges.data());

  const bool aligned = IsAlignedTo16Bytes(weights);
  const dim3 by_rows(1, static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  if (one_scale) {
    RangesKernel<<<by_rows.y, kThreads, 0, queue>>>(source, row_ranges);
    FitTensorKernel<<<1, kThreads, 0, queue>>>(row_ranges, rows, out, book, source.findings);
    ChooseKernel<<<GridOf((cols + 7) / 8, rows), kThreads, 0, queue>>>(source, out, book, aligned);
  } else {
    const int64_t groups_of_block = GroupsOfBlock(out.group_size, kThreads);
    const dim3 grid(static_cast<unsigned>((groups + groups_of_block - 1) / groups_of_block),
                    by_rows.y);
    QuantizeKernel<<<grid, kThreads, 0, queue>>>(source, out, book, aligned);
  }
  if (scheme.double_quant) {
    const ScaleCoder coder = {reinterpret_cast<const float*>(exact_scales.data()), scale_count,
                              reinterpret_cast<double*>(sums.data()), plane(Plane::kScales),
                              plane(Plane::kSuperScales)};
    const unsigned blocks = static_cast<unsigned>(coder.super_blocks());
    SumKernel<<<blocks, kScalesPerSuperBlock, 0, queue>>>(coder);
    MeanKernel<<<1, kScalesPerSuperBlock, 0, queue>>>(coder);
    CodeScalesKernel<<<blocks, kScalesPerSuperBlock, 0, queue>>>(coder);
  }
  NIBBLE_RETURN_IF_ERROR(LaunchStatus("quantize"));
  if (options.non_finite == NonFinite::kError || !ScalesAlwaysFit(scheme, weights.dtype)) {
    NIBBLE_RETURN_IF_ERROR(ReportFound(findings, stream, name, options.first_row, cols, groups));
  }
  return QuantizedTensor::Create(scheme, rows, cols, std::move(planes));
}

}  // namespace nibble::cuda
