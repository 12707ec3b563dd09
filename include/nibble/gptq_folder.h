// Hugging Face folders in the layout of GPTQ checkpoints, as transformers, GPTQModel and vLLM load
// them: the matrices of the layers in integer codes of 2, 4 or 8 bits, everything else as it was.
#ifndef NIBBLE_GPTQ_FOLDER_H_
#define NIBBLE_GPTQ_FOLDER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/gptq.h"
#include "nibble/layer_inputs.h"
#include "nibble/model.h"
#include "nibble/quantized_tensor.h"
#include "nibble/scheme.h"
#include "nibble/status.h"

namespace nibble {

// A matrix as such a checkpoint holds it. Words of 32 bits carry 32 / bits values, lowest first:
// codes of consecutive columns of one row, zeros of consecutive rows of one group.
struct GptqTensors {
  std::vector<int32_t> qweight;  // [cols * bits / 32, rows]
  std::vector<int32_t> qzeros;   // [groups, rows * bits / 32]
  std::vector<uint16_t> scales;  // f16 [groups, rows]
  std::vector<int32_t> g_idx;    // [cols]: the group of each
};

// Whether a scheme can be laid out so: integer codes of 2, 4 or 8 bits by group or channel, scales
// in f16, zeros (if any) as codes.
Status CheckGptqScheme(const Scheme& scheme);

// Symmetric codes get the middle of the range as their zero, and zeros are stored less one, as the
// layout "gptq" has them; asymmetric zeros as they are, as "gptq_v2" has them: less one, a zero of
// 0 would be no code. Rows and columns must be multiples of the values in a word.
Result<GptqTensors> ToGptqTensors(const QuantizedTensor& matrix);

struct GptqFolderOptions {
  // With a text by error feedback on the inputs that the model as it is gives (`gptq`, act-order
  // where the scheme has a group index); without one, to nearest.
  const Model* model = nullptr;
  const CalibrationText* text = nullptr;
  GptqOptions gptq;           // its `parallel` serves all the work
  LayerInputsOptions inputs;  // memory, samples and progress of the runs over the text
  bool overwrite = false;
  uint64_t max_shard_bytes = 0;
};

struct GptqFolderReport {
  uint64_t bytes = 0;  // of the tensors' files
  size_t matrices = 0;
  std::vector<MatrixReport> reports;  // of error feedback; `format` says nothing here
};

// Quantizes the Hugging Face folder of a Llama-family model, in safetensors, to a new folder:
// tensors, config.json with its "quantization_config", and copies of all other small files. Work
// goes on beside it in `target`.unfinished, which takes the name at the end. `dry_run`: only tells
// matrices and bytes. Memory: one matrix and the statistics of the inputs.
Result<GptqFolderReport> WriteGptqFolder(const std::string& folder, const std::string& target,
                                         const Scheme& scheme, const GptqFolderOptions& options,
                                         bool dry_run = false);

}  // namespace nibble

#endif  // NIBBLE_GPTQ_FOLDER_H_
