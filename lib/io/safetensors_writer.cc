#include <utility>

#include <nlohmann/json.hpp>

#include "lib/io/errors.h"
#include "lib/io/name_index.h"
#include "lib/io/safetensors_reader.h"
#include "lib/io/shards.h"
#include "lib/io/tensor_stream.h"
#include "nibble/safetensors.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kHeaderAlignment = 8;

Result<std::string> JsonString(const std::string& text) {
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    return InvalidArgument(Quoted(text) + " is not valid UTF-8");
  }
}

Result<std::string> MetadataEntry(const std::map<std::string, std::string>& metadata) {
  std::string entry;
  for (const auto& [key, value] : metadata) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string key_text, JsonString(key));
    NIBBLE_ASSIGN_OR_RETURN(const std::string value_text, JsonString(value));
    entry.append(entry.empty() ? "" : ",").append(key_text).append(":").append(value_text);
  }
  if (entry.empty()) return entry;
  return Json(kSafetensorsMetadataKey).dump().append(":{").append(entry).append("}");
}

// One file while it fills: its members of the JSON object and the bytes of its tensors.
struct Shard {
  std::string members;
  size_t tensors = 0;
  uint64_t data_bytes = 0;

  void Add(const std::string& member) { members.append(members.empty() ? "" : ",").append(member); }

  static uint64_t HeaderBytes(uint64_t member_bytes) {
    return (member_bytes + 2 + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment;
  }
  // The file's size were `more` bytes of members, a comma included, and of data to follow.
  uint64_t FileBytes(uint64_t more_members = 0, uint64_t more_data = 0) const {
    return sizeof(uint64_t) + HeaderBytes(members.size() + more_members) + data_bytes + more_data;
  }
  // The length and the JSON text, padded so that the data begins at a multiple of 8.
  std::string Header() const {
    const uint64_t bytes = HeaderBytes(members.size());
    std::string header(reinterpret_cast<const char*>(&bytes), sizeof(bytes));
    header.append("{").append(members).append("}");
    header.resize(sizeof(bytes) + bytes, ' ');
    return header;
  }
};

class Planner {
 public:
  Planner(const std::string& path, std::span<const SafetensorsInfo> tensors,
          const SafetensorsWriteOptions& options)
      : path_(path), tensors_(tensors), options_(options) {}

  Status Make(std::vector<PlannedFile>* files, std::vector<PlannedTensor>* planned) {
    const NameIndex names =
        IndexNames(tensors_, [](const auto& tensor) { return std::string_view(tensor.name); });
    if (const size_t i = names.FindDuplicate(); i != NameIndex::kNone) {
      return InvalidArgument("two tensors " + Quoted(tensors_[i].name));
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string metadata, MetadataEntry(options_.metadata));
    uint64_t total = 0;
    std::vector<Shard> shards(1);
    shards[0].members = metadata;
    for (const SafetensorsInfo& tensor : tensors_) {
      Result<uint64_t> bytes = SafetensorsTensorBytes(tensor);
      if (!bytes.ok())
        return std::move(bytes).status().WithContext("tensor " + Quoted(tensor.name));
      if (__builtin_add_overflow(total, *bytes, &total) || total > INT64_MAX / 2) {
        return InvalidArgument("the tensors together are too large for a file");
      }
      NIBBLE_ASSIGN_OR_RETURN(std::string member, Member(tensor, shards.back().data_bytes, *bytes));
      if (options_.max_shard_bytes > 0 && shards.back().tensors > 0 &&
          shards.back().FileBytes(member.size() + 1, *bytes) > options_.max_shard_bytes) {
        shards.emplace_back().members = metadata;
        NIBBLE_ASSIGN_OR_RETURN(member, Member(tensor, 0, *bytes));
      }
      shards.back().Add(member);
      shards.back().data_bytes += *bytes;
      ++shards.back().tensors;
      planned->push_back({tensor.name, *bytes});
    }
    return Lay(shards, total, files);
  }

 private:
  static Result<std::string> Member(const SafetensorsInfo& tensor, uint64_t begin, uint64_t bytes) {
    if (tensor.name == kSafetensorsMetadataKey) {
      return InvalidArgument("no tensor may be named " + Quoted(tensor.name));
    }
    NIBBLE_ASSIGN_OR_RETURN(std::string member, JsonString(tensor.name));
    member += std::string(":{\"dtype\":\"") + SafetensorsTypeName(tensor.dtype) + "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      member.append(i > 0 ? "," : "").append(std::to_string(tensor.shape[i]));
    }
    return member + "],\"data_offsets\":[" + std::to_string(begin) + "," +
           std::to_string(begin + bytes) + "]}";
  }

  // Names the files; the index, where there is one, comes first.
  Status Lay(const std::vector<Shard>& shards, uint64_t total, std::vector<PlannedFile>* files) {
    if (shards.size() > kMaxShards) {
      return InvalidArgument("shards of at most " + std::to_string(options_.max_shard_bytes) +
                             " bytes would be " + std::to_string(shards.size()) + ", more than " +
                             std::to_string(kMaxShards));
    }
    const std::string stem(WithoutExtension(path_, kSafetensorsExtension));
    const auto count = static_cast<uint32_t>(shards.size());
    if (count > 1) files->emplace_back();
    Json weight_map = Json::object();
    size_t tensor = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const std::string path =
          count == 1 ? path_ : MakeShardName(stem, i, count, kSafetensorsExtension);
      files->push_back({path, shards[i].Header(), shards[i].tensors, shards[i].FileBytes()});
      if (files->back().header.size() > kSafetensorsLargestHeader) {
        return InvalidArgument("a header of more than " +
                               std::to_string(kSafetensorsLargestHeader) +
                               " bytes; use smaller shards");
      }
      for (const size_t end = tensor + shards[i].tensors; tensor < end; ++tensor) {
        weight_map[tensors_[tensor].name] = path.substr(path.rfind('/') + 1);
      }
    }
    if (count > 1) {
      const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
      PlannedFile& file = files->front();
      file.path = stem + std::string(kSafetensorsIndexExtension);
      file.header = index.dump(2) + "\n";
      file.bytes = file.header.size();
    }
    return OkStatus();
  }

  const std::string& path_;
  std::span<const SafetensorsInfo> tensors_;
  const SafetensorsWriteOptions& options_;
};

}  // namespace

struct SafetensorsWriter::Impl {
  TensorStream stream;
};

SafetensorsWriter::SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

Result<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                    std::vector<SafetensorsInfo> tensors,
                                                    const SafetensorsWriteOptions& options) {
  return CatchAllocationFailure(path, [&]() -> Result<SafetensorsWriter> {
    std::vector<PlannedFile> files;
    std::vector<PlannedTensor> planned;
    NIBBLE_RETURN_IF_ERROR(
        Planner(path, tensors, options).Make(&files, &planned).WithContext(path));
    NIBBLE_ASSIGN_OR_RETURN(TensorStream stream,
                            TensorStream::Create(std::move(files), std::move(planned), 1));
    SafetensorsWriter writer;
    writer.impl_ = std::make_unique<Impl>(Impl{std::move(stream)});
    return writer;
  });
}

Result<uint64_t> SafetensorsWriter::TotalBytes(const std::string& path,
                                               std::span<const SafetensorsInfo> tensors,
                                               const SafetensorsWriteOptions& options) {
  return CatchAllocationFailure(path, [&]() -> Result<uint64_t> {
    std::vector<PlannedFile> files;
    std::vector<PlannedTensor> planned;
    NIBBLE_RETURN_IF_ERROR(
        Planner(path, tensors, options).Make(&files, &planned).WithContext(path));
    uint64_t total = 0;
    for (const PlannedFile& file : files) total += file.bytes;
    return total;
  });
}

Status SafetensorsWriter::Append(std::span<const std::byte> data) {
  return impl_->stream.Append(data);
}

Status SafetensorsWriter::Finish() { return impl_->stream.Finish(); }

}  // namespace nibble
