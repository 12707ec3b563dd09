// The codebooks of a matrix: their first guess, and their least-squares fit to given codes.
#ifndef NIBBLE_LIB_QUANTIZE_ADDITIVE_BOOKS_H_
#define NIBBLE_LIB_QUANTIZE_ADDITIVE_BOOKS_H_

#include <cstdint>
#include <vector>

#include "kernels/additive_search.h"
#include "lib/quantize/finite_rows.h"
#include "lib/quantize/hessian.h"
#include "nibble/scheme.h"

namespace nibble {

// What counts as error: e H e^T for each row e of errors, H damped; or without a Hessian the sum of
// weight * e^2.
struct ErrorMetric {
  const FactoredHessian* hessian = nullptr;
  std::vector<float> weight;  // by column; with a Hessian the conditional variances of feedback

  // out [rows, cols] = errors [rows, cols] * H.
  void Multiply(const RowMatrix& errors, RowMatrix& out) const;
  // Element (i, j) of H.
  float At(int64_t i, int64_t j) const {
    return hessian != nullptr ? hessian->damped(i, j) : i == j ? weight[static_cast<size_t>(i)] : 0;
  }
};

struct AdditiveModel {
  Scheme scheme;
  int64_t rows, cols;
  int64_t vectors;             // of a row, the last maybe short
  std::vector<float> entries;  // [codebooks, kEntries, vector], values that the scale's type holds
  std::vector<float> columns;  // [codebooks, vector, kEntries]: the same, transposed
  std::vector<float> scales;   // [rows], values that their type holds
  uint8_t* codes;              // [rows, vectors, codebooks]

  AdditiveModel(const Scheme& scheme, int64_t rows, int64_t cols, uint8_t* codes);

  int64_t width(int64_t v) const { return std::min<int64_t>(scheme.vector, cols - v * size()); }
  int64_t size() const { return scheme.vector; }
  const float* Entry(int codebook, int64_t code) const {
    return entries.data() + (codebook * kEntries + code) * size();
  }
  const float* Columns(int codebook) const { return columns.data() + codebook * kEntries * size(); }
  uint8_t* CodesOf(int64_t row, int64_t v) const {
    return codes + (row * vectors + v) * scheme.codebooks;
  }
  // The sum of the entries of a vector's codes, of `size()` elements.
  void Sum(const uint8_t* vector_codes, float* out) const;
  // Rounds the entries to their type and transposes them.
  void EntriesChanged();
};

// x rounded to f32, f16 or bf16; may become infinite.
float RoundTo(DType dtype, float x);

// Entries by k-means of a sample of the vectors over their row's scale, codebook after codebook,
// each of what the ones before have left.
Status GuessEntries(const ErrorMetric& metric, const ParallelFor& parallel, FiniteRows& weights,
                    AdditiveModel& model);

// Moves the entries to where a sample of the rows has the least error under the codes and scales
// that there are: conjugate gradients, a few steps.
Status FitEntries(const ErrorMetric& metric, const ParallelFor& parallel, FiniteRows& weights,
                  AdditiveModel& model);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_ADDITIVE_BOOKS_H_
