#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <unordered_map>
#include <utility>

#include "lib/model/pre_tokenizer.h"
#include "lib/model/tokenizer_impl.h"

namespace nibble {
namespace {

// Byte-level BPE writes each byte as a printable character: those of Latin-1 that are printable
// stand for themselves, the others are moved to U+0100 and up, in order.
struct ByteAlphabet {
  std::array<std::string, 256> character;
  std::unordered_map<uint32_t, uint8_t> byte;

  ByteAlphabet() {
    uint32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const uint32_t code = printable ? static_cast<uint32_t>(b) : next++;
      byte[code] = static_cast<uint8_t>(b);
      if (code < 0x80) {
        character[b] = static_cast<char>(code);
      } else {
        character[b] = {static_cast<char>(0xC0 | code >> 6),
                        static_cast<char>(0x80 | (code & 0x3F))};
      }
    }
  }
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using Expression = std::unique_ptr<pcre2_code, FreeCode>;

struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};

class ByteLevelEncoder : public TextEncoder {
 public:
  ByteLevelEncoder(const TokenTable& vocabulary, std::vector<Expression> expressions,
                   bool ignore_merges)
      : vocabulary_(vocabulary),
        ranks_(vocabulary.merges),
        expressions_(std::move(expressions)),
        ignore_merges_(ignore_merges) {}

  Status Encode(std::string_view text, std::vector<int32_t>* out) const override {
    std::vector<std::string_view> words = {text};
    for (const Expression& expression : expressions_) {
      std::vector<std::string_view> pieces;
      for (const std::string_view word : words) {
        NIBBLE_RETURN_IF_ERROR(Split(expression.get(), word, &pieces));
      }
      words = std::move(pieces);
    }
    for (const std::string_view word : words) EncodeWord(word, out);
    return OkStatus();
  }

  std::string Piece(std::string_view token) const override {
    std::string text;
    for (size_t i = 0; i < token.size();) {
      const size_t length =
          std::min(Utf8Length(static_cast<unsigned char>(token[i])), token.size() - i);
      const unsigned char lead = static_cast<unsigned char>(token[i]);
      uint32_t code = length == 1 ? lead : 0xFFFFFFFFu;
      if (length == 2)
        code = (lead & 0x1Fu) << 6 | (static_cast<unsigned char>(token[i + 1]) & 0x3Fu);
      const auto it = Alphabet().byte.find(code);
      if (it != Alphabet().byte.end())
        text += static_cast<char>(it->second);
      else
        text += token.substr(i, length);  // a user-defined token is plain text
      i += length;
    }
    return text;
  }

 private:
  // Appends the matches and the stretches between them, in order. Bytes that are no UTF-8 match
  // nothing and stay a stretch.
  static Status Split(const pcre2_code* expression, std::string_view text,
                      std::vector<std::string_view>* pieces) {
    const std::unique_ptr<pcre2_match_data, FreeMatch> match(
        pcre2_match_data_create_from_pattern(expression, nullptr));
    if (match == nullptr) return OutOfMemory("cannot allocate a match");
    const PCRE2_SPTR subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    size_t position = 0, begin = 0;
    while (position < text.size()) {
      const int rc =
          pcre2_match(expression, subject, text.size(), position, 0, match.get(), nullptr);
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0)
        return InvalidArgument("the text cannot be cut into words (PCRE2 error " +
                               std::to_string(rc) + ")");
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
      if (span[1] == span[0]) {  // no expression above matches nothing; never loop on one that does
        position = span[1] +
                   Utf8Length(static_cast<unsigned char>(text[std::min(span[1], text.size() - 1)]));
        continue;
      }
      if (span[0] > begin) pieces->push_back(text.substr(begin, span[0] - begin));
      pieces->push_back(text.substr(span[0], span[1] - span[0]));
      position = begin = span[1];
    }
    if (begin < text.size()) pieces->push_back(text.substr(begin));
    return OkStatus();
  }

  void EncodeWord(std::string_view word, std::vector<int32_t>* out) const {
    std::string spelled;
    std::vector<size_t> starts;
    for (const char c : word) {
      const std::string& character = Alphabet().character[static_cast<unsigned char>(c)];
      // Merges work on characters of the spelling, each of which is one byte of the text.
      starts.push_back(spelled.size());
      spelled += character;
    }
    if (ignore_merges_) {
      if (const int32_t id = vocabulary_.Find(spelled); id >= 0) {
        out->push_back(id);
        return;
      }
    }
    std::string key;
    const auto rank = [&](std::string_view a, std::string_view b, int32_t* priority) {
      key.assign(a).append(1, ' ').append(b);
      *priority = ranks_.Find(key);
      return *priority >= 0;
    };
    MergeSymbols<int32_t>(spelled, starts, rank, [&](std::string_view piece) {
      if (const int32_t id = vocabulary_.Find(piece); id >= 0) {
        out->push_back(id);
        return;
      }
      // No token: spell it out; a vocabulary without some byte leaves that byte out.
      for (size_t i = 0; i < piece.size();) {
        const size_t length = Utf8Length(static_cast<unsigned char>(piece[i]));
        if (const int32_t id = vocabulary_.Find(piece.substr(i, length)); id >= 0)
          out->push_back(id);
        i += length;
      }
    });
  }

  const TokenTable& vocabulary_;
  StringIndex ranks_;  // "left right" to its place in the list
  std::vector<Expression> expressions_;
  bool ignore_merges_;
};

}  // namespace

Result<std::unique_ptr<TextEncoder>> MakeByteLevelEncoder(const TokenTable& vocabulary,
                                                          const std::string& pre) {
  const PreTokenizer* const known = FindPreTokenizer(pre);
  if (known == nullptr) return Unsupported("tokenizer.ggml.pre '" + pre + "' is not known");
  std::vector<Expression> expressions;
  for (const char* pattern : known->expressions) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    Expression expression(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &offset, nullptr));
    if (expression == nullptr) {
      return InternalError("the expression of '" + pre + "' does not compile");
    }
    pcre2_jit_compile(expression.get(), PCRE2_JIT_COMPLETE);  // without a JIT it is interpreted
    expressions.push_back(std::move(expression));
  }
  return std::unique_ptr<TextEncoder>(
      std::make_unique<ByteLevelEncoder>(vocabulary, std::move(expressions), known->ignore_merges));
}

}  // namespace nibble
