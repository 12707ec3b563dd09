#include <algorithm>
#include <type_traits>
#include <utility>

#include "lib/io/errors.h"
#include "lib/io/gguf_layout.h"
#include "lib/io/name_index.h"
#include "lib/io/shards.h"
#include "lib/io/tensor_stream.h"
#include "nibble/gguf.h"

namespace nibble {
namespace {

template <class T>
requires std::is_arithmetic_v<T>
void Put(std::string* out, T value) {
  if constexpr (std::is_same_v<T, bool>) {
    out->push_back(value ? 1 : 0);
  } else {
    out->append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
}

void Put(std::string* out, std::string_view text) {
  Put(out, uint64_t{text.size()});
  out->append(text);
}

void Put(std::string* out, const std::string& text) { Put(out, std::string_view(text)); }

void PutValue(std::string* out, const GgufValue& value) {
  const uint32_t type = GgufScalarType(value.index());
  if (value.index() >= kGgufScalarTypes) Put(out, static_cast<uint32_t>(GgufType::kArray));
  Put(out, type);
  std::visit(
      [out]<class T>(const T& v) {
        if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
          Put(out, v);
        } else {
          Put(out, uint64_t{v.size()});
          for (const auto& element : v) Put(out, static_cast<typename T::value_type>(element));
        }
      },
      value);
}

void PutTensorInfo(std::string* out, const GgufTensorInfo& tensor, uint64_t offset) {
  Put(out, tensor.name);
  Put(out, static_cast<uint32_t>(tensor.dims.size()));
  for (const int64_t dim : tensor.dims) Put(out, dim);
  Put(out, static_cast<uint32_t>(tensor.format));
  Put(out, offset);
}

// Everything before the tensors' descriptions.
std::string BeginHeader(const GgufMetadata& metadata, uint64_t tensors) {
  std::string header(kGgufMagic);
  Put(&header, kGgufVersion);
  Put(&header, tensors);
  Put(&header, uint64_t{metadata.entries().size()});
  for (const auto& [key, value] : metadata.entries()) {
    Put(&header, key);
    PutValue(&header, value);
  }
  return header;
}

// One file: a run of tensors and the bytes before their data.
struct ShardPlan {
  size_t first = 0;
  size_t count = 0;
  std::string header;  // padded to the alignment
  uint64_t file_bytes = 0;
};

struct Plan {
  GgufMetadata metadata;  // as the first file has it
  std::vector<uint64_t> tensor_bytes;
  std::vector<ShardPlan> shards;

  uint64_t file_bytes() const {
    uint64_t sum = 0;
    for (const ShardPlan& shard : shards) sum += shard.file_bytes;
    return sum;
  }
};

class Planner {
 public:
  Planner(const GgufMetadata& metadata, std::span<const GgufTensorInfo> tensors,
          const GgufWriteOptions& options)
      : tensors_(tensors), options_(options), metadata_(WithoutSplit(metadata)) {
    // The key states the alignment of this file, whatever file the metadata came from.
    const bool stated = metadata_.Find(kAlignmentKey) != nullptr;
    if (stated || options.alignment != kGgufDefaultAlignment) {
      metadata_.Set(std::string(kAlignmentKey), static_cast<uint32_t>(options.alignment));
    }
  }

  Result<Plan> Make() {
    NIBBLE_RETURN_IF_ERROR(Check());
    plan_.metadata = metadata_;
    plan_.shards = {MakeShard(metadata_, 0, tensors_.size())};
    if (options_.max_shard_bytes > 0 && plan_.file_bytes() > options_.max_shard_bytes) {
      NIBBLE_RETURN_IF_ERROR(Split());
    }
    return std::move(plan_);
  }

 private:
  static GgufMetadata WithoutSplit(const GgufMetadata& metadata) {
    std::vector<GgufMetadata::Entry> entries = metadata.entries();
    std::erase_if(entries, [](const auto& entry) { return entry.first.starts_with(kSplitPrefix); });
    return GgufMetadata(std::move(entries));
  }

  Status Check() {
    if (!IsValidGgufAlignment(options_.alignment)) {
      return InvalidArgument("an alignment of " + std::to_string(options_.alignment) +
                             " is not a power of two of at least 8");
    }
    for (const auto& [key, value] : metadata_.entries()) {
      if (key.empty() || key.size() > kGgufLongestName) {
        return InvalidArgument("a metadata key of " + std::to_string(key.size()) + " bytes");
      }
    }
    const NameIndex keys = IndexNames(
        metadata_.entries(), [](const auto& entry) { return std::string_view(entry.first); });
    if (const size_t i = keys.FindDuplicate(); i != NameIndex::kNone) {
      return InvalidArgument("two metadata keys " + Quoted(metadata_.entries()[i].first));
    }
    const NameIndex names =
        IndexNames(tensors_, [](const auto& tensor) { return std::string_view(tensor.name); });
    if (const size_t i = names.FindDuplicate(); i != NameIndex::kNone) {
      return InvalidArgument("two tensors " + Quoted(tensors_[i].name));
    }
    uint64_t sum = 0;
    for (const GgufTensorInfo& tensor : tensors_) {
      Result<uint64_t> bytes = GgufTensorBytes(tensor);
      if (!bytes.ok())
        return std::move(bytes).status().WithContext("tensor " + Quoted(tensor.name));
      if (tensor.name.size() > kGgufLongestName) {
        return InvalidArgument("a tensor name of " + std::to_string(tensor.name.size()) + " bytes");
      }
      if (__builtin_add_overflow(sum, AlignUp(*bytes, options_.alignment), &sum) ||
          sum > static_cast<uint64_t>(INT64_MAX) / 2) {
        return InvalidArgument("the tensors together are too large for a file");
      }
      plan_.tensor_bytes.push_back(*bytes);
    }
    return OkStatus();
  }

  uint64_t PaddedBytes(size_t tensor) const {
    return AlignUp(plan_.tensor_bytes[tensor], options_.alignment);
  }

  ShardPlan MakeShard(const GgufMetadata& metadata, size_t first, size_t count) const {
    ShardPlan shard{first, count, BeginHeader(metadata, count), 0};
    uint64_t offset = 0;
    for (size_t i = first; i < first + count; ++i) {
      PutTensorInfo(&shard.header, tensors_[i], offset);
      offset += PaddedBytes(i);
    }
    shard.header.resize(AlignUp(shard.header.size(), options_.alignment), '\0');
    shard.file_bytes = shard.header.size() + offset;
    return shard;
  }

  // The first shard carries all metadata, every other one only what it needs to be read.
  GgufMetadata ShardMetadata(size_t index, size_t count) const {
    GgufMetadata metadata;
    if (index == 0) {
      metadata = metadata_;
    } else if (options_.alignment != kGgufDefaultAlignment) {
      metadata.Set(std::string(kAlignmentKey), static_cast<uint32_t>(options_.alignment));
    }
    // The types are those that llama.cpp insists on.
    metadata.Set(std::string(kSplitNumberKey), static_cast<uint16_t>(index));
    metadata.Set(std::string(kSplitTensorsKey), static_cast<int32_t>(tensors_.size()));
    metadata.Set(std::string(kSplitCountKey), static_cast<uint16_t>(count));
    return metadata;
  }

  // Fills one shard after the other; each takes at least one tensor, however large.
  Status Split() {
    std::vector<std::pair<size_t, size_t>> runs;  // first tensor and count
    uint64_t header_bytes = 0;
    uint64_t data_bytes = 0;
    std::string scratch;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      scratch.clear();
      PutTensorInfo(&scratch, tensors_[i], 0);
      const uint64_t file_bytes =
          AlignUp(header_bytes + scratch.size(), options_.alignment) + data_bytes + PaddedBytes(i);
      if (runs.empty() || file_bytes > options_.max_shard_bytes) {
        // The numbers in the split keys do not change the size of the header.
        header_bytes = BeginHeader(ShardMetadata(runs.size(), 0), 0).size();
        data_bytes = 0;
        runs.emplace_back(i, 0);
      }
      header_bytes += scratch.size();
      data_bytes += PaddedBytes(i);
      ++runs.back().second;
    }
    if (runs.size() <= 1) return OkStatus();
    if (runs.size() > kMaxShards) {
      return InvalidArgument("shards of at most " + std::to_string(options_.max_shard_bytes) +
                             " bytes would be " + std::to_string(runs.size()) + ", more than " +
                             std::to_string(kMaxShards));
    }
    plan_.shards.clear();
    plan_.metadata = ShardMetadata(0, runs.size());
    for (size_t k = 0; k < runs.size(); ++k) {
      plan_.shards.push_back(
          MakeShard(ShardMetadata(k, runs.size()), runs[k].first, runs[k].second));
    }
    return OkStatus();
  }

  std::span<const GgufTensorInfo> tensors_;
  const GgufWriteOptions& options_;
  GgufMetadata metadata_;
  Plan plan_;
};

}  // namespace

struct GgufWriter::Impl {
  TensorStream stream;
  GgufMetadata metadata;  // of the first file
  uint64_t tensors = 0;   // in the first file

  Status Amend(std::string_view key, GgufValue value) {
    if (metadata.Find(key) == nullptr) return NotFound(stream.path() + ": no key " + Quoted(key));
    GgufMetadata amended = metadata;
    amended.Set(std::string(key), std::move(value));
    const std::string header = BeginHeader(amended, tensors);
    if (header.size() != BeginHeader(metadata, tensors).size()) {
      return InvalidArgument(stream.path() + ": the new value of " + Quoted(key) +
                             " has another size");
    }
    metadata = std::move(amended);
    return stream.AmendHeader(header);
  }
};

GgufWriter::GgufWriter() = default;
GgufWriter::GgufWriter(GgufWriter&&) noexcept = default;
GgufWriter& GgufWriter::operator=(GgufWriter&&) noexcept = default;
GgufWriter::~GgufWriter() = default;

Result<GgufWriter> GgufWriter::Create(const std::string& path, const GgufMetadata& metadata,
                                      std::vector<GgufTensorInfo> tensors,
                                      const GgufWriteOptions& options) {
  return CatchAllocationFailure(path, [&]() -> Result<GgufWriter> {
    Result<Plan> plan = Planner(metadata, tensors, options).Make();
    if (!plan.ok()) return std::move(plan).status().WithContext(path);
    std::vector<PlannedFile> files;
    const auto count = static_cast<uint32_t>(plan->shards.size());
    for (uint32_t i = 0; i < count; ++i) {
      ShardPlan& shard = plan->shards[i];
      files.push_back({count == 1 ? path
                                  : MakeShardName(WithoutExtension(path, kGgufExtension), i, count,
                                                  kGgufExtension),
                       std::move(shard.header), shard.count, shard.file_bytes});
    }
    std::vector<PlannedTensor> planned;
    for (size_t i = 0; i < tensors.size(); ++i) {
      planned.push_back({std::move(tensors[i].name), plan->tensor_bytes[i]});
    }
    NIBBLE_ASSIGN_OR_RETURN(
        TensorStream stream,
        TensorStream::Create(std::move(files), std::move(planned), options.alignment));
    GgufWriter writer;
    writer.impl_ = std::make_unique<Impl>(
        Impl{std::move(stream), std::move(plan->metadata), plan->shards.front().count});
    return writer;
  });
}

Result<uint64_t> GgufWriter::TotalBytes(const GgufMetadata& metadata,
                                        std::span<const GgufTensorInfo> tensors,
                                        const GgufWriteOptions& options) {
  return CatchAllocationFailure("GGUF", [&]() -> Result<uint64_t> {
    NIBBLE_ASSIGN_OR_RETURN(const Plan plan, Planner(metadata, tensors, options).Make());
    return plan.file_bytes();
  });
}

Status GgufWriter::Append(std::span<const std::byte> data) { return impl_->stream.Append(data); }

Status GgufWriter::Amend(std::string_view key, GgufValue value) {
  return CatchAllocationFailure(impl_->stream.path(),
                                [&] { return impl_->Amend(key, std::move(value)); });
}

Status GgufWriter::Finish() { return impl_->stream.Finish(); }

}  // namespace nibble
