// What the machine can do at most, for benchmarks to measure beside a kernel: bytes read from
// memory, and bare loops of the instructions that products are made of, on registers alone.
#ifndef NIBBLE_KERNELS_MACHINE_LIMITS_H_
#define NIBBLE_KERNELS_MACHINE_LIMITS_H_

#include <cstddef>
#include <span>

#include "nibble/parallel.h"

namespace nibble {

// Reads every byte once, in four streams and asking for lines ahead of their use: more streams were
// no faster, one was a third slower.
void ReadBytes(std::span<const std::byte> bytes);
// All of the pieces by all workers.
void ReadBytes(std::span<const std::span<const std::byte>> pieces, const ParallelFor& parallel);

struct BareLoop {
  const char* name;
  double operations;  // multiplications and additions of one run
  void (*run)();      // null: none is known

  // So often for every worker, on all of them at once.
  static constexpr int kRunsPerWorker = 8;
  void Run(const ParallelFor& parallel) const;
  // Operations a second where Run() took so long.
  double Rate(const ParallelFor& parallel, double seconds) const {
    return operations * kRunsPerWorker * parallel.workers / seconds;
  }
};

// The fastest that a product of many activation rows could be made of, under the target in use.
BareLoop FastestBareLoop();
// The same where the product is of int8 with int8.
BareLoop FastestInt8BareLoop();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_MACHINE_LIMITS_H_
