// CUDA: device memory, copies and streams. Needs nibble::cuda to be linked.
//
// After Initialize(), nibble's own Quantize, Dequantize and Matmul take views whose device is
// Device::kCuda and queue their work on `ParallelFor::stream`; the bias of a product lies on the
// device too. Quantize with NonFinite::kError waits for that stream, to report weights that cannot
// be quantized; and with kClamp where a scheme's scales, of a narrower type than the weights or
// with zeros, may be beyond what it holds. So does Pack of weights with a group index or a table,
// and what says so below. Nothing else waits.
//
// Products of so many activation rows that dequantizing the weights first is faster use cuBLAS, if
// the dynamic linker finds the toolkit's version of it. It is made ready by the first such product
// that is not being captured into a graph; until then captured ones do without.
//
// Models run on the device too (nibble/model.h: Model::OnDevice, KvCacheOptions::device).
#ifndef NIBBLE_CUDA_H_
#define NIBBLE_CUDA_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "nibble/matmul.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble::cuda {

using Stream = void*;  // a cudaStream_t; nullptr: the default stream

// Makes nibble's functions run on the current CUDA device. kNotFound where there is no device, or
// no driver for it. Harmless to call again.
Status Initialize();

// "NVIDIA H100 80GB HBM3", of the current device.
Result<std::string> DeviceName();

// Device memory from a pool of nibble's own, not zeroed, to be used by work queued on `stream`
// after this, and given back in the order of that stream when the last copy of the Buffer goes: the
// stream must outlive it, and other streams that use the memory must be ordered with it by the
// caller.
Result<Buffer> Allocate(size_t bytes, Stream stream = nullptr);
Result<Tensor> AllocateTensor(DType dtype, int64_t rows, int64_t cols, Stream stream = nullptr);

// Queues a copy between any two memories; the sizes must agree. Pageable host memory is read before
// the call returns, as cudaMemcpyAsync does.
Status Copy(std::span<std::byte> to, std::span<const std::byte> from, Stream stream = nullptr);
// The same of matrices of one shape and type, with any strides.
Status Copy(MutableTensorView to, TensorView from, Stream stream = nullptr);

// Copies to device memory. A group index is checked on the way, so that kernels can rely on it.
Result<Tensor> ToDevice(TensorView tensor, Stream stream = nullptr);
Result<QuantizedTensor> ToDevice(const QuantizedTensor& tensor, Stream stream = nullptr);

// Copies to host memory and waits for `stream`.
Result<Tensor> ToHost(TensorView tensor, Stream stream = nullptr);
Result<QuantizedTensor> ToHost(const QuantizedTensor& tensor, Stream stream = nullptr);

// Waits for all work on `stream` and reports what went wrong in it.
Status Synchronize(Stream stream = nullptr);

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_H_
