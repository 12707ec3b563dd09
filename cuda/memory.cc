#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/operations.h"
#include "cuda/pack.h"
#include "cuda/status.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

// A copy of all planes; `make` gives the memory of one.
template <class Make>
Result<QuantizedTensor> CopyPlanes(const QuantizedTensor& tensor, Stream stream, const Make& make) {
  std::array<Buffer, kPlaneCount> planes;
  for (int p = 0; p < kPlaneCount; ++p) {
    const Buffer& from = tensor.plane(static_cast<Plane>(p));
    if (from.size() == 0) continue;
    NIBBLE_ASSIGN_OR_RETURN(planes[static_cast<size_t>(p)], make(from.size()));
    NIBBLE_RETURN_IF_ERROR(
        Copy(planes[static_cast<size_t>(p)].mutable_bytes(), from.bytes(), stream));
  }
  if (tensor.is_block_format()) {
    return QuantizedTensor::Create(tensor.format(), tensor.rows(), tensor.cols(),
                                   std::move(planes[0]));
  }
  return QuantizedTensor::Create(tensor.scheme(), tensor.rows(), tensor.cols(), std::move(planes));
}

// What a pool keeps for the next call when a stream is waited for: the workspaces of a product.
constexpr uint64_t kKeptBytes = uint64_t{512} << 20;
constexpr int kMostDevices = 64;

// nibble's own pool of the current device, so that the program's is as the program wants it; null
// where there can be none, and the program's serves.
cudaMemPool_t CurrentPool() {
  static std::mutex mutex;
  static std::array<std::optional<cudaMemPool_t>, kMostDevices> pools;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  std::optional<cudaMemPool_t>& pool = pools[static_cast<size_t>(device)];
  if (!pool) {
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t made = nullptr;
    uint64_t kept = kKeptBytes;
    if (cudaMemPoolCreate(&made, &properties) != cudaSuccess) {
      (void)cudaGetLastError();
      made = nullptr;
    } else {
      (void)cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &kept);
    }
    pool = made;
  }
  return *pool;
}

}  // namespace

Status Initialize() {
  int count = 0;
  NIBBLE_RETURN_IF_ERROR(ToStatus(cudaGetDeviceCount(&count), "looking for a GPU"));
  if (count == 0) return NotFound("looking for a GPU: there is none");
  RegisterOperations();
  return OkStatus();
}

Result<std::string> DeviceName() {
  int device = 0;
  cudaDeviceProp properties;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, device));
  return std::string(properties.name);
}

Result<Buffer> Allocate(size_t bytes, Stream stream) {
  void* memory = nullptr;
  if (bytes > 0) {
    const cudaMemPool_t pool = CurrentPool();
    Status status =
        ToStatus(pool == nullptr ? cudaMallocAsync(&memory, bytes, StreamOf(stream))
                                 : cudaMallocFromPoolAsync(&memory, bytes, pool, StreamOf(stream)),
                 "allocate");
    if (!status.ok()) {
      return std::move(status).WithContext(std::to_string(bytes) + " bytes of device memory");
    }
  }
  // An error of the release has no one to go to; what caused it shows in the next call.
  std::shared_ptr<void> owner(memory, [stream](void* p) {
    if (p != nullptr) (void)cudaFreeAsync(p, StreamOf(stream));
  });
  return Buffer::Share(std::move(owner), static_cast<std::byte*>(memory), bytes, Device::kCuda);
}

Result<Tensor> AllocateTensor(DType dtype, int64_t rows, int64_t cols, Stream stream) {
  int64_t elements = 0, bytes = 0;
  if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &elements) ||
      __builtin_mul_overflow(elements, static_cast<int64_t>(DTypeBytes(dtype)), &bytes)) {
    return InvalidArgument("tensor of " + std::to_string(rows) + " x " + std::to_string(cols) +
                           " elements: negative or too large");
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Allocate(static_cast<size_t>(bytes), stream));
  return Tensor::FromBuffer(std::move(buffer), dtype, rows, cols);
}

Status Copy(std::span<std::byte> to, std::span<const std::byte> from, Stream stream) {
  if (to.size() != from.size()) {
    return InvalidArgument("copy of " + std::to_string(from.size()) + " bytes to " +
                           std::to_string(to.size()));
  }
  if (from.empty()) return OkStatus();
  return ToStatus(
      cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyDefault, StreamOf(stream)),
      "copy");
}

Status Copy(MutableTensorView to, TensorView from, Stream stream) {
  NIBBLE_RETURN_IF_ERROR(CheckView(to, "copy to"));
  NIBBLE_RETURN_IF_ERROR(CheckView(from, "copy from"));
  if (to.rows != from.rows || to.cols != from.cols || to.dtype != from.dtype) {
    return InvalidArgument("copy between matrices of different shape or type");
  }
  const size_t element = DTypeBytes(to.dtype);
  return ToStatus(
      cudaMemcpy2DAsync(to.data, static_cast<size_t>(to.row_stride) * element, from.data,
                        static_cast<size_t>(from.row_stride) * element,
                        static_cast<size_t>(from.cols) * element, static_cast<size_t>(from.rows),
                        cudaMemcpyDefault, StreamOf(stream)),
      "copy");
}

Result<Tensor> ToDevice(TensorView tensor, Stream stream) {
  NIBBLE_ASSIGN_OR_RETURN(Tensor copy,
                          AllocateTensor(tensor.dtype, tensor.rows, tensor.cols, stream));
  NIBBLE_RETURN_IF_ERROR(Copy(copy.mutable_view(), tensor, stream));
  return copy;
}

Result<QuantizedTensor> ToDevice(const QuantizedTensor& tensor, Stream stream) {
  if (!tensor.is_block_format() && tensor.scheme().has_group_index &&
      tensor.device() == Device::kCpu) {
    const Buffer& plane = tensor.plane(Plane::kGroupIndex);
    std::vector<int32_t> index(plane.size() / sizeof(int32_t));  // a plane may lie at any address
    std::memcpy(index.data(), plane.data(), index.size() * sizeof(int32_t));
    NIBBLE_RETURN_IF_ERROR(CheckGroupIndex(index, GroupsPerRow(tensor.scheme(), tensor.cols())));
  }
  return CopyPlanes(tensor, stream, [stream](size_t bytes) { return Allocate(bytes, stream); });
}

Result<Tensor> ToHost(TensorView tensor, Stream stream) {
  NIBBLE_ASSIGN_OR_RETURN(Tensor copy, Tensor::Allocate(tensor.dtype, tensor.rows, tensor.cols));
  NIBBLE_RETURN_IF_ERROR(Copy(copy.mutable_view(), tensor, stream));
  NIBBLE_RETURN_IF_ERROR(Synchronize(stream));
  return copy;
}

Result<QuantizedTensor> ToHost(const QuantizedTensor& tensor, Stream stream) {
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor copy, CopyPlanes(tensor, stream, [](size_t bytes) {
                            return Buffer::Allocate(bytes);
                          }));
  NIBBLE_RETURN_IF_ERROR(Synchronize(stream));
  return copy;
}

Status Synchronize(Stream stream) {
  return ToStatus(cudaStreamSynchronize(StreamOf(stream)), "device");
}

}  // namespace nibble::cuda
