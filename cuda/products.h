// Products with packed weights, and the launches of their kernels.
#ifndef NIBBLE_CUDA_PRODUCTS_H_
#define NIBBLE_CUDA_PRODUCTS_H_

#include <cuda_runtime_api.h>

#include <span>

#include "cuda/gemm.h"
#include "cuda/pack.h"
#include "cuda/packed_format.h"
#include "cuda/small_m.h"
#include "nibble/matmul.h"
#include "nibble/status.h"

namespace nibble::cuda {

// type: that of the operands, f16 or bf16.
template <class Format>
struct SmallMLauncher {
  static Status Launch(const SmallMArguments& args, DType type, cudaStream_t stream);
};

template <class Format>
struct GemmLauncher {
  static Status Launch(const GemmArguments& args, DType type, cudaStream_t stream);
};

// What nibble's functions do on the device. Weights that no packed format serves, all with
// Precision::kF32, and those that are multiplied as they are with Precision::kInt8PerRow stay so.
Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision precision,
                           const ParallelFor& parallel);
Status Matmul(const TensorView& activations, const QuantizedTensor& weights,
              const MutableTensorView& out, const MatmulOptions& options);
Status MatmulGroup(const TensorView& activations, std::span<const MatmulMember> members,
                   const MatmulOptions& options);

// Whether MatmulBytes serves a product with activations of a type: weights of eight bits, and
// activations that are too, or are to be rounded so.
bool TakesBytes(const QuantizedTensor& weights, DType activations, const MatmulOptions& options);
// The product of checked operands, of int8 or f8_e4m3 with a scale for each row of either. Columns
// of activations that are rounded here and are `skipped`, a byte for each, count as zeros.
Status MatmulBytes(const TensorView& activations, const QuantizedTensor& weights,
                   const MutableTensorView& out, const MatmulOptions& options,
                   const DeviceLimits& limits, const uint8_t* skipped = nullptr);
// nibble::MatmulLlmInt8, without waiting for the columns found.
Status MatmulLlmInt8(const TensorView& activations, const QuantizedTensor& weights,
                     const MutableTensorView& out, float threshold, const MatmulOptions& options);

// What the current device allows.
Result<DeviceLimits> Limits();

// Writes the records of `packed`, whose pointers are set, on `stream`.
Status LaunchPack(const QuantizedTensor& weights, const PackedPlan& packed, cudaStream_t stream);
// Finds PackedMatrix::multiplier from the records and writes it there. `scratch`: 4 bytes.
Status LaunchFindMultiplier(const PackedPlan& packed, uint32_t* scratch, float* multiplier,
                            cudaStream_t stream);

// Writes activations as `type`, in the order of packed columns where there is one, to rows of
// `stride` elements, zeros after the last column.
Status LaunchArrange(const Activations& activations, const int32_t* order, DType type,
                     int64_t stride, uint16_t* out, cudaStream_t stream);

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_PRODUCTS_H_
