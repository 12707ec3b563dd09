// A Hugging Face folder's tokenizer as GGUF metadata.
#ifndef NIBBLE_LIB_MODEL_HF_TOKENIZER_H_
#define NIBBLE_LIB_MODEL_HF_TOKENIZER_H_

#include <string>
#include <vector>

#include "lib/model/hf_architecture.h"
#include "lib/model/json_file.h"
#include "nibble/gguf.h"
#include "nibble/status.h"

namespace nibble {

// Adds the tokenizer.* keys of the folder's tokenizer.model (SentencePiece) or tokenizer.json
// (byte-level BPE, or SentencePiece BPE saved as JSON), padded to the config's vocabulary, with the
// special tokens and chat template of the files beside it. Appends the files read to `paths` and
// what a user should know to `notices`; a folder without a tokenizer is such a notice.
Status AddTokenizer(const std::string& folder, const HfConfig& config, const JsonObject& json,
                    GgufMetadata& metadata, std::vector<std::string>& paths,
                    std::vector<std::string>& notices);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_HF_TOKENIZER_H_
