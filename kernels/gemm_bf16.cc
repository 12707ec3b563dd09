#include "kernels/gemm_bf16.h"

#include "hwy/cache_control.h"

namespace nibble {
namespace {

// Asks for the codes of weights that will be decoded. Blocks of a column range lie a row apart,
// which the processor's own prefetchers do not see. Inlined by force: GCC 12 takes a function that
// only prefetches for one without an effect, and drops the call.
HWY_INLINE void PrefetchWeights(const WeightRows& weights, const TileStep& step, int64_t row) {
  const int64_t col = step.chunk * kChunkCols;
  const int64_t count = std::min(step.chunk_count * kChunkCols, weights.cols - col);
  const int64_t tile_bytes = weights.tile_rows * weights.row_bytes;
  const std::byte* at =
      weights.codes + row / weights.tile_rows * tile_bytes + col * tile_bytes / weights.cols;
  const std::byte* end = at + count * tile_bytes / weights.cols;
  for (; at < end; at += 64) hwy::Prefetch(at);
}

// Decodes a step into panels, and asks for what lies a few rows on in it and in the next. Rows that
// a last panel has no weights for stay as they are: their sums go nowhere.
void DecodePanels(const WeightRows& weights, const TileStep& step, const TileStep& next,
                  uint8_t* panels) {
  constexpr int64_t kRowsAhead = 16;
  const int64_t col = step.chunk * kChunkCols;
  const int64_t count = std::min(step.chunk_count * kChunkCols, weights.cols - col);
  for (int64_t r = 0; r < step.row_count; r += weights.tile_rows) {
    const int64_t ahead = r + kRowsAhead;
    if (ahead < step.row_count) {
      PrefetchWeights(weights, step, step.row + ahead);
    } else if (ahead - step.row_count < next.row_count) {
      PrefetchWeights(weights, next, next.row + ahead - step.row_count);
    }
    uint8_t* panel = panels + r / kPairRows * kPanelBytes + r % kPairRows * kChunkBytes;
    weights.decode_bf16(weights, step.row + r, col, count, reinterpret_cast<uint16_t*>(panel),
                        kPairBytes / 2);
  }
}

int64_t Chunks(int64_t cols) { return DivideUp(cols, kChunkCols); }

}  // namespace

Status MatmulBf16(const GemmBf16& gemm, std::span<const Product<WeightRows>> products,
                  const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);

  std::vector<int64_t> begins;  // of each product's slabs
  TaskList pairs;
  int64_t bytes = 0, weight_rows = 0, most_rows = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const ActivationRows& a = products[i].activations;
    const bool shares = SharesActivations(products, i);
    begins.push_back(shares ? begins.back() : bytes);
    pairs.Add(shares ? 0 : DivideUp(a.rows, kPairRows));
    if (!shares) bytes += SlabBytes(a.rows, Chunks(a.cols));
    weight_rows += products[i].weights.rows;
    most_rows = std::max(most_rows, a.rows);
  }
  const int64_t task_rows = RowsPerTask(weight_rows, kPairRows, weight_rows, workers);
  const int64_t step_rows = std::min(StepRows(most_rows), task_rows);
  WorkMemory memory;
  const auto slabs_part = memory.Add<uint8_t>(bytes);
  const TileScratch<float> scratch(&memory, workers, step_rows, most_rows);
  if (!memory.Allocate()) return OutOfMemory("matmul: no memory for packed operands");
  uint8_t* const slabs = memory.At(slabs_part);
  parallel(pairs.count(), [&](int64_t index, int) {
    const auto [i, pair] = pairs.At(index);
    const ActivationRows& a = products[i].activations;
    const int64_t m = pair * kPairRows;
    uint8_t* slab = slabs + begins[i];
    ForSlabBlocks(a.rows, Chunks(a.cols), m, [&](int64_t chunk, int64_t count, int64_t place) {
      const int64_t col = chunk * kChunkCols;
      gemm.pack(a, m, std::min(kPairRows, a.rows - m), col,
                std::min(count * kChunkCols, a.cols - col), slab + place);
    });
  });

  TaskList tasks;
  for (const auto& product : products) {
    tasks.Add(DivideUp(product.weights.rows, task_rows) *
              DivideUp(product.activations.rows, kSlabRows));
  }
  parallel(tasks.count(), [&](int64_t index, int worker) {
    const auto [i, number] = tasks.At(index);
    const Product<WeightRows>& product = products[i];
    const WeightRows& weights = product.weights;
    const int64_t n_tasks = DivideUp(weights.rows, task_rows), chunks = Chunks(weights.cols);
    TileTask task;
    task.n0 = number % n_tasks * task_rows;
    task.n_rows = std::min(task_rows, weights.rows - task.n0);
    task.m0 = number / n_tasks * kSlabRows;
    task.m_rows = std::min(kSlabRows, product.activations.rows - task.m0);
    if (weights.tile_rows > 1) task.few_chunks = kBlockChunks / 2;
    MultiplyTileTask(
        gemm.tiles, chunks, slabs + begins[i] + SlabBytes(task.m0, chunks), task, step_rows,
        [&](const TileStep& step, const TileStep& next, uint8_t* to) {
          DecodePanels(weights, step, next, to);
        },
        [&](const float* totals, int64_t m, int64_t m_count, int64_t n, int64_t n_count) {
          gemm.store(totals, product.output, m, m_count, n, n_count);
        },
        scratch.Of(memory, worker));
  });
  return OkStatus();
}

}  // namespace nibble
