// Devices beside the CPU: each brings a table of functions, and nibble's own functions call it
// where their operands lie on that device. Programs never need this header; libraries of kernels
// do.
#ifndef NIBBLE_BACKEND_H_
#define NIBBLE_BACKEND_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "nibble/matmul.h"
#include "nibble/quantize.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

struct DecoderBackend;  // nibble/decoder_backend.h

// What a device does. All views, planes and spans lie on it, but for the options' and the table.
// The functions check their arguments as their namesakes in nibble/quantize.h and nibble/matmul.h
// do, and queue their work on `ParallelFor::stream`.
struct Backend {
  Result<Buffer> (*allocate)(size_t bytes, void* stream);  // not zeroed
  Status (*quantize_to)(const TensorView& weights, Format format, std::span<std::byte> out,
                        const QuantizeOptions& options);
  Result<QuantizedTensor> (*quantize_planar)(const TensorView& weights, const Scheme& scheme,
                                             const QuantizeOptions& options,
                                             std::span<const float> table);
  Status (*dequantize)(const QuantizedTensor& tensor, const MutableTensorView& out,
                       const ParallelFor& parallel);
  Status (*matmul)(const TensorView& activations, const QuantizedTensor& weights,
                   const MutableTensorView& out, const MatmulOptions& options);
  Result<PackedWeights> (*pack)(const QuantizedTensor& weights, Precision precision,
                                const ParallelFor& parallel);
  // The members' lists of rows lie on the device too.
  Status (*matmul_group)(const TensorView& activations, std::span<const MatmulMember> members,
                         const MatmulOptions& options);
  Status (*matmul_llm_int8)(const TensorView& activations, const QuantizedTensor& weights,
                            const MutableTensorView& out, float threshold,
                            const MatmulOptions& options);
  const DecoderBackend* decoder = nullptr;  // null: models do not run there
};

// Makes `backend`, which must live for ever, serve a device. From any thread; again is harmless.
void RegisterBackend(Device device, const Backend* backend);

// The backend of a device; an error where nothing was registered for it.
Result<const Backend*> FindBackend(Device device);

// Packed weights that only the backend of `device` understands: `details` is what it keeps of them,
// and what DetailsOf then gives, or null where they were packed for another device.
PackedWeights MakePackedWeights(int64_t rows, int64_t cols, size_t bytes, Device device,
                                std::string target, std::shared_ptr<const void> details);
const void* DetailsOf(const PackedWeights& weights, Device device);

}  // namespace nibble

#endif  // NIBBLE_BACKEND_H_
