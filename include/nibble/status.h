// Errors as values: every public entry point returns a Status or a Result<T>; nothing throws,
// prints or aborts.
#ifndef NIBBLE_STATUS_H_
#define NIBBLE_STATUS_H_

#include <optional>
#include <string>
#include <utility>

namespace nibble {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument,  // the caller's arguments contradict each other or the operation
  kUnsupported,      // well-formed, but this build or version cannot do it
  kCorrupt,          // bytes that violate their format
  kNotFound,         // a file, tensor or key that is not there
  kIo,               // the operating system refused
  kOutOfMemory,
  kCancelled,
  kInternal,  // a defect in nibble
};

// The name in snake case, e.g. "invalid_argument".
const char* StatusCodeName(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  // One line that names the file, tensor and reason where there are any. Empty when ok().
  const std::string& message() const { return message_; }

  // The same status with "context: " before its message: adds the file or tensor on the way up.
  Status WithContext(const std::string& context) && {
    if (!ok()) message_ = context + ": " + message_;
    return std::move(*this);
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return Status(); }
inline Status InvalidArgument(std::string m) {
  return {StatusCode::kInvalidArgument, std::move(m)};
}
inline Status Unsupported(std::string m) { return {StatusCode::kUnsupported, std::move(m)}; }
inline Status Corrupt(std::string m) { return {StatusCode::kCorrupt, std::move(m)}; }
inline Status NotFound(std::string m) { return {StatusCode::kNotFound, std::move(m)}; }
inline Status IoError(std::string m) { return {StatusCode::kIo, std::move(m)}; }
inline Status OutOfMemory(std::string m) { return {StatusCode::kOutOfMemory, std::move(m)}; }
inline Status Cancelled(std::string m) { return {StatusCode::kCancelled, std::move(m)}; }
inline Status InternalError(std::string m) { return {StatusCode::kInternal, std::move(m)}; }

// A value or the reason there is none. value() and operator* require ok().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Status status) : status_(std::move(status)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const& { return status_; }
  Status status() && { return std::move(status_); }

  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

#define NIBBLE_STATUS_CONCAT_INNER(a, b) a##b
#define NIBBLE_STATUS_CONCAT(a, b) NIBBLE_STATUS_CONCAT_INNER(a, b)

// Returns from the enclosing function when `expression`, a Status, is not ok.
#define NIBBLE_RETURN_IF_ERROR(expression)           \
  do {                                               \
    ::nibble::Status nibble_status_ = (expression);  \
    if (!nibble_status_.ok()) return nibble_status_; \
  } while (false)

// NIBBLE_ASSIGN_OR_RETURN(auto x, MakeX()): binds the value of a Result or returns its status.
#define NIBBLE_ASSIGN_OR_RETURN(lhs, expression) \
  NIBBLE_ASSIGN_OR_RETURN_IMPL(NIBBLE_STATUS_CONCAT(nibble_result_, __LINE__), lhs, expression)
#define NIBBLE_ASSIGN_OR_RETURN_IMPL(result, lhs, expression) \
  auto result = (expression);                                 \
  if (!result.ok()) return std::move(result).status();        \
  lhs = *std::move(result)

}  // namespace nibble

#endif  // NIBBLE_STATUS_H_
