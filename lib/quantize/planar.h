// Quantize and dequantize planar schemes: what nibble/quantize.h dispatches to.
#ifndef NIBBLE_LIB_QUANTIZE_PLANAR_H_
#define NIBBLE_LIB_QUANTIZE_PLANAR_H_

#include "kernels/codec_planar.h"
#include "nibble/parallel.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// The planes of a tensor of a Scheme, for kernels: where the tensor lies, on whatever device.
inline PlanarPlanes PlanesOf(const QuantizedTensor& tensor) {
  const auto plane = [&](Plane p) {
    return reinterpret_cast<const uint8_t*>(tensor.plane(p).data());
  };
  return {tensor.scheme(),      tensor.rows(),
          tensor.cols(),        GroupsPerRow(tensor.scheme(), tensor.cols()),
          plane(Plane::kCodes), plane(Plane::kScales),
          plane(Plane::kZeros), plane(Plane::kGroupIndex),
          plane(Plane::kTable), plane(Plane::kSuperScales)};
}

// Dequantize() of a tensor whose planes follow a Scheme: writes rows x cols decoded weights to
// `out` (f32, f16 or bf16). Checks the shapes, the devices and that every group index lies in its
// range.
Status DequantizePlanar(const QuantizedTensor& tensor, const MutableTensorView& out,
                        const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_PLANAR_H_
