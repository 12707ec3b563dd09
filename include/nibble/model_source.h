// A model on disk, whatever holds it, as a list of named tensors under GGUF's conventions.
#ifndef NIBBLE_MODEL_SOURCE_H_
#define NIBBLE_MODEL_SOURCE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/gguf.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

struct ModelTensor : GgufTensorInfo {  // name, stored format and shape as GGUF has them
  std::string source_name;             // the name in the file it comes from
  bool was_quantized = false;          // decoded from a quantized folder's layout, hence f32
};

// Changes a tensor's weights, f32 [rows, cols]; a vector is one row.
using TensorEdit = std::function<Status(MutableTensorView weights)>;

// Changes to a model, applied when a tensor is read.
struct ModelEdits {
  std::string label;  // what made them, e.g. "awq": noted in the metadata, unless empty
  std::map<std::string, std::vector<TensorEdit>, std::less<>> edits;  // by name, in order
  // New tensors: name and the tensor that they are a copy of, before its edits.
  std::map<std::string, std::string, std::less<>> copies;
};

enum class Container : uint8_t { kGguf, kSafetensors };

// Opens a GGUF file (any shard), a .safetensors file, or a Hugging Face folder. The folder of a
// Llama-family model gives GGUF's tensor names, its row order of the query and key weights, and
// full metadata with the tokenizer; of any other architecture the tensors keep their names.
// Matrices that lie there in one of the layouts of nibble/hf_layout.h are decoded to f32.
class ModelSource {
 public:
  static Result<ModelSource> Open(const std::string& path);

  Container container() const;
  const GgufMetadata& metadata() const;
  // The same for one who keeps it longer than the source, of which it keeps the rest alive too.
  std::shared_ptr<const GgufMetadata> shared_metadata() const;
  std::span<const ModelTensor> tensors() const;
  const ModelTensor* Find(std::string_view name) const;  // nullptr where there is none
  std::span<const std::string> paths() const;            // every file that is read
  uint64_t file_bytes() const;                           // of the tensors' files

  // What a user ought to know: an architecture that is not recognised, a tokenizer that is missing.
  std::span<const std::string> notices() const;

  // The bytes of a tensor in its stored format. Borrowed from the mapped file where nothing has to
  // be rearranged. Safe from many threads.
  Result<Buffer> Read(const ModelTensor& tensor) const;
  // The same in the order of rows and with the numbers that the safetensors file has it: a matrix
  // or vector in the file's type, or f32 where edits changed it or it was quantized. Not of GGUF
  // files, nor of stacked experts.
  Result<Tensor> ReadStored(const ModelTensor& tensor) const;
  // Whether edits change the tensor.
  bool IsEdited(const ModelTensor& tensor) const;
  // The same model with changes, noted in its metadata under "edits.applied": tensors that are
  // edited are f32, new ones come last. Fails where a tensor is not there, cannot be decoded, or a
  // new one's name is taken.
  Result<ModelSource> Edited(ModelEdits edits) const;

  // Lets the system drop the mapped pages of a tensor that is done with.
  void Release(const ModelTensor& tensor) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_SOURCE_H_
