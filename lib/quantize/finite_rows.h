// Weights on their way into a quantizer: rows of finite floats, and the first that is none.
#ifndef NIBBLE_LIB_QUANTIZE_FINITE_ROWS_H_
#define NIBBLE_LIB_QUANTIZE_FINITE_ROWS_H_

#include <atomic>
#include <cstdint>

#include "nibble/quantize.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// The least of the places reported by any thread: the same for any order of the work.
class FirstPlace {
 public:
  void Report(int64_t place) {
    int64_t known = place_.load();
    while (place < known && !place_.compare_exchange_weak(known, place)) {
    }
  }
  bool any() const { return place() != INT64_MAX; }
  int64_t place() const { return place_.load(); }

 private:
  std::atomic<int64_t> place_{INT64_MAX};
};

// Rows of a matrix that CheckMatrix admits, as finite floats. Safe from many threads.
class FiniteRows {
 public:
  FiniteRows(const TensorView& weights, NonFinite policy) : weights_(weights), policy_(policy) {}

  // Columns [first, first + count) of a row, clamped where that is the policy; false where a weight
  // that is not finite stands in the way.
  bool Load(int64_t row, int64_t first, int64_t count, float* x);

  // Names the first weight, by row and column, that stood in the way of any Load.
  Status Found() const;

 private:
  const TensorView weights_;
  const NonFinite policy_;
  FirstPlace bad_;  // row * cols + column
};

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_FINITE_ROWS_H_
