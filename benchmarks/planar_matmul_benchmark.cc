// Products with planar schemes from their canonical planes, and W8A8 with its tiles. Beside them in
// the same rounds what the machine can do at most: for few activation rows reading the planes'
// bytes from memory, for many a bare loop of the fastest integer instruction.
//
//   GB/s       bytes of all planes a second
//   GFLOP/s    multiplications and additions a second
//   of_limit   share of that limit
//
// Few activation rows cycle through 256 MiB of matrices, so that weights come from memory as they
// do in a model.
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

constexpr int64_t kRows = 4096, kCols = 4096, kFewRows = 8;
constexpr size_t kCycleBytes = size_t{256} << 20;

std::vector<float> Values(size_t count) {
  std::vector<float> values(count);
  uint32_t state = 1;
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0f;
  }
  return values;
}

QuantizedTensor Weights(const std::string& scheme) {
  static const std::vector<float> dense = Values(static_cast<size_t>(kRows * kCols));
  auto tensor = Quantize(ViewOf(dense.data(), kRows, kCols), *ParseScheme(scheme));
  if (!tensor.ok()) std::abort();
  return *std::move(tensor);
}

QuantizedTensor Copy(const QuantizedTensor& weights) {
  auto copy = QuantizedTensor::Allocate(weights.scheme(), weights.rows(), weights.cols());
  if (!copy.ok()) std::abort();
  for (int p = 0; p < kPlaneCount; ++p) {
    const auto from = weights.plane(static_cast<Plane>(p)).bytes();
    std::copy(from.begin(), from.end(), copy->plane(static_cast<Plane>(p)).data());
  }
  return *std::move(copy);
}

void Measure(benchmark::State& state, const std::string& scheme, Precision precision) {
  const int64_t m_rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  ThreadPool pool(threads);
  MatmulOptions options;
  options.precision = precision;
  if (threads > 1) options.parallel = pool.parallel_for();

  const QuantizedTensor first = Weights(scheme);
  const size_t copies = m_rows <= kFewRows ? (kCycleBytes + first.bytes() - 1) / first.bytes() : 1;
  std::vector<QuantizedTensor> weights;
  for (size_t i = 0; i < copies; ++i) weights.push_back(Copy(first));
  const std::vector<float> activations = Values(static_cast<size_t>(m_rows * kCols));
  // Aligned as engines' buffers are.
  auto memory = Buffer::Allocate(static_cast<size_t>(m_rows * kRows) * sizeof(float));
  if (!memory.ok()) std::abort();
  const std::span<float> out(reinterpret_cast<float*>(memory->data()),
                             static_cast<size_t>(m_rows * kRows));

  const BareLoop bare =
      precision == Precision::kInt8PerRow ? FastestInt8BareLoop() : FastestBareLoop();
  std::vector<std::span<const std::byte>> pieces;
  for (const QuantizedTensor& w : weights) {
    for (int p = 0; p < kPlaneCount; ++p) {
      pieces.push_back(w.plane(static_cast<Plane>(p)).bytes());
    }
  }
  Turns product(threads), limit(threads);
  for (auto _ : state) {
    limit.Run([&] {
      m_rows > kFewRows ? bare.Run(options.parallel) : ReadBytes(pieces, options.parallel);
    });
    state.SetIterationTime(product.Run([&] {
      for (const QuantizedTensor& w : weights) {
        if (!Matmul(ViewOf(activations.data(), m_rows, kCols), w, ViewOf(out.data(), m_rows, kRows),
                    options)
                 .ok()) {
          std::abort();
        }
      }
    }));
  }
  const double seconds = product.Median();
  const double operations =
      2.0 * static_cast<double>(m_rows * kRows * kCols) * static_cast<double>(copies);
  state.counters["GB/s"] = static_cast<double>(first.bytes() * copies) / seconds / 1e9;
  state.counters["GFLOP/s"] = operations / seconds / 1e9;
  if (m_rows <= kFewRows) {
    state.counters["of_limit"] = limit.Median() / seconds;
  } else if (bare.run != nullptr) {
    state.counters["of_limit"] = operations / seconds / bare.Rate(options.parallel, limit.Median());
    state.SetLabel(bare.name);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using nibble::Precision;
  benchmark::Initialize(&argc, argv);
  const auto add = [](const std::string& name, const std::string& scheme, Precision precision) {
    benchmark::RegisterBenchmark(name.c_str(), nibble::Measure, scheme, precision)
        ->ArgNames({"M", "threads"})
        ->ArgsProduct({{1, 4, 8, 32, 128, 512}, {1, 2}})
        ->Iterations(7)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  for (const char* scheme :
       {"int8 sym channel f32", "int8 sym tensor f32", "int8 sym g32 f16", "int4 sym g32 f16",
        "int4 sym g64 f16", "int4 sym g128 f16", "int4 asym g128 f16", "int3 sym g128 f16",
        "int2 sym g64 f16", "nf4 g64 double", "nf4 g64 f16", "fp4 g64 f16",
        "f8_e4m3 channel f32"}) {
    add("planar/" + std::string(scheme), scheme, Precision::kInt8);
  }
  add("w8a8", "int8 sym channel f32", Precision::kInt8PerRow);
  benchmark::RunSpecifiedBenchmarks();
}
