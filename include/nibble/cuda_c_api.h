/* nibble on NVIDIA GPUs for C (C99). Needs nibble::cuda to be linked.
 *
 * After nibble_cuda_initialize, functions of nibble/c_api.h take matrices and tensors whose device
 * is NIBBLE_DEVICE_CUDA and queue their work on the stream of their nibble_parallel_for. All
 * operands of a call lie on the device then: the bias of a product, the scales of its activations
 * and the lists of rows of a group's members too, but not `importance`, which the device does not
 * take. What waits for the stream is said in nibble/cuda.h. Calibration, GPTQ and files are the
 * CPU's. A stream is a cudaStream_t; NULL is the default stream. */
#ifndef NIBBLE_CUDA_C_API_H_
#define NIBBLE_CUDA_C_API_H_

#include <stddef.h>

#include "nibble/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Makes nibble's functions run on the current CUDA device. NIBBLE_NOT_FOUND where there is none, or
 * no driver for it. Harmless to call again. */
nibble_status nibble_cuda_initialize(nibble_error* error);

/* Device memory from a pool of nibble's own, not zeroed, for work queued on `stream` after this. It
 * goes back in the order of that stream, which must outlive it. Programs may as well use memory of
 * their own. */
typedef struct nibble_cuda_memory nibble_cuda_memory;

nibble_status nibble_cuda_allocate(size_t bytes, void* stream, nibble_cuda_memory** memory,
                                   nibble_error* error);
void* nibble_cuda_memory_data(const nibble_cuda_memory* memory);
void nibble_cuda_memory_free(nibble_cuda_memory* memory); /* NULL is fine */

/* Queues a copy between any two memories. Pageable host memory is read before this returns; what is
 * written there may be read after nibble_cuda_synchronize. */
nibble_status nibble_cuda_copy(void* to, const void* from, size_t bytes, void* stream,
                               nibble_error* error);

/* Copies of a tensor: to device memory, and back, which waits for the stream. */
nibble_status nibble_cuda_tensor_to_device(const nibble_tensor* tensor, void* stream,
                                           nibble_tensor** copy, nibble_error* error);
nibble_status nibble_cuda_tensor_to_host(const nibble_tensor* tensor, void* stream,
                                         nibble_tensor** copy, nibble_error* error);

/* Waits for all work on `stream` and reports what went wrong in it. */
nibble_status nibble_cuda_synchronize(void* stream, nibble_error* error);

#ifdef __cplusplus
}
#endif

#endif /* NIBBLE_CUDA_C_API_H_ */
