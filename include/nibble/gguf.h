// GGUF files (versions 2 and 3): read by mapping, written streaming.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#ifndef NIBBLE_GGUF_H_
#define NIBBLE_GGUF_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "nibble/format.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// The number of each type in a file.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// One metadata value. Arrays are homogeneous; arrays of arrays are refused as unsupported.
using GgufValue = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool,
                               std::string, uint64_t, int64_t, double, std::vector<uint8_t>,
                               std::vector<int8_t>, std::vector<uint16_t>, std::vector<int16_t>,
                               std::vector<uint32_t>, std::vector<int32_t>, std::vector<float>,
                               std::vector<bool>, std::vector<std::string>, std::vector<uint64_t>,
                               std::vector<int64_t>, std::vector<double>>;

// Key-value pairs in file order.
class GgufMetadata {
 public:
  using Entry = std::pair<std::string, GgufValue>;

  GgufMetadata() = default;
  explicit GgufMetadata(std::vector<Entry> entries)
      : entries_(std::move(entries)) {}  // unique keys

  const GgufValue* Find(std::string_view key) const;  // nullptr where there is none
  void Set(std::string key, GgufValue value);         // replaces in place or appends
  void Erase(std::string_view key);
  const std::vector<Entry>& entries() const { return entries_; }

  // Typed look-ups for readers; integers of any width and sign convert when the value fits.
  Result<std::string> GetString(std::string_view key) const;
  Result<uint64_t> GetUint(std::string_view key) const;
  Result<double> GetFloat(std::string_view key) const;
  Result<bool> GetBool(std::string_view key) const;

 private:
  std::vector<Entry> entries_;
};

inline constexpr int kGgufMaxDims = 4;

struct GgufTensorInfo {
  std::string name;
  Format format = Format::kF32;
  std::vector<int64_t> dims;  // 1 to 4, fastest first: dims[0] is the row length, as in the file

  int64_t cols() const { return dims[0]; }
  int64_t rows() const;  // the product of the other dims
};

struct GgufTensor : GgufTensorInfo {
  uint64_t file_offset = 0;         // of the data, from the beginning of its file
  std::span<const std::byte> data;  // in the mapped file
};

// An opened file, or all shards of one ("-00001-of-00003"): everything was checked against hostile
// sizes, offsets, overlaps and duplicates before Open returned. Data pages are read when touched.
class GgufFile {
 public:
  // Opening any shard opens all of them; their tensors and metadata appear as one file's.
  static Result<GgufFile> Open(const std::string& path);

  uint32_t version() const;
  uint64_t alignment() const;
  const GgufMetadata& metadata() const;
  std::span<const GgufTensor> tensors() const;
  const GgufTensor* Find(std::string_view name) const;  // nullptr where there is none
  std::span<const std::string> paths() const;           // the files, in shard order
  uint64_t file_bytes() const;                          // of all of them

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

struct GgufWriteOptions {
  uint64_t alignment = 32;  // a power of two, at least 8; kept in general.alignment if not 32
  // 0: one file. Else files of at most so many bytes (or of one larger tensor), named
  // "NAME-00001-of-00003.gguf" with llama.cpp's split.* keys; a single file where that suffices.
  uint64_t max_shard_bytes = 0;
};

// Writes a file tensor by tensor. Everything goes beside the target under a temporary name and
// takes the target's name in Finish(), after a sync: a failure or a crash leaves the old file or
// none.
class GgufWriter {
 public:
  // The layout is fixed here: names, formats and shapes of all tensors, in file order.
  static Result<GgufWriter> Create(const std::string& path, const GgufMetadata& metadata,
                                   std::vector<GgufTensorInfo> tensors,
                                   const GgufWriteOptions& options = {});
  GgufWriter(GgufWriter&&) noexcept;
  GgufWriter& operator=(GgufWriter&&) noexcept;
  ~GgufWriter();  // without Finish(): the temporary files are removed

  // The exact total size of the file(s) that such a call writes, without writing anything.
  static Result<uint64_t> TotalBytes(const GgufMetadata& metadata,
                                     std::span<const GgufTensorInfo> tensors,
                                     const GgufWriteOptions& options = {});

  // Appends the data of the next tensor of the list, whole or in pieces; the sum of its pieces is
  // exactly its size before the next one begins.
  Status Append(std::span<const std::byte> data);

  // Replaces a metadata value by one of the same size in the file, such as a hash that is known
  // only when all data has passed. Before Finish().
  Status Amend(std::string_view key, GgufValue value);

  // After the last byte: flushes, syncs, renames.
  Status Finish();

 private:
  GgufWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_GGUF_H_
