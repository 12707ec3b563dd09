// Decoded weights, one at a time and exact, from the codecs that host and device share.
#ifndef NIBBLE_CUDA_WEIGHTS_CUH_
#define NIBBLE_CUDA_WEIGHTS_CUH_

#include <cstdint>
#include <string>

#include "cuda/element.cuh"
#include "kernels/codec_planar.h"
#include "kernels/visit_codec.h"
#include "nibble/quantized_tensor.h"

namespace nibble::cuda {

// A source gives weights by row and column; Prepare() runs once in every thread of a block first.

template <class Codec>
struct BlockSource {
  const typename Codec::Block* blocks;
  int64_t blocks_per_row;

  static constexpr int kSharedBytes = 0;
  __device__ void Prepare(float*) {}
  __device__ float Weight(int64_t row, int64_t col) const {
    return DecodeWeight<Codec>(blocks[row * blocks_per_row + col / Codec::kWeights],
                               static_cast<int>(col % Codec::kWeights));
  }
};

// f32, f16, bf16 stored as they are.
struct ScalarSource {
  const void* data;
  DType dtype;
  int64_t cols;

  static constexpr int kSharedBytes = 0;
  __device__ void Prepare(float*) {}
  __device__ float Weight(int64_t row, int64_t col) const {
    return LoadElement(data, dtype, row * cols + col);
  }
};

struct PlanarSource {
  PlanarPlanes planes;
  const float* dynamic_map;  // in shared memory, filled by Prepare

  static constexpr int kSharedBytes = 256 * sizeof(float);
  __device__ void Prepare(float* shared) {
    if (planes.scheme.double_quant) {
      for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) shared[i] = DynamicMapValue(i);
      __syncthreads();
    }
    dynamic_map = shared;
  }
  __device__ float Scale(int64_t at) const {
    if (!planes.scheme.double_quant) return planes.Scale(at);
    const int64_t blocks = (planes.scale_count() + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock;
    const float maximum =
        LoadPlaneFloat(planes.super_scales, DType::kF32, at / kScalesPerSuperBlock);
    const float mean = LoadPlaneFloat(planes.super_scales, DType::kF32, blocks);
    return dynamic_map[planes.scales[at]] * maximum + mean;
  }
  // NaN where the group index of the column is none of the groups: there is no one to tell.
  __device__ float Weight(int64_t row, int64_t col) const {
    const int64_t group = planes.Group(col);
    if (group < 0 || group >= planes.groups) return __int_as_float(0x7FC00000);
    const int64_t at = planes.ScaleAt(row, group);
    const Scheme& scheme = planes.scheme;
    const uint8_t* stream = planes.codes + row * PlanarRowBytes(scheme.bits, planes.cols);
    const float value = CodeValue(scheme, PlanarCode(stream, scheme.bits, col), planes.table);
    return Scale(at) * (scheme.symmetric ? value : value - planes.Zero(at));
  }
};

// The planes of a tensor of a Scheme.
inline PlanarPlanes PlanesOnDevice(const QuantizedTensor& tensor) {
  const auto plane = [&](Plane p) {
    return reinterpret_cast<const uint8_t*>(tensor.plane(p).data());
  };
  return {tensor.scheme(),      tensor.rows(),
          tensor.cols(),        GroupsPerRow(tensor.scheme(), tensor.cols()),
          plane(Plane::kCodes), plane(Plane::kScales),
          plane(Plane::kZeros), plane(Plane::kGroupIndex),
          plane(Plane::kTable), plane(Plane::kSuperScales)};
}

// Calls visitor(source) with the source of a tensor in device memory.
template <class Visitor>
Status VisitSource(const QuantizedTensor& tensor, const Visitor& visitor) {
  if (tensor.device() != Device::kCuda) {
    return InvalidArgument("the tensor is not in device memory, as other operands are");
  }
  if (!tensor.is_block_format()) {
    visitor(PlanarSource{PlanesOnDevice(tensor), nullptr});
    return OkStatus();
  }
  const auto* blocks = reinterpret_cast<const uint8_t*>(tensor.plane(Plane::kCodes).data());
  const size_t alignment = tensor.format() == Format::kF32 ? 4 : 2;
  if (reinterpret_cast<uintptr_t>(blocks) % alignment != 0) {
    return InvalidArgument("blocks: a pointer that is not aligned to 2 bytes, or to 4 for f32");
  }
  switch (tensor.format()) {
    case Format::kF32:
      visitor(ScalarSource{blocks, DType::kF32, tensor.cols()});
      return OkStatus();
    case Format::kF16:
      visitor(ScalarSource{blocks, DType::kF16, tensor.cols()});
      return OkStatus();
    case Format::kBF16:
      visitor(ScalarSource{blocks, DType::kBF16, tensor.cols()});
      return OkStatus();
    default:
      break;
  }
  const bool known = VisitCodec(tensor.format(), [&](auto codec) {
    using Codec = decltype(codec);
    visitor(BlockSource<Codec>{reinterpret_cast<const typename Codec::Block*>(blocks),
                               tensor.cols() / Codec::kWeights});
  });
  if (known) return OkStatus();
  return Unsupported(std::string(GetFormatInfo(tensor.format()).name) + " does not hold weights");
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_WEIGHTS_CUH_
