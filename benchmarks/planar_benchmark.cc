// Quantize and dequantize planar schemes on one thread: weights a second and bytes moved a second,
// and the share of what copying memory reaches in the same run. One weight is four bytes of float
// on one side and its planes on the other; the copy is measured as bytes read plus bytes written.
#include <algorithm>
#include <cstring>
#include <ctime>
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

double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Bytes read and written by a second of copying as much memory, the best of five. Processor time
// here as below, so that the share holds on a machine that does other things as well.
double CopyBandwidth() {
  static const double best = [] {
    const std::vector<float>& from = Weights();
    std::vector<float> to(from.size());
    double rate = 0;
    for (int i = 0; i < 6; ++i) {
      const double start = CpuSeconds();
      std::memcpy(to.data(), from.data(), from.size() * sizeof(float));
      benchmark::ClobberMemory();
      const double moved = 2.0 * static_cast<double>(from.size() * sizeof(float));
      if (i > 0) rate = std::max(rate, moved / (CpuSeconds() - start));
    }
    return rate;
  }();
  return best;
}

// Runs the loop of a benchmark and reports its rates. `run` returns the bytes of the planes.
template <class Run>
void Measure(benchmark::State& state, const Run& run) {
  const double copy = CopyBandwidth();
  size_t plane_bytes = run();  // touches what is to be touched for the first time
  const double start = CpuSeconds();
  for (auto _ : state) plane_bytes = run();
  const double seconds = (CpuSeconds() - start) / static_cast<double>(state.iterations());
  const double weights = static_cast<double>(kRows * kCols);
  const double rate = (4 * weights + static_cast<double>(plane_bytes)) / seconds;
  state.counters["Mweights/s"] = 1e-6 * weights / seconds;
  state.counters["GB/s"] = 1e-9 * rate;
  state.counters["copy_GB/s"] = 1e-9 * copy;
  state.counters["of_copy"] = rate / copy;
}

void BM_Quantize(benchmark::State& state, const std::string& name) {
  const Scheme scheme = *ParseScheme(name);
  Measure(state, [&] {
    const auto q = Quantize(ViewOf(Weights().data(), kRows, kCols), scheme);
    benchmark::DoNotOptimize(q->plane(Plane::kCodes).data());
    return q->bytes();
  });
}

void BM_Dequantize(benchmark::State& state, const std::string& name) {
  const auto q = Quantize(ViewOf(Weights().data(), kRows, kCols), *ParseScheme(name));
  std::vector<float> out(Weights().size());
  Measure(state, [&] {
    const Status status = Dequantize(*q, ViewOf(out.data(), kRows, kCols));
    if (!status.ok()) state.SkipWithError(status.message().c_str());
    benchmark::ClobberMemory();
    return q->bytes();
  });
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
