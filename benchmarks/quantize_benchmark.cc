// Quantize 4096 columns of f32, for each format, without and with an importance of the columns, on
// one and two threads; ggml beside it in the same rounds. 1024 rows where scales are searched for;
// elsewhere 16384, so that memory and not a cache is read and written.
//
//   Mweights/s   weights a second, in millions
//   vs_ggml      ggml's time / nibble's time
//   rms_vs_ggml  nibble's root mean square error / ggml's, weighted by the importance if any
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peers.h"
#include "benchmarks/turns.h"
#include "kernels/encode.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr int64_t kSearchedRows = 1024, kRows = 16384, kCols = 4096;

// Sums of twelve uniform numbers: close to normal, as weights are.
std::vector<float> Weights() {
  std::vector<float> weights(kRows * kCols);
  uint32_t state = 1;
  for (float& w : weights) {
    int32_t sum = 0;
    for (int i = 0; i < 12; ++i) {
      state = state * 1664525u + 1013904223u;
      sum += static_cast<int32_t>(state >> 16) - 32768;
    }
    w = static_cast<float>(sum) * 3e-7f;
  }
  return weights;
}

using QuantizeChunk = size_t(int type, const float* from, void* to, int64_t start, int64_t rows,
                             int64_t cols, const float* importance);

// Spread over three decades.
std::vector<float> Importance() {
  std::vector<float> importance(kCols);
  uint32_t state = 7;
  for (float& v : importance) {
    state = state * 1664525u + 1013904223u;
    v = std::ldexp(1.0f, -static_cast<int>(state >> 24) % 10);
  }
  return importance;
}

// Sum of squared errors of blocks.
double ErrorOf(Format format, std::span<const std::byte> blocks, std::span<const float> weights,
               std::span<const float> importance) {
  std::vector<float> decoded(weights.size());
  const int64_t rows = static_cast<int64_t>(weights.size()) / kCols;
  const MutableTensorView view{decoded.data(), DType::kF32, rows, kCols, kCols, Device::kCpu};
  if (!Dequantize(format, blocks, view).ok()) return 0;
  double total = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double e = static_cast<double>(weights[i]) - static_cast<double>(decoded[i]);
    total += e * e * (importance.empty() ? 1 : importance[i % static_cast<size_t>(kCols)]);
  }
  return total;
}

void MeasureQuantize(benchmark::State& state, FormatInfo info, bool weighted) {
  const int threads = static_cast<int>(state.range(0));
  ThreadPool pool(threads);
  QuantizeOptions options;
  if (threads > 1) options.parallel = pool.parallel_for();
  const int64_t rows = IsSearched(info.format, weighted) ? kSearchedRows : kRows;
  static const std::vector<float> all = Weights(), importance = Importance();
  const auto weights = std::span(all).first(static_cast<size_t>(rows * kCols));
  if (weighted) options.importance = importance;
  std::vector<std::byte> out(*FormatBytes(info.format, rows, kCols)), other = out;
  const auto chunk = Ggml::Get().Symbol<QuantizeChunk>("ggml_quantize_chunk");

  Turns nibble(threads), ggml(threads);
  for (auto _ : state) {
    Status status;
    state.SetIterationTime(nibble.Run([&] {
      status = QuantizeTo(ViewOf(weights.data(), rows, kCols), info.format, out, options);
    }));
    if (!status.ok()) {
      state.SkipWithError(status.message().c_str());
      return;
    }
    if (chunk == nullptr) continue;
    constexpr int64_t kStep = 8;  // rows a task
    ggml.Run([&] {
      options.parallel(rows / kStep, [&](int64_t task, int) {
        chunk(static_cast<int>(info.format), weights.data(), other.data(), task * kStep * kCols,
              kStep, kCols, weighted ? importance.data() : nullptr);
      });
    });
  }
  state.counters["Mweights/s"] = static_cast<double>(weights.size()) / nibble.Median() / 1e6;
  if (ggml.Median() > 0) {
    state.counters["vs_ggml"] = ggml.Median() / nibble.Median();
    const double error = ErrorOf(info.format, out, weights, options.importance);
    const double of_other = ErrorOf(info.format, other, weights, options.importance);
    if (of_other > 0) state.counters["rms_vs_ggml"] = std::sqrt(error / of_other);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const nibble::FormatInfo& info : nibble::AllFormats()) {
    if (!info.can_encode()) continue;
    for (const bool weighted : {false, true}) {
      if (weighted && !nibble::IsSearched(info.format, true)) continue;
      const std::string name =
          std::string("quantize/") + info.name + (weighted ? "/importance" : "");
      benchmark::RegisterBenchmark(name.c_str(), nibble::MeasureQuantize, info, weighted)
          ->ArgName("threads")
          ->Arg(1)
          ->Arg(2)
          ->Iterations(9)
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
