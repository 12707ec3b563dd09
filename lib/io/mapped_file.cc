#include "lib/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "lib/io/errors.h"

namespace nibble {
namespace {

// Advises the pages that hold any byte of `mapped`; advice may fail without consequence.
void Advise(std::span<const std::byte> mapped, int advice) {
  if (mapped.empty()) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(mapped.data()) & ~(page - 1);
  const auto end = reinterpret_cast<uintptr_t>(mapped.data()) + mapped.size();
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not wait.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus(path, "cannot open", errno);
  struct stat info;
  Status status;
  void* data = nullptr;
  size_t size = 0;
  if (fstat(fd, &info) != 0) {
    status = ErrnoStatus(path, "cannot read", errno);
  } else if (!S_ISREG(info.st_mode)) {
    status = InvalidArgument(
        path + (S_ISDIR(info.st_mode) ? ": is a folder, not a file" : ": is not a regular file"));
  } else if (info.st_size > 0) {
    size = static_cast<size_t>(info.st_size);
    data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) status = ErrnoStatus(path, "cannot map", errno);
  }
  close(fd);
  if (!status.ok()) return status;
  return MappedFile({static_cast<const std::byte*>(data), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void AdviseSequential(std::span<const std::byte> mapped) { Advise(mapped, MADV_SEQUENTIAL); }

void DropPages(std::span<const std::byte> mapped) { Advise(mapped, MADV_DONTNEED); }

}  // namespace nibble
