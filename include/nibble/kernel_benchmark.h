// How fast single kernels are on this machine, and what share of its limit that is.
#ifndef NIBBLE_KERNEL_BENCHMARK_H_
#define NIBBLE_KERNEL_BENCHMARK_H_

#include <cstdint>
#include <string>

#include "nibble/matmul.h"
#include "nibble/parallel.h"
#include "nibble/status.h"

namespace nibble {

enum class KernelOperation : uint8_t {
  kMatmul,        // from canonical weights
  kMatmulPacked,  // from packed weights
  kQuantize,      // from f32
  kDequantize,    // to f32
};

struct KernelBenchmarkOptions {
  KernelOperation operation = KernelOperation::kMatmul;
  std::string type = "q4_K";         // a name for FindFormat or ParseScheme
  int64_t rows = 4096, cols = 4096;  // of the weights
  int64_t activation_rows = 1;       // of products; up to 8 cycle through 256 MiB of weights
  Precision precision = Precision::kInt8;
  int runs = 5;
  ParallelFor parallel;
};

struct KernelTiming {
  double seconds = 0;         // of one call, the median of the runs
  uint64_t weight_bytes = 0;  // as the call reads or writes them
  uint64_t weights = 0;       // how many
  double operations = 0;      // multiplications and additions of a product; 0 elsewhere
  std::string kernel;         // of a product: MatmulPlan's
  // The limit, measured in the same turns: "memory read" and "memory write" of the same bytes, or a
  // bare loop of the fastest instruction; empty where there is none.
  std::string limit;
  double of_limit = 0;
};

// Weights are made up; each run of the kernel and of its limit take turns.
Result<KernelTiming> TimeKernel(const KernelBenchmarkOptions& options);

}  // namespace nibble

#endif  // NIBBLE_KERNEL_BENCHMARK_H_
