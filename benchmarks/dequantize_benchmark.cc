// Dequantize a 4096 x 4096 matrix to f32, for each format, on one and two threads. Beside it in the
// same rounds: plain vector stores to the same memory (the limit) and ggml.
//
//   GB/s      bytes written a second        of_write  share of what plain stores reach
//   vs_ggml   ggml's time / nibble's time
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peers.h"
#include "benchmarks/turns.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 4096, kCols = 4096;

// Blocks of random codes whose half-precision scales are small finite numbers: no code is slower.
std::vector<std::byte> RandomBlocks(size_t bytes) {
  std::vector<std::byte> blocks(bytes);
  uint32_t state = 1;
  for (std::byte& b : blocks) {
    state = state * 1664525u + 1013904223u;
    b = static_cast<std::byte>((state >> 24) & 0x3B);  // as halves: below 2
  }
  return blocks;
}

void Fill(float* out, const ParallelFor& parallel) {
  constexpr int64_t kPieces = 64, kPiece = kRows * kCols / kPieces;
  parallel(kPieces, [&](int64_t piece, int) {
    float* to = out + piece * kPiece;
    for (int64_t i = 0; i < kPiece; ++i) to[i] = 1.0f;
    benchmark::ClobberMemory();
  });
}

void MeasureDequantize(benchmark::State& state, FormatInfo info) {
  const int threads = static_cast<int>(state.range(0));
  ThreadPool pool(threads);
  const ParallelFor parallel = threads > 1 ? pool.parallel_for() : ParallelFor{};
  const auto blocks = RandomBlocks(*FormatBytes(info.format, kRows, kCols));
  std::vector<float> out(kRows * kCols);
  const MutableTensorView view = ViewOf(out.data(), kRows, kCols);
  const GgmlTypeTraits* traits = Ggml::Get().Traits(static_cast<int>(info.format));
  const size_t row_bytes = blocks.size() / kRows;

  Turns nibble(threads), write(threads), ggml(threads);
  for (auto _ : state) {
    state.SetIterationTime(nibble.Run([&] {
      if (!nibble::Dequantize(info.format, blocks, view, parallel).ok()) std::abort();
    }));
    write.Run([&] { Fill(out.data(), parallel); });
    if (traits != nullptr && traits->to_float != nullptr) {
      ggml.Run([&] {
        parallel(kRows, [&](int64_t r, int) {
          traits->to_float(blocks.data() + static_cast<size_t>(r) * row_bytes,
                           out.data() + r * kCols, kCols);
        });
      });
    }
  }
  const double seconds = nibble.Median();
  state.counters["GB/s"] = static_cast<double>(out.size()) * sizeof(float) / seconds / 1e9;
  state.counters["of_write"] = write.Median() / seconds;
  if (ggml.Median() > 0) state.counters["vs_ggml"] = ggml.Median() / seconds;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const nibble::FormatInfo& info : nibble::AllFormats()) {
    if (!info.can_decode()) continue;
    benchmark::RegisterBenchmark((std::string("dequantize/") + info.name).c_str(),
                                 nibble::MeasureDequantize, info)
        ->ArgName("threads")
        ->Arg(1)
        ->Arg(2)
        ->Iterations(9)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
}
