// A layer's GPTQ from its Hessian: factorization and pass, in a planar scheme with and without
// act-order and in a block format, for square layers. Two threads, or as many as there are.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <map>
#include <utility>
#include <variant>
#include <vector>

#include "nibble/gptq.h"

namespace nibble {
namespace {

struct Layer {
  std::vector<float> weights;
  Hessian hessian;
};

const Layer& LayerOf(int64_t n, const ParallelFor& parallel) {
  static std::map<int64_t, Layer> layers;
  Layer& layer = layers[n];
  if (!layer.weights.empty()) return layer;
  uint32_t state = 1;
  const auto next = [&] {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  };
  layer.weights.resize(static_cast<size_t>(n * n));
  for (float& w : layer.weights) w = next() * next();
  std::vector<float> x(static_cast<size_t>(1024 * n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = next() + (i > 0 ? 0.5f * x[i - 1] : 0.0f);
  layer.hessian = Hessian(n);
  (void)layer.hessian.Add(ViewOf(std::as_const(x).data(), 1024, n), parallel);
  return layer;
}

void Gptq(benchmark::State& state, const std::variant<Format, Scheme>& target) {
  static ThreadPool pool;
  const int64_t n = state.range(0);
  const Layer& layer = LayerOf(n, pool.parallel_for());
  GptqOptions options;
  options.parallel = pool.parallel_for();
  if (const Scheme* scheme = std::get_if<Scheme>(&target)) {
    options.act_order = scheme->has_group_index;
  }
  for (auto _ : state) {
    const bool ok = std::visit(
        [&](const auto& kind) {
          return QuantizeGptq(ViewOf(layer.weights.data(), n, n), kind, layer.hessian, options)
              .ok();
        },
        target);
    if (!ok) state.SkipWithError("failed");
  }
  state.counters["weights/s"] =
      benchmark::Counter(static_cast<double>(n * n), benchmark::Counter::kIsIterationInvariantRate);
}

void Sizes(benchmark::internal::Benchmark* b) {
  b->RangeMultiplier(2)
      ->Range(1024, 8192)
      ->Unit(benchmark::kSecond)
      ->MeasureProcessCPUTime()
      ->UseRealTime()
      ->Iterations(1);
}

BENCHMARK_CAPTURE(Gptq, int4_g128, *ParseScheme("int4 asym g128 f16"))->Apply(Sizes);
BENCHMARK_CAPTURE(Gptq, int4_g128_act_order, *ParseScheme("int4 asym g128 f16 act-order"))
    ->Apply(Sizes);
BENCHMARK_CAPTURE(Gptq, q4_K, Format::kQ4_K)->Apply(Sizes);

}  // namespace
}  // namespace nibble

BENCHMARK_MAIN();
