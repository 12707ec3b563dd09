// What the GPU backend reaches on this device, in ratios to what a copy and cuBLAS reach in the
// same run. Every timed call uses another of several buffers, together larger than the second-level
// cache. Calls are captured in a CUDA graph, some one after the other, so that the host's time for
// a launch is not measured; times are medians of CUDA events around graphs, divided by their calls.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cuda/dense_plan.h"
#include "nibble/cuda.h"
#include "nibble/matmul.h"
#include "nibble/model_benchmark.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr int kWarmUps = 3, kRepeats = 21;

// Ends the run: a benchmark that goes on after an error measures nothing.
void Check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "gpu_benchmark: %s\n", status.message().c_str());
  std::exit(1);
}
void CheckCuda(cudaError_t error) {
  if (error != cudaSuccess) Check(InternalError(cudaGetErrorString(error)));
}
void CheckBlas(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) Check(InternalError("cuBLAS: " + std::to_string(status)));
}
template <class T>
T Must(Result<T> result) {
  Check(result.status());
  return *std::move(result);
}

cudaStream_t stream;  // of all that is timed

// Median seconds of queue(), by events.
double MedianOfEvents(const std::function<void()>& queue) {
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin));
  CheckCuda(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -kWarmUps; i < kRepeats; ++i) {
    CheckCuda(cudaEventRecord(begin, stream));
    queue();
    CheckCuda(cudaEventRecord(end, stream));
    CheckCuda(cudaEventSynchronize(end));
    float milliseconds = 0;
    CheckCuda(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 0) times.push_back(milliseconds);
  }
  CheckCuda(cudaEventDestroy(begin));
  CheckCuda(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e-3;
}

// Median seconds of one of `calls` calls of call(i), i counting up, in a graph.
double Median(const std::function<void(size_t)>& call, size_t calls = 16) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  call(0);  // what a first call prepares is not for the graph
  CheckCuda(cudaStreamSynchronize(stream));
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (size_t i = 0; i < calls; ++i) call(i);
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  const double seconds = MedianOfEvents([&] { CheckCuda(cudaGraphLaunch(executable, stream)); });
  CheckCuda(cudaGraphExecDestroy(executable));
  CheckCuda(cudaGraphDestroy(graph));
  return seconds / static_cast<double>(calls);
}

// Floats in [-1, 1) from a counter.
std::vector<float> Values(size_t count) {
  std::vector<float> values(count);
  uint32_t state = 1;
  for (float& x : values) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return values;
}

class Benchmark {
 public:
  void Run() {
    Check(cuda::Initialize());
    int device = 0;
    cudaDeviceProp properties;
    CheckCuda(cudaGetDevice(&device));
    CheckCuda(cudaGetDeviceProperties(&properties, device));
    CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    parallel_.stream = stream;
    quantize_.parallel = pool_.parallel_for();
    rotate_bytes_ = 2 * static_cast<size_t>(properties.l2CacheSize);
    std::printf("# %s\n\n%d multiprocessors, %d MiB of second-level cache; medians of %d.\n\n",
                properties.name, properties.multiProcessorCount, properties.l2CacheSize >> 20,
                kRepeats);
    Copy();
    const std::vector<float> values = Values(static_cast<size_t>(kRows * kCols));
    const TensorView host = ViewOf(values.data(), kRows, kCols);
    Dequantized(host);
    Quantized(host);
    CheckBlas(cublasCreate(&blas_));
    CheckBlas(cublasSetStream(blas_, stream));
    Buffer workspace = Must(cuda::Allocate(kBlasWorkspace));
    CheckBlas(cublasSetWorkspace(blas_, workspace.data(), kBlasWorkspace));
    Products(tensors_, values, kRows, kCols);
    Dispatch(values);
    Groups(values);
    tensors_.clear();
    const TensorView other = ViewOf(values.data(), 4096, 11008);
    Products(Tensors(other, {}, kFewSchemes), values, 4096, 11008);
    CheckBlas(cublasDestroy(blas_));
  }

 private:
  static constexpr int64_t kRows = 8192, kCols = 8192;
  static constexpr size_t kBlasWorkspace = size_t{32} << 20;  // what cuBLAS asks for on Hopper

  // Copies enough of something of `bytes` that the cache holds none of them for long.
  size_t Copies(size_t bytes) const { return 2 + rotate_bytes_ / bytes; }

  void Copy() {
    const size_t bytes = size_t{1} << 30;
    Buffer from = Must(cuda::Allocate(bytes)), to = Must(cuda::Allocate(bytes));
    CheckCuda(cudaMemset(from.data(), 0x5A, bytes));
    const double seconds =
        Median([&](size_t) { Check(cuda::Copy(to.mutable_bytes(), from.bytes(), stream)); }, 1);
    bandwidth_ = 2 * static_cast<double>(bytes) / seconds;
    std::printf("A copy of 1 GiB moves %.0f GB/s, read and written: 100%% below.\n\n",
                bandwidth_ * 1e-9);
  }

  double OfBandwidth(double bytes, double seconds) const {
    return 100 * bytes / seconds / bandwidth_;
  }

  // Tensors of random weights on the device, as many as fill the cache.
  std::vector<QuantizedTensor> OnDevice(const QuantizedTensor& tensor) const {
    std::vector<QuantizedTensor> copies;
    for (size_t i = 0; i < Copies(tensor.bytes()); ++i)
      copies.push_back(Must(cuda::ToDevice(tensor)));
    return copies;
  }

  static constexpr Format kFormats[] = {Format::kQ4_0, Format::kQ8_0, Format::kQ4_K,
                                        Format::kQ6_K, Format::kQ2_K, Format::kIQ4_NL};
  static constexpr const char* kSchemes[] = {"int4 sym g128 f16", "int4 asym g128 f16", "nf4 g64",
                                             "int8 sym channel", "f8_e4m3 channel"};
  static constexpr const char* kFewSchemes[] = {"int4 sym g128 f16", "int8 sym channel"};

  using NamedTensors = std::vector<std::pair<std::string, QuantizedTensor>>;
  NamedTensors Tensors(const TensorView& host, std::span<const Format> formats,
                       std::span<const char* const> schemes) {
    NamedTensors tensors;
    for (Format format : formats) {
      tensors.emplace_back(GetFormatInfo(format).name, Must(Quantize(host, format, quantize_)));
    }
    for (const char* name : schemes) {
      tensors.emplace_back(name, Must(Quantize(host, Must(ParseScheme(name)), quantize_)));
    }
    return tensors;
  }

  void Dequantized(const TensorView& host) {
    tensors_ = Tensors(host, kFormats, kSchemes);
    std::printf("| dequantize 8192 x 8192 to f16 | us | of copy |\n|---|---|---|\n");
    const size_t out_bytes = static_cast<size_t>(kRows * kCols) * 2;
    std::vector<Tensor> outs;
    for (size_t i = 0; i < Copies(out_bytes); ++i) {
      outs.push_back(Must(cuda::AllocateTensor(DType::kF16, kRows, kCols)));
    }
    for (const auto& [name, tensor] : tensors_) {
      const auto copies = OnDevice(tensor);
      const double seconds = Median([&](size_t i) {
        Check(
            Dequantize(copies[i % copies.size()], outs[i % outs.size()].mutable_view(), parallel_));
      });
      std::printf("| %s | %.1f | %.0f%% |\n", name.c_str(), seconds * 1e6,
                  OfBandwidth(static_cast<double>(tensor.bytes() + out_bytes), seconds));
    }
  }

  void Quantized(const TensorView& host) {
    std::printf("\n| quantize 8192 x 8192 from f32 | us | of copy |\n|---|---|---|\n");
    const Tensor weights = Must(cuda::ToDevice(host));  // 256 MiB: no cache holds it
    const auto row = [&](const char* name, size_t bytes, double seconds) {
      std::printf("| %s | %.1f | %.0f%% |\n", name, seconds * 1e6,
                  OfBandwidth(static_cast<double>(bytes) + 4.0 * kRows * kCols, seconds));
    };
    QuantizeOptions options;
    options.non_finite = NonFinite::kClamp;  // does not wait to report
    options.parallel = parallel_;
    for (Format format : {Format::kQ4_0, Format::kQ8_0}) {
      const size_t bytes = Must(FormatBytes(format, kRows, kCols));
      Buffer out = Must(cuda::Allocate(bytes));
      row(GetFormatInfo(format).name, bytes, Median([&](size_t) {
            Check(QuantizeTo(weights.view(), format, out.mutable_bytes(), options));
          }));
    }
    for (const char* name : kSchemes) {
      const Scheme scheme = Must(ParseScheme(name));
      size_t bytes = 0;
      const auto quantize = [&] {
        bytes = Must(Quantize(weights.view(), scheme, options)).bytes();
      };
      // Scales that their type may not hold are reported: such times hold the wait for that.
      const bool waits = scheme.scale_dtype != DType::kF32 || !scheme.symmetric;
      const double seconds = waits ? MedianOfEvents(quantize) : Median([&](size_t) { quantize(); });
      row((std::string(name) + (waits ? " (waits)" : "")).c_str(), bytes, seconds);
    }
  }

  // cuBLAS, f16 by f16 to f32.
  double DenseSeconds(const std::vector<QuantizedTensor>& weights, const Tensor& activations,
                      Tensor& out, int64_t m) {
    const float one = 1, zero = 0;
    const int rows = static_cast<int>(weights[0].rows()),
              cols = static_cast<int>(weights[0].cols());
    return Median([&](size_t i) {
      CheckBlas(cublasGemmEx(blas_, CUBLAS_OP_T, CUBLAS_OP_N, rows, static_cast<int>(m), cols, &one,
                             weights[i % weights.size()].plane(Plane::kCodes).data(), CUDA_R_16F,
                             cols, activations.view().data, CUDA_R_16F, cols, &zero,
                             out.mutable_view().data, CUDA_R_32F, rows, CUBLAS_COMPUTE_32F,
                             CUBLAS_GEMM_DEFAULT));
    });
  }

  void Products(const NamedTensors& tensors, const std::vector<float>& values, int64_t rows,
                int64_t cols) {
    const TensorView host = ViewOf(values.data(), rows, cols);
    constexpr int64_t kMs[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096};
    std::printf("\n| product with %lld x %lld, f16 activations, M |", static_cast<long long>(rows),
                static_cast<long long>(cols));
    for (int64_t m : kMs) std::printf(" %lld |", static_cast<long long>(m));
    std::printf(" of copy at 1 |\n|---|");
    for (size_t j = 0; j < std::size(kMs); ++j) std::printf("---|");
    std::printf("---|\n");

    constexpr int64_t kMostM = kMs[std::size(kMs) - 1];
    const Tensor activations = Activations(values, kMostM, cols);
    Tensor out = Must(cuda::AllocateTensor(DType::kF32, kMostM, rows));
    std::vector<double> dense_seconds;
    {
      const QuantizedTensor f16 = Must(Quantize(host, Format::kF16));
      const auto dense = OnDevice(f16);
      std::printf("| cuBLAS f16, us |");
      for (int64_t m : kMs) {
        dense_seconds.push_back(DenseSeconds(dense, activations, out, m));
        std::printf(" %.1f |", dense_seconds.back() * 1e6);
      }
      std::printf(" %.0f%% |\n", OfBandwidth(static_cast<double>(f16.bytes()), dense_seconds[0]));
    }
    // Weights as `name`, packed for a precision.
    const auto row = [&](const std::string& name, const QuantizedTensor& tensor,
                         Precision precision) {
      std::vector<PackedWeights> packed;
      for (const QuantizedTensor& copy : OnDevice(tensor)) {
        packed.push_back(Must(Pack(copy, precision)));
      }
      CheckCuda(cudaDeviceSynchronize());
      std::printf("| %s, times cuBLAS |", name.c_str());
      double first = 0;
      MatmulOptions options;
      options.parallel = parallel_;
      options.precision = precision;
      for (size_t j = 0; j < std::size(kMs); ++j) {
        TensorView a = activations.view();
        MutableTensorView o = out.mutable_view();
        a.rows = o.rows = kMs[j];
        const double seconds =
            Median([&](size_t i) { Check(Matmul(a, packed[i % packed.size()], o, options)); });
        if (j == 0) first = seconds;
        std::printf(" %.2f |", dense_seconds[j] / seconds);
      }
      std::printf(" %.0f%% |\n", OfBandwidth(static_cast<double>(tensor.bytes()), first));
      std::fflush(stdout);
    };
    for (const auto& [name, tensor] : tensors) {
      row(name, tensor, Precision::kInt8);
      // With activations rounded to eight bits on the way.
      if (name == "int8 sym channel" || name == "f8_e4m3 channel") {
        row(name + " W8A8", tensor, Precision::kInt8PerRow);
      }
    }
  }

  // What the thresholds of cuda/dense_plan.cc are to be set by: the kernel of many tokens and
  // dequantizing for cuBLAS, whichever would be chosen.
  void Dispatch(const std::vector<float>& values) {
    constexpr int64_t kMs[] = {256, 512, 1024, 2048, 4096};
    std::printf("\n| 8192 x 8192, us: kernel / dequantized, M |");
    for (int64_t m : kMs) std::printf(" %lld |", static_cast<long long>(m));
    std::printf("\n|---|---|---|---|---|---|\n");
    const Tensor activations = Activations(values, kMs[std::size(kMs) - 1], kCols);
    Tensor out = Must(cuda::AllocateTensor(DType::kF32, kMs[std::size(kMs) - 1], kRows));
    for (const auto& [name, tensor] : tensors_) {
      const PackedWeights packed = Must(Pack(Must(cuda::ToDevice(tensor))));
      CheckCuda(cudaDeviceSynchronize());
      std::printf("| %s |", name.c_str());
      for (int64_t m : kMs) {
        double seconds[2];
        for (const bool dense : {false, true}) {
          const cuda::DenseFrom from(dense ? 1 : INT64_MAX);
          TensorView a = activations.view();
          MutableTensorView o = out.mutable_view();
          a.rows = o.rows = m;
          MatmulOptions options;
          options.parallel = parallel_;
          seconds[dense] = Median([&](size_t) { Check(Matmul(a, packed, o, options)); }, 4);
        }
        std::printf(" %.0f / %.0f |", seconds[0] * 1e6, seconds[1] * 1e6);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }

  // Query, key and value in one call, beside three.
  void Groups(const std::vector<float>& values) {
    constexpr int64_t kMs[] = {1, 16, 64, 256}, kHeads[] = {8192, 1024, 1024};
    std::printf("\n| query, key, value, 8192 columns, us: three calls / one, M |");
    for (int64_t m : kMs) std::printf(" %lld |", static_cast<long long>(m));
    std::printf("\n|---|---|---|---|---|\n");
    const Tensor activations = Activations(values, 256, kCols);
    for (Format format : {Format::kQ4_0, Format::kQ4_K}) {
      // As many triples as the cache does not hold.
      std::vector<PackedWeights> packed;
      std::vector<Tensor> outs;
      for (int64_t rows : kHeads) {
        outs.push_back(Must(cuda::AllocateTensor(DType::kF32, 256, rows)));
      }
      size_t bytes = 0;
      do {
        for (int64_t rows : kHeads) {
          const QuantizedTensor tensor =
              Must(Quantize(ViewOf(values.data(), rows, kCols), format, quantize_));
          bytes += tensor.bytes();
          packed.push_back(Must(Pack(Must(cuda::ToDevice(tensor)))));
        }
      } while (bytes < rotate_bytes_);
      CheckCuda(cudaDeviceSynchronize());
      const size_t triples = packed.size() / 3;
      std::printf("| %s |", GetFormatInfo(format).name);
      for (int64_t m : kMs) {
        TensorView a = activations.view();
        a.rows = m;
        MatmulOptions options;
        options.parallel = parallel_;
        const auto members = [&](size_t i) {
          std::vector<MatmulMember> three;
          for (size_t j = 0; j < 3; ++j) {
            MutableTensorView out = outs[j].mutable_view();
            out.rows = m;
            three.push_back({&packed[i % triples * 3 + j], out, {}, {}});
          }
          return three;
        };
        const double apart = Median([&](size_t i) {
          for (const MatmulMember& member : members(i)) {
            Check(MatmulGroup(a, {&member, 1}, options));
          }
        });
        const double together =
            Median([&](size_t i) { Check(MatmulGroup(a, members(i), options)); });
        std::printf(" %.1f / %.1f |", apart * 1e6, together * 1e6);
      }
      std::printf("\n");
    }
  }

  // f16 [rows, cols]
  Tensor Activations(const std::vector<float>& values, int64_t rows, int64_t cols) const {
    std::vector<F16> halves(static_cast<size_t>(rows * cols));
    for (size_t i = 0; i < halves.size(); ++i) halves[i] = ToF16(values[i]);
    return Must(
        cuda::ToDevice(TensorView{halves.data(), DType::kF16, rows, cols, cols, Device::kCpu}));
  }

  size_t rotate_bytes_ = 0;
  double bandwidth_ = 0;  // bytes a second
  ParallelFor parallel_;
  ThreadPool pool_;
  QuantizeOptions quantize_;  // on the CPU
  cublasHandle_t blas_ = nullptr;
  NamedTensors tensors_;
};

// A whole model: the reference model, which is small, so that the time of a step is what launches
// cost; each line is a graph replayed, but for prompts.
void TimeModel() {
  ModelBenchmarkOptions options;
  options.prompts = {32, 128};
  options.batches = {64};
  options.sequences = {8};
  options.cache.device = Device::kCuda;
  const std::string path = "examples/reference-model";
  const auto timed = Must(BenchmarkModels({&path, 1}, options));
  std::printf("\n| %s | tokens/s of the prompt | decoded | ms a step |\n|---|---|---|---|\n",
              path.c_str());
  for (const auto* points : {&timed[0].prompts, &timed[0].batches, &timed[0].sequences}) {
    for (const BenchmarkPoint& point : *points) {
      std::printf("| %lld x %lld tokens | %.0f | %.0f | %.3f |\n",
                  static_cast<long long>(point.sequences),
                  static_cast<long long>(point.prompt_tokens), point.prefill_tokens_per_second,
                  point.decode_tokens_per_second, point.next_token.p50 * 1e3);
    }
  }
  std::printf("\nThe same tokens in every run: %s; %.1f MB on the device.\n",
              timed[0].same_tokens_in_runs ? "yes" : "NO",
              static_cast<double>(timed[0].device_memory_bytes) * 1e-6);
}

}  // namespace
}  // namespace nibble

int main() {
  nibble::Benchmark().Run();
  nibble::TimeModel();
  return 0;
}
