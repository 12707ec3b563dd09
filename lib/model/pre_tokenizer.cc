#include "lib/model/pre_tokenizer.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {
namespace {

using nlohmann::json;

// Published constants of the models' authors, in the letters of their tokenizer.json files.
#define NIBBLE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NIBBLE_WORD R"([^\r\n\p{L}\p{N}]?)"
#define NIBBLE_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define NIBBLE_SPACES R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define NIBBLE_CASED(contractions)                                                        \
  NIBBLE_WORD NIBBLE_UPPER "*" NIBBLE_LOWER "+" contractions "|" NIBBLE_WORD NIBBLE_UPPER \
                           "+" NIBBLE_LOWER "*" contractions

constexpr char kDigit[] = R"(\p{N})";
constexpr char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3[] = NIBBLE_CONTRACTIONS
    "|" NIBBLE_WORD R"(\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)" NIBBLE_SPACES;
constexpr char kQwen2[] =
    NIBBLE_CONTRACTIONS "|" NIBBLE_WORD R"(\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)" NIBBLE_SPACES;
constexpr char kTekken[] = NIBBLE_CASED("") R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" NIBBLE_SPACES;
constexpr char kGpt4o[] =
    NIBBLE_CASED(NIBBLE_CONTRACTIONS "?") R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" NIBBLE_SPACES;

// Where several cut alike, the first is the one that a tokenizer.json is given.
const std::vector<PreTokenizer>& Table() {
  static const std::vector<PreTokenizer> table = {
      {"gpt-2", {kGpt2}, false},
      {"default",
       {R"([\p{P}\$\+<=>\^~\|]+)",
        R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))", R"(\p{N}+)",
        "[0-9][0-9][0-9]"},
       false},
      {"llama-bpe", {kLlama3}, true},
      {"llama3", {kLlama3}, true},
      {"llama-v3", {kLlama3}, true},
      {"smaug-bpe", {kLlama3}, false},
      {"qwen2", {kQwen2}, false},
      {"tekken", {kTekken}, true},
      {"gpt-4o", {kGpt4o}, false},
      {"smollm", {kDigit, kGpt2}, false},
      {"starcoder", {kDigit, kGpt2}, false},
      {"refact", {kDigit, kGpt2}, false},
      {"command-r", {kDigit, kGpt2}, false},
  };
  return table;
}

std::string TypeOf(const json& step) {
  if (!step.is_object()) return "";
  const auto it = step.find("type");
  return it != step.end() && it->is_string() ? it->get<std::string>() : "";
}

bool Flag(const json& step, const char* key, bool otherwise) {
  const auto it = step.find(key);
  return it != step.end() && it->is_boolean() ? it->get<bool>() : otherwise;
}

// The regular expression by which a step before the last cuts; "" where it does something else.
std::string ExpressionOf(const json& step) {
  if (TypeOf(step) == "Digits") return Flag(step, "individual_digits", false) ? kDigit : "";
  if (TypeOf(step) != "Split" || Flag(step, "invert", false)) return "";
  const auto behavior = step.find("behavior");
  if (behavior == step.end() || *behavior != "Isolated") return "";
  const auto pattern = step.find("pattern");
  if (pattern == step.end() || !pattern->is_object()) return "";
  const auto regex = pattern->find("Regex");
  return regex != pattern->end() && regex->is_string() ? regex->get<std::string>() : "";
}

}  // namespace

const PreTokenizer* FindPreTokenizer(std::string_view name) {
  const auto it = std::ranges::find(Table(), name,
                                    [](const PreTokenizer& p) { return std::string_view(p.name); });
  return it != Table().end() ? &*it : nullptr;
}

std::string DetectPreTokenizer(const json& tokenizer) {
  const auto found = tokenizer.find("pre_tokenizer");
  if (found == tokenizer.end()) return "";
  std::vector<const json*> steps;
  if (TypeOf(*found) == "Sequence") {
    const auto list = found->find("pretokenizers");
    if (list == found->end() || !list->is_array()) return "";
    for (const json& step : *list) steps.push_back(&step);
  } else {
    steps.push_back(&*found);
  }
  // Every one of these ends in the byte-level step, which cuts by GPT-2's expression unless told
  // not to.
  if (steps.empty() || TypeOf(*steps.back()) != "ByteLevel") return "";
  std::vector<std::string> expressions;
  for (size_t i = 0; i + 1 < steps.size(); ++i) expressions.push_back(ExpressionOf(*steps[i]));
  if (Flag(*steps.back(), "use_regex", true)) expressions.push_back(kGpt2);

  const auto model = tokenizer.find("model");
  const bool whole_words =
      model != tokenizer.end() && model->is_object() && Flag(*model, "ignore_merges", false);
  std::string name;
  for (const PreTokenizer& known : Table()) {
    if (!std::ranges::equal(known.expressions, expressions)) continue;
    if (known.ignore_merges == whole_words) return known.name;
    if (name.empty()) name = known.name;  // the same cut; a vocabulary whose words all merge
  }
  return name;
}

}  // namespace nibble
