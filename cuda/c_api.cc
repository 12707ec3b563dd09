#include "nibble/cuda_c_api.h"

#include "lib/core/c_api.h"
#include "nibble/cuda.h"

using nibble::OkStatus;
using nibble::Status;
using nibble::c_api::Call;
using nibble::c_api::CheckPointer;
using nibble::c_api::Release;

struct nibble_cuda_memory {
  nibble::Buffer value;
};

extern "C" {

nibble_status nibble_cuda_initialize(nibble_error* error) {
  return Call(error, [] { return nibble::cuda::Initialize(); });
}

nibble_status nibble_cuda_allocate(size_t bytes, void* stream, nibble_cuda_memory** memory,
                                   nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(memory, "memory"));
    return Release(nibble::cuda::Allocate(bytes, stream), memory);
  });
}

void* nibble_cuda_memory_data(const nibble_cuda_memory* memory) {
  return const_cast<std::byte*>(memory->value.data());
}

void nibble_cuda_memory_free(nibble_cuda_memory* memory) { delete memory; }

nibble_status nibble_cuda_copy(void* to, const void* from, size_t bytes, void* stream,
                               nibble_error* error) {
  return Call(error, [&]() -> Status {
    if (bytes == 0) return OkStatus();
    NIBBLE_RETURN_IF_ERROR(CheckPointer(to, "to"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(from, "from"));
    return nibble::cuda::Copy({static_cast<std::byte*>(to), bytes},
                              nibble::c_api::ToBytes(from, bytes), stream);
  });
}

nibble_status nibble_cuda_tensor_to_device(const nibble_tensor* tensor, void* stream,
                                           nibble_tensor** copy, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(copy, "copy"));
    return Release(nibble::cuda::ToDevice(tensor->value, stream), copy);
  });
}

nibble_status nibble_cuda_tensor_to_host(const nibble_tensor* tensor, void* stream,
                                         nibble_tensor** copy, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(copy, "copy"));
    return Release(nibble::cuda::ToHost(tensor->value, stream), copy);
  });
}

nibble_status nibble_cuda_synchronize(void* stream, nibble_error* error) {
  return Call(error, [&] { return nibble::cuda::Synchronize(stream); });
}

}  // extern "C"
