// Packing, and the choice of kernels for products with packed weights.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/operations.h"
#include "cuda/pack.h"
#include "cuda/products.h"
#include "cuda/status.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

// What PackedWeights of the device hold: records, or a tensor as it was.
struct Records {
  PackedPlan plan;
  Buffer bytes, order, multiplier;
};
using Details = std::variant<Records, QuantizedTensor>;

Result<Buffer> HostCopy(const Buffer& plane, Stream stream) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer copy, Buffer::Allocate(plane.size()));
  NIBBLE_RETURN_IF_ERROR(Copy(copy.mutable_bytes(), plane.bytes(), stream));
  NIBBLE_RETURN_IF_ERROR(Synchronize(stream));
  return copy;
}

template <class T>
std::span<const T> SpanOf(const Buffer& buffer) {
  return {reinterpret_cast<const T*>(buffer.data()), buffer.size() / sizeof(T)};
}

// The packed columns' places, from the plane of a group index.
Result<Buffer> MakeOrder(const Buffer& index, int64_t run, Stream stream) {
  NIBBLE_ASSIGN_OR_RETURN(const Buffer groups, HostCopy(index, stream));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> order,
                          ColumnOrder(SpanOf<int32_t>(groups), run));
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Allocate(order.size() * sizeof(int32_t), stream));
  NIBBLE_RETURN_IF_ERROR(
      Copy(buffer.mutable_bytes(), std::as_bytes(std::span<const int32_t>(order)), stream));
  return buffer;
}

Result<Records> MakeRecords(const QuantizedTensor& weights, Stream stream) {
  Records made;
  Buffer table;
  const Buffer& values = weights.plane(Plane::kTable);
  if (values.size() > 0) {
    NIBBLE_ASSIGN_OR_RETURN(table, HostCopy(values, stream));
  }
  NIBBLE_ASSIGN_OR_RETURN(made.plan, PlanPack(weights, SpanOf<float>(table)));
  PackedMatrix& matrix = made.plan.matrix;
  if (weights.plane(Plane::kGroupIndex).size() > 0) {
    NIBBLE_ASSIGN_OR_RETURN(made.order, MakeOrder(weights.plane(Plane::kGroupIndex),
                                                  int64_t{matrix.group_steps} * kStepCols, stream));
    matrix.order = reinterpret_cast<const int32_t*>(made.order.data());
  }
  const int64_t bytes = VisitPackedFormat(made.plan.kind, [&](auto format) {
    using Format = decltype(format);
    return matrix.row_tiles() * matrix.records_per_tile<Format>() *
           int64_t{matrix.record_bytes<Format>()};
  });
  NIBBLE_ASSIGN_OR_RETURN(made.bytes, Allocate(static_cast<size_t>(bytes), stream));
  matrix.records = reinterpret_cast<const uint8_t*>(made.bytes.data());
  NIBBLE_RETURN_IF_ERROR(LaunchPack(weights, made.plan, StreamOf(stream)));
  NIBBLE_ASSIGN_OR_RETURN(made.multiplier, Allocate(2 * sizeof(float), stream));
  auto* multiplier = reinterpret_cast<float*>(made.multiplier.data());
  NIBBLE_RETURN_IF_ERROR(LaunchFindMultiplier(
      made.plan, reinterpret_cast<uint32_t*>(multiplier + 1), multiplier, StreamOf(stream)));
  matrix.multiplier = multiplier;
  return made;
}

DType OperandType(DType activations) {
  return activations == DType::kF16 ? DType::kF16 : DType::kBF16;
}

// One product with records, checked.
struct Product {
  const PackedPlan* plan;
  ProductMember member;
};

// Products of one packed format and record size, with at most kMostTokens tokens each, by launches
// of several.
Status MultiplyFew(const Activations& activations, std::span<const Product> products,
                   const DeviceLimits& limits, cudaStream_t stream) {
  const PackedPlan& first = *products[0].plan;
  return VisitPackedFormat(first.kind, [&](auto format) -> Status {
    using Format = decltype(format);
    constexpr RecordTraits kTraits = TraitsOf<Format>();
    for (size_t at = 0; at < products.size(); at += kMostMembers) {
      const auto some = products.subspan(at, std::min<size_t>(kMostMembers, products.size() - at));
      SmallMArguments args = {};
      args.activations = activations;
      args.members_count = static_cast<int>(some.size());
      int64_t tiles[kMostMembers];
      int tokens = 0;
      for (size_t i = 0; i < some.size(); ++i) {
        tiles[i] = some[i].member.weights.row_tiles();
        tokens = std::max(tokens, some[i].member.tokens);
      }
      args.plan =
          PlanSmallM(kTraits, tiles, args.members_count, first.matrix.records_per_tile<Format>(),
                     first.matrix.record_bytes<Format>(), tokens, limits);
      if (args.plan.blocks == 0) return Unsupported("matmul: too little shared memory");
      if (args.plan.blocks > INT32_MAX) return Unsupported("matmul: too many rows for one launch");
      int64_t block = 0;
      for (size_t i = 0; i < some.size(); ++i) {
        args.members[i] = some[i].member;
        args.members[i].first_block = static_cast<int32_t>(block);
        block += BlocksOf(kTraits, args.plan, tiles[i]);
      }
      NIBBLE_RETURN_IF_ERROR(
          SmallMLauncher<Format>::Launch(args, OperandType(activations.dtype), stream));
    }
    return OkStatus();
  });
}

// One product of more tokens. kUnsupported, and nothing queued, where the processor's shared memory
// does not do.
Status MultiplyMany(const Activations& activations, const Product& product,
                    const DeviceLimits& limits, Stream stream) {
  const PackedMatrix& weights = product.plan->matrix;
  const DType type = OperandType(activations.dtype);
  return VisitPackedFormat(product.plan->kind, [&](auto format) -> Status {
    using Format = decltype(format);
    GemmArguments args = {activations, {}, product.member};
    args.plan = PlanGemm(Format::kCols, weights.row_tiles(), weights.records_per_tile<Format>(),
                         weights.record_bytes<Format>(), product.member.tokens, limits);
    if (args.plan.row_blocks == 0) return Unsupported("matmul: too little shared memory");
    if (args.plan.row_blocks > INT32_MAX || args.plan.token_blocks > 65535) {
      return Unsupported("matmul: too many rows for one launch");
    }
    Buffer arranged;  // goes back to the stream's pool behind the kernel
    if (activations.dtype != type || !activations.is_aligned || weights.order != nullptr) {
      const int64_t stride = (activations.cols + 7) / 8 * 8;
      NIBBLE_ASSIGN_OR_RETURN(arranged,
                              Allocate(static_cast<size_t>(activations.rows * stride) * 2, stream));
      auto* to = reinterpret_cast<uint16_t*>(arranged.data());
      NIBBLE_RETURN_IF_ERROR(
          LaunchArrange(activations, weights.order, type, stride, to, StreamOf(stream)));
      args.activations = {to, type, activations.rows, activations.cols, stride, true};
    }
    return GemmLauncher<Format>::Launch(args, type, StreamOf(stream));
  });
}

// Whether two products may share a launch.
bool AreAlike(const Product& a, const Product& b) {
  const PackedMatrix &x = a.plan->matrix, &y = b.plan->matrix;
  const auto tiles = [](const Product& p) { return (p.member.tokens + 7) / 8; };
  return a.plan->kind == b.plan->kind && x.group_steps == y.group_steps &&
         x.wide_scales == y.wide_scales && tiles(a) == tiles(b);
}

MatmulOptions OptionsOf(const MatmulOptions& options, const MatmulMember& member) {
  MatmulOptions own = options;
  own.bias = member.bias;
  return own;
}

Status CheckCanonical(const TensorView& activations, const QuantizedTensor& weights,
                      const MutableTensorView& out, const MatmulOptions& options) {
  if (weights.device() != Device::kCuda) {
    return InvalidArgument("weights: not in device memory, as other operands are");
  }
  const auto check =
      TakesBytes(weights, activations.dtype, options) ? CheckByteOperands : CheckOperands;
  return check(activations, weights.rows(), weights.cols(), out, options);
}

// A product of checked operands.
Status MultiplyCanonical(const TensorView& activations, const QuantizedTensor& weights,
                         const MutableTensorView& out, const MatmulOptions& options,
                         const DeviceLimits& limits) {
  if (TakesBytes(weights, activations.dtype, options)) {
    return MatmulBytes(activations, weights, out, options, limits);
  }
  return MatmulDecoded(activations, weights, out, options);
}

// The operands of a member, checked.
Result<ProductMember> MakeMember(const TensorView& activations, const MatmulMember& member,
                                 const PackedMatrix& weights, const MatmulOptions& options) {
  TensorView rows = activations;
  if (!member.rows.empty()) {
    if (static_cast<int64_t>(member.rows.size()) != member.out.rows) {
      return InvalidArgument("matmul: " + std::to_string(member.rows.size()) + " rows for " +
                             std::to_string(member.out.rows) + " rows of output");
    }
    rows.rows = member.out.rows;
  }
  NIBBLE_RETURN_IF_ERROR(
      CheckOperands(rows, weights.rows, weights.cols, member.out, OptionsOf(options, member)));
  if (member.out.rows > INT32_MAX) return Unsupported("matmul: too many activation rows");
  return ProductMember{weights,
                       member.rows.empty() ? nullptr : member.rows.data(),
                       0,
                       static_cast<int32_t>(member.out.rows),
                       0,
                       member.bias.empty() ? nullptr : member.bias.data(),
                       static_cast<float*>(member.out.data),
                       member.out.row_stride,
                       options.accumulate};
}

Activations ActivationsOf(const TensorView& view) {
  const size_t element = DTypeBytes(view.dtype);
  return {view.data,
          view.dtype,
          view.rows,
          view.cols,
          view.row_stride,
          reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
              static_cast<size_t>(view.row_stride) * element % 16 == 0};
}

}  // namespace

Result<DeviceLimits> Limits() {
  int device = 0, major = 0, minor = 0;
  DeviceLimits limits;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaDeviceGetAttribute(
      &limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  NIBBLE_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  limits.has_clusters = major >= 9;
  limits.has_float8 = 10 * major + minor >= 89;
  return limits;
}

Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision precision,
                           const ParallelFor& parallel) {
  if (weights.rows() <= 0 || weights.cols() <= 0) return InvalidArgument("pack: empty weights");
  MatmulOptions options;
  options.precision = precision;
  if (precision != Precision::kF32 && !TakesBytes(weights, DType::kF16, options)) {
    Result<Records> records = MakeRecords(weights, parallel.stream);
    if (records.ok()) {
      const Buffer bytes = records->bytes;
      return MakePackedWeights(weights.rows(), weights.cols(), bytes.size(), Device::kCuda,
                               "cuda16/1", std::make_shared<Details>(*std::move(records)));
    }
    if (records.status().code() != StatusCode::kUnsupported) return std::move(records).status();
  }
  return MakePackedWeights(weights.rows(), weights.cols(), weights.bytes(), Device::kCuda,
                           "canonical/1", std::make_shared<Details>(weights));
}

Status Matmul(const TensorView& activations, const QuantizedTensor& weights,
              const MutableTensorView& out, const MatmulOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckCanonical(activations, weights, out, options));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceLimits limits, Limits());
  return MultiplyCanonical(activations, weights, out, options, limits);
}

Status MatmulGroup(const TensorView& activations, std::span<const MatmulMember> members,
                   const MatmulOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const DeviceLimits limits, Limits());
  const Activations source = ActivationsOf(activations);
  const cudaStream_t stream = StreamOf(options.parallel.stream);
  std::vector<Product> products;
  struct Canonical {
    const QuantizedTensor* weights;
    const MatmulMember* member;
  };
  std::vector<Canonical> canonical;
  // All are checked before any is launched.
  for (size_t i = 0; i < members.size(); ++i) {
    const MatmulMember& member = members[i];
    if (member.out.rows == 0) continue;
    const auto add = [&]() -> Status {
      const QuantizedTensor* tensor = nullptr;
      const PackedPlan* plan = nullptr;
      if (const auto* as_it_is = std::get_if<const QuantizedTensor*>(&member.weights)) {
        tensor = *as_it_is;
      } else if (const auto* packed = std::get<const PackedWeights*>(member.weights)) {
        const auto* details = static_cast<const Details*>(DetailsOf(*packed, Device::kCuda));
        if (details == nullptr) return InvalidArgument("matmul: weights not packed for the device");
        if (const auto* records = std::get_if<Records>(details)) {
          plan = &records->plan;
        } else {
          tensor = &std::get<QuantizedTensor>(*details);
        }
      }
      if (plan != nullptr) {
        if (options.precision == Precision::kF32) {
          return Unsupported("matmul: exact products need weights packed for Precision::kF32");
        }
        NIBBLE_ASSIGN_OR_RETURN(ProductMember whole,
                                MakeMember(activations, member, plan->matrix, options));
        products.push_back({plan, whole});
        return OkStatus();
      }
      if (tensor == nullptr) return InvalidArgument("matmul: no weights");
      if (!member.rows.empty()) {
        return Unsupported("matmul: a list of rows with weights that are not packed");
      }
      canonical.push_back({tensor, &member});
      return CheckCanonical(activations, *tensor, member.out, OptionsOf(options, member));
    };
    NIBBLE_RETURN_IF_ERROR(add().WithContext("member " + std::to_string(i)));
  }
  std::vector<Product> parts;
  for (const Product& product : products) {
    if (product.member.tokens > kMostTokens) {
      Status status = MultiplyMany(source, product, limits, options.parallel.stream);
      if (status.ok()) continue;
      if (status.code() != StatusCode::kUnsupported) return status;
    }
    for (int32_t token = 0; token < product.member.tokens; token += kMostTokens) {
      parts.push_back(product);
      parts.back().member.first_token = token;
      parts.back().member.tokens = std::min(kMostTokens, product.member.tokens - token);
    }
  }
  for (size_t at = 0; at < parts.size();) {
    size_t end = at + 1;
    while (end < parts.size() && AreAlike(parts[at], parts[end])) ++end;
    NIBBLE_RETURN_IF_ERROR(
        MultiplyFew(source, std::span<const Product>(parts).subspan(at, end - at), limits, stream));
    at = end;
  }
  for (const Canonical& product : canonical) {
    NIBBLE_RETURN_IF_ERROR(MultiplyCanonical(activations, *product.weights, product.member->out,
                                             OptionsOf(options, *product.member), limits));
  }
  return OkStatus();
}

}  // namespace nibble::cuda
