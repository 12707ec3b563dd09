// What runs a decoder on the device (nibble/decoder_backend.h).
#ifndef NIBBLE_CUDA_DECODER_OPERATIONS_H_
#define NIBBLE_CUDA_DECODER_OPERATIONS_H_

#include "nibble/decoder_backend.h"

namespace nibble::cuda {

// The functions that launch kernels.
void SetLaunches(DecoderBackend* decoder);

// All of them.
const DecoderBackend& Decoder();

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_DECODER_OPERATIONS_H_
