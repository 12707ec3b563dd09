#include "lib/quantize/planar.h"

namespace nibble {

Status DequantizePlanar(const QuantizedTensor&, const MutableTensorView&, const ParallelFor&) {
  return Unsupported("this version cannot decode planar schemes");
}

}  // namespace nibble
