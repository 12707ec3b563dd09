#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "lib/model/tokenizer_impl.h"

namespace nibble {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD for what is no UTF-8
constexpr double kUnknownPenalty = 10;                     // below the least score of a token

// SentencePiece's compiled normalization: the bytes of a double-array trie in the layout of
// darts-clone, one 32-bit unit a node, and the replacements behind it, each ended by a zero.
class CharsMap {
 public:
  static Result<CharsMap> Create(std::span<const uint8_t> bytes) {
    CharsMap map;
    if (bytes.empty()) return map;
    uint32_t trie_bytes = 0;
    if (bytes.size() >= sizeof(trie_bytes)) {
      std::memcpy(&trie_bytes, bytes.data(), sizeof(trie_bytes));
      bytes = bytes.subspan(sizeof(trie_bytes));
    }
    if (trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0 || trie_bytes >= bytes.size() ||
        bytes.back() != 0) {
      return Corrupt("tokenizer.ggml.precompiled_charsmap is cut off");
    }
    map.units_.resize(trie_bytes / sizeof(uint32_t));
    std::memcpy(map.units_.data(), bytes.data(), trie_bytes);
    const auto texts = bytes.subspan(trie_bytes);
    map.replacements_ = {reinterpret_cast<const char*>(texts.data()), texts.size()};
    return map;
  }

  // Bytes of the longest prefix of `text` that has a rule, and what takes its place; 0: none has.
  size_t Match(std::string_view text, std::string_view* replacement) const {
    size_t longest = 0;
    if (units_.empty()) return 0;
    size_t node = Offset(units_[0]);
    for (size_t i = 0; i < text.size(); ++i) {
      const uint32_t label = static_cast<unsigned char>(text[i]);
      node ^= label;
      if (label == 0 || node >= units_.size() || (units_[node] & 0x800000FFu) != label) break;
      const uint32_t unit = units_[node];
      node ^= Offset(unit);
      if ((unit >> 8 & 1) == 0) continue;
      // A rule ends here: the unit at its offset is the place of the replacement.
      const size_t place = node < units_.size() ? units_[node] & 0x7FFFFFFFu : SIZE_MAX;
      if (place >= replacements_.size()) continue;
      longest = i + 1;
      *replacement = replacements_.substr(place, replacements_.find('\0', place) - place);
    }
    return longest;
  }

 private:
  static size_t Offset(uint32_t unit) { return size_t{unit >> 10} << ((unit & (1u << 9)) >> 6); }

  std::vector<uint32_t> units_;
  std::string_view replacements_;  // in the metadata; ends with a zero
};

// Bytes of the character that `text` begins with; 0 where it begins with none.
size_t WholeCharacter(std::string_view text) {
  const size_t length = Utf8Length(static_cast<unsigned char>(text[0]));
  if (length == 1) return static_cast<unsigned char>(text[0]) < 0x80 ? 1 : 0;
  if (length > text.size()) return 0;
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };
  return std::all_of(text.begin() + 1, text.begin() + static_cast<std::ptrdiff_t>(length),
                     continues)
             ? length
             : 0;
}

class UnigramEncoder : public TextEncoder {
 public:
  UnigramEncoder(const TokenTable& vocabulary, const UnigramOptions& options, CharsMap charsmap)
      : vocabulary_(vocabulary), options_(options), charsmap_(std::move(charsmap)) {
    double least = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
      const TokenType type = vocabulary.types[i];
      if (type == TokenType::kNormal) least = std::min<double>(least, vocabulary.scores[i]);
      if (!vocabulary.tokens[i].empty() &&
          (type == TokenType::kNormal || type == TokenType::kUserDefined ||
           type == TokenType::kUnused)) {
        sorted_.push_back(static_cast<int32_t>(i));
      }
    }
    unknown_score_ = (sorted_.empty() ? 0 : least) - kUnknownPenalty;
    std::sort(sorted_.begin(), sorted_.end(),
              [&](int32_t a, int32_t b) { return Text(a) < Text(b); });
  }

  Status Encode(std::string_view text, std::vector<int32_t>* out) const override {
    const std::string normal = Normalize(text);
    if (normal.empty()) return OkStatus();
    // The best way to each place in the text: its last token, and where that begins.
    struct Way {
      double score = -std::numeric_limits<double>::infinity();
      int32_t token = -1;
      size_t from = 0;
    };
    std::vector<Way> ways(normal.size() + 1);
    ways[0].score = 0;
    const auto offer = [&](size_t to, const Way& way) {
      if (way.score > ways[to].score) ways[to] = way;
    };
    for (size_t at = 0; at < normal.size();) {
      const std::string_view rest = std::string_view(normal).substr(at);
      const size_t character =
          std::min(Utf8Length(static_cast<unsigned char>(rest[0])), rest.size());
      const double score = ways[at].score;
      bool known = false;  // the character is a token of its own
      ForPrefixes(rest, [&](int32_t token, size_t bytes) {
        known |= bytes == character;
        const bool user = vocabulary_.types[token] == TokenType::kUserDefined;
        offer(at + bytes, {score + (user ? 0 : vocabulary_.scores[token]), token, at});
      });
      if (!known) offer(at + character, {score + unknown_score_, vocabulary_.unknown, at});
      at += character;
    }
    const size_t begin = out->size();
    for (size_t at = normal.size(); at > 0; at = ways[at].from) {
      const int32_t token = ways[at].token;
      // Unknown characters side by side are one unknown token.
      if (token == vocabulary_.unknown && out->size() > begin && out->back() == token) continue;
      out->push_back(token);
    }
    std::reverse(out->begin() + static_cast<std::ptrdiff_t>(begin), out->end());
    return OkStatus();
  }

  std::string Piece(std::string_view token) const override { return WithPlainSpaces(token); }

 private:
  const std::string& Text(int32_t token) const {
    return vocabulary_.tokens[static_cast<size_t>(token)];
  }

  // Calls f(token, bytes) for each token that `text` begins with, the shortest first.
  template <class Function>
  void ForPrefixes(std::string_view text, const Function& f) const {
    auto begin = sorted_.begin(), end = sorted_.end();
    for (size_t i = 0; i < text.size() && begin != end; ++i) {
      // All of [begin, end) share the first i bytes; those that have no more come first.
      const auto byte = [&](int32_t token) {
        return Text(token).size() > i ? static_cast<unsigned char>(Text(token)[i]) : -1;
      };
      const int wanted = static_cast<unsigned char>(text[i]);
      begin = std::partition_point(begin, end, [&](int32_t t) { return byte(t) < wanted; });
      end = std::partition_point(begin, end, [&](int32_t t) { return byte(t) == wanted; });
      if (begin != end && Text(*begin).size() == i + 1) f(*begin, i + 1);
    }
  }

  // One character or rule of `text`: its bytes, and what takes their place.
  size_t NextPart(std::string_view text, std::string_view* part) const {
    size_t user = 0;
    ForPrefixes(text, [&](int32_t token, size_t bytes) {
      if (vocabulary_.types[token] == TokenType::kUserDefined) user = bytes;
    });
    *part = text.substr(0, user);
    if (user > 0) return user;
    if (const size_t ruled = charsmap_.Match(text, part); ruled > 0) return ruled;
    const size_t character = WholeCharacter(text);
    *part = character > 0 ? text.substr(0, character) : kReplacement;
    return std::max<size_t>(character, 1);
  }

  std::string Normalize(std::string_view text) const {
    std::string normal;
    bool in_word = false, begun = false;
    while (!text.empty()) {
      std::string_view part;
      text.remove_prefix(NextPart(text, &part));
      for (const char c : part) {
        if (c == ' ') {
          in_word = false;
          if (!options_.remove_extra_whitespaces) normal += kSpaceMark;
          continue;
        }
        // Without extra spaces each word is given the one before it back.
        const bool first = options_.add_space_prefix && !begun;
        if (!in_word && (first || options_.remove_extra_whitespaces)) {
          normal += kSpaceMark;
          begun = true;
        }
        in_word = true;
        normal += c;
      }
    }
    return normal;
  }

  const TokenTable& vocabulary_;
  UnigramOptions options_;
  CharsMap charsmap_;
  std::vector<int32_t> sorted_;  // the tokens that text can become, by text
  double unknown_score_ = 0;
};

}  // namespace

Result<std::unique_ptr<TextEncoder>> MakeUnigramEncoder(const TokenTable& vocabulary,
                                                        const UnigramOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(CharsMap charsmap, CharsMap::Create(options.charsmap));
  return std::unique_ptr<TextEncoder>(
      std::make_unique<UnigramEncoder>(vocabulary, options, std::move(charsmap)));
}

}  // namespace nibble
