#include "cuda/pack.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>

#include "nibble/format.h"

namespace nibble::cuda {
namespace {

// A book of 16 values, each given by its code.
template <class ValueOf>
void FillBooks(PackedMatrix& matrix, const ValueOf& value) {
  for (uint32_t code = 0; code < 16; ++code) {
    const auto put = [code](Book& book, uint16_t bits) {
      book.words[code / 4] |= uint32_t{bits & 0xFFu} << (8 * (code % 4));
      book.words[4 + code / 4] |= uint32_t{bits} >> 8 << (8 * (code % 4));
    };
    matrix.largest_value = std::max(matrix.largest_value, std::fabs(value(code)));
    put(matrix.book_f16, ToF16(value(code)).bits);
    put(matrix.book_bf16, ToBF16(value(code)).bits);
  }
}

template <class Codec, class Packed>
void SetBlockTraits(PackedMatrix& matrix) {
  matrix.panel_groups = kPanelCols / std::min(Codec::kGroup, kPanelCols);
  matrix.min_is_zero = Packed::kHasMin && !Codec::kHasMin;
}

std::optional<PackedKind> KindOf(const Scheme& s) {
  switch (s.code) {
    case Code::kNf4:
    case Code::kFp4:
      return PackedKind::kBook;
    case Code::kTable:
      if (s.bits > 4) return std::nullopt;
      return PackedKind::kBook;
    case Code::kF8E4M3:
      return PackedKind::kE4M3;
    case Code::kF8E5M2:
      return PackedKind::kE5M2;
    case Code::kAdditive:
      return std::nullopt;
    case Code::kUniform:
      break;
  }
  if (s.bits >= 7) return s.symmetric ? PackedKind::kU8 : PackedKind::kU8Min;
  if (s.bits == 4 && s.symmetric) return PackedKind::kU4;
  constexpr PackedKind kByBits[7] = {PackedKind::kU2Min, PackedKind::kU2Min, PackedKind::kU2Min,
                                     PackedKind::kU3Min, PackedKind::kU4Min, PackedKind::kU5Min,
                                     PackedKind::kU6Min};
  return kByBits[s.bits];
}

// Of codes that are no entries of a book.
float LargestValue(PackedKind kind) {
  return VisitPackedFormat(kind, [](auto format) {
    using Format = decltype(format);
    return Format::kValues == Values::kE4M3   ? 448.0f
           : Format::kValues == Values::kE5M2 ? 57344.0f
                                              : static_cast<float>(1 << Format::kBits);
  });
}
bool HasBook(PackedKind kind) {
  return VisitPackedFormat(kind,
                           [](auto format) { return decltype(format)::kValues == Values::kBook; });
}

}  // namespace

Result<PackedPlan> PlanPack(const QuantizedTensor& weights, std::span<const float> table) {
  PackedPlan plan = {};
  PackedMatrix& matrix = plan.matrix;
  matrix.rows = weights.rows();
  matrix.cols = weights.cols();
  if (weights.is_block_format()) {
    switch (weights.format()) {
#define NIBBLE_CUDA_PLAN(Name, PackedName, wide)             \
  case Format::k##Name:                                      \
    plan.kind = PackedKind::k##PackedName;                   \
    matrix.wide_scales = wide;                               \
    SetBlockTraits<Codec##Name, Packed##PackedName>(matrix); \
    break;
      NIBBLE_CUDA_BLOCK_FORMATS(NIBBLE_CUDA_PLAN)
#undef NIBBLE_CUDA_PLAN
      default:
        return Unsupported(std::string("packing ") + GetFormatInfo(weights.format()).name +
                           " for the device");
    }
    if (HasBook(plan.kind)) {
      const bool is_fp4 = weights.format() == Format::kMXFP4;
      FillBooks(matrix, [&](uint32_t code) {
        return static_cast<float>(is_fp4 ? kFp4Doubled[code] : kIq4Values[code]);
      });
    } else {
      matrix.largest_value = LargestValue(plan.kind);
    }
    return plan;
  }
  const Scheme& s = weights.scheme();
  const auto unsupported = [&] {
    return Unsupported("packing " + SchemeName(s) + " for the device");
  };
  const auto kind = KindOf(s);
  if (!kind) return unsupported();
  plan.kind = *kind;
  if (s.granularity == Granularity::kGroup) {
    const int group = s.group_size;
    if (group % 128 != 0 && group != 64 && group != 32 && group != 16) return unsupported();
    matrix.panel_groups = kPanelCols / std::min(group, kPanelCols);
  }
  // Zeros that are codes fit into f16, others lose what the decoder's offset adds to them.
  const bool exact_zeros = s.symmetric || s.zero_dtype == DType::kU8;
  matrix.wide_scales = s.scale_dtype != DType::kF16 || s.double_quant || !exact_zeros;
  matrix.min_is_zero = true;
  if (!HasBook(plan.kind)) {
    matrix.largest_value = LargestValue(plan.kind);
  } else {
    if (s.code == Code::kTable && table.size() != size_t{1} << s.bits) {
      return InvalidArgument("pack: no table of " + std::to_string(1 << s.bits) + " values");
    }
    FillBooks(matrix, [&](uint32_t code) {
      if (s.code == Code::kNf4) return Nf4Value(code);
      if (s.code == Code::kFp4) return Fp4Value(code);
      return code < table.size() ? table[code] : 0.0f;
    });
  }
  return plan;
}

Status CheckGroupIndex(std::span<const int32_t> group_of_column, int64_t groups) {
  for (size_t col = 0; col < group_of_column.size(); ++col) {
    const int32_t group = group_of_column[col];
    if (group < 0 || group >= groups) {
      return InvalidArgument("group index " + std::to_string(group) + " of column " +
                             std::to_string(col) + " is not one of the " + std::to_string(groups) +
                             " groups");
    }
  }
  return OkStatus();
}

Result<std::vector<int32_t>> ColumnOrder(std::span<const int32_t> group_of_column, int64_t groups,
                                         int64_t run) {
  NIBBLE_RETURN_IF_ERROR(CheckGroupIndex(group_of_column, groups));
  const int64_t cols = static_cast<int64_t>(group_of_column.size());
  std::vector<int32_t> order(group_of_column.size());
  std::iota(order.begin(), order.end(), 0);
  const auto group = [&](int64_t packed) {
    return group_of_column[static_cast<size_t>(order[static_cast<size_t>(packed)])];
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return group_of_column[static_cast<size_t>(a)] < group_of_column[static_cast<size_t>(b)];
  });
  for (int64_t col = 1; col < cols; ++col) {
    if (col % run != 0 && group(col) != group(col - 1)) {
      return Unsupported("packing a group index whose groups do not fill runs of " +
                         std::to_string(run) + " columns");
    }
  }
  return order;
}

}  // namespace nibble::cuda
