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

// A block before it is packed: what a refinement starts from.
struct BlockState {
  float d, min_d;
  float scale[16], min[16];
  float codes[256];
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
  float* errors;                 // out [rows, cols]: w - q
  BlockState* states = nullptr;  // out, unless null: row r's from states + r * state_stride
  int64_t state_stride = 0;
};

struct RefineOptions {
  int passes = 2;
  int reach = 1;  // integers tried to either side of a group's scale and minimum
};

// A block of some rows that are encoded already.
struct RefineChunk {
  const float* weights;        // [rows, cols]: w
  const float* gradients;      // [rows, cols], dense: (e H), e of all columns of the matrix
  int64_t rows = 0, cols = 0;  // cols: one block of the format's
  int64_t row_stride = 0;      // of weights and errors
  const float* hessian;        // H of the chunk's columns
  int64_t hessian_stride = 0;
  // Of each group of FeedbackGroup() columns, H_GG: its T and D, and its inverse [group, group].
  const float* factors;
  const float* diagonals;
  const float* inverses;
  float* errors;       // in and out
  BlockState* states;  // in and out
  int64_t state_stride = 0;
  std::byte* blocks;  // out
  size_t block_stride = 0;
};

// Whether a format has an encoder with feedback.
bool HasFeedback(Format format);

// Adds each row's sum_j D_j (v_j - q_j)^2 to losses[row].
void EncodeWithFeedback(Format format, const FeedbackChunk& chunk, const FeedbackOptions& options,
                        double* losses);

// Columns that share a scale.
int64_t FeedbackGroup(Format format);

// Refines codes and scales, see feedback_refine-inl.h.
void RefineWithFeedback(Format format, const RefineChunk& chunk, const RefineOptions& options);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_FEEDBACK_H_
