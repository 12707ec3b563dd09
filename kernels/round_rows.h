// What kernels that round activations share: each row once, and as many rows at a time as there are
// threads.
#ifndef NIBBLE_KERNELS_ROUND_ROWS_H_
#define NIBBLE_KERNELS_ROUND_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <span>

#include "hwy/aligned_allocator.h"
#include "kernels/convert.h"
#include "kernels/matmul.h"

namespace nibble {

// Where the rounded activations of each product of a group begin, in elements: `padded_cols(i)` for
// each row. Product i uses those of i - 1 where they have the same activations and shares(i).
class RoundedLayout {
 public:
  template <class Weights, class Shares, class PaddedCols>
  RoundedLayout(std::span<const Product<Weights>> products, const Shares& shares,
                const PaddedCols& padded_cols) {
    for (size_t i = 0; i < products.size(); ++i) {
      const bool shared = SharesActivations(products, i) && shares(i);
      begins_.push_back(shared ? begins_.back() : elements_);
      rows_.Add(shared ? 0 : products[i].activations.rows);
      if (!shared) elements_ += products[i].activations.rows * padded_cols(i);
    }
  }

  int64_t elements() const { return elements_; }
  int64_t Begin(size_t i) const { return begins_[i]; }
  const TaskList& rows() const { return rows_; }

 private:
  std::vector<int64_t> begins_;
  TaskList rows_;
  int64_t elements_ = 0;
};

// Calls round(i, m, row) once for every activation row m that is rounded for product i, with the
// row in f32.
template <class Weights, class Round>
Status RoundRows(std::span<const Product<Weights>> products, const RoundedLayout& layout,
                 const ParallelFor& parallel, const Round& round) {
  int64_t widest = 0;
  for (const auto& product : products) {
    const ActivationRows& a = product.activations;
    if (a.dtype != DType::kF32) widest = std::max(widest, a.cols);
  }
  const int workers = std::max(1, parallel.workers);
  auto wide = hwy::AllocateAligned<float>(static_cast<size_t>(workers * widest) + 1);
  if (!wide) return OutOfMemory("matmul: no memory for activations");
  const auto round_row = [&](int64_t index, int worker) {
    const auto [i, m] = layout.rows().At(index);
    const ActivationRows& a = products[i].activations;
    const float* row = static_cast<const float*>(a.Row(m));
    if (a.dtype != DType::kF32) {
      float* copy = wide.get() + worker * widest;
      ConvertToFloat(a.dtype, a.Row(m), a.cols, copy);
      row = copy;
    }
    round(i, m, row);
  };
  // Waking threads takes longer than rounding a few rows.
  const int64_t count = layout.rows().count();
  if (count <= 4) {
    for (int64_t row = 0; row < count; ++row) round_row(row, 0);
  } else {
    parallel(count, round_row);
  }
  return OkStatus();
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ROUND_ROWS_H_
