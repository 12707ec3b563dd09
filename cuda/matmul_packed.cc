// Packing, and the choice of kernels for products with packed weights.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/blas.h"
#include "cuda/dense_plan.h"
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
Result<Buffer> MakeOrder(const QuantizedTensor& weights, int64_t run, Stream stream) {
  NIBBLE_ASSIGN_OR_RETURN(const Buffer index, HostCopy(weights.plane(Plane::kGroupIndex), stream));
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<int32_t> order,
      ColumnOrder(SpanOf<int32_t>(index), GroupsPerRow(weights.scheme(), weights.cols()), run));
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
    NIBBLE_ASSIGN_OR_RETURN(made.order,
                            MakeOrder(weights, kPanelCols / matrix.panel_groups, stream));
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
  NIBBLE_ASSIGN_OR_RETURN(made.multiplier, Allocate(5 * sizeof(float), stream));
  auto* multiplier = reinterpret_cast<float*>(made.multiplier.data());
  NIBBLE_RETURN_IF_ERROR(LaunchFindMultiplier(
      made.plan, reinterpret_cast<uint32_t*>(multiplier + 4), multiplier, StreamOf(stream)));
  matrix.multiplier = multiplier;
  return made;
}

// One product with records, checked.
struct Product {
  const PackedPlan* plan;
  ProductMember member;
};

// Products of one packed format and record size, with the same activations, by launches of several
// of them: plan(sizes) lays one out, blocks(plan, size) tells how many of its blocks are a
// product's. kUnsupported, and nothing queued, where the processor's shared memory does not do.
template <class Arguments, class MakePlan, class CountBlocks, class Launch>
Status LaunchSeveral(const Activations& activations, std::span<const Product> products,
                     const MakePlan& plan, const CountBlocks& blocks, const Launch& launch) {
  for (size_t at = 0; at < products.size(); at += kMostMembers) {
    const auto some = products.subspan(at, std::min<size_t>(kMostMembers, products.size() - at));
    ProductSize sizes[kMostMembers];
    for (size_t i = 0; i < some.size(); ++i) {
      sizes[i] = {some[i].member.weights.row_tiles(), some[i].member.tokens};
    }
    Arguments args = {};
    args.activations = activations;
    args.plan = plan(std::span<const ProductSize>(sizes, some.size()));
    if (args.plan.blocks == 0) return Unsupported("matmul: too little shared memory");
    if (args.plan.blocks > INT32_MAX) return Unsupported("matmul: too many rows for one launch");
    args.members_count = static_cast<int>(some.size());
    int64_t block = 0;
    for (size_t i = 0; i < some.size(); ++i) {
      args.members[i] = some[i].member;
      args.members[i].first_block = static_cast<int32_t>(block);
      block += blocks(args.plan, sizes[i]);
    }
    NIBBLE_RETURN_IF_ERROR(launch(args));
  }
  return OkStatus();
}

// Such products with at most kMostTokens tokens each.
Status MultiplyFew(const Activations& activations, std::span<const Product> products,
                   const DeviceLimits& limits, cudaStream_t stream) {
  const PackedMatrix& first = products[0].plan->matrix;
  return VisitPackedFormat(products[0].plan->kind, [&](auto format) {
    using Format = decltype(format);
    constexpr RecordTraits kTraits = TraitsOf<Format>();
    return LaunchSeveral<SmallMArguments>(
        activations, products,
        [&](std::span<const ProductSize> sizes) {
          return PlanSmallM(kTraits, sizes, first.records_per_tile<Format>(),
                            first.record_bytes<Format>(), limits);
        },
        [&](const SmallMPlan& plan, const ProductSize& size) {
          return BlocksOf(kTraits, plan, size);
        },
        [&](const SmallMArguments& args) {
          return SmallMLauncher<Format>::Launch(args, OperandType(activations.dtype), stream);
        });
  });
}

// Such products with any tokens, whose activations are arranged for all.
Status MultiplyMany(const Activations& activations, std::span<const Product> products,
                    const DeviceLimits& limits, cudaStream_t stream) {
  const PackedMatrix& first = products[0].plan->matrix;
  return VisitPackedFormat(products[0].plan->kind, [&](auto format) {
    using Format = decltype(format);
    return LaunchSeveral<GemmArguments>(
        activations, products,
        [&](std::span<const ProductSize> sizes) {
          return PlanGemm(Format::kCols, sizes, first.records_per_tile<Format>(),
                          first.record_bytes<Format>(), limits);
        },
        [](const GemmPlan& plan, const ProductSize& size) { return BlocksOf(plan, size); },
        [&](const GemmArguments& args) {
          return GemmLauncher<Format>::Launch(args, activations.dtype, stream);
        });
  });
}

// Whether two products may share a launch of either kernel: their records have one shape.
bool AreAlike(const Product& a, const Product& b) {
  const PackedMatrix &x = a.plan->matrix, &y = b.plan->matrix;
  return a.plan->kind == b.plan->kind && x.panel_groups == y.panel_groups &&
         x.wide_scales == y.wide_scales;
}
bool AreAlikeOfFew(const Product& a, const Product& b) {
  const auto tiles = [](const Product& p) { return (p.member.tokens + 7) / 8; };
  return AreAlike(a, b) && tiles(a) == tiles(b);
}
bool AreAlikeOfMany(const Product& a, const Product& b) {
  return AreAlike(a, b) && a.plan->matrix.order == b.plan->matrix.order;
}

// Calls run(products) with neighbours that are alike.
template <class Alike, class Run>
Status ForRuns(std::span<const Product> products, const Alike& alike, const Run& run) {
  for (size_t at = 0; at < products.size();) {
    size_t end = at + 1;
    while (end < products.size() && alike(products[at], products[end])) ++end;
    NIBBLE_RETURN_IF_ERROR(run(products.subspan(at, end - at)));
    at = end;
  }
  return OkStatus();
}

// Cut into parts of as many tokens as the kernel of few takes.
void AddParts(const Product& product, std::vector<Product>& parts) {
  for (int32_t token = 0; token < product.member.tokens; token += kMostTokens) {
    parts.push_back(product);
    parts.back().member.first_token = token;
    parts.back().member.tokens = std::min(kMostTokens, product.member.tokens - token);
  }
}

int64_t DenseTokensOf(const PackedPlan& plan) {
  return VisitPackedFormat(plan.kind, [&](auto format) {
    using Format = decltype(format);
    return DenseTokens(plan.kind, static_cast<double>(plan.matrix.record_bytes<Format>()) /
                                      (kTileRows * Format::kCols));
  });
}

// Checked products with the same activations, each by the kernel that is fastest for its tokens.
class ProductGroup {
 public:
  ProductGroup(const Activations& activations, const DeviceLimits& limits, Stream stream)
      : source_(activations), limits_(limits), stream_(stream) {}

  Status Run(std::span<const Product> products) {
    std::vector<Product> few, many;
    for (const Product& product : products) {
      const int64_t tokens = product.member.tokens, dense = DenseTokensOf(*product.plan);
      if (tokens >= dense && HasBlas(StreamOf(stream_))) {
        NIBBLE_RETURN_IF_ERROR(RunDense(product));
      } else if (tokens > kMostTokens) {
        many.push_back(product);
      } else {
        few.push_back(product);
      }
    }
    NIBBLE_RETURN_IF_ERROR(
        ForRuns(many, AreAlikeOfMany, [&](std::span<const Product> some) -> Status {
          NIBBLE_ASSIGN_OR_RETURN(const Arranged arranged, ArrangedFor(some[0].plan->matrix.order));
          Status status = MultiplyMany(arranged.activations, some, limits_, StreamOf(stream_));
          if (status.code() != StatusCode::kUnsupported) return status;
          for (const Product& product : some) AddParts(product, few);
          return OkStatus();
        }));
    return ForRuns(few, AreAlikeOfFew, [&](std::span<const Product> some) {
      return MultiplyFew(source_, some, limits_, StreamOf(stream_));
    });
  }

 private:
  // All rows; without an order of columns, made once for all products.
  Result<Arranged> ArrangedFor(const int32_t* order) {
    const DType type = OperandType(source_.dtype);
    if (order != nullptr) return Arrange(source_, type, nullptr, source_.rows, order, stream_);
    if (!plain_) {
      NIBBLE_ASSIGN_OR_RETURN(plain_,
                              Arrange(source_, type, nullptr, source_.rows, nullptr, stream_));
    }
    return *plain_;
  }

  Status RunDense(const Product& product) {
    const ProductMember& member = product.member;
    const int32_t* order = product.plan->matrix.order;
    Arranged arranged;
    if (member.token_rows == nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(arranged, ArrangedFor(order));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(arranged, Arrange(source_, OperandType(source_.dtype),
                                                member.token_rows, member.tokens, order, stream_));
    }
    return MultiplyPackedDense(*product.plan, arranged.activations, member, stream_);
  }

  const Activations& source_;
  const DeviceLimits& limits_;
  Stream stream_;
  std::optional<Arranged> plain_;
};

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
  if (TakesDense(weights, activations, options)) {
    return MultiplyCanonicalDense(activations, weights, out, options);
  }
  return MatmulDecoded(activations, weights, out, options);
}

// Activations with as many rows as a member takes.
Result<TensorView> RowsOf(const TensorView& activations, const MatmulMember& member) {
  TensorView rows = activations;
  if (member.rows.empty()) return rows;
  if (static_cast<int64_t>(member.rows.size()) != member.out.rows) {
    return InvalidArgument("matmul: " + std::to_string(member.rows.size()) + " rows for " +
                           std::to_string(member.out.rows) + " rows of output");
  }
  if (DTypeBytes(activations.dtype) == 1) {
    return Unsupported("matmul: a list of rows of activations of eight bits");
  }
  rows.rows = member.out.rows;
  return rows;
}

// The operands of a member, checked.
Result<ProductMember> MakeMember(const TensorView& activations, const MatmulMember& member,
                                 const PackedMatrix& weights, const MatmulOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView rows, RowsOf(activations, member));
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

}  // namespace

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
  std::vector<Product> products;
  struct Canonical {
    const QuantizedTensor* weights;
    const MatmulMember* member;
    TensorView activations;  // without a list of rows that the member has
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
      NIBBLE_ASSIGN_OR_RETURN(const TensorView rows, RowsOf(activations, member));
      canonical.push_back({tensor, &member, rows});
      return CheckCanonical(rows, *tensor, member.out, OptionsOf(options, member));
    };
    NIBBLE_RETURN_IF_ERROR(add().WithContext("member " + std::to_string(i)));
  }
  ProductGroup group(source, limits, options.parallel.stream);
  NIBBLE_RETURN_IF_ERROR(group.Run(products));
  for (const Canonical& product : canonical) {
    TensorView rows = product.activations;
    Arranged listed;  // goes back to the stream's pool behind the product
    if (!product.member->rows.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(listed, Arrange(source, rows.dtype, product.member->rows.data(),
                                              rows.rows, nullptr, options.parallel.stream));
      rows.data = listed.activations.data;
      rows.row_stride = listed.activations.stride;
    }
    NIBBLE_RETURN_IF_ERROR(MultiplyCanonical(rows, *product.weights, product.member->out,
                                             OptionsOf(options, *product.member), limits));
  }
  return OkStatus();
}

}  // namespace nibble::cuda
