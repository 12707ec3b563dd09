// The operations of the CUDA backend, with the meaning of their namesakes in nibble/backend.h.
#ifndef NIBBLE_CUDA_OPERATIONS_H_
#define NIBBLE_CUDA_OPERATIONS_H_

#include "nibble/backend.h"

namespace nibble::cuda {

// f32, f16 or bf16 in device memory, aligned for its type.
Status CheckMatrix(const TensorView& view, const char* what);

// Blocks must be aligned to 2 bytes. A NaN may have other bits than on the CPU; all else is equal
// to the bit.
Status Dequantize(const QuantizedTensor& tensor, const MutableTensorView& out,
                  const ParallelFor& parallel);

// The same of out.rows rows from `first` on.
Status DequantizeRows(const QuantizedTensor& tensor, int64_t first, const MutableTensorView& out,
                      const ParallelFor& parallel);

// q8_0, q4_0 and the scalar formats, without importance. Waits for the stream with
// NonFinite::kError, to be able to report one; with kClamp it does not.
Status QuantizeTo(const TensorView& weights, Format format, std::span<std::byte> out,
                  const QuantizeOptions& options);
// Without importance and group index. Waits for the stream, to report weights that are not finite
// and scales that their type cannot hold; not with NonFinite::kClamp where its type holds any
// scale.
Result<QuantizedTensor> QuantizePlanar(const TensorView& weights, const Scheme& scheme,
                                       const QuantizeOptions& options,
                                       std::span<const float> table);

// The exact reference for every format, scheme and precision: decoded weights, f32 products.
// `bias` lies in device memory.
Status MatmulDecoded(const TensorView& activations, const QuantizedTensor& weights,
                     const MutableTensorView& out, const MatmulOptions& options);

// Checks a product's operands; all lie in device memory.
Status CheckOperands(const TensorView& activations, int64_t rows, int64_t cols,
                     const MutableTensorView& out, const MatmulOptions& options);

// The same, of products that take activations of eight bits with scales too.
Status CheckByteOperands(const TensorView& activations, int64_t rows, int64_t cols,
                         const MutableTensorView& out, const MatmulOptions& options);

// Registers them for Device::kCuda.
void RegisterOperations();

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_OPERATIONS_H_
