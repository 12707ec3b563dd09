#include "kernels/convert.h"

#include <cmath>
#include <cstring>

namespace nibble {

void ConvertToFloat(DType from, const void* in, int64_t count, float* out) {
  switch (from) {
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = ToFloat(static_cast<const F16*>(in)[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = ToFloat(static_cast<const BF16*>(in)[i]);
      return;
    default:
      std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
      return;
  }
}

void ConvertFromFloat(DType to, const float* in, int64_t count, void* out) {
  switch (to) {
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) static_cast<F16*>(out)[i] = ToF16(in[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) static_cast<BF16*>(out)[i] = ToBF16(in[i]);
      return;
    default:
      std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
      return;
  }
}

int64_t FirstBeyond(const float* values, int64_t count, float limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (!(std::fabs(values[i]) <= limit)) return i;
  }
  return count;
}

}  // namespace nibble
