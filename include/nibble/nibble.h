// The whole of nibble's core API.
#ifndef NIBBLE_NIBBLE_H_
#define NIBBLE_NIBBLE_H_

#include "nibble/calibration.h"
#include "nibble/dtype.h"
#include "nibble/format.h"
#include "nibble/gguf.h"
#include "nibble/matmul.h"
#include "nibble/mix.h"
#include "nibble/parallel.h"
#include "nibble/quantize.h"
#include "nibble/quantized_tensor.h"
#include "nibble/safetensors.h"
#include "nibble/scheme.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

#endif  // NIBBLE_NIBBLE_H_
