// A file in memory, read-only, page by page as it is touched.
#ifndef NIBBLE_LIB_IO_MAPPED_FILE_H_
#define NIBBLE_LIB_IO_MAPPED_FILE_H_

#include <cstddef>
#include <span>
#include <string>

#include "nibble/status.h"

namespace nibble {

// The size is fixed when the file is opened. A file that another process shortens while it is
// mapped raises SIGBUS where the lost pages are touched; writers that replace a file by renaming,
// as nibble's do, never shorten it.
class MappedFile {
 public:
  // Regular files only: a folder, a pipe or a device is an error.
  static Result<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::span<const std::byte> bytes_;
};

// Tells the system that these mapped bytes are about to be read in order.
void AdviseSequential(std::span<const std::byte> mapped);

// Lets the system take back the memory of these mapped bytes. They stay readable: touching them
// again reads them again.
void DropPages(std::span<const std::byte> mapped);

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_MAPPED_FILE_H_
