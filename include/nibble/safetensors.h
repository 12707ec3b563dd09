// safetensors files: read by mapping, written streaming, with index files and shards.
// Format: https://huggingface.co/docs/safetensors
#ifndef NIBBLE_SAFETENSORS_H_
#define NIBBLE_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/dtype.h"
#include "nibble/status.h"

namespace nibble {

struct SafetensorsInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // slowest first, as in the file; empty for a scalar

  int64_t elements() const;
};

struct SafetensorsTensor : SafetensorsInfo {
  std::span<const std::byte> data;  // in the mapped file; the format promises it no alignment
};

// A file, or a model of several under "model.safetensors.index.json". Checked in full by Open:
// header size, JSON, duplicate keys, dtypes, holes, overlaps, and that shards stay in their folder.
class SafetensorsFile {
 public:
  // `path`: a .safetensors file, a .safetensors.index.json, or a folder that holds either.
  static Result<SafetensorsFile> Open(const std::string& path);

  std::span<const SafetensorsTensor> tensors() const;  // in file order
  const SafetensorsTensor* Find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const;  // "__metadata__"
  std::span<const std::string> paths() const;
  uint64_t file_bytes() const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

struct SafetensorsWriteOptions {
  std::map<std::string, std::string> metadata;
  // 0: one file. Else files of at most so many bytes (or of one larger tensor), named
  // "NAME-00001-of-00003.safetensors", and "NAME.safetensors.index.json"; a single file where that
  // suffices.
  uint64_t max_shard_bytes = 0;
};

// As GgufWriter: fixed list of tensors, streamed data, temporary names until Finish().
class SafetensorsWriter {
 public:
  static Result<SafetensorsWriter> Create(const std::string& path,
                                          std::vector<SafetensorsInfo> tensors,
                                          const SafetensorsWriteOptions& options = {});
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();

  // The exact total size of the file(s), index included, that such a call writes.
  static Result<uint64_t> TotalBytes(const std::string& path,
                                     std::span<const SafetensorsInfo> tensors,
                                     const SafetensorsWriteOptions& options = {});

  Status Append(std::span<const std::byte> data);
  Status Finish();

 private:
  SafetensorsWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_SAFETENSORS_H_
