// Files that appear whole or not at all.
#ifndef NIBBLE_LIB_IO_OUTPUT_FILE_H_
#define NIBBLE_LIB_IO_OUTPUT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/status.h"

namespace nibble {

struct TemporarySlot;

// Writes a temporary file in the folder of `path` and gives it that name in Commit(). Until then
// the file at `path`, if there is one, stays as it was; without Commit() the temporary file is
// removed. A symbolic link at `path` is replaced, not followed.
class OutputFile {
 public:
  // Creates the temporary file and reserves `bytes` of disk space where the file system can, so
  // that a full disk is an error here and not hours later.
  static Result<OutputFile> Create(const std::string& path, uint64_t bytes = 0);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  ~OutputFile();

  Status Append(std::span<const std::byte> data);
  Status Append(const std::string& data) { return Append(std::as_bytes(std::span(data))); }
  Status AppendZeros(uint64_t count);

  // Writes over what was appended before, all of it within bytes_written().
  Status Overwrite(uint64_t offset, std::span<const std::byte> data);

  uint64_t bytes_written() const { return bytes_written_; }

  // After the last byte: everything is on the disk when this returns. Still under a temporary name.
  Status Close();
  // Takes the target's name; Close() comes first. The name itself is durable after SyncFolderOf().
  Status Commit();

 private:
  OutputFile() = default;
  Status Flush();
  Status WriteAll(std::span<const std::byte> data);
  void Abandon();

  std::string path_;
  std::string temporary_path_;
  TemporarySlot* slot_ = nullptr;  // while the temporary file exists
  int fd_ = -1;
  uint64_t bytes_written_ = 0;  // by Append, what is still buffered included
  std::vector<std::byte> buffer_;
};

// What makes `path` impossible as the name of a new file: no such folder, no permission, a folder
// or a device of that name, a read-only file. Writes nothing.
Status CheckOutputPath(const std::string& path);

// An error that names both figures when the file system of `path` has less than `bytes` free.
Status CheckFreeSpace(const std::string& path, uint64_t bytes);

// Makes the names in the folder of `path` durable.
Status SyncFolderOf(const std::string& path);

// Removes the temporary files of all OutputFiles of the process that were not committed. Safe in a
// signal handler that ends the process; nothing may be written afterwards.
void RemoveTemporaryFiles() noexcept;

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_OUTPUT_FILE_H_
