#include <algorithm>
#include <array>
#include <filesystem>

#include "lib/model/vocabulary.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxTemplateBytes = 16 << 20;

struct SpecialToken {
  const char* name;      // as in "bos_token", "bos_token_id"
  const char* gguf_key;  // the spelling "seperator" is GGUF's
};
constexpr SpecialToken kSpecialTokens[] = {
    {"bos", "tokenizer.ggml.bos_token_id"},     {"eos", "tokenizer.ggml.eos_token_id"},
    {"unk", "tokenizer.ggml.unknown_token_id"}, {"sep", "tokenizer.ggml.seperator_token_id"},
    {"pad", "tokenizer.ggml.padding_token_id"}, {"cls", "tokenizer.ggml.cls_token_id"},
    {"mask", "tokenizer.ggml.mask_token_id"},
};

// A token given as its text or as {"content": text}; "" where there is none.
std::string TokenText(const JsonObject& file, const std::string& key) {
  const json* value = file.Find(key.c_str());
  if (value != nullptr && value->is_object()) {
    const auto content = value->find("content");
    value = content == value->end() ? nullptr : &*content;
  }
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

int64_t IdOf(const Vocabulary& vocabulary, const std::string& text) {
  if (text.empty()) return -1;
  const auto it = std::ranges::find(vocabulary.tokens, text);
  return it == vocabulary.tokens.end() ? -1 : it - vocabulary.tokens.begin();
}

// An id, the first of a list of ids, or -1 (also written so in some files) for none.
Result<int64_t> IdIn(const JsonObject& file, const std::string& key) {
  const json* value = file.Find(key.c_str());
  if (value != nullptr && value->is_array() && !value->empty()) {
    return JsonObject(json{{key, (*value)[0]}}, file.name()).Integer(key.c_str(), -1, INT32_MAX);
  }
  return file.IntegerOr(key.c_str(), -1, INT32_MAX, -1);
}

Result<int64_t> FindSpecial(const SpecialTokenFiles& files, const Vocabulary& vocabulary,
                            const std::string& name) {
  for (const JsonObject* file : {&files.tokenizer_config, &files.special_tokens_map}) {
    const int64_t id = IdOf(vocabulary, TokenText(*file, name + "_token"));
    if (id >= 0) return id;
  }
  for (const JsonObject* file : {&files.config, &files.generation_config}) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t id, IdIn(*file, name + "_token_id"));
    if (id >= 0) return id;
  }
  if (name == "bos") return vocabulary.bos;
  if (name == "eos") return vocabulary.eos;
  if (name == "unk") return vocabulary.unknown;
  if (name == "pad") return vocabulary.pad;
  return -1;
}

// The special tokens that tokenizer.json's template puts around a single text.
struct Template {
  bool known = false;
  std::string first, last;
};

Template ReadTemplate(const JsonObject& tokenizer) {
  Template result;
  const json* processor = tokenizer.Find("post_processor");
  if (processor == nullptr || !processor->is_object()) return result;
  const auto is_template = [](const json& step) {
    return step.is_object() && step.contains("type") && step["type"] == "TemplateProcessing";
  };
  const json* found = is_template(*processor) ? processor : nullptr;
  if (processor->contains("processors") && (*processor)["processors"].is_array()) {
    for (const json& step : (*processor)["processors"]) {
      if (is_template(step)) found = &step;
    }
  }
  if (found == nullptr || !found->contains("single") || !(*found)["single"].is_array() ||
      (*found)["single"].empty()) {
    return result;
  }
  const auto special = [](const json& item) -> std::string {
    if (!item.is_object() || !item.contains("SpecialToken")) return "";
    const json& token = item["SpecialToken"];
    if (!token.is_object() || !token.contains("id") || !token["id"].is_string()) return "";
    return token["id"].get<std::string>();
  };
  const json& single = (*found)["single"];
  result.known = true;
  result.first = special(single.front());
  result.last = special(single.back());
  return result;
}

}  // namespace

Status AddSpecialTokens(const SpecialTokenFiles& files, const Vocabulary& vocabulary,
                        GgufMetadata& metadata, std::vector<std::string>& notices) {
  const auto size = static_cast<int64_t>(vocabulary.tokens.size());
  std::string bos_text, eos_text;
  for (const SpecialToken& special : kSpecialTokens) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t id, FindSpecial(files, vocabulary, special.name));
    if (id >= size) {
      notices.push_back("the " + std::string(special.name) + " token's id " + std::to_string(id) +
                        " lies beyond the vocabulary of " + std::to_string(size) +
                        " and is left out");
      continue;
    }
    if (id < 0) continue;
    metadata.Set(special.gguf_key, static_cast<uint32_t>(id));
    if (std::string_view(special.name) == "bos")
      bos_text = vocabulary.tokens[static_cast<size_t>(id)];
    if (std::string_view(special.name) == "eos")
      eos_text = vocabulary.tokens[static_cast<size_t>(id)];
  }
  // Written even where it is llama.cpp's default, which hangs on the kind of tokenizer.
  const Template frame = ReadTemplate(files.tokenizer);
  const bool bos = frame.known ? !bos_text.empty() && frame.first == bos_text : vocabulary.adds_bos;
  const bool eos = frame.known && !eos_text.empty() && frame.last == eos_text;
  NIBBLE_ASSIGN_OR_RETURN(const bool add_bos, files.tokenizer_config.BoolOr("add_bos_token", bos));
  NIBBLE_ASSIGN_OR_RETURN(const bool add_eos, files.tokenizer_config.BoolOr("add_eos_token", eos));
  metadata.Set("tokenizer.ggml.add_bos_token", add_bos);
  metadata.Set("tokenizer.ggml.add_eos_token", add_eos);
  return OkStatus();
}

Status AddChatTemplate(const std::string& folder, const JsonObject& tokenizer_config,
                       GgufMetadata& metadata, std::vector<std::string>& paths) {
  const json* found = tokenizer_config.Find("chat_template");
  const std::string jinja = (std::filesystem::path(folder) / "chat_template.jinja").string();
  const std::string wrapped = (std::filesystem::path(folder) / "chat_template.json").string();
  JsonObject file;
  if (found == nullptr) {
    Result<std::string> text = ReadWholeFile(jinja, kMaxTemplateBytes);
    if (text.ok()) {
      paths.push_back(jinja);
      metadata.Set("tokenizer.chat_template", *std::move(text));
      return OkStatus();
    }
    if (text.status().code() != StatusCode::kNotFound) return text.status();
    NIBBLE_ASSIGN_OR_RETURN(file, JsonObject::LoadIfPresent(wrapped, kMaxTemplateBytes));
    found = file.Find("chat_template");
    if (found == nullptr) return OkStatus();
    paths.push_back(wrapped);
  }
  const std::string name = file.empty() ? tokenizer_config.name() : wrapped;
  if (found->is_string()) {
    metadata.Set("tokenizer.chat_template", found->get<std::string>());
    return OkStatus();
  }
  // A list of named templates: "default" stands under the plain key.
  if (!found->is_array()) return Corrupt(name + ": \"chat_template\" is neither text nor a list");
  std::vector<std::string> names;
  for (const json& entry : *found) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() ||
        !entry.contains("template") || !entry["template"].is_string()) {
      return Corrupt(name + ": a chat template without name and text");
    }
    const auto title = entry["name"].get<std::string>();
    const auto plain = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; };
    if (title.empty() || !std::ranges::all_of(title, plain)) {
      return Corrupt(name + ": a chat template is called \"" + Printable(title) + "\"");
    }
    auto text = entry["template"].get<std::string>();
    if (title == "default") {
      metadata.Set("tokenizer.chat_template", std::move(text));
    } else {
      names.push_back(title);
      metadata.Set("tokenizer.chat_template." + title, std::move(text));
    }
  }
  if (!names.empty()) metadata.Set("tokenizer.chat_templates", std::move(names));
  return OkStatus();
}

}  // namespace nibble
