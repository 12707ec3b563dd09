// Hessians of a model's linear layers in a file: gathered once, by nibble or by a caller's own
// engine, used as often as the model is quantized.
//
// The file is safetensors. For the inputs of a matrix, or of several that see the same ones, it has
// "NAME.hessian", f32 [cols * (cols + 1) / 2], the upper triangle of the sum of x^T x over all
// tokens x, row by row; and "NAME.tokens", i64 [1]. NAME is the first matrix in GGUF's naming, as
// in "blk.0.attn_q.weight". The metadata has "nibble.hessians": "1", "texts": a JSON list of
// {"text", "hash", "context", "windows"}, and "shared": a JSON object that names for every other
// matrix the NAME whose inputs it sees. Of experts stacked in one tensor each is a matrix of its
// own, called as ExpertName() says.
#ifndef NIBBLE_HESSIAN_FILE_H_
#define NIBBLE_HESSIAN_FILE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/gptq.h"
#include "nibble/status.h"

namespace nibble {

// The text that a calibrated method saw, as a file tells it.
struct CalibrationNote {
  std::string text;  // its name
  std::string hash;  // of its tokens
  int64_t context = 0;
  int64_t windows = 0;
};

// Matrices that see the same inputs.
struct SharedInputs {
  std::vector<std::string> matrices;  // at least one; the first names the tensors in the file
  int64_t cols = 0;
};

// "blk.0.ffn_gate_exps.weight#3": matrix 3 of a tensor that stacks several.
std::string ExpertName(std::string_view tensor, int64_t expert);

// Opened by mapping. Checked in full by Open but for the sums themselves, which Read checks.
class HessianFile {
 public:
  static Result<HessianFile> Open(const std::string& path);

  const std::string& path() const;
  std::span<const SharedInputs> inputs() const;  // in file order
  std::span<const CalibrationNote> texts() const;
  // The inputs that a matrix sees; null where the file does not know them.
  const SharedInputs* Find(std::string_view matrix) const;
  // `inputs`: one of this file's. Fails where a sum is not finite, or a sum of squares negative.
  Result<Hessian> Read(const SharedInputs& inputs) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

// Streams: one Hessian in memory at a time. The file takes its name in Finish().
class HessianWriter {
 public:
  static Result<HessianWriter> Create(const std::string& path, std::vector<SharedInputs> inputs,
                                      std::span<const CalibrationNote> texts);
  HessianWriter(HessianWriter&&) noexcept;
  HessianWriter& operator=(HessianWriter&&) noexcept;
  ~HessianWriter();

  // The exact size of such a file.
  static Result<uint64_t> FileBytes(std::span<const SharedInputs> inputs,
                                    std::span<const CalibrationNote> texts);

  // Of the next of the inputs, in their order. One that has seen no token is allowed.
  Status Append(const Hessian& hessian);
  Status Finish();

 private:
  HessianWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// All that the files know: the inputs of the first in their order, then what only others have.
// Fails where files disagree on which matrices see the same inputs, or on their number.
Result<std::vector<SharedInputs>> MergedInputs(std::span<const HessianFile> files);

// The sum over all files that know these inputs.
Result<Hessian> MergedHessian(std::span<const HessianFile> files, const SharedInputs& inputs);

}  // namespace nibble

#endif  // NIBBLE_HESSIAN_FILE_H_
