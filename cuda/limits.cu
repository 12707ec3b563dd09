// What kernels may use of the current device, as far as they were compiled for it.
#include <algorithm>

#include "cuda/products.h"
#include "cuda/status.h"

namespace nibble::cuda {
namespace {

// Its attributes tell what the library's kernels were compiled for.
__global__ void NoKernel() {}

}  // namespace

Result<DeviceLimits> Limits() {
  int device = 0, major = 0, minor = 0;
  DeviceLimits limits;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaDeviceGetAttribute(
      &limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  // A newer processor may run kernels of an older one's, which have no clusters in them.
  cudaFuncAttributes kernel;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaFuncGetAttributes(&kernel, NoKernel));
  const int version = std::min(10 * major + minor, kernel.ptxVersion);
  limits.has_clusters = version >= 90;
  limits.has_float8 = version >= 89;
  return limits;
}

}  // namespace nibble::cuda
