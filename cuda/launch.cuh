// Launches of kernels that need more shared memory than every kernel may have, or clusters.
#ifndef NIBBLE_CUDA_LAUNCH_CUH_
#define NIBBLE_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "cuda/status.h"

namespace nibble::cuda {

// Queues kKernel(argument) on `stream`; blocks along y that make a cluster: `cluster`, 1 for none.
template <auto kKernel, class Argument>
Status LaunchKernel(dim3 grid, int threads, int64_t shared_bytes, int cluster, cudaStream_t stream,
                    const Argument& argument) {
  // What was done for each device; doing it again is harmless.
  static std::atomic<uint64_t> prepared{0};
  int device = 0;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  const uint64_t bit = uint64_t{1} << (device % 64);
  if ((prepared.load() & bit) == 0) {
    int most = 0;
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    cudaFuncAttributes attributes;  // what is not dynamic counts too
    NIBBLE_CUDA_RETURN_IF_ERROR(cudaFuncGetAttributes(&attributes, kKernel));
    NIBBLE_CUDA_RETURN_IF_ERROR(
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most - static_cast<int>(attributes.sharedSizeBytes)));
    prepared.fetch_or(bit);
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {1, static_cast<unsigned>(cluster), 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return ToStatus(cudaLaunchKernelEx(&config, kKernel, argument), "launch");
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_LAUNCH_CUH_
