// Products out[M, N] = activations[M, K] x weights[N, K]^T for each format, shape, M and number of
// threads, from canonical and from packed weights. Beside them in the same rounds: what the machine
// can do at most (for few activation rows, reading the weights' bytes from memory; for many, a bare
// loop of the fastest instruction, on every thread), and ggml with the fastest of its layouts.
//
//   GB/s       bytes of weights as they are packed, a second
//   GFLOP/s    multiplications and additions a second
//   of_limit   share of that limit
//   vs_ggml    ggml's best time / the packed product's time
//   vs_openvino  OpenVINO's time with a format of about as many bits / the packed product's time
//   (not
//              for few activation rows, whose copies it cannot cycle through)
//   nmse       error of the product over its energy, against f32 arithmetic: what rounding
//              activations costs
//   canonical_...      the same from canonical weights
//   canonical_vs_ggml  ggml's time with plain weights / the canonical product's time
//
// Few activation rows cycle through 256 MiB of matrices, so that weights come from memory as they
// do in a model; `matmul_64MiB` through 64 MiB, of which a large cache holds some or all. Choose
// cases with --benchmark_filter=matmul/q4_K/4096x4096/M:1/threads:1 .
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ggml_matmul.h"
#include "benchmarks/openvino_matmul.h"
#include "benchmarks/turns.h"
#include "kernels/machine_limits.h"
#include "nibble/matmul.h"

namespace nibble {
namespace {

constexpr int64_t kFewRows = 8;

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{4096, 4096}, {11008, 4096}, {4096, 11008},
                             {2048, 2048}, {1536, 576},   {128256, 4096}};

// Random codes whose scales are of ordinary size: no code is slower than another, but numbers
// beside zero are.
QuantizedTensor RandomWeights(Format format, int64_t rows, int64_t cols) {
  auto tensor = QuantizedTensor::Allocate(format, rows, cols);
  if (!tensor.ok()) std::abort();
  const FormatInfo& info = GetFormatInfo(format);
  const std::span<std::byte> bytes = tensor->plane(Plane::kCodes).mutable_bytes();
  uint32_t state = 1;
  for (std::byte& b : bytes) {
    state = state * 1664525u + 1013904223u;
    b = static_cast<std::byte>((state >> 24) & 0x3B);  // as halves: below 2
  }
  // The bytes of exponents: of each number, or of each block.
  const bool has_exponent = info.block_weights == 1 || format == Format::kMXFP4;
  const size_t exponent = info.block_weights == 1 ? info.block_bytes - 1 : 0;
  for (size_t at = 0; has_exponent && at < bytes.size(); at += info.block_bytes) {
    bytes[at + exponent] = static_cast<std::byte>(info.block_weights == 1 ? 0x3B : 0x78);
  }
  return *std::move(tensor);
}

// Error energy of `values` over the energy of `exact`.
double Nmse(std::span<const float> values, std::span<const float> exact) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double e = static_cast<double>(values[i]) - static_cast<double>(exact[i]);
    error += e * e;
    energy += static_cast<double>(exact[i]) * static_cast<double>(exact[i]);
  }
  return error / energy;
}

Buffer Copy(std::span<const std::byte> bytes) {
  auto buffer = Buffer::Allocate(bytes.size());
  if (!buffer.ok()) std::abort();
  std::copy(bytes.begin(), bytes.end(), buffer->data());
  return *std::move(buffer);
}

void MeasureMatmul(benchmark::State& state, FormatInfo info, Shape shape, size_t cycle_bytes) {
  const int64_t m_rows = state.range(0);
  const int threads = static_cast<int>(state.range(1));
  ThreadPool pool(threads);
  MatmulOptions options;
  if (threads > 1) options.parallel = pool.parallel_for();

  const QuantizedTensor weights = RandomWeights(info.format, shape.rows, shape.cols);
  const auto first = Pack(weights, options.precision, options.parallel);
  if (!first.ok()) return state.SkipWithError(first.status().message().c_str());
  const std::span<const std::byte> blocks = weights.plane(Plane::kCodes).bytes();
  const int copies =
      m_rows <= kFewRows ? static_cast<int>((cycle_bytes + blocks.size() - 1) / blocks.size()) : 1;
  std::vector<QuantizedTensor> canonical;
  std::vector<PackedWeights> packed;
  for (int i = 0; i < copies; ++i) {
    auto tensor = QuantizedTensor::Create(info.format, shape.rows, shape.cols, Copy(blocks));
    auto pack = PackedWeights::FromBytes(Copy(first->serialized()));
    if (!tensor.ok() || !pack.ok()) std::abort();
    canonical.push_back(*std::move(tensor));
    packed.push_back(*std::move(pack));
  }

  std::vector<float> activations(static_cast<size_t>(m_rows * shape.cols));
  for (size_t i = 0; i < activations.size(); ++i) {
    activations[i] = static_cast<float>(i * 2654435761u % 1024) / 512 - 1;
  }
  // Aligned as engines' buffers are.
  auto memory = Buffer::Allocate(static_cast<size_t>(m_rows * shape.rows) * sizeof(float));
  if (!memory.ok()) std::abort();
  const std::span<float> out(reinterpret_cast<float*>(memory->data()),
                             static_cast<size_t>(m_rows * shape.rows));
  const TensorView x = ViewOf(activations.data(), m_rows, shape.cols);
  const MutableTensorView y = ViewOf(out.data(), m_rows, shape.rows);

  std::vector<std::unique_ptr<GgmlMatmul>> peers;
  for (const std::string& layout : GgmlMatmul::Layouts()) {
    // Its tile layout of some versions crashes with several activation rows.
    if (layout == "AMX" && m_rows > 1) continue;
    peers.push_back(std::make_unique<GgmlMatmul>(layout, info.format, blocks, shape.rows,
                                                 shape.cols, m_rows, copies, threads));
  }

  std::vector<std::span<const std::byte>> pieces;
  for (const PackedWeights& w : packed) pieces.push_back(w.serialized());
  const BareLoop bare = FastestBareLoop();
  Turns from_packed(threads), from_canonical(threads), limit(threads);
  std::vector<Turns> ggml(peers.size(), Turns(threads));
  Turns openvino(threads, true);
  std::unique_ptr<OpenVinoMatmul> openvino_peer;
  if (m_rows > kFewRows) {
    const int bits = 8 * info.block_bytes <= 6 * info.block_weights ? 4 : 8;
    openvino_peer = std::make_unique<OpenVinoMatmul>(bits, shape.rows, shape.cols, m_rows, threads);
  }
  for (auto _ : state) {
    limit.Run([&] {
      m_rows > kFewRows ? bare.Run(options.parallel) : ReadBytes(pieces, options.parallel);
    });
    state.SetIterationTime(from_packed.Run([&] {
      for (const PackedWeights& w : packed) {
        if (!Matmul(x, w, y, options).ok()) std::abort();
      }
    }));
    from_canonical.Run([&] {
      for (const QuantizedTensor& w : canonical) {
        if (!Matmul(x, w, y, options).ok()) std::abort();
      }
    });
    for (size_t i = 0; i < peers.size(); ++i) {
      if (peers[i]->found()) ggml[i].Run([&] { peers[i]->Run(); });
    }
    if (openvino_peer != nullptr && openvino_peer->found()) {
      openvino.Run([&] { openvino_peer->Run(); });
    }
  }

  std::vector<float> exact(out.size());
  MatmulOptions exact_options = options;
  exact_options.precision = Precision::kF32;
  if (!Matmul(x, packed[0], y, options).ok() ||
      !Matmul(x, weights, ViewOf(exact.data(), m_rows, shape.rows), exact_options).ok()) {
    std::abort();
  }
  state.counters["nmse"] = Nmse(out, exact);
  const double seconds = from_packed.Median(), canonical_seconds = from_canonical.Median();
  const double operations = 2.0 * static_cast<double>(m_rows * shape.rows * shape.cols) * copies;
  state.counters["GB/s"] = static_cast<double>(first->bytes()) * copies / seconds / 1e9;
  state.counters["GFLOP/s"] = operations / seconds / 1e9;
  state.counters["canonical_GFLOP/s"] = operations / canonical_seconds / 1e9;
  if (m_rows <= kFewRows) {
    state.counters["of_limit"] = limit.Median() / seconds;
    // As many bytes as canonical blocks have would take their share of that time.
    const double share = static_cast<double>(blocks.size()) / static_cast<double>(first->bytes());
    state.counters["canonical_of_limit"] = share * limit.Median() / canonical_seconds;
    state.counters["canonical_GB/s"] =
        static_cast<double>(blocks.size()) * copies / canonical_seconds / 1e9;
  } else if (bare.run != nullptr) {
    const double most = bare.Rate(options.parallel, limit.Median());
    state.counters["of_limit"] = operations / seconds / most;
    state.counters["canonical_of_limit"] = operations / canonical_seconds / most;
    state.SetLabel(bare.name);
  }
  double best = 0;
  for (const Turns& turns : ggml) {
    if (turns.Median() > 0 && (best == 0 || turns.Median() < best)) best = turns.Median();
  }
  if (best > 0) state.counters["vs_ggml"] = best / seconds;
  if (openvino.Median() > 0) state.counters["vs_openvino"] = openvino.Median() / seconds;
  if (!ggml.empty() && ggml[0].Median() > 0) {
    state.counters["canonical_vs_ggml"] = ggml[0].Median() / canonical_seconds;
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using nibble::FormatUse;
  benchmark::Initialize(&argc, argv);
  for (const nibble::FormatInfo& info : nibble::AllFormats()) {
    if (!info.can_decode()) continue;
    for (const nibble::Shape& shape : nibble::kShapes) {
      if (shape.cols % info.block_weights != 0) continue;
      const std::string name = std::string("/") + info.name + "/" + std::to_string(shape.rows) +
                               "x" + std::to_string(shape.cols);
      const auto add = [&](const std::string& prefix, const std::vector<int64_t>& rows,
                           size_t cycle_mib) {
        benchmark::RegisterBenchmark((prefix + name).c_str(), nibble::MeasureMatmul, info, shape,
                                     cycle_mib << 20)
            ->ArgNames({"M", "threads"})
            ->ArgsProduct({rows, {1, 2}})
            ->Iterations(5)
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      };
      add("matmul", {1, 2, 4, 8, 32, 128, 512}, 256);
      add("matmul_64MiB", {1, 2, 4, 8}, 64);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
