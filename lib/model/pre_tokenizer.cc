#include <string>
#include <string_view>
#include <vector>

#include "lib/model/hf_tokenizer.h"

namespace nibble {
namespace {

using nlohmann::json;

// Regular expressions that tokenizer.json files give a Split step. Published constants of the
// models' authors; a name stands for every model that cuts alike.
struct KnownSplit {
  const char* name;          // where words of the vocabulary are taken whole ("ignore_merges")
  const char* merging_name;  // where they are merged too
  std::string_view regex;
};

#define NIBBLE_WORD R"([^\r\n\p{L}\p{N}]?)"
#define NIBBLE_SPACES R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define NIBBLE_CONTRACTIONS R"((?i:'s|'t|'re|'ve|'m|'ll|'d))"
#define NIBBLE_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"

constexpr KnownSplit kKnownSplits[] = {
    {"llama-bpe", "smaug-bpe",
     NIBBLE_CONTRACTIONS "|" NIBBLE_WORD
                         R"(\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)" NIBBLE_SPACES},
    {"qwen2", "qwen2",
     NIBBLE_CONTRACTIONS "|" NIBBLE_WORD R"(\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)" NIBBLE_SPACES},
    {"gpt-4o", "gpt-4o",
     NIBBLE_WORD NIBBLE_UPPER "*" NIBBLE_LOWER "+" NIBBLE_CONTRACTIONS "?|" NIBBLE_WORD NIBBLE_UPPER
                              "+" NIBBLE_LOWER "*" NIBBLE_CONTRACTIONS
                              R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" NIBBLE_SPACES},
    {"tekken", "tekken",
     NIBBLE_WORD NIBBLE_UPPER "*" NIBBLE_LOWER "+|" NIBBLE_WORD NIBBLE_UPPER "+" NIBBLE_LOWER
                              R"(*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" NIBBLE_SPACES},
};

std::string TypeOf(const json& step) {
  if (!step.is_object()) return "";
  const auto it = step.find("type");
  return it != step.end() && it->is_string() ? it->get<std::string>() : "";
}

bool Flag(const json& step, const char* key, bool otherwise) {
  const auto it = step.find(key);
  return it != step.end() && it->is_boolean() ? it->get<bool>() : otherwise;
}

// The regular expression of a Split that keeps its matches as words; "" for any other step.
std::string SplitRegex(const json& step) {
  if (TypeOf(step) != "Split" || Flag(step, "invert", false)) return "";
  const auto behavior = step.find("behavior");
  if (behavior == step.end() || *behavior != "Isolated") return "";
  const auto pattern = step.find("pattern");
  if (pattern == step.end() || !pattern->is_object()) return "";
  const auto regex = pattern->find("Regex");
  return regex != pattern->end() && regex->is_string() ? regex->get<std::string>() : "";
}

}  // namespace

std::string DetectPreTokenizer(const json& tokenizer) {
  const auto found = tokenizer.find("pre_tokenizer");
  if (found == tokenizer.end()) return "";
  const json& pre_tokenizer = *found;
  std::vector<const json*> steps;
  if (TypeOf(pre_tokenizer) == "Sequence") {
    const auto list = pre_tokenizer.find("pretokenizers");
    if (list == pre_tokenizer.end() || !list->is_array()) return "";
    for (const json& step : *list) steps.push_back(&step);
  } else {
    steps.push_back(&pre_tokenizer);
  }
  // Every one of these ends in the byte-level step, which cuts by GPT-2's expression unless told
  // not to.
  if (steps.empty() || TypeOf(*steps.back()) != "ByteLevel") return "";
  const bool gpt2 = Flag(*steps.back(), "use_regex", true);
  if (steps.size() == 1) return gpt2 ? "gpt-2" : "";
  if (steps.size() != 2) return "";
  const json& first = *steps.front();
  if (gpt2) {
    return TypeOf(first) == "Digits" && Flag(first, "individual_digits", false) ? "smollm" : "";
  }
  const std::string regex = SplitRegex(first);
  const auto model = tokenizer.find("model");
  const bool whole_words =
      model != tokenizer.end() && model->is_object() && Flag(*model, "ignore_merges", false);
  for (const KnownSplit& known : kKnownSplits) {
    if (regex == known.regex) return whole_words ? known.name : known.merging_name;
  }
  return "";
}

}  // namespace nibble
