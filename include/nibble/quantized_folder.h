// Hugging Face folders whose layers' matrices are quantized, in the layouts that transformers, vLLM
// and others load (see hf_layout.h); everything else stays as it was.
#ifndef NIBBLE_QUANTIZED_FOLDER_H_
#define NIBBLE_QUANTIZED_FOLDER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/calibration.h"
#include "nibble/gptq.h"
#include "nibble/hessian_file.h"
#include "nibble/hf_layout.h"
#include "nibble/layer_inputs.h"
#include "nibble/method.h"
#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/scheme.h"
#include "nibble/status.h"

namespace nibble {

struct QuantizedFolderOptions {
  HfLayout layout = HfLayout::kGptq;
  // kRtn: to nearest, weighed by `importance` where there is one. kGptq: by error feedback, each
  // matrix on the inputs that the source's model gives, act-order where the scheme has a group
  // index or `gptq` asks for it with static groups. kHqq: half-quadratic scales and zeros.
  Method method = Method::kRtn;
  const ImportanceMatrix* importance = nullptr;
  bool allow_missing = false;  // matrices that `importance` or `hessians` lack are rounded
  // Of kGptq, either the model with a text, or Hessians.
  const Model* model = nullptr;
  const CalibrationText* text = nullptr;
  // With a text. false: every matrix by itself on the original model's inputs. true: layer after
  // layer on the inputs that the quantized ones before it give, fitted to what the original makes
  // of its own (as QuantizeLayerwise, so not of gemma2), which fits short texts too closely.
  bool sequential = false;
  ActivationMemory activations = {};  // of sequential
  const HessianFile* hessians = nullptr;
  GptqOptions gptq = {};           // its `parallel` serves all the work
  LayerInputsOptions inputs = {};  // memory, samples and progress of runs that are not sequential
  // After each matrix, unless `inputs` tells of a run; false stops (kCancelled).
  std::function<bool(size_t done, size_t matrices)> progress = {};
  bool overwrite = false;
  uint64_t max_shard_bytes = 0;
};

struct QuantizedFolderReport {
  uint64_t bytes = 0;  // of the tensors' files
  size_t matrices = 0;
  std::vector<MatrixReport> reports;  // of error feedback; `format` says nothing here
};

// Quantizes `source`, the Hugging Face folder of a Llama-family model in safetensors as it is or
// Edited(), to a new folder: tensors, config.json with its "quantization_config", and copies of all
// other small files. Tensors that edits changed keep the file's type. Work goes on beside it in
// `target`.unfinished, which takes the name at the end. `dry_run`: only tells matrices and bytes.
// Memory: one matrix and the statistics of the inputs.
Result<QuantizedFolderReport> WriteQuantizedFolder(const ModelSource& source,
                                                   const std::string& folder,
                                                   const std::string& target, const Scheme& scheme,
                                                   const QuantizedFolderOptions& options,
                                                   bool dry_run = false);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZED_FOLDER_H_
