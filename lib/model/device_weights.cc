#include "lib/model/device_weights.h"

#include <utility>

namespace nibble {
namespace {

class Copier {
 public:
  Copier(Model::DeviceWeights& to, Precision precision) : to_(to), precision_(precision) {}

  Status Add(const std::vector<float>& vector) {
    if (vector.empty()) return OkStatus();
    const size_t bytes = vector.size() * sizeof(float);
    NIBBLE_ASSIGN_OR_RETURN(Buffer copy, to_.backend->allocate(bytes, nullptr));
    NIBBLE_RETURN_IF_ERROR(to_.decoder->copy(copy.data(), vector.data(), bytes, nullptr));
    to_.bytes += bytes;
    to_.vectors.emplace(&vector, std::move(copy));
    return OkStatus();
  }

  Status Add(const Linear& linear) {
    const auto add = [&]() -> Status {
      // Given back when it has been packed.
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor canonical,
                              to_.decoder->to_device(linear.weight, nullptr));
      NIBBLE_ASSIGN_OR_RETURN(PackedWeights packed, Pack(canonical, precision_));
      to_.bytes += packed.bytes();
      to_.matrices.emplace(&linear, std::move(packed));
      return Add(linear.bias);
    };
    return add().WithContext(linear.name);
  }

 private:
  Model::DeviceWeights& to_;
  Precision precision_;
};

}  // namespace

Result<const DecoderBackend*> FindDecoder(Device device) {
  const Result<const Backend*> backend = FindBackend(device);
  if (!backend.ok()) return Unsupported("no backend serves the device that a model is to run on");
  if ((*backend)->decoder == nullptr) return Unsupported("the device's backend runs no models");
  return (*backend)->decoder;
}

Result<std::shared_ptr<const Model::DeviceWeights>> CopyToDevice(const Model::Weights& weights,
                                                                 Device device,
                                                                 Precision precision) {
  auto copy = std::make_shared<Model::DeviceWeights>();
  copy->device = device;
  NIBBLE_ASSIGN_OR_RETURN(copy->decoder, FindDecoder(device));
  NIBBLE_ASSIGN_OR_RETURN(copy->backend, FindBackend(device));
  NIBBLE_ASSIGN_OR_RETURN(copy->embedding, copy->decoder->to_device(weights.embedding, nullptr));
  copy->bytes = copy->embedding.bytes();
  Copier copier(*copy, precision);
  for (const DecoderLayer& layer : weights.layers) {
    for (const auto* vector : {&layer.attention_norm, &layer.ffn_norm, &layer.query_norm,
                               &layer.key_norm, &layer.post_attention_norm, &layer.post_ffn_norm}) {
      NIBBLE_RETURN_IF_ERROR(copier.Add(*vector));
    }
    for (const Linear* linear : {&layer.query, &layer.key, &layer.value, &layer.attention_output,
                                 &layer.gate, &layer.up, &layer.down}) {
      NIBBLE_RETURN_IF_ERROR(copier.Add(*linear));
    }
  }
  NIBBLE_RETURN_IF_ERROR(copier.Add(weights.output_norm));
  NIBBLE_RETURN_IF_ERROR(copier.Add(weights.head));
  NIBBLE_RETURN_IF_ERROR(copy->decoder->synchronize(nullptr));
  return std::shared_ptr<const Model::DeviceWeights>(std::move(copy));
}

}  // namespace nibble
