// How byte-level tokenizers cut text into words before merging: one table for reading
// tokenizer.json, for tokenizer.ggml.pre, and for cutting.
#ifndef NIBBLE_LIB_MODEL_PRE_TOKENIZER_H_
#define NIBBLE_LIB_MODEL_PRE_TOKENIZER_H_

#include <string>
#include <string_view>
#include <vector>

#include "lib/model/json_file.h"

namespace nibble {

struct PreTokenizer {
  const char* name;  // as in tokenizer.ggml.pre
  // Regular expressions, applied one after another, each to the pieces that the one before left.
  std::vector<const char*> expressions;
  bool ignore_merges;  // a word that is a token is taken whole
};

// Null where the name is not known.
const PreTokenizer* FindPreTokenizer(std::string_view name);

// The name by which llama.cpp knows how a byte-level tokenizer.json, given whole, cuts text into
// words; "" where it is none of those known here.
std::string DetectPreTokenizer(const nlohmann::json& tokenizer);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_PRE_TOKENIZER_H_
