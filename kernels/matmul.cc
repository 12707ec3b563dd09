#include "kernels/matmul.h"

#include <cstring>

#include "hwy/aligned_allocator.h"
#include "kernels/convert.h"
#include "kernels/gemm_f32.h"

namespace nibble {
namespace {

// Weight rows decoded at once: 16 rows of 512 floats fill the first-level cache of a small core.
constexpr int64_t kPanelRows = 16;
// Activation rows whose sums a task keeps.
constexpr int64_t kMostRows = 64;

}  // namespace

Status MatmulF32(const TensorView& activations, const WeightRows& weights,
                 const ProductOutput& output, const ParallelFor& parallel) {
  const int64_t m_rows = activations.rows;
  const int64_t cols = weights.cols;
  const int workers = std::max(1, parallel.workers);

  // Activations as aligned f32, once.
  const float* a = static_cast<const float*>(activations.data);
  int64_t a_stride = activations.row_stride;
  hwy::AlignedFreeUniquePtr<float[]> copy;
  if (activations.dtype != DType::kF32) {
    copy = hwy::AllocateAligned<float>(static_cast<size_t>(m_rows * cols));
    if (!copy) return OutOfMemory("matmul: no memory for a copy of the activations");
    for (int64_t m = 0; m < m_rows; ++m) {
      ConvertToFloat(activations.dtype, activations.Row(m), cols, copy.get() + m * cols);
    }
    a = copy.get();
    a_stride = cols;
  }

  constexpr int64_t kScratch = kPanelRows * kBlockCols + kMostRows * kPanelRows;
  auto scratch = hwy::AllocateAligned<float>(static_cast<size_t>(workers * kScratch));
  if (!scratch) return OutOfMemory("matmul: no memory for decoded weights");

  parallel(DivideUp(weights.rows, kPanelRows), [&](int64_t task, int worker) {
    float* panel = scratch.get() + worker * kScratch;
    float* sums = panel + kPanelRows * kBlockCols;
    const int64_t n0 = task * kPanelRows;
    const int64_t n_count = std::min(kPanelRows, weights.rows - n0);
    for (int64_t m0 = 0; m0 < m_rows; m0 += kMostRows) {
      const int64_t m_count = std::min(kMostRows, m_rows - m0);
      std::memset(sums, 0, sizeof(float) * static_cast<size_t>(m_count * kPanelRows));
      for (int64_t col = 0; col < cols; col += kBlockCols) {
        const int64_t count = std::min(kBlockCols, cols - col);
        for (int64_t n = 0; n < n_count; ++n) {
          weights.decode(weights, n0 + n, col, count, panel + n * kBlockCols);
        }
        DotRowsF32(a + m0 * a_stride + col, a_stride, m_count, panel, kBlockCols, n_count, count,
                   sums, kPanelRows);
      }
      for (int64_t m = 0; m < m_count; ++m) {
        float* out = output.Row(m0 + m) + n0;
        for (int64_t n = 0; n < n_count; ++n) {
          float sum = sums[m * kPanelRows + n];
          if (output.bias != nullptr) sum += output.bias[n0 + n];
          out[n] = output.accumulate ? out[n] + sum : sum;
        }
      }
    }
  });
  return OkStatus();
}

}  // namespace nibble
