// How far one matrix is from another.
#ifndef NIBBLE_TENSOR_ERROR_H_
#define NIBBLE_TENSOR_ERROR_H_

#include <cstdint>

#include "nibble/model_source.h"
#include "nibble/parallel.h"
#include "nibble/status.h"

namespace nibble {

// Sums over weights a of a reference and b of what stands for it.
struct ErrorSums {
  uint64_t weights = 0;
  double aa = 0;
  double bb = 0;
  double ab = 0;
  double error = 0;        // of (a - b)^2
  double largest = 0;      // |a - b|
  int64_t worst_row = -1;  // with the largest share of its own energy lost; -1: all rows are equal
  double worst_row_nmse = 0;

  void Add(const ErrorSums& other);  // the worst row stays this one's

  double Rmse() const;
  double Nmse() const;    // error / aa
  double SnrDb() const;   // -10 log10(nmse); infinite where nothing is lost
  double Cosine() const;  // 1 for equal matrices
};

// Both tensors are decoded a piece at a time. They must have the same shape.
Result<ErrorSums> CompareTensors(const ModelSource& source_a, const ModelTensor& a,
                                 const ModelSource& source_b, const ModelTensor& b,
                                 const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_TENSOR_ERROR_H_
