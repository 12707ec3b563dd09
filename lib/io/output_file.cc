#include "lib/io/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "lib/io/errors.h"

namespace nibble {

// One temporary file of the process, for RemoveTemporaryFiles(). Whoever exchanges the name for a
// null pointer owns it, so that a handler and a thread never hold the same name. Slots are reused
// and never freed: a handler may be walking the list.
struct TemporarySlot {
  std::atomic<char*> name{nullptr};
  TemporarySlot* next = nullptr;
};
static_assert(std::atomic<char*>::is_always_lock_free, "used in signal handlers");

namespace {

constexpr size_t kBufferBytes = size_t{256} << 10;
constexpr size_t kLargestWrite = size_t{1} << 30;  // write() takes no more than 2 GiB at once

std::atomic<TemporarySlot*> g_slots{nullptr};

TemporarySlot* Register(const std::string& name) {
  char* copy = strdup(name.c_str());
  if (copy == nullptr) throw std::bad_alloc();
  for (TemporarySlot* slot = g_slots.load(); slot != nullptr; slot = slot->next) {
    char* unused = nullptr;
    if (slot->name.compare_exchange_strong(unused, copy)) return slot;
  }
  auto* slot = new TemporarySlot;
  slot->name = copy;
  slot->next = g_slots.load();
  while (!g_slots.compare_exchange_weak(slot->next, slot)) {
  }
  return slot;
}

void Unregister(TemporarySlot* slot) { free(slot->name.exchange(nullptr)); }

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// ".name.0123456789abcdef.tmp" in the folder of `path`: hidden, and not to be guessed by others who
// may write there.
std::string TemporaryName(const std::string& path) {
  constexpr size_t kLongestStem = 200;  // file names end at 255 bytes
  std::random_device random;
  char suffix[32];
  std::snprintf(suffix, sizeof(suffix), ".%08x%08x.tmp", random(), random());
  const size_t slash = path.rfind('/');
  const size_t stem = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(0, stem) + "." + path.substr(stem, kLongestStem) + suffix;
}

Status NoSpace(const std::string& path, uint64_t bytes) {
  std::string message = path + ": no space left on the device";
  if (bytes > 0) message += " for " + std::to_string(bytes) + " bytes";
  struct statvfs info;
  if (statvfs(FolderOf(path).c_str(), &info) == 0) {
    message += ", " + std::to_string(uint64_t{info.f_bavail} * info.f_frsize) + " are free";
  }
  return IoError(std::move(message));
}

Status WriteError(const std::string& path, int error, uint64_t bytes) {
  if (error == ENOSPC || error == EDQUOT) return NoSpace(path, bytes);
  return ErrnoStatus(path, "cannot write", error);
}

}  // namespace

Status CheckOutputPath(const std::string& path) {
  if (path.empty()) return InvalidArgument("the output file has an empty name");
  const std::string folder = FolderOf(path);
  struct stat info;
  if (stat(folder.c_str(), &info) != 0) {
    return ErrnoStatus(path, "its folder " + Quoted(folder), errno);
  }
  if (!S_ISDIR(info.st_mode)) {
    return InvalidArgument(path + ": " + Quoted(folder) + " is not a folder");
  }
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    return ErrnoStatus(path, "cannot write in its folder " + Quoted(folder), errno);
  }
  if (path.back() == '/') return InvalidArgument(path + ": is a folder, not a file");
  if (stat(path.c_str(), &info) != 0) return OkStatus();
  if (S_ISDIR(info.st_mode)) return InvalidArgument(path + ": is a folder, not a file");
  // Renaming over a device or a pipe would destroy it.
  if (!S_ISREG(info.st_mode)) return InvalidArgument(path + ": is not a regular file");
  if (access(path.c_str(), W_OK) != 0) return ErrnoStatus(path, "cannot replace", errno);
  return OkStatus();
}

Status CheckFreeSpace(const std::string& path, uint64_t bytes) {
  struct statvfs info;
  const std::string folder = FolderOf(path);
  if (statvfs(folder.c_str(), &info) != 0) {
    return ErrnoStatus(path, "its folder " + Quoted(folder), errno);
  }
  if (uint64_t{info.f_bavail} * info.f_frsize < bytes) return NoSpace(path, bytes);
  return OkStatus();
}

Status SyncFolderOf(const std::string& path) {
  const std::string folder = FolderOf(path);
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // A folder that may be written but not listed cannot be synced by anybody.
  if (fd < 0) return errno == EACCES ? OkStatus() : ErrnoStatus(folder, "cannot open", errno);
  // EINVAL: a file system without folders to sync.
  const int error = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  if (error != 0 && error != EINVAL) return ErrnoStatus(folder, "cannot sync", error);
  return OkStatus();
}

void RemoveTemporaryFiles() noexcept {
  const int saved = errno;
  for (TemporarySlot* slot = g_slots.load(); slot != nullptr; slot = slot->next) {
    const char* name = slot->name.exchange(nullptr);
    if (name != nullptr) unlink(name);
  }
  errno = saved;
}

Result<OutputFile> OutputFile::Create(const std::string& path, uint64_t bytes) {
  NIBBLE_RETURN_IF_ERROR(CheckOutputPath(path));
  NIBBLE_RETURN_IF_ERROR(CheckFreeSpace(path, bytes));
  OutputFile file;
  file.path_ = path;
  file.buffer_.reserve(kBufferBytes);
  do {
    file.Abandon();
    file.temporary_path_ = TemporaryName(path);
    file.slot_ = Register(file.temporary_path_);  // before the file exists: no handler misses it
    file.fd_ = open(file.temporary_path_.c_str(),
                    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  } while (file.fd_ < 0 && errno == EEXIST);
  if (file.fd_ < 0) {
    const int error = errno;
    return WriteError(path, error, bytes);
  }
  struct stat old;
  if (stat(path.c_str(), &old) == 0) (void)fchmod(file.fd_, old.st_mode & 0777);
#if defined(__linux__)
  // Not posix_fallocate: where the file system cannot reserve, that writes every block.
  while (bytes > 0 && fallocate(file.fd_, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) break;
    const int error = errno;
    return WriteError(path, error, bytes);
  }
#endif
  return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::move(other.temporary_path_)),
      slot_(std::exchange(other.slot_, nullptr)),
      fd_(std::exchange(other.fd_, -1)),
      bytes_written_(other.bytes_written_),
      buffer_(std::move(other.buffer_)) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_path_, other.temporary_path_);
  std::swap(slot_, other.slot_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_written_, other.bytes_written_);
  std::swap(buffer_, other.buffer_);
  return *this;
}

OutputFile::~OutputFile() { Abandon(); }

void OutputFile::Abandon() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
  if (slot_ == nullptr) return;
  unlink(temporary_path_.c_str());
  Unregister(std::exchange(slot_, nullptr));
}

Status OutputFile::WriteAll(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t written = write(fd_, data.data(), std::min(data.size(), kLargestWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error = errno;
      Status status = WriteError(path_, error, bytes_written_ + data.size());
      Abandon();  // nobody knows what was written
      return status;
    }
    data = data.subspan(static_cast<size_t>(written));
  }
  return OkStatus();
}

Status OutputFile::Flush() {
  NIBBLE_RETURN_IF_ERROR(WriteAll(buffer_));
  buffer_.clear();
  return OkStatus();
}

Status OutputFile::Append(std::span<const std::byte> data) {
  if (fd_ < 0) return IoError(path_ + ": written after an error or after it was closed");
  if (buffer_.size() + data.size() > kBufferBytes) NIBBLE_RETURN_IF_ERROR(Flush());
  if (data.size() > kBufferBytes) {
    NIBBLE_RETURN_IF_ERROR(WriteAll(data));
  } else {
    buffer_.insert(buffer_.end(), data.begin(), data.end());
  }
  bytes_written_ += data.size();
  return OkStatus();
}

Status OutputFile::AppendZeros(uint64_t count) {
  static constexpr std::byte kZeros[4096] = {};
  while (count > 0) {
    const size_t piece = static_cast<size_t>(std::min<uint64_t>(count, sizeof(kZeros)));
    NIBBLE_RETURN_IF_ERROR(Append({kZeros, piece}));
    count -= piece;
  }
  return OkStatus();
}

Status OutputFile::Overwrite(uint64_t offset, std::span<const std::byte> data) {
  if (fd_ < 0) return IoError(path_ + ": written after an error or after it was closed");
  if (offset > bytes_written_ || data.size() > bytes_written_ - offset) {
    return InternalError(path_ + ": written over beyond its end");
  }
  NIBBLE_RETURN_IF_ERROR(Flush());
  if (lseek(fd_, static_cast<off_t>(offset), SEEK_SET) < 0) {
    return ErrnoStatus(path_, "cannot seek", errno);
  }
  NIBBLE_RETURN_IF_ERROR(WriteAll(data));
  if (lseek(fd_, static_cast<off_t>(bytes_written_), SEEK_SET) < 0) {
    return ErrnoStatus(path_, "cannot seek", errno);
  }
  return OkStatus();
}

Status OutputFile::Close() {
  if (fd_ < 0) return IoError(path_ + ": closed after an error or twice");
  NIBBLE_RETURN_IF_ERROR(Flush());
  // Space that was reserved and not needed goes back.
  if (ftruncate(fd_, static_cast<off_t>(bytes_written_)) != 0 || fsync(fd_) != 0) {
    return WriteError(path_, errno, bytes_written_);
  }
  // Some network file systems report a failed write only here.
  if (close(std::exchange(fd_, -1)) != 0 && errno != EINTR)
    return WriteError(path_, errno, bytes_written_);
  return OkStatus();
}

Status OutputFile::Commit() {
  if (fd_ >= 0 || slot_ == nullptr) {
    return IoError(path_ + ": committed after an error, before it was closed, or twice");
  }
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    return ErrnoStatus(path_, "cannot rename " + Quoted(temporary_path_), errno);
  }
  Unregister(std::exchange(slot_, nullptr));
  return OkStatus();
}

}  // namespace nibble
