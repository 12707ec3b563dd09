#include <cstdio>

#include "lib/model/tokenizer_impl.h"

namespace nibble {
namespace {

class SentencePieceEncoder : public TextEncoder {
 public:
  explicit SentencePieceEncoder(const TokenTable& vocabulary) : vocabulary_(vocabulary) {
    for (int b = 0; b < 256; ++b) {
      char name[8];
      std::snprintf(name, sizeof(name), "<0x%02X>", b);
      bytes_[b] = vocabulary.Find(name);
    }
  }

  Status Encode(std::string_view text, std::vector<int32_t>* out) const override {
    std::string escaped;
    escaped.reserve(text.size() + text.size() / 2);
    for (const char c : text) {
      if (c == ' ')
        escaped += kSpaceMark;
      else
        escaped += c;
    }
    std::vector<size_t> starts;
    for (size_t i = 0; i < escaped.size();
         i += Utf8Length(static_cast<unsigned char>(escaped[i]))) {
      starts.push_back(i);
    }
    const auto rank = [&](std::string_view a, std::string_view b, float* priority) {
      const int32_t id = vocabulary_.Find(std::string_view(a.data(), a.size() + b.size()));
      if (id < 0) return false;
      *priority = -vocabulary_.scores[id];
      return true;
    };
    MergeSymbols<float>(escaped, starts, rank, [&](std::string_view piece) {
      const int32_t id = vocabulary_.Find(piece);
      if (id >= 0) {
        out->push_back(id);
        return;
      }
      for (const char c : piece) {
        const int32_t byte = bytes_[static_cast<unsigned char>(c)];
        out->push_back(byte >= 0 ? byte : vocabulary_.unknown);
      }
    });
    return OkStatus();
  }

  std::string Piece(std::string_view token) const override { return WithPlainSpaces(token); }

 private:
  const TokenTable& vocabulary_;
  int32_t bytes_[256];
};

}  // namespace

std::string WithPlainSpaces(std::string_view token) {
  std::string text;
  for (size_t i = 0; i < token.size();) {
    const bool mark = token.substr(i, kSpaceMark.size()) == kSpaceMark;
    text += mark ? ' ' : token[i];
    i += mark ? kSpaceMark.size() : 1;
  }
  return text;
}

std::unique_ptr<TextEncoder> MakeSentencePieceEncoder(const TokenTable& vocabulary) {
  return std::make_unique<SentencePieceEncoder>(vocabulary);
}

}  // namespace nibble
