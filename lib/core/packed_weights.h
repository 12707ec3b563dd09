// What packed weights consist of, for the products that read them.
#ifndef NIBBLE_LIB_CORE_PACKED_WEIGHTS_H_
#define NIBBLE_LIB_CORE_PACKED_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "nibble/format.h"
#include "nibble/matmul.h"
#include "nibble/tensor.h"

namespace nibble {

struct PackedWeights::Impl {
  Buffer bytes;  // a header and the payload; none of a device's
  size_t device_bytes = 0;
  Device device = Device::kCpu;
  std::shared_ptr<const void> details;  // what the device's backend keeps of them
  std::string target;
  int64_t rows = 0;
  int64_t cols = 0;
  std::optional<QuantizedTensor> canonical;  // where the payload is not in tiles
  // Additive codebooks whose codes lie in tiles (kernels/additive.h) from their plane's begin on.
  std::optional<QuantizedTensor> books;
  Format format = Format::kF32;  // of tiles of blocks
  const std::byte* payload = nullptr;
};

class PackedWeightsAccess {
 public:
  using Impl = PackedWeights::Impl;
  // Null for weights that were never made.
  static const Impl* Get(const PackedWeights& weights) { return weights.impl_.get(); }
  static PackedWeights Make(std::shared_ptr<const Impl> impl) {
    PackedWeights weights;
    weights.impl_ = std::move(impl);
    return weights;
  }
};

}  // namespace nibble

#endif  // NIBBLE_LIB_CORE_PACKED_WEIGHTS_H_
