#include "lib/model/vocabulary.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <unordered_map>

#include "lib/model/hf_tokenizer.h"
#include "lib/model/pre_tokenizer.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr float kUnusedScore = -10000.0f;
constexpr float kAddedScore = -1000.0f;

std::string WithSpaces(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const bool mark = text.starts_with(kSpaceMark);
    result += mark ? ' ' : text.front();
    text.remove_prefix(mark ? kSpaceMark.size() : 1);
  }
  return result;
}

// `size` unused tokens "[PAD0]", "[PAD1]", ... as llama.cpp names them.
void FillUnused(int64_t size, Vocabulary& vocabulary) {
  for (int64_t i = 0; i < size; ++i) {
    vocabulary.tokens.push_back("[PAD" + std::to_string(i) + "]");
  }
  vocabulary.types.assign(static_cast<size_t>(size), TokenType::kUnused);
  if (vocabulary.model != "gpt2") vocabulary.scores.assign(static_cast<size_t>(size), kUnusedScore);
}

void Put(Vocabulary& vocabulary, int64_t id, std::string text, TokenType type, float score) {
  const auto i = static_cast<size_t>(id);
  vocabulary.tokens[i] = std::move(text);
  vocabulary.types[i] = type;
  if (!vocabulary.scores.empty()) vocabulary.scores[i] = score;
}

std::string LeftOut(const std::string& name, int64_t count, int64_t size) {
  return name + ": " + std::to_string(count) + " tokens beyond the model's vocabulary of " +
         std::to_string(size) + " are left out";
}

// Some models do not mark as special what is never text.
bool LooksSpecial(std::string_view text) {
  constexpr std::string_view kWhole[] = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"};
  constexpr std::string_view kEnds[][2] = {
      {"<|", "|>"}, {"<\xEF\xBD\x9C", "\xEF\xBD\x9C>"}, {"<unused", ">"}};
  for (const std::string_view whole : kWhole) {
    if (text == whole) return true;
  }
  for (const auto& [begin, end] : kEnds) {
    if (text.starts_with(begin) && text.ends_with(end)) return true;
  }
  return false;
}

const json* Member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::string StringMember(const json& object, const char* key) {
  const json* value = Member(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

bool BoolMember(const json& object, const char* key) {
  const json* value = Member(object, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

// A token's id: a whole number from 0 to 2^31 - 1.
bool ReadId(const json& value, int64_t& id) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX) return false;
  id = value.get<int64_t>();
  return id >= 0 && id <= INT32_MAX;
}

// "model": {"vocab": {text: id}} into the vocabulary's tokens.
Status ReadVocab(const JsonObject& tokenizer, const json& vocab, int64_t size,
                 Vocabulary& vocabulary, std::vector<std::string>& notices) {
  int64_t beyond = 0;
  for (const auto& [text, value] : vocab.items()) {
    int64_t id = 0;
    if (!ReadId(value, id)) {
      return Corrupt(tokenizer.name() + ": token \"" + Printable(text) + "\" has no valid id");
    }
    if (id >= size) {
      ++beyond;
      continue;
    }
    if (vocabulary.types[static_cast<size_t>(id)] != TokenType::kUnused) {
      return Corrupt(tokenizer.name() + ": \"" +
                     Printable(vocabulary.tokens[static_cast<size_t>(id)]) + "\" and \"" +
                     Printable(text) + "\" both have id " + std::to_string(id));
    }
    Put(vocabulary, id, text, TokenType::kNormal, 0);
  }
  if (beyond > 0) notices.push_back(LeftOut(tokenizer.name(), beyond, size));
  return OkStatus();
}

struct Merge {
  std::string left, right;
};

// Either form: "left right", or ["left", "right"], which may hold spaces.
Result<Merge> ReadMerge(const json& entry, const std::string& name, size_t index) {
  Merge merge;
  if (entry.is_string()) {
    const auto& text = entry.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      merge = {text.substr(0, space), text.substr(space + 1)};
    }
  } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
             entry[1].is_string()) {
    merge = {entry[0].get<std::string>(), entry[1].get<std::string>()};
  }
  if (merge.left.empty() || merge.right.empty()) {
    return Corrupt(name + ": merge " + std::to_string(index) + " is not a pair of tokens");
  }
  return merge;
}

Result<std::vector<Merge>> ReadMerges(const JsonObject& tokenizer, const json& model,
                                      const json& vocab) {
  const json* list = Member(model, "merges");
  if (list == nullptr || !list->is_array()) {
    return Corrupt(tokenizer.name() + ": a BPE model without \"merges\"");
  }
  std::vector<Merge> merges;
  merges.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(Merge merge, ReadMerge((*list)[i], tokenizer.name(), i));
    for (const std::string& part : {merge.left, merge.right, merge.left + merge.right}) {
      if (!vocab.contains(part)) {
        return Corrupt(tokenizer.name() + ": merge " + std::to_string(i) + " speaks of \"" +
                       Printable(part) + "\", which is no token");
      }
    }
    merges.push_back(std::move(merge));
  }
  return merges;
}

// GGUF separates the two by a space; a space inside one is written as byte-level BPE writes it.
std::string MergeText(const Merge& merge) {
  std::string text;
  for (const char c : merge.left) text += c == ' ' ? "\xC4\xA0" : std::string(1, c);
  text += ' ';
  for (const char c : merge.right) text += c == ' ' ? "\xC4\xA0" : std::string(1, c);
  return text;
}

// The step of type `type`: `step` itself or one of the sequence it holds under `list`.
const json* FindStep(const json* step, const char* list, const char* type) {
  if (step == nullptr) return nullptr;
  if (StringMember(*step, "type") == type) return step;
  const json* steps = Member(*step, list);
  if (steps == nullptr || !steps->is_array()) return nullptr;
  for (const json& inner : *steps) {
    if (StringMember(inner, "type") == type) return &inner;
  }
  return nullptr;
}

// SentencePiece BPE in a tokenizer.json: the order of the merges takes the place of the scores.
void ScoreByMerges(const std::vector<Merge>& merges, const json& vocab, int64_t size,
                   Vocabulary& vocabulary) {
  std::unordered_map<std::string, size_t> ranks;
  for (size_t i = 0; i < merges.size(); ++i) ranks.emplace(merges[i].left + merges[i].right, i);
  for (const auto& [text, value] : vocab.items()) {
    const auto id = value.get<int64_t>();
    if (id >= size) continue;
    const auto it = ranks.find(text);
    const size_t rank = it == ranks.end() ? merges.size() : it->second;
    vocabulary.scores[static_cast<size_t>(id)] = -static_cast<float>(rank);
    const bool is_byte = text.size() == 6 && text.starts_with("<0x") && text.ends_with(">");
    if (is_byte) vocabulary.types[static_cast<size_t>(id)] = TokenType::kByte;
  }
}

}  // namespace

Result<Vocabulary> VocabularyOfSentencePiece(const SentencePieceModel& model, int64_t size,
                                             const std::string& name,
                                             std::vector<std::string>& notices) {
  using Algorithm = SentencePieceModel::Algorithm;
  if (model.algorithm != Algorithm::kBpe && model.algorithm != Algorithm::kUnigram) {
    return Unsupported(name + ": SentencePiece models of words or characters are not supported");
  }
  Vocabulary vocabulary;
  const bool unigram = model.algorithm == Algorithm::kUnigram;
  vocabulary.model = unigram ? "t5" : "llama";
  FillUnused(size, vocabulary);
  const auto pieces = static_cast<int64_t>(model.pieces.size());
  for (int64_t id = 0; id < std::min(pieces, size); ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[static_cast<size_t>(id)];
    // llama.cpp looks for user-defined tokens in the text itself, before spaces are marked.
    const bool raw = piece.type == TokenType::kUserDefined;
    Put(vocabulary, id, raw ? WithSpaces(piece.text) : piece.text, piece.type, piece.score);
  }
  if (pieces > size) notices.push_back(LeftOut(name, pieces - size, size));
  if (!model.add_dummy_prefix) vocabulary.space_prefix = false;
  if (unigram) {
    if (std::ranges::find(vocabulary.types, TokenType::kByte) != vocabulary.types.end()) {
      notices.push_back(name +
                        ": a unigram model with byte tokens; llama.cpp does not fall back to them, "
                        "so that characters outside the vocabulary become unknown tokens");
    }
    vocabulary.space_prefix = model.add_dummy_prefix;
    vocabulary.remove_extra_whitespaces = model.remove_extra_whitespaces;
    vocabulary.charsmap.assign(model.charsmap.begin(), model.charsmap.end());
  }
  vocabulary.adds_bos = true;
  vocabulary.unknown = model.unknown;
  vocabulary.bos = model.bos;
  vocabulary.eos = model.eos;
  vocabulary.pad = model.pad;
  return vocabulary;
}

Result<Vocabulary> VocabularyOfJson(const JsonObject& tokenizer, int64_t size,
                                    std::vector<std::string>& notices) {
  const json* model = tokenizer.Find("model");
  if (model == nullptr) return Corrupt(tokenizer.name() + ": no \"model\"");
  const json* vocab = Member(*model, "vocab");
  const bool bytes = FindStep(tokenizer.Find("pre_tokenizer"), "pretokenizers", "ByteLevel") ||
                     FindStep(tokenizer.Find("decoder"), "decoders", "ByteLevel");
  const bool sentencepiece = !bytes && BoolMember(*model, "byte_fallback");
  // Files older than the "type" key hold BPE models.
  const std::string type = StringMember(*model, "type");
  const bool bpe = type == "BPE" || (type.empty() && Member(*model, "merges") != nullptr);
  if (!bpe || (!bytes && !sentencepiece)) {
    return Unsupported(tokenizer.name() + ": a tokenizer of type \"" + Printable(type) +
                       "\" that is neither byte-level BPE nor SentencePiece's");
  }
  if (vocab == nullptr || !vocab->is_object()) {
    return Corrupt(tokenizer.name() + ": a BPE model without \"vocab\"");
  }
  Vocabulary vocabulary;
  vocabulary.model = bytes ? "gpt2" : "llama";
  FillUnused(size, vocabulary);
  NIBBLE_RETURN_IF_ERROR(ReadVocab(tokenizer, *vocab, size, vocabulary, notices));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Merge> merges, ReadMerges(tokenizer, *model, *vocab));
  if (bytes) {
    for (const Merge& merge : merges) vocabulary.merges.push_back(MergeText(merge));
    vocabulary.pre = DetectPreTokenizer(tokenizer.json());
    if (vocabulary.pre.empty()) {
      vocabulary.pre = "default";
      notices.push_back(tokenizer.name() +
                        ": its pre-tokenizer is not one of those known; llama.cpp will cut text "
                        "into words by its default rules");
    }
    const json* step = FindStep(tokenizer.Find("pre_tokenizer"), "pretokenizers", "ByteLevel");
    if (step != nullptr && BoolMember(*step, "add_prefix_space")) vocabulary.space_prefix = true;
  } else {
    ScoreByMerges(merges, *vocab, size, vocabulary);
    const std::string unknown = StringMember(*model, "unk_token");
    const json* id = unknown.empty() ? nullptr : Member(*vocab, unknown.c_str());
    if (id != nullptr) {
      vocabulary.unknown = id->get<int64_t>();
      if (vocabulary.unknown < size) {
        vocabulary.types[static_cast<size_t>(vocabulary.unknown)] = TokenType::kUnknown;
      }
    }
    const json* metaspace = FindStep(tokenizer.Find("pre_tokenizer"), "pretokenizers", "Metaspace");
    const bool prefixed =
        FindStep(tokenizer.Find("normalizer"), "normalizers", "Prepend") != nullptr ||
        (metaspace != nullptr && StringMember(*metaspace, "prepend_scheme") != "never");
    if (!prefixed) vocabulary.space_prefix = false;
    vocabulary.adds_bos = true;
  }
  return vocabulary;
}

namespace {

Status AddToken(const std::string& name, int64_t id, std::string text, bool special,
                Vocabulary& vocabulary, std::vector<std::string>& notices) {
  if (id >= static_cast<int64_t>(vocabulary.tokens.size())) {
    notices.push_back(name + ": token \"" + Printable(text) + "\" with id " + std::to_string(id) +
                      " lies beyond the model's vocabulary and is left out");
    return OkStatus();
  }
  const auto i = static_cast<size_t>(id);
  const TokenType before = vocabulary.types[i];
  // What the tokenizer's own model says of a control or unknown token stands.
  if (vocabulary.tokens[i] == text &&
      (before == TokenType::kControl || before == TokenType::kUnknown)) {
    return OkStatus();
  }
  const bool control = special || LooksSpecial(text);
  Put(vocabulary, id, control ? std::move(text) : WithSpaces(text),
      control ? TokenType::kControl : TokenType::kUserDefined, kAddedScore);
  return OkStatus();
}

}  // namespace

Status AddTokens(const JsonObject& added_tokens, const JsonObject& tokenizer,
                 const JsonObject& tokenizer_config, Vocabulary& vocabulary,
                 std::vector<std::string>& notices) {
  for (const auto& [text, value] : added_tokens.json().items()) {
    int64_t id = 0;
    if (!ReadId(value, id)) {
      return Corrupt(added_tokens.name() + ": token \"" + Printable(text) + "\" has no valid id");
    }
    NIBBLE_RETURN_IF_ERROR(AddToken(added_tokens.name(), id, text, false, vocabulary, notices));
  }
  if (const json* list = tokenizer.Find("added_tokens"); list != nullptr) {
    if (!list->is_array()) return Corrupt(tokenizer.name() + ": \"added_tokens\" is not a list");
    for (const json& entry : *list) {
      int64_t id = 0;
      const json* value = Member(entry, "id");
      const json* content = Member(entry, "content");
      if (value == nullptr || !ReadId(*value, id) || content == nullptr || !content->is_string()) {
        return Corrupt(tokenizer.name() + ": an added token without a valid id and content");
      }
      NIBBLE_RETURN_IF_ERROR(AddToken(tokenizer.name(), id, content->get<std::string>(),
                                      BoolMember(entry, "special"), vocabulary, notices));
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject decoder,
                          tokenizer_config.ObjectOr("added_tokens_decoder"));
  for (const auto& [key, entry] : decoder.json().items()) {
    int32_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    const json* content = Member(entry, "content");
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0 ||
        content == nullptr || !content->is_string()) {
      return Corrupt(decoder.name() + " has an entry \"" + Printable(key) +
                     "\" without a valid id and content");
    }
    NIBBLE_RETURN_IF_ERROR(AddToken(decoder.name(), id, content->get<std::string>(),
                                    BoolMember(entry, "special"), vocabulary, notices));
  }
  return OkStatus();
}

}  // namespace nibble
