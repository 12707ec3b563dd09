// From the tensors of a safetensors model to those of a GGUF model: which file tensors each is made
// of, and how.
#ifndef NIBBLE_LIB_MODEL_TENSOR_PLAN_H_
#define NIBBLE_LIB_MODEL_TENSOR_PLAN_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lib/model/folder_tensors.h"
#include "lib/model/hf_architecture.h"
#include "nibble/model_source.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

struct ConvertedTensor : ModelTensor {
  std::vector<const FolderTensor*> parts;  // one, or one an expert; none where computed
  Change change = Change::kKeep;
  int64_t heads = 1;            // of kInterleave*
  std::vector<float> computed;  // the values of a tensor that no file holds
};

struct TensorPlan {
  std::vector<ConvertedTensor> tensors;
  std::vector<std::string> notices;
};

// Every tensor of a known architecture, its shape checked against the config. `where` names the
// file or folder in messages. A tensor that is missing, has another shape or dtype, or does not
// belong to the architecture is an error.
Result<TensorPlan> PlanArchitecture(const HfConfig& config, const FolderTensors& file,
                                    const std::string& where);

// Every tensor under its own name, its shape reversed to GGUF's order.
Result<TensorPlan> PlanByName(const FolderTensors& file, const std::string& where);

// The bytes of such a tensor; borrowed from the mapped file where nothing changes.
Result<Buffer> MakeTensor(const ConvertedTensor& tensor);

// From a tensor of GGUF, f32, back to the order of rows and the numbers of the file: `out` of the
// same size.
void UndoChange(const ConvertedTensor& tensor, std::span<const float> in, std::span<float> out);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_TENSOR_PLAN_H_
