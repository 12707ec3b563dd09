// How the planar quantizer and dequantizer cut a matrix into pieces of work.
#ifndef NIBBLE_LIB_QUANTIZE_PLANAR_SPANS_H_
#define NIBBLE_LIB_QUANTIZE_PLANAR_SPANS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>

#include "kernels/planar.h"
#include "nibble/parallel.h"
#include "nibble/scheme.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// Rows are cut into spans of whole groups whose codes begin at a byte: a piece that stays in the
// first cache, and that several threads may take from one long row. Rows with a group index are one
// span, since their groups lie anywhere.
struct PlanarSpans {
  PlanarSpans(const Scheme& scheme, int64_t cols, bool whole_rows) {
    constexpr int64_t kWeights = 4096;
    const bool grouped = scheme.granularity == Granularity::kGroup;
    group = grouped ? scheme.group_size : cols;
    groups_per_row = GroupsPerRow(scheme, cols);
    const int64_t unit = grouped ? std::lcm(group, int64_t{8}) : 8;
    length =
        whole_rows || scheme.has_group_index ? cols : std::max<int64_t>(1, kWeights / unit) * unit;
    length = std::min(length, cols);
    per_row = (cols + length - 1) / length;
    // A span holds whole groups, or a piece of the only one.
    groups = grouped ? (length + group - 1) / group : 1;
    if (scheme.has_group_index) groups = groups_per_row;
  }

  int64_t group;           // weights
  int64_t groups_per_row;  // in the matrix
  int64_t length;          // weights of a span, but for the last of a row
  int64_t per_row;         // spans
  int64_t groups;          // of a span, at most
};

// Calls function(row, first column, weights, worker) for every span of every row.
template <class Function>
void ForSpans(const PlanarSpans& spans, int64_t rows, int64_t cols, const ParallelFor& parallel,
              const Function& function) {
  constexpr int64_t kWeightsPerTask = 1 << 15;
  const int64_t count = rows * spans.per_row;
  const int64_t fair = std::max<int64_t>(1, count / (8 * std::max(1, parallel.workers)));
  const int64_t step = std::min(fair, std::max<int64_t>(1, kWeightsPerTask / spans.length));
  parallel((count + step - 1) / step, [&](int64_t task, int worker) {
    for (int64_t s = task * step; s < std::min(count, (task + 1) * step); ++s) {
      const int64_t first = s % spans.per_row * spans.length;
      function(s / spans.per_row, first, std::min(spans.length, cols - first), worker);
    }
  });
}

// Columns in the order of their groups, and where each group ends in that order.
class GroupOrder {
 public:
  // `index`: the group of each column, i32 in [0, groups), in a plane of any alignment.
  static Result<GroupOrder> Make(const uint8_t* index, int64_t cols, int64_t groups);

  const int64_t* ends() const { return reinterpret_cast<const int64_t*>(ends_.data()); }
  // The column at each place.
  const int32_t* columns() const { return reinterpret_cast<const int32_t*>(columns_.data()); }

 private:
  Buffer ends_;
  Buffer columns_;
};

// Memory of one worker for one span.
struct PlanarScratch {
  float* weights;
  float* ordered;  // by group, where there is a group index
  uint8_t* codes;
  uint8_t* ordered_codes;
  PlanarGroup* groups;

  static size_t Bytes(const PlanarSpans& spans, bool indexed) {
    const size_t n = Padded(static_cast<size_t>(spans.length));
    return n * 5 * (indexed ? 2 : 1) +
           Padded(static_cast<size_t>(spans.groups) * sizeof(PlanarGroup));
  }
  PlanarScratch(std::byte* memory, const PlanarSpans& spans, bool indexed) {
    const size_t n = Padded(static_cast<size_t>(spans.length));
    weights = reinterpret_cast<float*>(memory);
    codes = reinterpret_cast<uint8_t*>(memory + 4 * n);
    ordered = indexed ? reinterpret_cast<float*>(memory + 5 * n) : weights;
    ordered_codes = indexed ? reinterpret_cast<uint8_t*>(memory + 9 * n) : codes;
    groups = reinterpret_cast<PlanarGroup*>(memory + n * (indexed ? 10 : 5));
  }

 private:
  static size_t Padded(size_t n) { return (n + 63) / 64 * 64; }
};

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_PLANAR_SPANS_H_
