// cuBLAS, looked for when it is first wanted: a program that never multiplies dense matrices needs
// none, and does without where there is none.
#ifndef NIBBLE_CUDA_BLAS_H_
#define NIBBLE_CUDA_BLAS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "nibble/dtype.h"
#include "nibble/status.h"

namespace nibble::cuda {

// out[tokens, rows] = alpha * activations x weights^T + beta * out: f16 or bf16 by the same to f32.
struct DenseProduct {
  DType type;
  const void* weights;  // [rows][weight_stride]
  int64_t rows, cols, weight_stride;
  const void* activations;  // [tokens][activation_stride]
  int64_t tokens, activation_stride;
  float* out;  // [tokens][out_stride]
  int64_t out_stride;
  const float *alpha, *beta;  // both in device memory, or both in host memory
  bool scalars_on_device;
};

// Whether MultiplyDense can serve a product on `stream` now: cuBLAS of the toolkit's version was
// found, and was made ready for the current device before the stream began to be captured. Makes it
// ready where it may, which takes some time and device memory once.
bool HasBlas(cudaStream_t stream);

// Queues a product. Sizes beyond cuBLAS's are kUnsupported, and so are all where HasBlas is false.
Status MultiplyDense(const DenseProduct& product, cudaStream_t stream);

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_BLAS_H_
