// Rotations folded into a model's weights (QuaRot, arXiv 2404.00456): orthogonal changes of the
// residual stream and of the heads' values spread outliers over all channels, and leave the
// model's function as it is. The result is a model of the same kind.
#ifndef NIBBLE_ROTATE_H_
#define NIBBLE_ROTATE_H_

#include <cstdint>
#include <vector>

#include "nibble/model_source.h"
#include "nibble/status.h"

namespace nibble {

// An orthogonal matrix Q [n, n] that is applied in O(n log n): random signs, then a Hadamard
// transform over the largest power of two in n, then a cosine transform (DCT-II, orthonormal) over
// what is left.
class Rotation {
 public:
  // Different seeds give different signs, the same on every machine.
  Rotation(int64_t n, uint64_t seed);

  int64_t size() const { return static_cast<int64_t>(signs_.size()); }
  // x := x Q, x [n] with elements `stride` apart.
  void Apply(float* x, int64_t stride = 1) const;

 private:
  std::vector<float> signs_;
  int64_t power_of_two_;
  std::vector<double> rest_;  // [n / power_of_two, n / power_of_two]
};

struct RotateOptions {
  uint64_t seed = 1;
  bool residual = true;  // the residual stream; norms become 1, tied embeddings are split in two
  bool values = true;    // each head's values
};

// The changes that rotate a Llama-family model. Fails where what is between two matrices is more
// than a norm without offset.
Result<ModelEdits> Rotate(const ModelSource& source, const RotateOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_ROTATE_H_
