// Decoded weights, one at a time and exact, from the codecs that both sides share, for device and
// host.
#ifndef NIBBLE_CUDA_WEIGHTS_H_
#define NIBBLE_CUDA_WEIGHTS_H_

#include <bit>
#include <cstdint>
#include <string>

#include "cuda/element.h"
#include "kernels/codec_planar.h"
#include "kernels/visit_codec.h"
#include "lib/quantize/planar.h"
#include "nibble/quantized_tensor.h"

namespace nibble::cuda {

// A source gives weights by row and column, or eight of them from a column on that is a multiple of
// eight; Prepare(), with memory that a block shares, runs once in every thread of it first, before
// a barrier.

template <class Codec>
struct BlockSource {
  const typename Codec::Block* blocks;
  int64_t blocks_per_row;

  static constexpr int kSharedBytes = 0;
  NIBBLE_HD void Prepare(int, int, float*) {}
  NIBBLE_HD float Weight(int64_t row, int64_t col) const {
    return DecodeWeight<Codec>(blocks[row * blocks_per_row + col / Codec::kWeights],
                               static_cast<int>(col % Codec::kWeights));
  }
  NIBBLE_HD void Eight(int64_t row, int64_t col, float* weights) const {
    static_assert(Codec::kGroup % 8 == 0);
    const typename Codec::Block& block = blocks[row * blocks_per_row + col / Codec::kWeights];
    const int first = static_cast<int>(col % Codec::kWeights), group = first / Codec::kGroup;
    const float scale = Codec::Scale(block, group);
    float min = 0;
    if constexpr (Codec::kHasMin) min = Codec::Min(block, group);
    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) {
      weights[i] = scale * static_cast<float>(Codec::Code(block, first + i));
      if constexpr (Codec::kHasMin) weights[i] -= min;
    }
  }
};

// f32, f16, bf16 stored as they are.
struct ScalarSource {
  const void* data;
  DType dtype;
  int64_t cols;

  static constexpr int kSharedBytes = 0;
  NIBBLE_HD void Prepare(int, int, float*) {}
  NIBBLE_HD float Weight(int64_t row, int64_t col) const {
    return LoadElement(data, dtype, row * cols + col);
  }
  NIBBLE_HD void Eight(int64_t row, int64_t col, float* weights) const {
    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) weights[i] = Weight(row, col + i);
  }
};

struct PlanarSource {
  PlanarPlanes planes;
  // In shared memory, filled by Prepare: what codes of weights, and of scales, stand for.
  const float* values;
  const float* dynamic_map;

  static constexpr int kSharedBytes = 512 * sizeof(float);
  NIBBLE_HD void Prepare(int thread, int threads, float* shared) {
    for (uint32_t i = static_cast<uint32_t>(thread); i < 256; i += static_cast<uint32_t>(threads)) {
      if (i < 1u << planes.scheme.bits) shared[i] = CodeValue(planes.scheme, i, planes.table);
      if (planes.scheme.double_quant) shared[256 + i] = DynamicMapValue(i);
    }
    values = shared;
    dynamic_map = shared + 256;
  }
  NIBBLE_HD float Scale(int64_t at) const {
    if (!planes.scheme.double_quant) return planes.Scale(at);
    const int64_t blocks = (planes.scale_count() + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock;
    const float maximum =
        LoadPlaneFloat(planes.super_scales, DType::kF32, at / kScalesPerSuperBlock);
    const float mean = LoadPlaneFloat(planes.super_scales, DType::kF32, blocks);
    return dynamic_map[planes.scales[at]] * maximum + mean;
  }
  NIBBLE_HD float Weight(int64_t row, int64_t col) const {
    const ScaleZero fit = Fit(row, col);
    const uint8_t* stream = planes.codes + row * PlanarRowBytes(planes.scheme.bits, planes.cols);
    return Scaled(fit, PlanarCode(stream, planes.scheme.bits, col));
  }
  NIBBLE_HD void Eight(int64_t row, int64_t col, float* weights) const {
    const Scheme& scheme = planes.scheme;
    const bool shared_scale =
        planes.group_index == nullptr &&
        (scheme.granularity != Granularity::kGroup || scheme.group_size % 8 == 0);
    // Eight codes take as many bytes as one has bits.
    const uint8_t* stream =
        planes.codes + row * PlanarRowBytes(scheme.bits, planes.cols) + col / 8 * scheme.bits;
    uint64_t codes = 0;
    for (int i = 0; i < scheme.bits; ++i) codes |= static_cast<uint64_t>(stream[i]) << (8 * i);
    ScaleZero fit = Fit(row, col);
    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (!shared_scale && i > 0) fit = Fit(row, col + i);
      weights[i] = Scaled(
          fit, static_cast<uint32_t>(codes >> (i * scheme.bits)) & ((1u << scheme.bits) - 1));
    }
  }

 private:
  struct ScaleZero {
    float scale, zero;
  };
  // NaN where the group index of the column is none of the groups: there is no one to tell.
  NIBBLE_HD ScaleZero Fit(int64_t row, int64_t col) const {
    const int64_t group = planes.Group(col);
    if (group < 0 || group >= planes.groups) return {std::bit_cast<float>(0x7FC00000u), 0.0f};
    const int64_t at = planes.ScaleAt(row, group);
    return {Scale(at), planes.Zero(at)};
  }
  NIBBLE_HD float Scaled(ScaleZero fit, uint32_t code) const {
    return fit.scale * (planes.scheme.symmetric ? values[code] : values[code] - fit.zero);
  }
};

// Additive codebooks: the entries lie in memory, as they may be larger than what a block shares.
struct AdditiveSource {
  PlanarPlanes planes;

  static constexpr int kSharedBytes = 0;
  NIBBLE_HD void Prepare(int, int, float*) {}
  NIBBLE_HD float Weight(int64_t row, int64_t col) const {
    return DecodePlanarWeight(planes, row, col);
  }
  // Eight weights lie in one vector: the codes are read once.
  NIBBLE_HD void Eight(int64_t row, int64_t col, float* weights) const {
    const Scheme& s = planes.scheme;
    const uint8_t* stream = planes.codes + row * planes.row_bytes();
    for (int c = 0; c < s.codebooks; ++c) {
      const uint32_t code = PlanarCode(stream, s.bits, col / s.vector * s.codebooks + c);
      NIBBLE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const float value = CodebookValue(s, c, code, col % s.vector + i, planes.table);
        weights[i] = c == 0 ? value : weights[i] + value;
      }
    }
    const float scale = planes.Scale(planes.ScaleAt(row, planes.Group(col)));
    NIBBLE_UNROLL
    for (int i = 0; i < 8; ++i) weights[i] = scale * weights[i];
  }
};

// Calls visitor(source) with the source of a tensor in device memory.
template <class Visitor>
Status VisitSource(const QuantizedTensor& tensor, const Visitor& visitor) {
  if (tensor.device() != Device::kCuda) {
    return InvalidArgument("the tensor is not in device memory, as other operands are");
  }
  if (!tensor.is_block_format()) {
    if (tensor.scheme().code == Code::kAdditive) {
      visitor(AdditiveSource{PlanesOf(tensor)});
      return OkStatus();
    }
    PlanarSource source = {};
    source.planes = PlanesOf(tensor);
    visitor(source);
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

#endif  // NIBBLE_CUDA_WEIGHTS_H_
