// An engine's attention layer: query, key and value weights from a quantized file's bytes, packed
// once, multiplied in one call on the engine's own threads.
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "nibble/nibble.h"

namespace {

constexpr int64_t kCols = 512, kQueryRows = 512, kKeyRows = 128;

// Numbers in (-0.5, 0.5), the same on every machine.
std::vector<float> Numbers(int64_t count, uint32_t state) {
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& v : numbers) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
  }
  return numbers;
}

// The engine's threads. nibble asks for `count` tasks and a worker's number below `workers`.
struct Threads {
  int count = 2;

  nibble::ParallelFor Adapter() {
    return {[](void* context, int64_t tasks, nibble::ParallelFor::Task task, void* argument) {
              const int workers = static_cast<Threads*>(context)->count;
              std::vector<std::thread> threads;
              for (int worker = 0; worker < workers; ++worker) {
                threads.emplace_back([=] {
                  for (int64_t i = worker; i < tasks; i += workers) task(argument, i, worker);
                });
              }
              for (std::thread& thread : threads) thread.join();
            },
            this, count};
  }
};

nibble::Status Run() {
  Threads threads;
  nibble::MatmulOptions options;
  options.parallel = threads.Adapter();

  // Blocks as they lie in a mapped file: nothing is copied.
  nibble::QuantizeOptions quantize;
  quantize.parallel = options.parallel;
  std::vector<nibble::QuantizedTensor> files, weights;
  for (const int64_t rows : {kQueryRows, kKeyRows, kKeyRows}) {
    const std::vector<float> values = Numbers(rows * kCols, static_cast<uint32_t>(files.size()));
    NIBBLE_ASSIGN_OR_RETURN(nibble::QuantizedTensor made,
                            nibble::Quantize(nibble::ViewOf(values.data(), rows, kCols),
                                             nibble::Format::kQ4_K, quantize));
    files.push_back(std::move(made));
    const nibble::Buffer& bytes = files.back().plane(nibble::Plane::kCodes);
    NIBBLE_ASSIGN_OR_RETURN(
        nibble::QuantizedTensor borrowed,
        nibble::QuantizedTensor::Create(nibble::Format::kQ4_K, rows, kCols,
                                        nibble::Buffer::Borrow({bytes.data(), bytes.size()})));
    weights.push_back(std::move(borrowed));
  }

  // [products]
  std::vector<nibble::PackedWeights> packed;
  for (const nibble::QuantizedTensor& w : weights) {
    NIBBLE_ASSIGN_OR_RETURN(nibble::PackedWeights p,
                            nibble::Pack(w, nibble::Precision::kInt8, options.parallel));
    packed.push_back(std::move(p));  // or p.serialized() to a file, mapped by FromBytes next time
  }

  const int64_t tokens = 3;
  const std::vector<float> hidden = Numbers(tokens * kCols, 7);
  std::vector<float> query(tokens * kQueryRows), key(tokens * kKeyRows), value(tokens * kKeyRows);
  const nibble::MatmulMember members[] = {
      {&packed[0], nibble::ViewOf(query.data(), tokens, kQueryRows), {}, {}},
      {&packed[1], nibble::ViewOf(key.data(), tokens, kKeyRows), {}, {}},
      {&packed[2], nibble::ViewOf(value.data(), tokens, kKeyRows), {}, {}},
  };
  NIBBLE_RETURN_IF_ERROR(
      nibble::MatmulGroup(nibble::ViewOf(hidden.data(), tokens, kCols), members, options));
  // [products]

  for (const int64_t rows : {int64_t{1}, tokens, int64_t{512}}) {
    NIBBLE_ASSIGN_OR_RETURN(const nibble::MatmulPlan plan, nibble::PlanMatmul(packed[0], rows));
    std::printf("%3lld rows: %s\n", static_cast<long long>(rows), plan.kernel);
  }

  // The same product exactly, straight from the file's bytes.
  std::vector<float> exact(query.size());
  options.precision = nibble::Precision::kF32;
  NIBBLE_RETURN_IF_ERROR(nibble::Matmul(nibble::ViewOf(hidden.data(), tokens, kCols), weights[0],
                                        nibble::ViewOf(exact.data(), tokens, kQueryRows), options));
  double error = 0, energy = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(query[i] - exact[i], 2);
    energy += std::pow(exact[i], 2);
  }
  std::printf("normalised error of int8 activations: %.1e\n", error / energy);
  if (!(error <= 5e-4 * energy)) return nibble::InternalError("the error is too large");
  return nibble::OkStatus();
}

}  // namespace

int main() {
  const nibble::Status status = Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
