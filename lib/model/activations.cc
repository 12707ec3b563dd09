#include "lib/model/activations.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "lib/io/errors.h"

namespace nibble {
namespace {

// A file of so many bytes that has no name and goes with its descriptor.
Result<int> OpenUnnamed(const std::string& folder, size_t bytes) {
  std::string path = folder + "/nibble-activations-XXXXXX";
  const int fd = mkstemp(path.data());
  if (fd < 0) return ErrnoStatus(folder, "no file for activations", errno);
  unlink(path.c_str());
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  const auto size = static_cast<off_t>(bytes);
  int failed = ftruncate(fd, size) == 0 ? 0 : errno;
#if defined(__linux__)
  // Room for all of it now: a full disk is an error here and not a signal when a page is written.
  while (failed == 0 && fallocate(fd, 0, 0, size) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) break;
    failed = errno;
  }
#endif
  if (failed == 0) return fd;
  close(fd);
  return ErrnoStatus(folder, "no room for " + std::to_string(bytes) + " bytes of activations",
                     failed);
}

}  // namespace

Result<Activations> Activations::Create(int64_t tokens, int64_t cols,
                                        const ActivationMemory& where) {
  Activations made;
  made.bytes_ = static_cast<size_t>(tokens) * static_cast<size_t>(cols) * sizeof(float);
  if (made.bytes_ == 0) return made;
  made.on_disk_ = made.bytes_ > where.memory_bytes;
  int fd = -1;
  if (made.on_disk_) {
    std::error_code error;
    const std::string folder =
        where.folder.empty() ? std::filesystem::temp_directory_path(error).string() : where.folder;
    if (error) return IoError("no folder for temporary files: " + error.message());
    NIBBLE_ASSIGN_OR_RETURN(fd, OpenUnnamed(folder, made.bytes_));
  }
  void* data = mmap(nullptr, made.bytes_, PROT_READ | PROT_WRITE,
                    made.on_disk_ ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
  if (fd >= 0) close(fd);
  if (data == MAP_FAILED) {
    return OutOfMemory("no memory for " + std::to_string(made.bytes_) + " bytes of activations");
  }
  made.data_ = static_cast<float*>(data);
  return made;
}

Activations::Activations(Activations&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_), on_disk_(other.on_disk_) {}

Activations& Activations::operator=(Activations&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(on_disk_, other.on_disk_);
  return *this;
}

Activations::~Activations() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace nibble
