// Quantization with error feedback: what one column's rounding spoils, the later ones make good
// (GPTQ, arXiv 2210.17323), in planar schemes and inside GGUF's block formats.
#ifndef NIBBLE_GPTQ_H_
#define NIBBLE_GPTQ_H_

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/format.h"
#include "nibble/parallel.h"
#include "nibble/quantized_tensor.h"
#include "nibble/scheme.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// X^T X of a linear layer's inputs X [tokens, cols], accumulated in pieces.
class Hessian {
 public:
  Hessian() = default;
  explicit Hessian(int64_t cols);

  // Adds f32 inputs [tokens, cols]. Refuses non-finite values, naming token and column.
  Status Add(TensorView inputs, const ParallelFor& parallel = {});
  // Adds another's sums.
  Status Merge(const Hessian& other);
  // From the upper triangle of X^T X, row by row, as HessianFile keeps it. Refuses sums that are
  // not finite, and negative ones of squares.
  static Result<Hessian> FromTriangle(int64_t cols, int64_t tokens, std::span<const float> sums);

  int64_t cols() const { return cols_; }
  int64_t tokens() const { return tokens_; }
  // X^T X, row-major [cols, cols], symmetric.
  const std::vector<float>& sums() const { return sums_; }
  // Mean squares of the inputs, by column: the importance that QuantizeOptions takes.
  std::vector<float> MeanSquares() const;

 private:
  int64_t cols_ = 0;
  int64_t tokens_ = 0;
  std::vector<float> sums_;
};

struct GptqOptions {
  // Share of the mean diagonal that is added to the diagonal: for inputs that the calibration text
  // does not have. With the 0.01 of the paper, errors are moved into columns that a text of some
  // hundred thousand tokens hardly used, and other texts' rare words suffer. Grows tenfold as long
  // as the Hessian is not positive definite.
  double damping = 0.2;
  // Further passes over the columns: codes and scales of each group again, given the errors of all
  // other columns. A row's error never rises.
  int sweeps = 2;

  // Of planar schemes, whose groups are taken in one pass:
  // Columns in the order of falling mean square of their inputs: the largest are rounded first,
  // when most others can still make good for them. Groups of consecutive columns of that order need
  // a scheme with a group index.
  bool act_order = false;
  // Scales are fixed before the pass, from the weights as they are, for groups as they lie in the
  // file: act-order without a group index.
  bool static_groups = false;
  // Scales are chosen by the error that is left after feedback; false: from the range alone, as
  // published.
  bool search_scales = true;

  ParallelFor parallel;
};

struct GptqReport {
  double damping = 0;           // what was used
  bool damping_raised = false;  // because the Hessian was not positive definite with what was asked
  int64_t dead_columns = 0;     // inputs that were always zero
  double output_error = 0;      // sum over rows of e (H / tokens) e^T, without damping
  double weight_energy = 0;  // the same of the weights themselves: output_error / weight_energy is
                             // the relative error of the layer's output
};

// Quantizes to a block format other than mxfp4, the scalars, the ternary and the decode-only ones,
// for the least error of the layer's output over the inputs that `hessian` saw: scales are chosen
// by the error that is left after feedback, super-scales refitted to the codes.
Result<QuantizedTensor> QuantizeGptq(TensorView weights, Format format, const Hessian& hessian,
                                     const GptqOptions& options = {}, GptqReport* report = nullptr);

// The same to a planar scheme of any code; per channel and per tensor the scales are fixed before
// the pass. `table` as for Quantize(). Doubly quantized scales need static groups.
Result<QuantizedTensor> QuantizeGptq(TensorView weights, const Scheme& scheme,
                                     const Hessian& hessian, const GptqOptions& options = {},
                                     GptqReport* report = nullptr,
                                     std::span<const float> table = {});

}  // namespace nibble

#endif  // NIBBLE_GPTQ_H_
