// SafetensorsFile: one file or all files of an index, mapped.
#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "lib/io/errors.h"
#include "lib/io/mapped_file.h"
#include "lib/io/name_index.h"
#include "lib/io/safetensors_reader.h"
#include "nibble/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The file to open in a folder: model.safetensors, else its index, else the only one there is.
Result<std::string> FindInFolder(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> files;
  std::vector<std::string> indices;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(kSafetensorsExtension)) files.push_back(it->path().string());
    if (name.ends_with(kSafetensorsIndexExtension)) indices.push_back(it->path().string());
  }
  if (error) return ErrnoStatus(folder, "cannot list", error.value());
  for (const std::string_view extension : {kSafetensorsExtension, kSafetensorsIndexExtension}) {
    const std::string usual = (fs::path(folder) / "model").string() + std::string(extension);
    for (const auto* found : {&files, &indices}) {
      if (std::find(found->begin(), found->end(), usual) != found->end()) return usual;
    }
  }
  if (indices.size() == 1) return indices[0];
  if (indices.empty() && files.size() == 1) return files[0];
  if (indices.empty() && files.empty()) {
    return NotFound(folder + ": holds no .safetensors file and no index of some");
  }
  return InvalidArgument(folder + ": holds " + std::to_string(files.size()) +
                         " safetensors files and " + std::to_string(indices.size()) +
                         " indices; name the one to open");
}

}  // namespace

struct SafetensorsFile::Impl {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsTensor> tensors;
  NameIndex names;
  std::vector<std::string> paths;
  std::vector<MappedFile> files;
  uint64_t file_bytes = 0;

  Status Add(const std::string& path) {
    NIBBLE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    NIBBLE_ASSIGN_OR_RETURN(ParsedSafetensors parsed, ParseSafetensors(file.bytes(), path));
    metadata.merge(parsed.metadata);  // of equal keys the first file's stays
    tensors.insert(tensors.end(), std::make_move_iterator(parsed.tensors.begin()),
                   std::make_move_iterator(parsed.tensors.end()));
    file_bytes += file.bytes().size();
    files.push_back(std::move(file));
    paths.push_back(path);
    return OkStatus();
  }

  // The index and the files it names must agree on every tensor, both ways.
  Status AddIndex(const std::string& path) {
    NIBBLE_ASSIGN_OR_RETURN(const MappedFile index, MappedFile::Open(path));
    NIBBLE_ASSIGN_OR_RETURN(
        const auto weight_map,
        ParseSafetensorsIndex(
            {reinterpret_cast<const char*>(index.bytes().data()), index.bytes().size()}, path));
    std::vector<std::string> shards;
    for (const auto& [tensor, file] : weight_map) shards.push_back(file);
    std::sort(shards.begin(), shards.end());
    shards.erase(std::unique(shards.begin(), shards.end()), shards.end());

    const NameIndex mapped =
        IndexNames(weight_map, [](const auto& pair) { return std::string_view(pair.first); });
    const fs::path folder = fs::path(path).parent_path();
    for (const std::string& shard : shards) {
      const size_t first = tensors.size();
      NIBBLE_RETURN_IF_ERROR(Add((folder / shard).string()).WithContext(path));
      for (size_t i = first; i < tensors.size(); ++i) {
        const size_t entry = mapped.Find(tensors[i].name);
        if (entry == NameIndex::kNone || weight_map[entry].second != shard) {
          return Corrupt(path + ": does not list tensor " + Quoted(tensors[i].name) + " of " +
                         Quoted(shard));
        }
      }
    }
    // Every tensor found is listed where it was found, so a missing one shows in the count.
    if (tensors.size() != weight_map.size()) {
      const NameIndex found =
          IndexNames(tensors, [](const auto& t) { return std::string_view(t.name); });
      for (const auto& [tensor, file] : weight_map) {
        if (found.Find(tensor) == NameIndex::kNone) {
          return Corrupt(path + ": tensor " + Quoted(tensor) + " is not in " + Quoted(file));
        }
      }
    }
    return OkStatus();
  }
};

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  return CatchAllocationFailure(path, [&]() -> Result<SafetensorsFile> {
    std::string file_path = path;
    std::error_code error;
    if (fs::is_directory(path, error)) {
      NIBBLE_ASSIGN_OR_RETURN(file_path, FindInFolder(path));
    }
    auto impl = std::make_shared<Impl>();
    NIBBLE_RETURN_IF_ERROR(file_path.ends_with(".json") ? impl->AddIndex(file_path)
                                                        : impl->Add(file_path));
    impl->names =
        IndexNames(impl->tensors, [](const auto& tensor) { return std::string_view(tensor.name); });
    SafetensorsFile file;
    file.impl_ = std::move(impl);
    return file;
  });
}

std::span<const SafetensorsTensor> SafetensorsFile::tensors() const { return impl_->tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->metadata;
}
std::span<const std::string> SafetensorsFile::paths() const { return impl_->paths; }
uint64_t SafetensorsFile::file_bytes() const { return impl_->file_bytes; }

const SafetensorsTensor* SafetensorsFile::Find(std::string_view name) const {
  const size_t i = impl_->names.Find(name);
  return i == NameIndex::kNone ? nullptr : &impl_->tensors[i];
}

int64_t SafetensorsInfo::elements() const {
  int64_t elements = 1;
  for (const int64_t dim : shape) elements *= dim;
  return elements;
}

}  // namespace nibble
