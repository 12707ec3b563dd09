// Mixes: which format each tensor of a model gets. The named ones choose as llama-quantize does.
#ifndef NIBBLE_MIX_H_
#define NIBBLE_MIX_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/format.h"
#include "nibble/gguf.h"
#include "nibble/status.h"

namespace nibble {

enum class Mix : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ2_K_S,
  kQ3_K_S,
  kQ3_K_M,
  kQ3_K_L,
  kQ4_K_S,
  kQ4_K_M,
  kQ5_K_S,
  kQ5_K_M,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kTQ1_0,
  kTQ2_0,
  kMXFP4_MOE,
};

struct MixInfo {
  Mix mix;
  const char* name;    // "Q4_K_M"
  Format base;         // of most matrices, and of all of them when pure
  uint32_t file_type;  // the value of general.file_type
};

std::span<const MixInfo> AllMixes();

// What a type name asks for.
struct TypeChoice {
  const MixInfo* mix = nullptr;  // nullptr: every matrix gets `format`
  Format format = Format::kF16;
  uint32_t file_type = 0;  // the value of general.file_type
};

// Names in any letter case. A name of the table of mixes ("Q4_K_M", "Q6_K", "iq4_xs") is that mix;
// any other name of a format ("q4_K", "mxfp4") gives that format to every matrix, embeddings and
// output included. With `pure` a mix's name does so too, with its base format.
Result<TypeChoice> ParseType(std::string_view name, bool pure = false);

// Tensors whose name contains a match of `pattern` (an ECMAScript regular expression) get `format`.
struct TensorTypeRule {
  std::string pattern;
  Format format;
};

// Parses "REGEX=TYPE", the type being a format's name; the last '=' separates.
Result<TensorTypeRule> ParseTensorTypeRule(std::string_view text);

struct FormatChoice {
  Format format = Format::kF32;  // what the tensor gets
  Format wanted = Format::kF32;  // what it would have got if its rows fitted
  bool quantizable = false;      // false: a norm, bias, router or other tensor that stays as it is
  int rule = -1;                 // the index of the rule that decided, or -1

  bool fell_back() const { return format != wanted; }
};

// Chooses for every tensor of a model, in the order given. `metadata` tells the architecture's
// layers, heads and experts. The first rule that matches a quantizable tensor decides; a row length
// that a format's block does not divide falls back to a format of 32-weight blocks, else to f16.
Result<std::vector<FormatChoice>> ChooseFormats(const GgufMetadata& metadata,
                                                std::span<const GgufTensorInfo> tensors,
                                                const TypeChoice& type,
                                                std::span<const TensorTypeRule> rules = {},
                                                bool has_importance = false);

}  // namespace nibble

#endif  // NIBBLE_MIX_H_
