#include "kernels/gemm_bf16.h"

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"

namespace nibble {
namespace {

// Activation rows of a slab, and weight rows of a step where those are many: a step's decoded
// weights (a block of columns) and its sums for a slab's rows fill three quarters of a second-level
// cache of 2 MiB.
constexpr int64_t kSlabRows = 512;
constexpr int64_t kStepRows = 512;
// Up to here decoded weights are used so few times that they should not leave the first-level
// cache.
constexpr int64_t kFewRows = 64;

// One task's part of a product: weight rows [n0, n0 + n_rows) by one slab's activation rows.
struct Task {
  int64_t n0, n_rows, m0, m_rows;
};

// What a worker needs in memory.
struct Scratch {
  uint16_t* panels;  // of a step
  float* sums;       // of two products
  float* totals;     // of a step, by activation rows, then by panel
};

// Asks for the codes of weights that will be decoded. Blocks of a column range lie a row apart,
// which the processor's own prefetchers do not see. Inlined by force: GCC 12 takes a function that
// only prefetches for one without an effect, and drops the call.
HWY_INLINE void PrefetchWeights(const WeightRows& weights, int64_t row, int64_t col,
                                int64_t count) {
  const int64_t tile_bytes = weights.tile_rows * weights.row_bytes;
  const std::byte* at =
      weights.codes + row / weights.tile_rows * tile_bytes + col * tile_bytes / weights.cols;
  const std::byte* end = at + count * tile_bytes / weights.cols;
  for (; at < end; at += 64) hwy::Prefetch(at);
}

// Decodes columns [col, col + count) of weight rows [n, n + n_count) into panels, and asks for
// those of the next block of columns, or of the rows after. Rows that a last panel has no weights
// for stay as they are: their sums go nowhere.
void DecodePanels(const WeightRows& weights, int64_t n, int64_t n_count, int64_t col, int64_t count,
                  uint16_t* panels) {
  constexpr int64_t kRowsAhead = 16;
  for (int64_t r = 0; r < n_count; r += weights.tile_rows) {
    if (r + kRowsAhead < n_count) {
      PrefetchWeights(weights, n + r + kRowsAhead, col, count);
    } else if (col + count < weights.cols) {
      const int64_t next_count = std::min(count, weights.cols - col - count);
      PrefetchWeights(weights, n + std::max<int64_t>(0, r + kRowsAhead - n_count), col + count,
                      next_count);
    } else if (n + r + kRowsAhead < weights.rows) {
      PrefetchWeights(weights, n + r + kRowsAhead, 0, std::min(kBlockCols, weights.cols));
    }
    weights.decode_bf16(weights, n + r, col, count, panels + r * kPanelStride, kPanelStride);
  }
}

// Multiplies the weights of a step, [n, n + n_count) of the task's rows and a block of columns,
// with the slab's rows. 32 activation rows meet all panels before the next 32 do, and their
// finished sums go out in stretches of `n_count`: each row of the output lies on pages of its own.
void MultiplyStep(const GemmBf16& gemm, const uint16_t* slab, const Task& task, int64_t n,
                  int64_t n_count, int64_t chunks, bool first, bool last,
                  const ProductOutput& output, const Scratch& scratch) {
  float* totals = scratch.totals;
  for (int64_t m = 0; m < task.m_rows; m += kPairRows) {
    const int64_t m_count = std::min(kPairRows, task.m_rows - m);
    float* m_totals = totals;
    Addition before;
    for (int64_t r = 0; r < n_count; r += kPairRows, totals += kSumElements) {
      float* sums = scratch.sums + r / kPairRows % 2 * kSumElements;
      gemm.multiply(scratch.panels + r * kPanelStride, slab, chunks,
                    n_count - r > kTileRows ? 2 : 1, m_count > kTileRows ? 2 : 1, sums, before);
      before = {sums, totals, first};
    }
    gemm.add(before);
    slab += chunks * kChunkElements;
    for (int64_t r = 0; last && r < n_count; r += kPairRows, m_totals += kSumElements) {
      gemm.store(m_totals, output, task.m0 + m, m_count, task.n0 + n + r,
                 std::min(kPairRows, n_count - r));
    }
  }
}

void MultiplyTask(const GemmBf16& gemm, const WeightRows& weights, const uint16_t* slabs,
                  const Task& task, int64_t step_rows, const ProductOutput& output,
                  const Scratch& scratch) {
  const int64_t padded_m = RoundUp(task.m_rows, kPairRows);
  for (int64_t n = 0; n < task.n_rows; n += step_rows) {
    const int64_t n_count = std::min(step_rows, task.n_rows - n);
    for (int64_t col = 0; col < weights.cols; col += kBlockCols) {
      const int64_t count = std::min(kBlockCols, weights.cols - col);
      DecodePanels(weights, task.n0 + n, n_count, col, count, scratch.panels);
      MultiplyStep(gemm, slabs + col * padded_m, task, n, n_count, DivideUp(count, kChunkCols),
                   col == 0, col + count == weights.cols, output, scratch);
    }
  }
}

// Packs activation rows [m, m + 32) of a product into its slabs: for each 512 activation rows, for
// each block of columns, 32 rows after another.
void PackPair(const GemmBf16& gemm, const ActivationRows& activations, int64_t m, uint16_t* slabs) {
  const int64_t padded_cols = RoundUp(activations.cols, kChunkCols);
  const int64_t slab_m = m / kSlabRows * kSlabRows;
  const int64_t slab_rows = RoundUp(std::min(kSlabRows, activations.rows - slab_m), kPairRows);
  for (int64_t col = 0; col < activations.cols; col += kBlockCols) {
    const int64_t count = std::min(kBlockCols, activations.cols - col);
    gemm.pack(
        activations, m, std::min(kPairRows, activations.rows - m), col, count,
        slabs + slab_m * padded_cols + col * slab_rows + (m - slab_m) * RoundUp(count, kChunkCols));
  }
}

}  // namespace

Status MatmulBf16(const GemmBf16& gemm, std::span<const Product<WeightRows>> products,
                  const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);

  std::vector<int64_t> begins;  // of each product's slabs
  TaskList pairs;
  int64_t elements = 0, weight_rows = 0, most_rows = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const ActivationRows& a = products[i].activations;
    const bool shares = SharesActivations(products, i);
    begins.push_back(shares ? begins.back() : elements);
    pairs.Add(shares ? 0 : DivideUp(a.rows, kPairRows));
    if (!shares) elements += RoundUp(a.rows, kPairRows) * RoundUp(a.cols, kChunkCols);
    weight_rows += products[i].weights.rows;
    most_rows = std::max(most_rows, RoundUp(a.rows, kPairRows));
  }
  auto slabs = hwy::AllocateAligned<uint16_t>(static_cast<size_t>(elements));
  if (!slabs) return OutOfMemory("matmul: no memory for packed activations");
  parallel(pairs.count(), [&](int64_t index, int) {
    const auto [i, pair] = pairs.At(index);
    PackPair(gemm, products[i].activations, pair * kPairRows, slabs.get() + begins[i]);
  });

  const int64_t task_rows = RowsPerTask(weight_rows, kPairRows, weight_rows, workers);
  const int64_t step_rows = std::min(most_rows <= kFewRows ? kPairRows : kStepRows, task_rows);
  const int64_t panel_elements = step_rows * kPanelStride;
  const int64_t sum_elements = 2 * kSumElements + step_rows * std::min(kSlabRows, most_rows);
  auto panels = hwy::AllocateAligned<uint16_t>(static_cast<size_t>(workers * panel_elements));
  auto sums = hwy::AllocateAligned<float>(static_cast<size_t>(workers * sum_elements));
  if (!panels || !sums) return OutOfMemory("matmul: no memory for decoded weights");

  TaskList tasks;
  for (const auto& product : products) {
    tasks.Add(DivideUp(product.weights.rows, task_rows) *
              DivideUp(product.activations.rows, kSlabRows));
  }
  parallel(tasks.count(), [&](int64_t index, int worker) {
    const auto [i, number] = tasks.At(index);
    const WeightRows& weights = products[i].weights;
    const int64_t m_rows = products[i].activations.rows;
    const int64_t n_tasks = DivideUp(weights.rows, task_rows);
    Task task;
    task.n0 = number % n_tasks * task_rows;
    task.n_rows = std::min(task_rows, weights.rows - task.n0);
    task.m0 = number / n_tasks * kSlabRows;
    task.m_rows = std::min(kSlabRows, m_rows - task.m0);
    float* worker_sums = sums.get() + worker * sum_elements;
    gemm.enter();
    MultiplyTask(
        gemm, weights, slabs.get() + begins[i] + task.m0 * RoundUp(weights.cols, kChunkCols), task,
        step_rows, products[i].output,
        {panels.get() + worker * panel_elements, worker_sums, worker_sums + 2 * kSumElements});
    gemm.leave();
  });
  return OkStatus();
}

}  // namespace nibble
