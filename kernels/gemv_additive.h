// Products of few activation rows with additive codebooks of 256 entries. The dot products of a
// vector of activations with all entries of a codebook are made once, rounded to a byte each with a
// scale for each 32 columns; a weight row's sum is then one byte from a table for each code.
#ifndef NIBBLE_KERNELS_GEMV_ADDITIVE_H_
#define NIBBLE_KERNELS_GEMV_ADDITIVE_H_

#include <cstdint>
#include <span>

#include "hwy/aligned_allocator.h"
#include "kernels/additive.h"
#include "kernels/matmul.h"
#include "nibble/status.h"

namespace nibble {

class AdditiveTables {
 public:
  // Of codebooks of 256 entries, all finite. `weights` must outlive this. Fails where there is no
  // memory.
  static Result<AdditiveTables> Make(const AdditiveRows& weights);

  const PlanarPlanes& planes() const { return weights_->planes(); }
  const uint8_t* tiles() const { return weights_->tiles(); }
  int64_t rows() const { return planes().rows; }
  int64_t cols() const { return planes().cols; }
  // The entries, transposed: [codebooks, vector, 256].
  const float* columns() const { return columns_.get(); }
  // Codes of a row, and of 32 columns of it.
  int64_t codes() const { return planes().row_bytes(); }
  int64_t block_codes() const { return 32 / planes().scheme.vector * planes().scheme.codebooks; }
  int64_t blocks() const { return DivideUp(cols(), 32); }

 private:
  const AdditiveRows* weights_ = nullptr;
  hwy::AlignedFreeUniquePtr<float[]> columns_;
};

Status MatmulAdditive(std::span<const Product<const AdditiveTables*>> products,
                      const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_GEMV_ADDITIVE_H_
