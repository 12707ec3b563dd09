// The operands of products with packed weights, as kernels are told of them.
#ifndef NIBBLE_CUDA_PRODUCT_MEMBER_H_
#define NIBBLE_CUDA_PRODUCT_MEMBER_H_

#include <cstdint>

#include "cuda/element.h"
#include "cuda/packed_format.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

// Of a thread block.
inline constexpr int kWarps = 8, kThreads = kWarps * kLanes;

// What kernels may use of a processor.
struct DeviceLimits {
  int multiprocessors = 1;
  int shared_bytes = 0;  // of a thread block
  bool has_clusters = false;
  bool has_float8 = false;  // products of f8_e4m3
};

// Where activations come from: `rows` x `cols` of f32, f16 or bf16.
struct Activations {
  const void* data;
  DType dtype;
  int64_t rows, cols, stride;
  bool is_aligned;  // every row begins at a multiple of 16 bytes

  NIBBLE_HD float At(int64_t row, int64_t col) const {
    return LoadElement(data, dtype, row * stride + col);
  }
};

// One product of a launch: out[tokens, weights.rows] (+)= activations x weights^T + bias.
struct ProductMember {
  PackedMatrix weights;
  const int32_t* token_rows;  // the activation row of each token; null: token by token
  int32_t first_token;        // of `out` and of the list
  int32_t tokens;
  int32_t first_block;  // of its blocks, along x
  const float* bias;    // or null
  float* out;
  int64_t out_stride;
  bool accumulate;

  // The activation row of a token, or -1 where the list names none that there is.
  NIBBLE_HD int64_t RowOf(int64_t token, int64_t rows) const {
    const int64_t at = first_token + token;
    const int64_t row = token_rows == nullptr ? at : token_rows[at];
    return row >= 0 && row < rows ? row : -1;
  }
  NIBBLE_HD void Store(int64_t token, int64_t row, float sum) const {
    if (bias != nullptr) sum += bias[row];
    float* to = out + (first_token + token) * out_stride + row;
    *to = accumulate ? *to + sum : sum;
  }
};

inline constexpr int kMostMembers = 8;  // products of one launch

// What a plan needs to know of one of them.
struct ProductSize {
  int64_t row_tiles, tokens;
};

// The member of a launch that a block works for.
NIBBLE_HD inline const ProductMember& MemberOfBlock(const ProductMember* members, int count,
                                                    int64_t block) {
  int i = count - 1;
  while (i > 0 && members[i].first_block > block) --i;
  return members[i];
}

NIBBLE_HD inline float MultiplyAdd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

constexpr NIBBLE_HD int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr NIBBLE_HD int64_t Largest(int64_t a, int64_t b) { return a < b ? b : a; }

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_PRODUCT_MEMBER_H_
