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

// Writes activations as `type`, f32, f16 or bf16, to `tokens` rows of `stride` elements: the rows
// of a list or, without one, all; in the order of packed columns where there is one; zeros after
// the last column, and where the list names no row that there is.
Status LaunchArrange(const Activations& activations, const int32_t* rows, int64_t tokens,
                     const int32_t* order, DType type, int64_t stride, void* out,
                     cudaStream_t stream);

// --- Products by weights that are dequantized first (cuda/dense_plan.h)

// The type that products on tensor cores have of activations, and weights that are so already.
inline DType OperandType(DType activations) {
  return activations == DType::kF16 ? DType::kF16 : DType::kBF16;
}
inline Format HalvesOf(DType activations) {
  return activations == DType::kF16 ? Format::kF16 : Format::kBF16;
}
Activations ActivationsOf(const TensorView& view);

// Activations as kernels of many tokens take them: of the operands' type, aligned, in the order of
// the packed columns. `memory` is what was written for that, if anything; it goes back to the
// stream's pool behind the work queued before the last copy goes.
struct Arranged {
  Activations activations;
  Buffer memory;
};
Result<Arranged> Arrange(const Activations& from, DType type, const int32_t* rows, int64_t tokens,
                         const int32_t* order, void* stream);

// The product of arranged activations, a row for each token of `member`.
Status MultiplyPackedDense(const PackedPlan& packed, const Activations& activations,
                           const ProductMember& member, void* stream);

// Whether MultiplyCanonicalDense is to serve a product of checked operands with weights that are
// not packed; and that product.
bool TakesDense(const QuantizedTensor& weights, const TensorView& activations,
                const MatmulOptions& options);
Status MultiplyCanonicalDense(const TensorView& activations, const QuantizedTensor& weights,
                              const MutableTensorView& out, const MatmulOptions& options);

// Writes rows [first_row, first_row + rows) of packed weights, times the multiplier in f16, to rows
// of `stride` elements of `type`, as many as there are records' columns. first_row: a multiple of
// 16.
Status LaunchUnpack(const PackedPlan& packed, DType type, int64_t first_row, int64_t rows,
                    uint16_t* out, int64_t stride, cudaStream_t stream);
// out[tokens, rows] (+)= bias
Status LaunchBias(const float* bias, int64_t rows, int64_t tokens, bool accumulate, float* out,
                  int64_t out_stride, cudaStream_t stream);

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_PRODUCTS_H_
