// How file errors are worded: one line that names the file and the reason.
#ifndef NIBBLE_LIB_IO_ERRORS_H_
#define NIBBLE_LIB_IO_ERRORS_H_

#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "nibble/status.h"

namespace nibble {

// `text` in quotes for a message: control and non-ASCII bytes escaped, long text cut.
std::string Quoted(std::string_view text);

// "path: action: the reason of errno value `error`"; kNotFound for ENOENT, kIo for all else.
Status ErrnoStatus(const std::string& path, const std::string& action, int error);

// Runs `function`, which returns a Status or Result, and turns a failed allocation into its Status.
template <class Function>
auto CatchAllocationFailure(const std::string& path, const Function& function)
    -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return OutOfMemory(path + ": out of memory");
  } catch (const std::length_error&) {
    return OutOfMemory(path + ": too large for this machine's address space");
  }
}

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_ERRORS_H_
