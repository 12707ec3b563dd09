// Which packed format serves a tensor, and the source of its records (cuda/pack_record.h).
#ifndef NIBBLE_CUDA_PACK_H_
#define NIBBLE_CUDA_PACK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/pack_record.h"
#include "cuda/packed_format.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble::cuda {

struct PackedPlan {
  PackedKind kind;
  PackedMatrix matrix;  // without pointers
};

// What `weights`, wherever they lie, become; kUnsupported where no packed format serves them.
// `table`: the values of Code::kTable, in host memory; else empty.
Result<PackedPlan> PlanPack(const QuantizedTensor& weights, std::span<const float> table);

// An error where a column's group is not one of `groups`: kernels read the scale of any that they
// are told.
Status CheckGroupIndex(std::span<const int32_t> group_of_column, int64_t groups);

// The columns sorted by their groups, in order within a group, so that groups are neighbours; an
// error where groups then do not fill `run` columns each, or are none of `groups`.
Result<std::vector<int32_t>> ColumnOrder(std::span<const int32_t> group_of_column, int64_t groups,
                                         int64_t run);

// Block formats: X(format, packed format, f32 scales)
#define NIBBLE_CUDA_BLOCK_FORMATS(X) \
  X(Q4_0, U4, false)                 \
  X(Q4_1, U4Min, false)              \
  X(Q5_0, U5Min, false)              \
  X(Q5_1, U5Min, false)              \
  X(Q8_0, U8, false)                 \
  X(IQ4_NL, Book, false)             \
  X(MXFP4, Book, true)               \
  X(TQ1_0, U2Min, false)             \
  X(TQ2_0, U2Min, false)             \
  X(Q2_K, Q2_K, false)               \
  X(Q3_K, Q3_K, false)               \
  X(Q4_K, Q4_K, false)               \
  X(Q5_K, Q5_K, false)               \
  X(Q6_K, Q6_K, false)               \
  X(IQ4_XS, IQ4_XS, false)

// Returns visitor(format, source), a Status, with the packed format of a plan and the source of its
// records.
// `planes` are those of a tensor of a Scheme; `order` lies where they do.
template <class Visitor>
Status VisitPackSource(const PackedPlan& plan, const QuantizedTensor& weights,
                       const PlanarPlanes& planes, const int32_t* order, const Visitor& visitor) {
  if (!weights.is_block_format()) {
    return VisitPackedFormat(plan.kind, [&](auto format) -> Status {
      using Packed = decltype(format);
      if constexpr (Packed::kIsSuper) {
        return InternalError("pack: super-blocks of a scheme");
      } else {
        return visitor(format, PlanarPackSource<Packed>{planes, order});
      }
    });
  }
  const auto* blocks = weights.plane(Plane::kCodes).data();
  switch (weights.format()) {
#define NIBBLE_CUDA_SOURCE(Name, PackedName, wide)                                         \
  case Format::k##Name:                                                                    \
    return visitor(Packed##PackedName{}, BlockPackSource<Codec##Name, Packed##PackedName>{ \
                                             reinterpret_cast<const Block##Name*>(blocks), \
                                             weights.cols() / Codec##Name::kWeights});
    NIBBLE_CUDA_BLOCK_FORMATS(NIBBLE_CUDA_SOURCE)
#undef NIBBLE_CUDA_SOURCE
    default:
      return InternalError("pack: a format without records");
  }
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_PACK_H_
