// What packed weights consist of, for the products that read them.
#ifndef NIBBLE_LIB_CORE_PACKED_WEIGHTS_H_
#define NIBBLE_LIB_CORE_PACKED_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "nibble/format.h"
#include "nibble/matmul.h"
#include "nibble/tensor.h"

namespace nibble {

struct PackedWeights::Impl {
  Buffer bytes;  // a header and the payload
  std::string target;
  int64_t rows = 0;
  int64_t cols = 0;
  std::optional<QuantizedTensor> canonical;  // where the payload is not in tiles
  Format format = Format::kF32;              // of the tiles
  const std::byte* payload = nullptr;
};

class PackedWeightsAccess {
 public:
  using Impl = PackedWeights::Impl;
  // Null for weights that were never made.
  static const Impl* Get(const PackedWeights& weights) { return weights.impl_.get(); }
};

}  // namespace nibble

#endif  // NIBBLE_LIB_CORE_PACKED_WEIGHTS_H_
