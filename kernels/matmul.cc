#include "kernels/matmul.h"

#include <cstring>

#include "hwy/aligned_allocator.h"
#include "kernels/convert.h"
#include "kernels/gemm_f32.h"
#include "kernels/gemm_ordered.h"

namespace nibble {
namespace {

// Weight rows decoded at once: 16 rows of 512 floats fill the first-level cache of a small core.
constexpr int64_t kPanelRows = 16;
// Activation rows whose sums a task keeps.
constexpr int64_t kMostRows = 64;

// From so many activation rows on, a panel of weights serves them all as outer products.
constexpr int64_t kFewestForOuter = 32;
constexpr int64_t kOuterPanelRows = 64;
constexpr int64_t kOuterRows = 480;

bool ByOuterProducts(const Product<WeightRows>& product) {
  return product.activations.rows >= kFewestForOuter;
}

int64_t PanelRows(const Product<WeightRows>& product) {
  return ByOuterProducts(product) ? kOuterPanelRows : kPanelRows;
}

// Floats of a panel of decoded weights and of the sums with it.
constexpr int64_t kPanelFloats = kOuterPanelRows * kBlockCols;
constexpr int64_t kSumFloats = kOuterPanelRows * kOuterRows;
static_assert(kPanelFloats >= kPanelRows * kBlockCols && kSumFloats >= kPanelRows * kMostRows);

// Sums of weight rows [n0, n0 + PanelRows()) with all activation rows, which lie `stride` floats
// apart at `a`.
void MultiplyPanel(const Product<WeightRows>& product, const float* a, int64_t stride, int64_t n0,
                   float* panel, float* sums) {
  const WeightRows& weights = product.weights;
  const ProductOutput& output = product.output;
  const bool outer = ByOuterProducts(product);
  const int64_t panel_rows = PanelRows(product), most_rows = outer ? kOuterRows : kMostRows;
  const int64_t n_count = std::min(panel_rows, weights.rows - n0);
  for (int64_t m0 = 0; m0 < product.activations.rows; m0 += most_rows) {
    const int64_t m_count = std::min(most_rows, product.activations.rows - m0);
    std::memset(sums, 0, sizeof(float) * static_cast<size_t>(m_count * panel_rows));
    for (int64_t col = 0; col < weights.cols; col += kBlockCols) {
      const int64_t count = std::min(kBlockCols, weights.cols - col);
      for (int64_t n = 0; n < n_count; ++n) {
        weights.decode(weights, n0 + n, col, count, panel + n * kBlockCols);
      }
      const float* rows = a + m0 * stride + col;
      if (outer) {
        AddProduct(StridedMatrix<float>{rows, stride, 1},
                   StridedMatrix<float>{panel, 1, kBlockCols}, m_count, n_count, count, 1.0f, sums,
                   panel_rows);
      } else {
        DotRowsF32(rows, stride, m_count, panel, kBlockCols, n_count, count, sums, panel_rows);
      }
    }
    for (int64_t m = 0; m < m_count; ++m) {
      float* out = output.Row(m0 + m) + n0;
      for (int64_t n = 0; n < n_count; ++n) {
        float sum = sums[m * panel_rows + n];
        if (output.bias != nullptr) sum += output.bias[n0 + n];
        out[n] = output.accumulate ? out[n] + sum : sum;
      }
    }
  }
}

}  // namespace

Status MatmulF32(std::span<const Product<WeightRows>> products, const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);

  // Activations as rows of f32 at equal distances: as they lie, or copied.
  const auto is_copied = [](const ActivationRows& a) {
    return a.dtype != DType::kF32 || a.index != nullptr;
  };
  int64_t copied = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const ActivationRows& a = products[i].activations;
    if (is_copied(a) && !SharesActivations(products, i)) copied += a.rows * a.cols;
  }
  auto copies = hwy::AllocateAligned<float>(static_cast<size_t>(copied) + 1);
  if (!copies) return OutOfMemory("matmul: no memory for a copy of the activations");
  struct Floats {
    const float* data;
    int64_t stride;
  };
  std::vector<Floats> floats;
  TaskList tasks;
  float* next = copies.get();
  for (size_t i = 0; i < products.size(); ++i) {
    const ActivationRows& a = products[i].activations;
    tasks.Add(DivideUp(products[i].weights.rows, PanelRows(products[i])));
    if (SharesActivations(products, i)) {
      floats.push_back(floats.back());
    } else if (!is_copied(a)) {
      floats.push_back(
          {static_cast<const float*>(a.Row(0)), a.row_bytes / static_cast<int64_t>(sizeof(float))});
    } else {
      floats.push_back({next, a.cols});
      for (int64_t m = 0; m < a.rows; ++m, next += a.cols) {
        ConvertToFloat(a.dtype, a.Row(m), a.cols, next);
      }
    }
  }

  constexpr int64_t kScratch = kPanelFloats + kSumFloats;
  auto scratch = hwy::AllocateAligned<float>(static_cast<size_t>(workers * kScratch));
  if (!scratch) return OutOfMemory("matmul: no memory for decoded weights");
  parallel(tasks.count(), [&](int64_t index, int worker) {
    const auto [i, task] = tasks.At(index);
    float* panel = scratch.get() + worker * kScratch;
    MultiplyPanel(products[i], floats[i].data, floats[i].stride, task * PanelRows(products[i]),
                  panel, panel + kPanelFloats);
  });
  return OkStatus();
}

}  // namespace nibble
