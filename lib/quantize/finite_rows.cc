#include "lib/quantize/finite_rows.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/convert.h"
#include "kernels/planar.h"
#include "lib/quantize/checks.h"

namespace nibble {
namespace {

void Convert(const TensorView& weights, int64_t row, int64_t first, int64_t count, float* x) {
  const std::byte* from = static_cast<const std::byte*>(weights.Row(row)) +
                          static_cast<size_t>(first) * DTypeBytes(weights.dtype);
  ConvertToFloat(weights.dtype, from, count, x);
}

}  // namespace

bool FiniteRows::Load(int64_t row, int64_t first, int64_t count, float* x) {
  Convert(weights_, row, first, count, x);
  if (AllFinite(x, count)) return true;
  const float limit = LargestFinite(weights_.dtype);
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(x[i])) continue;
    if (policy_ == NonFinite::kError) {
      bad_.Report(row * weights_.cols + first + i);
      return false;
    }
    x[i] = std::isnan(x[i]) ? 0.0f : std::clamp(x[i], -limit, limit);
  }
  return true;
}

Status FiniteRows::Found() const {
  if (!bad_.any()) return OkStatus();
  const int64_t row = bad_.place() / weights_.cols, col = bad_.place() % weights_.cols;
  float x = 0;
  Convert(weights_, row, col, 1, &x);
  return InvalidArgument(std::string(std::isnan(x) ? "NaN" : "infinity") + " at row " +
                         std::to_string(row) + ", column " + std::to_string(col));
}

}  // namespace nibble
