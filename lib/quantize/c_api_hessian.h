// The handle that the C entry points of error feedback and of files of Hessians share.
#ifndef NIBBLE_LIB_QUANTIZE_C_API_HESSIAN_H_
#define NIBBLE_LIB_QUANTIZE_C_API_HESSIAN_H_

#include "nibble/c_api.h"
#include "nibble/gptq.h"

struct nibble_hessian {
  nibble::Hessian value;
};

#endif  // NIBBLE_LIB_QUANTIZE_C_API_HESSIAN_H_
