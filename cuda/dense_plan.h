// Products of so many tokens that it is faster to dequantize the weights to 16 bits and let cuBLAS
// multiply: from how many on, and how many rows of weights at a time.
#ifndef NIBBLE_CUDA_DENSE_PLAN_H_
#define NIBBLE_CUDA_DENSE_PLAN_H_

#include <cstdint>

#include "cuda/packed_format.h"

namespace nibble::cuda {

// Tokens from which packed weights that take `bytes` each are dequantized.
int64_t DenseTokens(PackedKind kind, double bytes);

// The same for weights that are not packed and would be decoded for every four tokens anew; and for
// those that are 16-bit floats of the operands' type already.
inline constexpr int64_t kDenseTokensOfCanonical = 9, kDenseTokensOfHalves = 1;

// Rows of weights, a multiple of 16 unless all, that are dequantized at once to rows of `stride`
// 16-bit floats.
int64_t DenseRows(int64_t rows, int64_t stride);

// While it lives, products of this thread are dequantized from `tokens` on, whatever the weights;
// INT64_MAX: none is. For tests and for measuring what DenseTokens should say.
class DenseFrom {
 public:
  explicit DenseFrom(int64_t tokens);
  ~DenseFrom();
  DenseFrom(const DenseFrom&) = delete;
  DenseFrom& operator=(const DenseFrom&) = delete;

  // What the thread's last one says, or `otherwise`.
  static int64_t Or(int64_t otherwise);

 private:
  int64_t before_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_DENSE_PLAN_H_
