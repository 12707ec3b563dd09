// Products with additive codebooks, in turn with q2_K's kernel, which takes about as many bits,
// with codebooks that are decoded for an f32 product, and with reading the codebooks' bytes from
// memory.
//
//   GB/s           bytes of all planes a second, packed
//   of_read        the time of reading them over the product's
//   planes         the time of the product with planes that are not packed over this one's
//   q2_K           the time of q2_K's packed product over this one's: above 1, this one is faster
//   decoded        the time of the decoded f32 product over this one's
//
// Weights cycle through 256 MiB, so that they come from memory as they do in a model.
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/turns.h"
#include "kernels/machine_limits.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 4096, kCols = 4096;
constexpr size_t kCycleBytes = size_t{256} << 20;

class Numbers {
 public:
  uint32_t Bits() { return state_ = state_ * 1664525u + 1013904223u; }
  float Value() { return static_cast<float>(static_cast<int32_t>(Bits())) / 2147483648.0f; }

 private:
  uint32_t state_ = 1;
};

// Random codes and entries: products take as long with any.
QuantizedTensor Codebooks(const Scheme& scheme) {
  auto tensor = QuantizedTensor::Allocate(scheme, kRows, kCols);
  if (!tensor.ok() || scheme.scale_dtype != DType::kF16) std::abort();
  Numbers numbers;
  for (std::byte& b : tensor->plane(Plane::kCodes).mutable_bytes()) {
    b = static_cast<std::byte>(numbers.Bits() >> 24);
  }
  for (const Plane plane : {Plane::kTable, Plane::kScales}) {
    const std::span<std::byte> bytes = tensor->plane(plane).mutable_bytes();
    for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
      const uint16_t bits = ToF16(numbers.Value()).bits;
      bytes[i] = static_cast<std::byte>(bits & 255);
      bytes[i + 1] = static_cast<std::byte>(bits >> 8);
    }
  }
  return *std::move(tensor);
}

QuantizedTensor Blocks(Format format) {
  std::vector<float> dense(static_cast<size_t>(kRows * kCols));
  Numbers numbers;
  for (float& w : dense) w = numbers.Value();
  auto tensor = Quantize(ViewOf(std::as_const(dense).data(), kRows, kCols), format);
  if (!tensor.ok()) std::abort();
  return *std::move(tensor);
}

QuantizedTensor Copy(const QuantizedTensor& weights) {
  auto copy = weights.is_block_format() ? QuantizedTensor::Allocate(weights.format(), kRows, kCols)
                                        : QuantizedTensor::Allocate(weights.scheme(), kRows, kCols);
  if (!copy.ok()) std::abort();
  for (int p = 0; p < kPlaneCount; ++p) {
    const auto from = weights.plane(static_cast<Plane>(p)).bytes();
    std::copy(from.begin(), from.end(), copy->plane(static_cast<Plane>(p)).data());
  }
  return *std::move(copy);
}

std::vector<QuantizedTensor> Cycle(const QuantizedTensor& first) {
  std::vector<QuantizedTensor> cycle;
  for (size_t bytes = 0; bytes < kCycleBytes; bytes += first.bytes()) cycle.push_back(Copy(first));
  return cycle;
}

std::vector<PackedWeights> Packed(const std::vector<QuantizedTensor>& cycle) {
  std::vector<PackedWeights> packed;
  for (const QuantizedTensor& w : cycle) {
    auto each = Pack(w);
    if (!each.ok()) std::abort();
    packed.push_back(*std::move(each));
  }
  return packed;
}

void Measure(benchmark::State& state, const std::string& name) {
  const int64_t m_rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  ThreadPool pool(threads);
  MatmulOptions options;
  if (threads > 1) options.parallel = pool.parallel_for();
  MatmulOptions exact = options;
  exact.precision = Precision::kF32;

  const std::vector<QuantizedTensor> weights = Cycle(Codebooks(*ParseScheme(name)));
  static const QuantizedTensor q2 = Blocks(Format::kQ2_K);
  const std::vector<PackedWeights> packed = Packed(weights), blocks = Packed(Cycle(q2));
  Numbers numbers;
  std::vector<float> activations(static_cast<size_t>(m_rows * kCols)),
      out(static_cast<size_t>(m_rows * kRows));
  for (float& a : activations) a = numbers.Value();
  const auto multiply = [&](const auto& cycle, const MatmulOptions& o) {
    for (const auto& w : cycle) {
      if (!Matmul(ViewOf(std::as_const(activations).data(), m_rows, kCols), w,
                  ViewOf(out.data(), m_rows, kRows), o)
               .ok()) {
        std::abort();
      }
    }
  };
  std::vector<std::span<const std::byte>> pieces;
  for (const PackedWeights& w : packed) pieces.push_back(w.serialized());
  constexpr size_t kDecoded = 4;  // matrices that take long
  Turns product(threads), planes(threads), other(threads), decoded(threads), read(threads);
  for (auto _ : state) {
    read.Run([&] { ReadBytes(pieces, options.parallel); });
    other.Run([&] { multiply(blocks, options); });
    decoded.Run([&] { multiply(std::span(weights).first(kDecoded), exact); });
    planes.Run([&] { multiply(weights, options); });
    state.SetIterationTime(product.Run([&] { multiply(packed, options); }));
  }
  const double count = static_cast<double>(weights.size()), each = product.Median() / count;
  state.counters["GB/s"] = static_cast<double>(packed[0].bytes()) / each / 1e9;
  state.counters["of_read"] = read.Median() / product.Median();
  state.counters["ms"] = each * 1e3;
  state.counters["planes"] = planes.Median() / product.Median();
  state.counters["q2_K"] = other.Median() / static_cast<double>(blocks.size()) / each;
  state.counters["decoded"] = decoded.Median() / kDecoded / each;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const std::string name : {"2x8g8 f16", "1x8g8 f16", "2x8g16 f16"}) {
    benchmark::RegisterBenchmark(("additive/" + name).c_str(), nibble::Measure, name)
        ->ArgNames({"M", "threads"})
        ->ArgsProduct({{1, 2, 4, 7, 8, 32}, {1, 2}})
        ->Iterations(7)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
}
