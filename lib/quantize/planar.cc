#include "lib/quantize/planar.h"

namespace nibble {

Status DequantizePlanar(const QuantizedTensor&, const MutableTensorView&, const ParallelFor&) {
  return Unsupported("this version cannot decode planar schemes");
}

Result<size_t> PlaneBytes(const Scheme&, Plane, int64_t, int64_t) {
  return Unsupported("this version has no planar schemes");
}

Status CheckScheme(const Scheme&) { return Unsupported("this version has no planar schemes"); }

}  // namespace nibble
