// The tensors of a Hugging Face folder as its model means them: plain ones as they lie there,
// quantized matrices as f32, made of the several tensors that stand for each.
#ifndef NIBBLE_LIB_MODEL_FOLDER_TENSORS_H_
#define NIBBLE_LIB_MODEL_FOLDER_TENSORS_H_

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nibble/hf_layout.h"
#include "nibble/safetensors.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// A matrix in a layout of quantized folders.
struct PackedMatrix {
  HfQuantization quantization;
  std::vector<HfTensor> tensors;  // in the mapped file
};

struct FolderTensor : SafetensorsTensor {
  std::shared_ptr<const PackedMatrix> packed;  // then `data` is empty and `dtype` f32
};

class FolderTensors {
 public:
  // `quantization`: what config.json says. The codes are not looked at, but all shapes are checked.
  // Borrows from the mapped file.
  static Result<FolderTensors> Make(const SafetensorsFile& file,
                                    const std::optional<HfQuantization>& quantization,
                                    const std::string& where);

  std::span<const FolderTensor> tensors() const { return tensors_; }
  const FolderTensor* Find(std::string_view name) const;

 private:
  std::vector<FolderTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;
};

// The bytes of a tensor in its dtype; borrowed where it is not packed.
Result<Buffer> BytesOf(const FolderTensor& tensor);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_FOLDER_TENSORS_H_
