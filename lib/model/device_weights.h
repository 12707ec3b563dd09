// A model's weights in a device's memory.
#ifndef NIBBLE_LIB_MODEL_DEVICE_WEIGHTS_H_
#define NIBBLE_LIB_MODEL_DEVICE_WEIGHTS_H_

#include <memory>
#include <unordered_map>
#include <vector>

#include "lib/model/weights.h"
#include "nibble/backend.h"
#include "nibble/decoder_backend.h"

namespace nibble {

// What each of the host's vectors and matrices is on the device; the host's must stay where they
// are.
struct Model::DeviceWeights {
  Device device = Device::kCpu;
  const Backend* backend = nullptr;
  const DecoderBackend* decoder = nullptr;
  QuantizedTensor embedding;
  std::unordered_map<const std::vector<float>*, Buffer> vectors;  // those that are not empty
  std::unordered_map<const Linear*, PackedWeights> matrices;
  size_t bytes = 0;

  const float* Of(const std::vector<float>& vector) const {
    return vector.empty() ? nullptr : reinterpret_cast<const float*>(vectors.at(&vector).data());
  }
  const PackedWeights& Of(const Linear& linear) const { return matrices.at(&linear); }
};

// Copies all weights of `weights` to a device and waits for them.
Result<std::shared_ptr<const Model::DeviceWeights>> CopyToDevice(const Model::Weights& weights,
                                                                 Device device,
                                                                 Precision precision);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_DEVICE_WEIGHTS_H_
