// GgufFile: one file or all shards of one, mapped.
#include <algorithm>
#include <optional>
#include <utility>

#include "lib/io/errors.h"
#include "lib/io/gguf_layout.h"
#include "lib/io/gguf_reader.h"
#include "lib/io/mapped_file.h"
#include "lib/io/name_index.h"
#include "lib/io/shards.h"
#include "nibble/gguf.h"

namespace nibble {

struct GgufFile::Impl {
  uint32_t version = 0;
  uint64_t alignment = 0;
  uint64_t file_bytes = 0;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;
  NameIndex names;
  std::vector<std::string> paths;
  std::vector<MappedFile> files;

  Status Add(const std::string& path, ParsedGguf* parsed) {
    NIBBLE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    NIBBLE_ASSIGN_OR_RETURN(*parsed, ParseGguf(file.bytes(), path));
    file_bytes += file.bytes().size();
    files.push_back(std::move(file));
    paths.push_back(path);
    return OkStatus();
  }
};

namespace {

bool IsSplitKey(std::string_view key) { return key.starts_with(kSplitPrefix); }

// What a file says of its place among shards: without any of it, it is shard 0 of 1.
struct SplitInfo {
  uint64_t number = 0;
  uint64_t count = 1;
  std::optional<uint64_t> tensors;
};

Status ReadUint(const GgufMetadata& metadata, std::string_view key, uint64_t* value) {
  if (metadata.Find(key) == nullptr) return OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(*value, metadata.GetUint(key));
  return OkStatus();
}

Result<SplitInfo> ReadSplitInfo(const GgufMetadata& metadata, const std::string& path) {
  SplitInfo info;
  uint64_t tensors = 0;
  Status status = ReadUint(metadata, kSplitNumberKey, &info.number);
  if (status.ok()) status = ReadUint(metadata, kSplitCountKey, &info.count);
  if (status.ok()) status = ReadUint(metadata, kSplitTensorsKey, &tensors);
  if (!status.ok()) return Corrupt(path + ": " + status.message());
  if (metadata.Find(kSplitTensorsKey) != nullptr) info.tensors = tensors;
  info.count = std::max<uint64_t>(info.count, 1);
  if (info.number >= info.count || info.count > kMaxShards) {
    return Corrupt(path + ": says that it is shard " + std::to_string(info.number) +
                   " (from 0) of " + std::to_string(info.count));
  }
  return info;
}

// The metadata of the whole: the first shard's, then what only later ones have; nothing of the
// split.
GgufMetadata MergeMetadata(std::vector<GgufMetadata> shards) {
  const auto of_split = [](const auto& entry) { return IsSplitKey(entry.first); };
  if (shards.size() == 1 && std::ranges::none_of(shards[0].entries(), of_split)) {
    return std::move(shards[0]);  // the usual file: its vocabulary is not copied
  }
  std::vector<GgufMetadata::Entry> entries = shards[0].entries();
  std::erase_if(entries, of_split);
  for (size_t i = 1; i < shards.size(); ++i) {
    const NameIndex names =
        IndexNames(entries, [](const auto& entry) { return std::string_view(entry.first); });
    std::vector<GgufMetadata::Entry> added;
    for (const GgufMetadata::Entry& entry : shards[i].entries()) {
      if (!IsSplitKey(entry.first) && names.Find(entry.first) == NameIndex::kNone) {
        added.push_back(entry);
      }
    }
    entries.insert(entries.end(), std::make_move_iterator(added.begin()),
                   std::make_move_iterator(added.end()));
  }
  return GgufMetadata(std::move(entries));
}

}  // namespace

Result<GgufFile> GgufFile::Open(const std::string& path) {
  return CatchAllocationFailure(path, [&]() -> Result<GgufFile> {
    auto impl = std::make_shared<Impl>();
    ParsedGguf opened;
    NIBBLE_RETURN_IF_ERROR(impl->Add(path, &opened));
    NIBBLE_ASSIGN_OR_RETURN(const SplitInfo split, ReadSplitInfo(opened.metadata, path));

    // The names of the others come from the opened name, never from what a file says.
    const std::optional<ShardName> name = ParseShardName(path, kGgufExtension);
    const uint32_t named_count = name ? name->count : 1;
    const uint32_t named_index = name ? name->index : 0;
    if (split.count != named_count || split.number != named_index) {
      return Corrupt(path + ": holds shard " + std::to_string(split.number + 1) + " of " +
                     std::to_string(split.count) + " but has the name of shard " +
                     std::to_string(named_index + 1) + " of " + std::to_string(named_count));
    }

    if (split.count == 1) {
      impl->version = opened.version;
      impl->alignment = opened.alignment;
      std::vector<GgufMetadata> whole;
      whole.push_back(std::move(opened.metadata));
      impl->metadata = MergeMetadata(std::move(whole));
      impl->tensors = std::move(opened.tensors);
    } else {
      impl->file_bytes = 0;
      impl->files.clear();
      impl->paths.clear();
      std::vector<GgufMetadata> metadata;
      for (uint32_t i = 0; i < split.count; ++i) {
        const std::string shard_path = MakeShardName(name->stem, i, named_count, kGgufExtension);
        ParsedGguf shard;
        NIBBLE_RETURN_IF_ERROR(impl->Add(shard_path, &shard));
        NIBBLE_ASSIGN_OR_RETURN(const SplitInfo info, ReadSplitInfo(shard.metadata, shard_path));
        if (info.count != split.count || info.number != i || info.tensors != split.tensors) {
          return Corrupt(shard_path + ": belongs to another model than " + path +
                         ": their split.no, split.count and split.tensors.count do not agree");
        }
        if (i == 0) {
          impl->version = shard.version;
          impl->alignment = shard.alignment;
        }
        metadata.push_back(std::move(shard.metadata));
        impl->tensors.insert(impl->tensors.end(), std::make_move_iterator(shard.tensors.begin()),
                             std::make_move_iterator(shard.tensors.end()));
      }
      if (split.tensors && *split.tensors != impl->tensors.size()) {
        return Corrupt(path + ": the shards hold " + std::to_string(impl->tensors.size()) +
                       " tensors, not the " + std::to_string(*split.tensors) +
                       " of split.tensors.count");
      }
      impl->metadata = MergeMetadata(std::move(metadata));
    }

    impl->names =
        IndexNames(impl->tensors, [](const auto& tensor) { return std::string_view(tensor.name); });
    if (const size_t i = impl->names.FindDuplicate(); i != NameIndex::kNone) {
      return Corrupt(path + ": two shards hold tensor " + Quoted(impl->tensors[i].name));
    }
    GgufFile file;
    file.impl_ = std::move(impl);
    return file;
  });
}

uint32_t GgufFile::version() const { return impl_->version; }
uint64_t GgufFile::alignment() const { return impl_->alignment; }
const GgufMetadata& GgufFile::metadata() const { return impl_->metadata; }
std::span<const GgufTensor> GgufFile::tensors() const { return impl_->tensors; }
std::span<const std::string> GgufFile::paths() const { return impl_->paths; }
uint64_t GgufFile::file_bytes() const { return impl_->file_bytes; }

const GgufTensor* GgufFile::Find(std::string_view name) const {
  const size_t i = impl_->names.Find(name);
  return i == NameIndex::kNone ? nullptr : &impl_->tensors[i];
}

}  // namespace nibble
