// What the GPU backend reaches on this device, in ratios to what a copy and cuBLAS reach in the
// same run. Every timed call uses another of several buffers, together larger than the second-level
// cache; times are medians of CUDA events around single calls.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "nibble/cuda.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr int kWarmUps = 5, kRepeats = 41;

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

// Median seconds of call(i), i counting up.
double Median(const std::function<void(size_t)>& call) {
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin));
  CheckCuda(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -kWarmUps; i < kRepeats; ++i) {
    CheckCuda(cudaEventRecord(begin));
    call(static_cast<size_t>(i + kWarmUps));
    CheckCuda(cudaEventRecord(end));
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
    rotate_bytes_ = 4 * static_cast<size_t>(properties.l2CacheSize);
    std::printf("# %s\n\n%d multiprocessors, %d MiB of second-level cache; medians of %d.\n\n",
                properties.name, properties.multiProcessorCount, properties.l2CacheSize >> 20,
                kRepeats);
    Copy();
    const std::vector<float> values = Values(static_cast<size_t>(kRows * kCols));
    const TensorView host = ViewOf(values.data(), kRows, kCols);
    Dequantized(host);
    Quantized(host);
    Products(host);
  }

 private:
  static constexpr int64_t kRows = 8192, kCols = 8192;

  // Copies enough of something of `bytes` that the cache holds none of them for long.
  size_t Copies(size_t bytes) const { return 2 + rotate_bytes_ / bytes; }

  void Copy() {
    const size_t bytes = size_t{1} << 30;
    Buffer from = Must(cuda::Allocate(bytes)), to = Must(cuda::Allocate(bytes));
    CheckCuda(cudaMemset(from.data(), 0x5A, bytes));
    const double seconds =
        Median([&](size_t) { Check(cuda::Copy(to.mutable_bytes(), from.bytes())); });
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

  std::vector<std::pair<std::string, QuantizedTensor>> Tensors(const TensorView& host) {
    ThreadPool pool;
    QuantizeOptions options;
    options.parallel = pool.parallel_for();
    std::vector<std::pair<std::string, QuantizedTensor>> tensors;
    for (Format format : kFormats) {
      tensors.emplace_back(GetFormatInfo(format).name, Must(Quantize(host, format, options)));
    }
    for (const char* name : kSchemes) {
      tensors.emplace_back(name, Must(Quantize(host, Must(ParseScheme(name)), options)));
    }
    return tensors;
  }

  void Dequantized(const TensorView& host) {
    tensors_ = Tensors(host);
    std::printf("| dequantize 8192 x 8192 to f16 | us | of copy |\n|---|---|---|\n");
    const size_t out_bytes = static_cast<size_t>(kRows * kCols) * 2;
    std::vector<Tensor> outs;
    for (size_t i = 0; i < Copies(out_bytes); ++i) {
      outs.push_back(Must(cuda::AllocateTensor(DType::kF16, kRows, kCols)));
    }
    for (const auto& [name, tensor] : tensors_) {
      const auto copies = OnDevice(tensor);
      const double seconds = Median([&](size_t i) {
        Check(Dequantize(copies[i % copies.size()], outs[i % outs.size()].mutable_view()));
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
    for (Format format : {Format::kQ4_0, Format::kQ8_0}) {
      const size_t bytes = Must(FormatBytes(format, kRows, kCols));
      Buffer out = Must(cuda::Allocate(bytes));
      row(GetFormatInfo(format).name, bytes, Median([&](size_t) {
            Check(QuantizeTo(weights.view(), format, out.mutable_bytes(), options));
          }));
    }
    // Planar schemes wait for the stream, to report: their times hold that wait.
    for (const char* name : kSchemes) {
      const Scheme scheme = Must(ParseScheme(name));
      size_t bytes = 0;
      const double seconds =
          Median([&](size_t) { bytes = Must(Quantize(weights.view(), scheme, options)).bytes(); });
      row((std::string(name) + " (waits)").c_str(), bytes, seconds);
    }
  }

  void Products(const TensorView& host) {
    std::printf(
        "\n| product with 8192 x 8192, f16 activations, M | 1 | 4 | 16 | of copy at 1 |\n"
        "|---|---|---|---|---|\n");
    constexpr int64_t kMs[] = {1, 4, 16};
    const std::vector<float> values = Values(16 * static_cast<size_t>(kCols));
    std::vector<F16> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i) halves[i] = ToF16(values[i]);
    const Tensor activations = Must(
        cuda::ToDevice(TensorView{halves.data(), DType::kF16, 16, kCols, kCols, Device::kCpu}));
    Tensor out = Must(cuda::AllocateTensor(DType::kF32, 16, kRows));

    const QuantizedTensor f16 = Must(Quantize(host, Format::kF16));
    const auto dense = OnDevice(f16);
    cublasHandle_t blas;
    CheckBlas(cublasCreate(&blas));
    const float one = 1, zero = 0;
    std::vector<double> blas_seconds;
    for (int64_t m : kMs) {
      blas_seconds.push_back(Median([&](size_t i) {
        CheckBlas(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, kRows, static_cast<int>(m), kCols,
                               &one, dense[i % dense.size()].plane(Plane::kCodes).data(),
                               CUDA_R_16F, kCols, activations.view().data, CUDA_R_16F, kCols, &zero,
                               out.mutable_view().data, CUDA_R_32F, kRows, CUBLAS_COMPUTE_32F,
                               CUBLAS_GEMM_DEFAULT));
      }));
    }
    std::printf("| cuBLAS f16 (us) | %.1f | %.1f | %.1f | %.0f%% |\n", blas_seconds[0] * 1e6,
                blas_seconds[1] * 1e6, blas_seconds[2] * 1e6,
                OfBandwidth(static_cast<double>(f16.bytes()), blas_seconds[0]));
    for (const auto& [name, tensor] : tensors_) {
      const auto copies = OnDevice(tensor);
      std::printf("| %s, decoded (times cuBLAS) |", name.c_str());
      double first = 0;
      for (size_t j = 0; j < std::size(kMs); ++j) {
        TensorView a = activations.view();
        MutableTensorView o = out.mutable_view();
        a.rows = o.rows = kMs[j];
        const double seconds =
            Median([&](size_t i) { Check(Matmul(a, copies[i % copies.size()], o)); });
        if (j == 0) first = seconds;
        std::printf(" %.2f |", blas_seconds[j] / seconds);
      }
      std::printf(" %.0f%% |\n", OfBandwidth(static_cast<double>(tensor.bytes()), first));
    }
    CheckBlas(cublasDestroy(blas));
  }

  size_t rotate_bytes_ = 0;
  double bandwidth_ = 0;  // bytes a second
  std::vector<std::pair<std::string, QuantizedTensor>> tensors_;
};

}  // namespace
}  // namespace nibble

int main() {
  nibble::Benchmark().Run();
  return 0;
}
