#include "nibble/kernel_benchmark.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/machine_limits.h"
#include "nibble/format.h"
#include "nibble/quantize.h"
#include "nibble/scheme.h"
#include "nibble/speed.h"

namespace nibble {
namespace {

constexpr int64_t kFewRows = 8;  // those read their weights from memory, as a model that decodes
constexpr size_t kCycleBytes = size_t{256} << 20;

// Uniform in [-1, 1).
std::vector<float> Values(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  uint32_t state = 1;
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0f;
  }
  return values;
}

template <class Function>
double Seconds(const Function& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A kernel and its limit, in turn.
template <class Kernel, class Limit>
std::pair<double, double> Medians(int runs, const Kernel& kernel, const Limit& limit) {
  std::vector<double> kernel_seconds, limit_seconds;
  kernel();  // the first touches new memory
  for (int i = 0; i < runs; ++i) {
    limit_seconds.push_back(Seconds(limit));
    kernel_seconds.push_back(std::max(Seconds(kernel), 1e-9));
  }
  return {Quantile(kernel_seconds, 0.5), Quantile(limit_seconds, 0.5)};
}

using Type = std::variant<Format, Scheme>;

Result<Type> ParseKernelType(const std::string& name) {
  if (const FormatInfo* info = FindFormat(name)) {
    if (!info->can_decode()) return InvalidArgument("format " + name + " holds no weights");
    return Type(info->format);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, ParseScheme(name));
  return Type(scheme);
}

bool HasEncoder(const Type& type) {
  const Format* format = std::get_if<Format>(&type);
  return format == nullptr || GetFormatInfo(*format).can_encode();
}

Result<QuantizedTensor> QuantizeValues(const Type& type, TensorView values,
                                       const ParallelFor& parallel) {
  QuantizeOptions options;
  options.parallel = parallel;
  return std::visit([&](const auto& kind) { return Quantize(values, kind, options); }, type);
}

// Formats without an encoder get codes of random bits, of which every scale is of ordinary size.
Result<QuantizedTensor> MakeWeights(const Type& type, int64_t rows, int64_t cols,
                                    const ParallelFor& parallel) {
  if (HasEncoder(type)) {
    const std::vector<float> values = Values(rows * cols);
    return QuantizeValues(type, ViewOf(values.data(), rows, cols), parallel);
  }
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor,
                          QuantizedTensor::Allocate(std::get<Format>(type), rows, cols));
  uint32_t state = 1;
  for (std::byte& b : tensor.plane(Plane::kCodes).mutable_bytes()) {
    state = state * 1664525u + 1013904223u;
    b = static_cast<std::byte>((state >> 24) & 0x3B);  // as halves: below 2
  }
  return tensor;
}

std::vector<std::span<const std::byte>> BytesOf(const QuantizedTensor& tensor) {
  std::vector<std::span<const std::byte>> planes;
  for (int p = 0; p < kPlaneCount; ++p) {
    planes.push_back(tensor.plane(static_cast<Plane>(p)).bytes());
  }
  return planes;
}

std::vector<std::span<const std::byte>> BytesOf(const PackedWeights& packed) {
  return {packed.serialized()};
}

Result<QuantizedTensor> CopyOf(const QuantizedTensor& from) {
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor copy,
                          from.is_block_format()
                              ? QuantizedTensor::Allocate(from.format(), from.rows(), from.cols())
                              : QuantizedTensor::Allocate(from.scheme(), from.rows(), from.cols()));
  for (int p = 0; p < kPlaneCount; ++p) {
    const auto bytes = from.plane(static_cast<Plane>(p)).bytes();
    std::copy(bytes.begin(), bytes.end(), copy.plane(static_cast<Plane>(p)).data());
  }
  return copy;
}

Result<PackedWeights> CopyOf(const PackedWeights& from) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer bytes, Buffer::Allocate(from.serialized().size()));
  std::copy(from.serialized().begin(), from.serialized().end(), bytes.data());
  return PackedWeights::FromBytes(std::move(bytes));
}

template <class Weights>
Result<KernelTiming> TimeMatmul(const Weights& first, const KernelBenchmarkOptions& o) {
  const bool few = o.activation_rows <= kFewRows;
  std::vector<Weights> weights = {first};
  for (size_t bytes = first.bytes(); few && bytes < kCycleBytes; bytes += first.bytes()) {
    NIBBLE_ASSIGN_OR_RETURN(Weights copy, CopyOf(first));
    weights.push_back(std::move(copy));
  }
  const std::vector<float> activations = Values(o.activation_rows * o.cols);
  std::vector<float> out(static_cast<size_t>(o.activation_rows * o.rows));
  MatmulOptions options;
  options.precision = o.precision;
  options.parallel = o.parallel;
  Status status;
  const auto product = [&] {
    for (const Weights& w : weights) {
      Status done = Matmul(ViewOf(activations.data(), o.activation_rows, o.cols), w,
                           ViewOf(out.data(), o.activation_rows, o.rows), options);
      if (!done.ok()) status = std::move(done);
    }
  };
  const BareLoop bare =
      o.precision == Precision::kInt8PerRow ? FastestInt8BareLoop() : FastestBareLoop();
  std::vector<std::span<const std::byte>> pieces;
  for (const Weights& w : weights) {
    for (const auto plane : BytesOf(w)) pieces.push_back(plane);
  }
  const auto limit = [&] { few ? ReadBytes(pieces, o.parallel) : bare.Run(o.parallel); };
  const auto [seconds, limit_seconds] = Medians(o.runs, product, limit);
  NIBBLE_RETURN_IF_ERROR(status);
  const double copies = static_cast<double>(weights.size());
  NIBBLE_ASSIGN_OR_RETURN(const MatmulPlan plan, PlanMatmul(first, o.activation_rows, o.precision));
  KernelTiming timing;
  timing.kernel = plan.kernel;
  timing.seconds = seconds / copies;
  timing.weight_bytes = first.bytes();
  timing.weights = static_cast<uint64_t>(o.rows * o.cols);
  timing.operations = 2.0 * static_cast<double>(o.activation_rows * o.rows * o.cols);
  if (few) {
    timing.limit = "memory read";
    timing.of_limit = limit_seconds / seconds;
  } else if (bare.run != nullptr) {
    timing.limit = bare.name;
    timing.of_limit = timing.operations / timing.seconds / bare.Rate(o.parallel, limit_seconds);
  }
  return timing;
}

Result<KernelTiming> TimeQuantize(const Type& type, const KernelBenchmarkOptions& o) {
  const std::vector<float> values = Values(o.rows * o.cols);
  Result<QuantizedTensor> tensor = InternalError("no run");
  const auto [seconds, none] = Medians(
      o.runs,
      [&] { tensor = QuantizeValues(type, ViewOf(values.data(), o.rows, o.cols), o.parallel); },
      [] {});
  NIBBLE_RETURN_IF_ERROR(tensor.status());
  KernelTiming timing;
  timing.seconds = seconds;
  timing.weight_bytes = tensor->bytes();
  timing.weights = values.size();
  return timing;
}

Result<KernelTiming> TimeDequantize(const Type& type, const KernelBenchmarkOptions& o) {
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor weights,
                          MakeWeights(type, o.rows, o.cols, o.parallel));
  std::vector<float> out(static_cast<size_t>(o.rows * o.cols));
  Status status;
  const auto [seconds, limit_seconds] = Medians(
      o.runs, [&] { status = Dequantize(weights, ViewOf(out.data(), o.rows, o.cols), o.parallel); },
      [&] {
        o.parallel(o.rows, [&](int64_t row, int) {
          std::fill_n(out.data() + row * o.cols, o.cols, 1.0f);
          __asm__ volatile("" : : : "memory");
        });
      });
  NIBBLE_RETURN_IF_ERROR(status);
  KernelTiming timing;
  timing.seconds = seconds;
  timing.weight_bytes = weights.bytes();
  timing.weights = out.size();
  timing.limit = "memory write";
  timing.of_limit = limit_seconds / seconds;
  return timing;
}

}  // namespace

Result<KernelTiming> TimeKernel(const KernelBenchmarkOptions& options) {
  constexpr int64_t kMostWeights = int64_t{1} << 32, kMostRows = 1 << 16;
  if (options.rows < 1 || options.cols < 1 || options.rows > kMostWeights / options.cols ||
      options.activation_rows < 1 || options.activation_rows > kMostRows || options.runs < 1) {
    return InvalidArgument("timing needs between 1 and 2^32 weights, 65,536 rows and a run");
  }
  NIBBLE_ASSIGN_OR_RETURN(const Type type, ParseKernelType(options.type));
  if (options.operation == KernelOperation::kQuantize) {
    if (!HasEncoder(type)) {
      return InvalidArgument("format " + options.type + " can be decoded only");
    }
    return TimeQuantize(type, options);
  }
  if (options.operation == KernelOperation::kDequantize) return TimeDequantize(type, options);
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor weights,
                          MakeWeights(type, options.rows, options.cols, options.parallel));
  if (options.operation == KernelOperation::kMatmul) return TimeMatmul(weights, options);
  NIBBLE_ASSIGN_OR_RETURN(const PackedWeights packed,
                          Pack(weights, options.precision, options.parallel));
  return TimeMatmul(packed, options);
}

}  // namespace nibble
