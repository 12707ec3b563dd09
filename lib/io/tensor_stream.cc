#include "lib/io/tensor_stream.h"

#include <utility>

#include "lib/io/errors.h"

namespace nibble {

Result<TensorStream> TensorStream::Create(std::vector<PlannedFile> files,
                                          std::vector<PlannedTensor> tensors, uint64_t alignment) {
  TensorStream stream;
  uint64_t bytes = 0;
  for (const PlannedFile& file : files) {
    NIBBLE_RETURN_IF_ERROR(CheckOutputPath(file.path));
    bytes += file.bytes;
  }
  NIBBLE_RETURN_IF_ERROR(CheckFreeSpace(files.front().path, bytes));
  stream.plan_ = std::move(files);
  stream.tensors_ = std::move(tensors);
  stream.alignment_ = alignment;
  NIBBLE_RETURN_IF_ERROR(stream.BeginFile());
  NIBBLE_RETURN_IF_ERROR(stream.Advance());
  return stream;
}

Status TensorStream::BeginFile() {
  const PlannedFile& file = plan_[files_.size()];
  NIBBLE_ASSIGN_OR_RETURN(OutputFile output, OutputFile::Create(file.path, file.bytes));
  files_.push_back(std::move(output));
  file_end_ += file.tensors;
  return files_.back().Append(file.header);
}

// Steps over finished tensors and files to where the next bytes go.
Status TensorStream::Advance() {
  while (true) {
    if (tensor_ == file_end_) {
      if (files_.size() == plan_.size()) return OkStatus();
      // The first one stays open: its header may be amended.
      if (files_.size() > 1) NIBBLE_RETURN_IF_ERROR(files_.back().Close());
      NIBBLE_RETURN_IF_ERROR(BeginFile());
    } else {
      const uint64_t bytes = tensors_[tensor_].bytes;
      if (received_ < bytes) return OkStatus();
      const uint64_t beyond = bytes % alignment_;
      if (beyond != 0) NIBBLE_RETURN_IF_ERROR(files_.back().AppendZeros(alignment_ - beyond));
      received_ = 0;
      ++tensor_;
    }
  }
}

Status TensorStream::Append(std::span<const std::byte> data) {
  if (finished_) return InvalidArgument(path() + ": data after the end");
  if (data.empty()) return OkStatus();
  if (tensor_ == tensors_.size()) {
    return InvalidArgument(path() + ": " + std::to_string(data.size()) +
                           " bytes after those of the last tensor");
  }
  const PlannedTensor& tensor = tensors_[tensor_];
  if (data.size() > tensor.bytes - received_) {
    return InvalidArgument(path() + ": tensor " + Quoted(tensor.name) + " has " +
                           std::to_string(tensor.bytes) + " bytes, " +
                           std::to_string(received_ + data.size()) + " came");
  }
  NIBBLE_RETURN_IF_ERROR(files_.back().Append(data));
  received_ += data.size();
  return Advance();
}

Status TensorStream::AmendHeader(std::string_view beginning) {
  if (finished_) return InvalidArgument(path() + ": amended after the end");
  if (beginning.size() > plan_.front().header.size()) {
    return InvalidArgument(path() + ": a longer header than planned");
  }
  return files_.front().Overwrite(0, std::as_bytes(std::span(beginning)));
}

Status TensorStream::Finish() {
  if (finished_) return InvalidArgument(path() + ": finished twice");
  if (tensor_ != tensors_.size()) {
    const PlannedTensor& tensor = tensors_[tensor_];
    return InvalidArgument(path() + ": tensor " + Quoted(tensor.name) + " has only " +
                           std::to_string(received_) + " of its " + std::to_string(tensor.bytes) +
                           " bytes");
  }
  if (files_.size() > 1) NIBBLE_RETURN_IF_ERROR(files_.back().Close());
  NIBBLE_RETURN_IF_ERROR(files_.front().Close());
  for (size_t i = 0; i < files_.size(); ++i) {
    if (files_[i].bytes_written() != plan_[i].bytes) {
      return InternalError(plan_[i].path + ": its size is not the planned one");
    }
  }
  for (size_t i = files_.size(); i-- > 0;) NIBBLE_RETURN_IF_ERROR(files_[i].Commit());
  finished_ = true;
  return SyncFolderOf(path());
}

}  // namespace nibble
