#include "kernels/gemm_bf16.h"

#include "hwy/cache_control.h"

namespace nibble {
namespace {

// Decodes the pieces of panels, and asks for what lies a few rows on in a piece and in the next: a
// whole block at once would fill the first-level cache's buffers, and reading wait for them.
class PieceDecoder {
 public:
  explicit PieceDecoder(const WeightRows& weights)
      : weights_(weights),
        col_bytes_(static_cast<double>(weights.tile_rows * weights.row_bytes) /
                   static_cast<double>(weights.cols)) {}

  // Rows that a last panel has no weights for stay as they are: their sums go nowhere.
  void operator()(const TilePart& piece, const TilePart& next, uint8_t* panel) const {
    constexpr int64_t kRowsAhead = 16;
    for (int64_t r = 0; r < piece.row_count; r += weights_.tile_rows) {
      const int64_t ahead = r + kRowsAhead;
      if (ahead < piece.row_count) {
        Prefetch(piece, ahead);
      } else if (ahead - piece.row_count < next.row_count) {
        Prefetch(next, ahead - piece.row_count);
      }
      weights_.decode_bf16(weights_, piece.row + r, piece.chunk * kChunkCols, Cols(piece),
                           reinterpret_cast<uint16_t*>(panel + r * kChunkBytes), kPairBytes / 2);
    }
  }

 private:
  int64_t Cols(const TilePart& piece) const {
    return std::min(piece.chunk_count * kChunkCols, weights_.cols - piece.chunk * kChunkCols);
  }
  int64_t Offset(int64_t cols) const {
    return static_cast<int64_t>(static_cast<double>(cols) * col_bytes_);
  }

  // Inlined by force: GCC 12 takes a function that only prefetches for one without an effect, and
  // drops the call.
  HWY_INLINE void Prefetch(const TilePart& piece, int64_t r) const {
    const std::byte* at =
        weights_.codes + (piece.row + r) * weights_.row_bytes + Offset(piece.chunk * kChunkCols);
    const std::byte* end = at + Offset(Cols(piece));
    for (; at < end; at += 64) hwy::Prefetch(at);
  }

  const WeightRows& weights_;
  double col_bytes_;  // of the codes of a column of a tile
};

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
  const int64_t block_rows = std::min(BlockRows(most_rows), task_rows);
  WorkMemory memory;
  const auto slabs_part = memory.Add<uint8_t>(bytes);
  const TileScratch<float> scratch(&memory, workers, block_rows, most_rows);
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
    task.piece_chunks = DivideUp(weights.piece_cols, kChunkCols);
    // Larger pieces leave no room for activations in the first-level cache.
    task.few_rows = weights.piece_cols <= kPieceCols ? kMostFewRows : kPairRows;
    MultiplyTileTask(
        gemm.tiles, chunks, slabs + begins[i] + SlabBytes(task.m0, chunks), task, block_rows,
        PieceDecoder(weights),
        [&](const float* totals, int64_t m, int64_t m_count, int64_t n, int64_t n_count) {
          gemm.store(totals, product.output, m, m_count, n, n_count);
        },
        scratch.Of(memory, worker));
  });
  return OkStatus();
}

}  // namespace nibble
