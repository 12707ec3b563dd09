#include "cuda/dense_plan.h"

#include <algorithm>
#include <cmath>

namespace nibble::cuda {
namespace {

// NOT MEASURED. What the kernel of cuda/gemm.h is taken to reach of cuBLAS's rate for f16 once
// neither is bound by memory, by the instructions that it takes to decode and scale a step:
// few for one plane of codes, more for a second plane, more again where scales are scaled
// themselves, and where a block leaves no room for a second one beside it.
constexpr double ShareOfDense(PackedKind kind) {
  switch (kind) {
    case PackedKind::kU4:
    case PackedKind::kU8:
    case PackedKind::kU2Min:
    case PackedKind::kU4Min:
    case PackedKind::kU8Min:
    case PackedKind::kE5M2:
      return 0.70;
    case PackedKind::kBook:
    case PackedKind::kE4M3:
    case PackedKind::kU3Min:
    case PackedKind::kU5Min:
    case PackedKind::kU6Min:
      return 0.65;
    case PackedKind::kQ2_K:
    case PackedKind::kQ4_K:
    case PackedKind::kIQ4_XS:
      return 0.60;
    case PackedKind::kQ3_K:
    case PackedKind::kQ5_K:
    case PackedKind::kQ6_K:
      return 0.55;
  }
  return 0.5;
}

// NOT MEASURED. Operations that cuBLAS does in the time in which a byte is moved, on Hopper: 800
// TFLOP/s by 3 TB/s.
constexpr double kOperationsPerByte = 267;

constexpr int64_t kMostDenseBytes = int64_t{256} << 20;

thread_local int64_t forced = 0;  // 0: not

}  // namespace

// A weight and a token cost two operations, at cuBLAS's rate or at a share of it; dequantizing
// costs `bytes` read, two written, and two read again.
int64_t DenseTokens(PackedKind kind, double bytes) {
  const double saved = 2 * (1 / ShareOfDense(kind) - 1);
  return DenseFrom::Or(static_cast<int64_t>(std::ceil((bytes + 4) * kOperationsPerByte / saved)));
}

int64_t DenseRows(int64_t rows, int64_t stride) {
  const int64_t most = std::max<int64_t>(kMostDenseBytes / (2 * stride) / kTileRows, 1) * kTileRows;
  return std::min(rows, most);
}

DenseFrom::DenseFrom(int64_t tokens) : before_(forced) { forced = tokens; }
DenseFrom::~DenseFrom() { forced = before_; }
int64_t DenseFrom::Or(int64_t otherwise) { return forced > 0 ? forced : otherwise; }

}  // namespace nibble::cuda
