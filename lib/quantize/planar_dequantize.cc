#include <array>
#include <string>
#include <utility>

#include "kernels/additive.h"
#include "kernels/convert.h"
#include "kernels/planar.h"
#include "lib/quantize/checks.h"
#include "lib/quantize/planar.h"
#include "lib/quantize/planar_spans.h"

namespace nibble {
namespace {

constexpr std::array<float, 256> kDynamicMap = [] {
  std::array<float, 256> map{};
  for (uint32_t i = 0; i < 256; ++i) map[i] = DynamicMapValue(i);
  return map;
}();

// PlanarPlanes::Scale with the dynamic map tabulated.
float ScaleOf(const PlanarPlanes& p, float mean, int64_t at) {
  if (!p.scheme.double_quant) return p.Scale(at);
  const int64_t block = at / kScalesPerSuperBlock;
  return kDynamicMap[p.scales[at]] * LoadPlaneFloat(p.super_scales, DType::kF32, block) + mean;
}

Status DequantizeAdditive(const PlanarPlanes& planes, const MutableTensorView& out,
                          const ParallelFor& parallel) {
  NIBBLE_ASSIGN_OR_RETURN(const AdditiveRows decoded, AdditiveRows::Make(planes));
  const WeightRows rows = decoded.rows();
  parallel(planes.rows, [&](int64_t row, int) {
    float weights[kBlockCols];
    for (int64_t first = 0; first < planes.cols; first += kBlockCols) {
      const int64_t count = std::min(kBlockCols, planes.cols - first);
      rows.decode(rows, row, first, count, weights);
      ConvertFromFloat(out.dtype, weights, count,
                       static_cast<std::byte*>(out.Row(row)) +
                           static_cast<size_t>(first) * DTypeBytes(out.dtype));
    }
  });
  return OkStatus();
}

}  // namespace

Result<GroupOrder> GroupOrder::Make(const uint8_t* index, int64_t cols, int64_t groups) {
  const auto group = [&](int64_t col) {
    PlanarPlanes p;
    p.group_index = index;
    return p.Group(col);
  };
  if (cols > INT32_MAX) return Unsupported("a group index of more than 2^31 columns");
  GroupOrder order;
  NIBBLE_ASSIGN_OR_RETURN(order.ends_,
                          Buffer::Allocate(static_cast<size_t>(groups) * sizeof(int64_t)));
  NIBBLE_ASSIGN_OR_RETURN(order.columns_,
                          Buffer::Allocate(static_cast<size_t>(cols) * sizeof(int32_t)));
  int64_t* ends = reinterpret_cast<int64_t*>(order.ends_.data());
  int32_t* columns = reinterpret_cast<int32_t*>(order.columns_.data());
  for (int64_t c = 0; c < cols; ++c) {
    const int64_t g = group(c);
    if (g < 0 || g >= groups) {
      return InvalidArgument("group index " + std::to_string(g) + " of column " +
                             std::to_string(c) + " is not one of the " + std::to_string(groups) +
                             " groups");
    }
    ++ends[g];
  }
  int64_t begin = 0;  // counts become beginnings, and placing the columns makes them ends
  for (int64_t g = 0; g < groups; ++g) begin += std::exchange(ends[g], begin);
  for (int64_t c = 0; c < cols; ++c) columns[ends[group(c)]++] = static_cast<int32_t>(c);
  return order;
}

Status DequantizePlanar(const QuantizedTensor& tensor, const MutableTensorView& out,
                        const ParallelFor& parallel) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(out, "output"));
  if (tensor.is_block_format()) return InvalidArgument("the tensor has a block format");
  if (tensor.device() != Device::kCpu) return Unsupported("the tensor is not in host memory");
  if (out.rows != tensor.rows() || out.cols != tensor.cols()) {
    return InvalidArgument("output of another shape than the tensor");
  }
  const PlanarPlanes p = PlanesOf(tensor);
  const Scheme& scheme = p.scheme;
  if (scheme.code == Code::kAdditive) return DequantizeAdditive(p, out, parallel);
  const bool indexed = scheme.has_group_index;
  const PlanarSpans spans(scheme, p.cols, false);
  const PlanarCodebook book = MakePlanarCodebook(scheme, p.table);
  const int64_t row_bytes = PlanarRowBytes(scheme.bits, p.cols);
  const int64_t super_blocks = (p.scale_count() + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock;
  const float mean =
      scheme.double_quant ? LoadPlaneFloat(p.super_scales, DType::kF32, super_blocks) : 0.0f;
  GroupOrder order;
  if (indexed) {
    NIBBLE_ASSIGN_OR_RETURN(order, GroupOrder::Make(p.group_index, p.cols, p.groups));
  }
  const size_t scratch_bytes = PlanarScratch::Bytes(spans, indexed);
  NIBBLE_ASSIGN_OR_RETURN(
      Buffer scratch,
      Buffer::Allocate(scratch_bytes * static_cast<size_t>(std::max(1, parallel.workers))));
  const bool in_place =
      out.dtype == DType::kF32 && !indexed && reinterpret_cast<uintptr_t>(out.data) % 4 == 0;

  ForSpans(spans, p.rows, p.cols, parallel, [&](int64_t row, int64_t first, int64_t count, int w) {
    const PlanarScratch mine(scratch.data() + scratch_bytes * static_cast<size_t>(w), spans,
                             indexed);
    const int64_t first_group = first / spans.group;
    const int64_t groups = indexed ? spans.groups : (count + spans.group - 1) / spans.group;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = p.ScaleAt(row, first_group + g);
      const int64_t end = indexed ? order.ends()[g] : std::min(count, (g + 1) * spans.group);
      mine.groups[g] = {end, ScaleOf(p, mean, at), p.Zero(at)};
    }
    const std::span<const PlanarGroup> all(mine.groups, static_cast<size_t>(groups));

    UnpackCodes(p.codes + row * row_bytes + first / 8 * scheme.bits, scheme.bits, count,
                mine.codes);
    std::byte* to =
        static_cast<std::byte*>(out.Row(row)) + static_cast<size_t>(first) * DTypeBytes(out.dtype);
    if (in_place) return DecodeCodes(book, all, mine.codes, reinterpret_cast<float*>(to));
    if (indexed) {
      const int32_t* columns = order.columns();
      for (int64_t i = 0; i < count; ++i) mine.ordered_codes[i] = mine.codes[columns[i]];
      DecodeCodes(book, all, mine.ordered_codes, mine.ordered);
      for (int64_t i = 0; i < count; ++i) mine.weights[columns[i]] = mine.ordered[i];
    } else {
      DecodeCodes(book, all, mine.codes, mine.weights);
    }
    ConvertFromFloat(out.dtype, mine.weights, count, to);
  });
  return OkStatus();
}

}  // namespace nibble
