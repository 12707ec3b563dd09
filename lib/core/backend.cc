#include "nibble/backend.h"

#include <atomic>

namespace nibble {
namespace {

std::atomic<const Backend*> cuda_backend{nullptr};

}  // namespace

void RegisterBackend(Device device, const Backend* backend) {
  if (device == Device::kCuda) cuda_backend.store(backend);
}

Result<const Backend*> FindBackend(Device device) {
  const Backend* backend = device == Device::kCuda ? cuda_backend.load() : nullptr;
  if (backend == nullptr) {
    return Unsupported("an operand is not in host memory, and no backend serves its device");
  }
  return backend;
}

}  // namespace nibble
