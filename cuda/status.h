// CUDA's errors as nibble's.
#ifndef NIBBLE_CUDA_STATUS_H_
#define NIBBLE_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "nibble/status.h"

namespace nibble::cuda {

inline Status ToStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  (void)cudaGetLastError();  // what has been told does not stain later calls
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorMemoryAllocation:
      return OutOfMemory(std::move(message));
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return NotFound(std::move(message));
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
      return InvalidArgument(std::move(message));
    case cudaErrorNoKernelImageForDevice:
      return Unsupported(std::move(message));
    default:
      return InternalError(std::move(message));
  }
}

// What the launch just before this said. An error that only shows while the kernel runs comes from
// Synchronize().
inline Status LaunchStatus(const char* what) { return ToStatus(cudaGetLastError(), what); }

inline cudaStream_t StreamOf(void* stream) { return static_cast<cudaStream_t>(stream); }

#define NIBBLE_CUDA_RETURN_IF_ERROR(call) \
  NIBBLE_RETURN_IF_ERROR(::nibble::cuda::ToStatus((call), #call))

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_STATUS_H_
