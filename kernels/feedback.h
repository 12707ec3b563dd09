// Error feedback inside block formats: see feedback-inl.h.
#ifndef NIBBLE_KERNELS_FEEDBACK_H_
#define NIBBLE_KERNELS_FEEDBACK_H_

#include <cstddef>
#include <cstdint>

#include "nibble/format.h"

namespace nibble {

struct FeedbackOptions {
  int reach = 1;        // integers tried to either side of a group's scale and minimum
  int rounds = 2;       // times that the super-scales are refitted and the block run again
  int round_reach = 1;  // integers tried then
};

// Some columns of some rows.
struct FeedbackChunk {
  const float* weights;        // [rows, cols]: w
  const float* targets;        // [rows, cols]: w + the feedback of all columns before the chunk
  int64_t rows = 0, cols = 0;  // cols: a multiple of the format's block
  int64_t row_stride = 0;      // of weights, targets and errors
  const float* factor;         // T: unit upper triangular [cols, cols] of the chunk's own columns
  int64_t factor_stride = 0;
  const float* diagonal;  // D [cols]
  std::byte* blocks;      // out: row r's blocks at blocks + r * block_stride
  size_t block_stride = 0;
  float* errors;  // out [rows, cols]: w - q
};

// Whether a format has an encoder with feedback.
bool HasFeedback(Format format);

// Adds each row's sum_j D_j (v_j - q_j)^2 to losses[row].
void EncodeWithFeedback(Format format, const FeedbackChunk& chunk, const FeedbackOptions& options,
                        double* losses);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_FEEDBACK_H_
