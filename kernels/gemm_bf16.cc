#include "kernels/gemm_bf16.h"

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"

namespace nibble {
namespace {

// Activation rows of a slab: 512 x 512 bf16 are a quarter of a second-level cache of 2 MiB. The
// slab of the next block of columns and the sums of a task take another quarter each.
constexpr int64_t kSlabRows = 512;
constexpr int64_t kTaskRows = 256;

// One task's part of a product: weight rows [n0, n0 + n_rows) by one slab's activation rows.
struct Task {
  int64_t n0, n_rows, m0, m_rows;
};

// Decodes rows [first, last) of the panel that begins at weight row n0 of the task; rows beyond the
// task's become zeros.
void DecodePanelRows(const WeightRows& weights, const Task& task, int64_t n, int64_t col,
                     int64_t first, int64_t last, uint16_t* panel) {
  const int64_t count = std::min(kBlockCols, weights.cols - col);
  for (int64_t r = first; r < last; ++r) {
    uint16_t* out = panel + r / kTileRows * kTileElements + r % kTileRows * kChunkCols;
    if (n + r < task.n_rows) {
      weights.decode_bf16(weights, task.n0 + n + r, col, count, out, kChunkElements);
    } else {
      for (int64_t c = 0; c < DivideUp(count, kChunkCols); ++c) {
        std::fill_n(out + c * kChunkElements, kChunkCols, uint16_t{0});
      }
    }
  }
}

// Asks for the codes of weights that will be decoded. Blocks of a column range lie a row apart,
// which the processor's own prefetchers do not see.
void PrefetchWeights(const WeightRows& weights, int64_t row, int64_t col, int64_t count) {
  const int64_t tile = row / weights.tile_rows * weights.tile_rows;
  const int64_t before = col * weights.tile_rows + (row - tile) * count;  // weights of the tile
  const std::byte* at =
      weights.codes + tile * weights.row_bytes + before * weights.row_bytes / weights.cols;
  const std::byte* end = at + count * weights.row_bytes / weights.cols;
  for (; at < end; at += 64) hwy::Prefetch(at);
}

// Multiplies a task. Panels are decoded one ahead, a few rows after each multiplication, where the
// tile unit still has work queued that hides them.
void MultiplyTask(const GemmBf16& gemm, const WeightRows& weights, const uint16_t* slabs,
                  const Task& task, const ProductOutput& output, uint16_t* panels, float* sums) {
  const int64_t blocks = DivideUp(weights.cols, kBlockCols);
  const int64_t n_panels = DivideUp(task.n_rows, kPairRows);
  const int64_t m_pairs = DivideUp(task.m_rows, kPairRows);
  const int64_t steps = blocks * n_panels;
  const int64_t padded_m = RoundUp(task.m_rows, kPairRows);

  const auto panel_of = [&](int64_t step) { return panels + step % 2 * kPairRows * kBlockCols; };
  const auto decode = [&](int64_t step, int64_t first, int64_t last) {
    DecodePanelRows(weights, task, step % n_panels * kPairRows, step / n_panels * kBlockCols, first,
                    last, panel_of(step));
  };
  const auto prefetch_weights = [&](int64_t step, int64_t first, int64_t last) {
    if (step >= steps) return;
    const int64_t n = step % n_panels * kPairRows, col = step / n_panels * kBlockCols;
    for (int64_t r = first; r < last && n + r < task.n_rows; ++r) {
      PrefetchWeights(weights, task.n0 + n + r, col, std::min(kBlockCols, weights.cols - col));
    }
  };
  decode(0, 0, kPairRows);

  for (int64_t step = 0; step < steps; ++step) {
    const int64_t block = step / n_panels, panel = step % n_panels;
    const int64_t col = block * kBlockCols;
    const int64_t count = std::min(kBlockCols, weights.cols - col);
    const int64_t chunks = DivideUp(count, kChunkCols);
    const uint16_t* slab = slabs + col * padded_m;
    const int64_t n = panel * kPairRows;
    const int64_t n_count = std::min(kPairRows, task.n_rows - n);
    const bool last_block = block + 1 == blocks;

    // The next slab, spread evenly over the products of this block.
    const int64_t next_count =
        last_block ? 0 : std::min(kBlockCols, RoundUp(weights.cols - col - count, kChunkCols));
    const int64_t next_lines = next_count * padded_m / kChunkCols;
    const int64_t share = DivideUp(next_lines, n_panels * m_pairs);

    for (int64_t pair = 0; pair < m_pairs; ++pair) {
      const int64_t m = pair * kPairRows;
      const int64_t m_count = std::min(kPairRows, task.m_rows - m);
      float* pair_sums = sums + (panel * m_pairs + pair) * kSumElements;
      Prefetch prefetch;
      if (block > 0 && panel * m_pairs + pair + 1 < n_panels * m_pairs) {
        prefetch.sums = pair_sums + kSumElements;
      }
      const int64_t line = (panel * m_pairs + pair) * share;
      if (line < next_lines) {
        prefetch.slab = slabs + (col + count) * padded_m + line * kChunkCols;
        prefetch.slab_lines = std::min(share, next_lines - line);
      }
      gemm.multiply(panel_of(step), slab + m * RoundUp(count, kChunkCols), chunks,
                    n_count > kTileRows ? 2 : 1, m_count > kTileRows ? 2 : 1, block == 0, pair_sums,
                    prefetch);
      if (step + 1 < steps) {
        const int64_t first = pair * kPairRows / m_pairs, last = (pair + 1) * kPairRows / m_pairs;
        prefetch_weights(step + 2, first, last);
        decode(step + 1, first, last);
      }
    }
  }

  // Finished sums go out a stretch of each row at a time: writing every panel's 32 columns when
  // they are ready would touch each of the output's pages again and again.
  for (int64_t m = 0; m < task.m_rows; m += kPairRows) {
    for (int64_t n = 0; n < task.n_rows; n += kPairRows) {
      gemm.store(sums + (n / kPairRows * m_pairs + m / kPairRows) * kSumElements, output,
                 task.m0 + m, std::min(kPairRows, task.m_rows - m), task.n0 + n,
                 std::min(kPairRows, task.n_rows - n));
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

  const int64_t task_rows = RowsPerTask(weight_rows, kPairRows, kTaskRows, workers);
  const int64_t panel_elements = 2 * kPairRows * kBlockCols;
  const int64_t sum_elements = task_rows * std::min(kSlabRows, most_rows);
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
    gemm.enter();
    MultiplyTask(gemm, weights,
                 slabs.get() + begins[i] + task.m0 * RoundUp(weights.cols, kChunkCols), task,
                 products[i].output, panels.get() + worker * panel_elements,
                 sums.get() + worker * sum_elements);
    gemm.leave();
  });
  return OkStatus();
}

}  // namespace nibble
