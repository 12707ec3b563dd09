// The writing half that all containers of tensors share: planned files, filled in order.
#ifndef NIBBLE_LIB_IO_TENSOR_STREAM_H_
#define NIBBLE_LIB_IO_TENSOR_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/io/output_file.h"
#include "nibble/status.h"

namespace nibble {

// One output file: a header, then the data of the next `tensors` tensors of the list.
struct PlannedFile {
  std::string path;
  std::string header;
  size_t tensors = 0;
  uint64_t bytes = 0;  // of the whole file
};

struct PlannedTensor {
  std::string name;
  uint64_t bytes = 0;
};

// Streams the data of tensors into files that all appear together at the end. The first file, where
// readers begin, takes its name last.
class TensorStream {
 public:
  // Checks every path and the free space before anything is written. After each tensor's data come
  // zeros up to a multiple of `alignment`.
  static Result<TensorStream> Create(std::vector<PlannedFile> files,
                                     std::vector<PlannedTensor> tensors, uint64_t alignment);

  // The next piece of the current tensor; never more than it still lacks.
  Status Append(std::span<const std::byte> data);
  // Writes over the beginning of the first file's header. Before Finish().
  Status AmendHeader(std::string_view beginning);
  Status Finish();

  const std::string& path() const { return plan_.front().path; }

 private:
  Status BeginFile();
  Status Advance();

  std::vector<PlannedFile> plan_;
  std::vector<PlannedTensor> tensors_;
  uint64_t alignment_ = 1;
  std::vector<OutputFile> files_;  // the first and the last one are open
  size_t file_end_ = 0;            // the first tensor that is not in the open file
  size_t tensor_ = 0;              // the current one
  uint64_t received_ = 0;          // bytes of it
  bool finished_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_TENSOR_STREAM_H_
