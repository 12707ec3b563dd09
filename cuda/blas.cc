#include "cuda/blas.h"

#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <string>

#include "cuda/status.h"
#include "nibble/cuda.h"

// A toolkit may come without cuBLAS; its types are all that is wanted of the header.
#if __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
#include <dlfcn.h>
#define NIBBLE_HAS_BLAS 1
#endif

namespace nibble::cuda {

#if NIBBLE_HAS_BLAS
namespace {

struct Functions {
  decltype(&::cublasCreate_v2) create;
  decltype(&::cublasSetStream_v2) set_stream;
  decltype(&::cublasSetWorkspace_v2) set_workspace;
  decltype(&::cublasSetPointerMode_v2) set_pointer_mode;
  // cublasGemmEx, whose name the header overloads.
  cublasStatus_t (*gemm)(cublasHandle_t handle, cublasOperation_t transpose_a,
                         cublasOperation_t transpose_b, int m, int n, int k, const void* alpha,
                         const void* a, cudaDataType a_type, int lda, const void* b,
                         cudaDataType b_type, int ldb, const void* beta, void* c,
                         cudaDataType c_type, int ldc, cublasComputeType_t compute,
                         cublasGemmAlgo_t algorithm);
};

// null where the library of this version is not there.
const Functions* Load() {
  static const Functions* const functions = []() -> const Functions* {
    const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nullptr;
    static Functions found;
    const auto find = [library](const char* symbol, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
      return function != nullptr;
    };
    const bool all =
        find("cublasCreate_v2", found.create) && find("cublasSetStream_v2", found.set_stream) &&
        find("cublasSetWorkspace_v2", found.set_workspace) &&
        find("cublasSetPointerMode_v2", found.set_pointer_mode) && find("cublasGemmEx", found.gemm);
    return all ? &found : nullptr;
  }();
  return functions;
}

Status ToStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return OkStatus();
  std::string message = std::string("cuBLAS: ") + what + ": error " + std::to_string(status);
  switch (status) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      return OutOfMemory(std::move(message));
    case CUBLAS_STATUS_NOT_SUPPORTED:
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return Unsupported(std::move(message));
    default:
      return InternalError(std::move(message));
  }
}

// One for each device; a call sets its stream and workspace, so that calls take turns. They live as
// long as the process: when it ends, the driver may be gone before them.
std::mutex mutex;
std::map<int, cublasHandle_t>& Handles() {
  static auto* handles = new std::map<int, cublasHandle_t>();
  return *handles;
}

// The current device's; null where there is none and none may be made. The mutex is held.
cublasHandle_t HandleFor(cudaStream_t stream) {
  const Functions* functions = Load();
  int device = 0;
  if (functions == nullptr || cudaGetDevice(&device) != cudaSuccess) return nullptr;
  const auto it = Handles().find(device);
  if (it != Handles().end()) return it->second;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (!cuda::ToStatus(cudaStreamIsCapturing(stream, &capture), "capture").ok() ||
      capture != cudaStreamCaptureStatusNone) {
    return nullptr;  // what making one allocates would end the capture
  }
  cublasHandle_t handle = nullptr;
  if (functions->create(&handle) != CUBLAS_STATUS_SUCCESS) handle = nullptr;
  Handles()[device] = handle;  // nor is it tried again
  return handle;
}

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS asks for on Hopper

}  // namespace

bool HasBlas(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  return HandleFor(stream) != nullptr;
}

Status MultiplyDense(const DenseProduct& p, cudaStream_t stream) {
  if (std::max({p.rows, p.cols, p.tokens, p.weight_stride, p.activation_stride, p.out_stride}) >
      INT_MAX) {
    return Unsupported("matmul: sizes beyond cuBLAS's");
  }
  // Goes back to the stream's pool behind the product.
  NIBBLE_ASSIGN_OR_RETURN(Buffer workspace, Allocate(kWorkspaceBytes, stream));
  const std::lock_guard<std::mutex> lock(mutex);
  const cublasHandle_t handle = HandleFor(stream);
  if (handle == nullptr) return Unsupported("matmul: no cuBLAS");
  const Functions& call = *Load();
  NIBBLE_RETURN_IF_ERROR(ToStatus(call.set_stream(handle, stream), "stream"));
  NIBBLE_RETURN_IF_ERROR(
      ToStatus(call.set_workspace(handle, workspace.data(), workspace.size()), "workspace"));
  NIBBLE_RETURN_IF_ERROR(
      ToStatus(call.set_pointer_mode(handle, p.scalars_on_device ? CUBLAS_POINTER_MODE_DEVICE
                                                                 : CUBLAS_POINTER_MODE_HOST),
               "scalars"));
  // cuBLAS counts by columns: it sees all three matrices transposed.
  const cudaDataType_t type = p.type == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
  return ToStatus(
      call.gemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(p.rows),
                static_cast<int>(p.tokens), static_cast<int>(p.cols), p.alpha, p.weights, type,
                static_cast<int>(p.weight_stride), p.activations, type,
                static_cast<int>(p.activation_stride), p.beta, p.out, CUDA_R_32F,
                static_cast<int>(p.out_stride), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "product");
}

#else

bool HasBlas(cudaStream_t) { return false; }
Status MultiplyDense(const DenseProduct&, cudaStream_t) {
  return Unsupported("matmul: built without cuBLAS");
}

#endif

}  // namespace nibble::cuda
