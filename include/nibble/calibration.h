// What is known of the inputs of a model's linear layers.
#ifndef NIBBLE_CALIBRATION_H_
#define NIBBLE_CALIBRATION_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// Statistics of one layer's inputs: of one matrix, or of the experts stacked in one tensor.
struct LayerStatistics {
  int64_t cols = 0;                // inputs of one matrix
  std::vector<float> sum_squares;  // [matrices * cols]: sums of squared inputs
  std::vector<int64_t> counts;     // [matrices]: the tokens behind each sum
  std::vector<float> maxima;       // [matrices * cols]: largest magnitudes; empty: not known

  LayerStatistics() = default;
  // Of no token yet.
  LayerStatistics(int64_t cols, int64_t matrices);

  // Adds f32 inputs [tokens, cols] of matrix m, in host memory. Refuses a value that is not finite,
  // naming token and column, and then adds nothing.
  Status Add(TensorView inputs, int64_t m = 0);
  int64_t matrices() const { return static_cast<int64_t>(counts.size()); }
  // Mean squares of matrix m, by column; empty where it saw no token.
  std::vector<float> MeanSquares(int64_t m = 0) const;
};

// An importance matrix: statistics by the GGUF name of the weight, in llama.cpp's file formats.
struct ImportanceMatrix {
  std::map<std::string, LayerStatistics, std::less<>> layers;
  std::vector<std::string> datasets;  // the texts it was made from
  int64_t chunks = 0;
  int64_t chunk_tokens = 0;

  const LayerStatistics* Find(std::string_view name) const;

  // Adds another's sums and counts; layers must agree in size. Maxima that one side does not know
  // are not known afterwards.
  Status Merge(const ImportanceMatrix& other);

  // Reads either of llama.cpp's formats, recognised by content: GGUF or the older binary ".dat",
  // which stacks the experts of a layer in one row and counts in chunks, taken as 512 tokens each.
  static Result<ImportanceMatrix> Load(const std::string& path);
  // Writes beside the target and renames. The GGUF format keeps maxima in tensors of their own,
  // which llama.cpp passes over.
  Status SaveGguf(const std::string& path) const;
  Status SaveDat(const std::string& path) const;
};

}  // namespace nibble

#endif  // NIBBLE_CALIBRATION_H_
