// Quantize and dequantize planar schemes on one thread: weights a second and bytes moved a second,
// and the share of what copying memory reaches in the same run. One weight is four bytes of float
// on one side and its planes on the other; the copy is measured as bytes read plus bytes written.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 4096, kCols = 4096;  // 64 MiB of float: beyond the caches

const std::vector<float>& Weights() {
  static const std::vector<float> weights = [] {
    std::vector<float> w(static_cast<size_t>(kRows * kCols));
    uint32_t state = 1;
    for (float& x : w) {
      state = state * 1664525u + 1013904223u;
      x = static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-23f;
    }
    return w;
  }();
  return weights;
}

// Bytes read and written a second by the copy of as much memory, the best of five.
double CopyBandwidth() {
  static const double best = [] {
    const std::vector<float>& from = Weights();
    std::vector<float> to(from.size());
    double rate = 0;
    for (int i = 0; i < 6; ++i) {
      const auto start = std::chrono::steady_clock::now();
      std::memcpy(to.data(), from.data(), from.size() * sizeof(float));
      benchmark::ClobberMemory();
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      if (i > 0)
        rate = std::max(rate, 2.0 * static_cast<double>(from.size() * 4) / seconds.count());
    }
    return rate;
  }();
  return best;
}

void Report(benchmark::State& state, size_t plane_bytes) {
  const double weights = static_cast<double>(kRows * kCols);
  const double moved = 4 * weights + static_cast<double>(plane_bytes);
  const auto rate = [&](double amount) {
    return benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["weights/s"] = rate(weights);
  state.counters["bytes/s"] = rate(moved);
  state.counters["of_copy"] = rate(moved / CopyBandwidth());
}

void BM_Quantize(benchmark::State& state, const std::string& name) {
  const Scheme scheme = *ParseScheme(name);
  const TensorView view = ViewOf(Weights().data(), kRows, kCols);
  size_t bytes = 0;
  for (auto _ : state) {
    const auto q = Quantize(view, scheme);
    bytes = q->bytes();
    benchmark::DoNotOptimize(q->plane(Plane::kCodes).data());
  }
  Report(state, bytes);
}

void BM_Dequantize(benchmark::State& state, const std::string& name) {
  const auto q = Quantize(ViewOf(Weights().data(), kRows, kCols), *ParseScheme(name));
  std::vector<float> out(Weights().size());
  for (auto _ : state) {
    const Status status = Dequantize(*q, ViewOf(out.data(), kRows, kCols));
    if (!status.ok()) state.SkipWithError(status.message().c_str());
    benchmark::ClobberMemory();
  }
  Report(state, q->bytes());
}

void RegisterAll() {
  for (const char* name :
       {"int8 sym channel", "int8 sym g128 f16", "int4 sym g128 f16", "int4 asym g128 f16",
        "int3 asym g128 f16", "int2 asym g64 f16", "nf4 g64", "nf4 g64 double", "fp4 g64",
        "f8_e4m3 tensor", "f8_e4m3 channel", "f8_e5m2 channel"}) {
    benchmark::RegisterBenchmark((std::string("Quantize/") + name).c_str(), BM_Quantize,
                                 std::string(name))
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark((std::string("Dequantize/") + name).c_str(), BM_Dequantize,
                                 std::string(name))
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  nibble::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
