#include "lib/model/sentencepiece_model.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

// One field of a protocol-buffer message: its number and, by wire type, a number or bytes.
struct Field {
  uint32_t number = 0;
  uint32_t wire_type = 0;
  uint64_t value = 0;      // wire types 0 (varint), 1 (64 bits) and 5 (32 bits)
  std::string_view bytes;  // wire type 2
};

constexpr uint32_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

class MessageReader {
 public:
  explicit MessageReader(std::string_view bytes) : rest_(bytes) {}

  bool done() const { return rest_.empty(); }

  // False where the bytes are no message.
  bool Next(Field& field) {
    uint64_t tag = 0;
    if (!Varint(tag) || tag >> 3 == 0 || tag >> 3 >= 1u << 29) return false;
    field = {};
    field.number = static_cast<uint32_t>(tag >> 3);
    field.wire_type = static_cast<uint32_t>(tag & 7);
    switch (field.wire_type) {
      case kVarint:
        return Varint(field.value);
      case kFixed64:
        return Fixed(8, field.value);
      case kFixed32:
        return Fixed(4, field.value);
      case kBytes: {
        uint64_t size = 0;
        if (!Varint(size) || size > rest_.size()) return false;
        field.bytes = rest_.substr(0, static_cast<size_t>(size));
        rest_.remove_prefix(static_cast<size_t>(size));
        return true;
      }
      default:
        return false;
    }
  }

 private:
  bool Varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) return false;
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool Fixed(size_t size, uint64_t& value) {
    if (rest_.size() < size) return false;
    value = 0;
    for (size_t i = 0; i < size; ++i) {
      value |= static_cast<uint64_t>(static_cast<unsigned char>(rest_[i])) << (8 * i);
    }
    rest_.remove_prefix(size);
    return true;
  }

  std::string_view rest_;
};

bool ReadPiece(std::string_view bytes, SentencePieceModel::Piece& piece) {
  MessageReader reader(bytes);
  Field field;
  while (!reader.done()) {
    if (!reader.Next(field)) return false;
    if (field.number == 1 && field.wire_type == kBytes) {
      piece.text = field.bytes;
    } else if (field.number == 2 && field.wire_type == kFixed32) {
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    } else if (field.number == 3 && field.wire_type == kVarint) {
      if (field.value < 1 || field.value > 6) return false;
      piece.type = static_cast<TokenType>(field.value);
    }
  }
  return std::isfinite(piece.score);
}

bool ReadTrainer(std::string_view bytes, SentencePieceModel& model) {
  MessageReader reader(bytes);
  Field field;
  while (!reader.done()) {
    if (!reader.Next(field)) return false;
    if (field.wire_type != kVarint) continue;
    // Negative numbers are stored as 64-bit two's complement.
    const auto id = static_cast<int64_t>(field.value);
    switch (field.number) {
      case 3:
        if (field.value < 1 || field.value > 4) return false;
        model.algorithm = static_cast<SentencePieceModel::Algorithm>(field.value);
        break;
      case 40:
        model.unknown = id;
        break;
      case 41:
        model.bos = id;
        break;
      case 42:
        model.eos = id;
        break;
      case 43:
        model.pad = id;
        break;
      default:
        break;
    }
  }
  return true;
}

bool ReadNormalizer(std::string_view bytes, SentencePieceModel& model) {
  MessageReader reader(bytes);
  Field field;
  while (!reader.done()) {
    if (!reader.Next(field)) return false;
    if (field.number == 2 && field.wire_type == kBytes) model.charsmap = field.bytes;
    if (field.wire_type != kVarint) continue;
    if (field.number == 3) model.add_dummy_prefix = field.value != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.value != 0;
  }
  return true;
}

}  // namespace

Result<SentencePieceModel> ParseSentencePiece(std::string_view bytes, const std::string& name) {
  SentencePieceModel model;
  MessageReader reader(bytes);
  Field field;
  while (!reader.done()) {
    if (!reader.Next(field)) return Corrupt(name + ": not a SentencePiece model");
    if (field.wire_type != kBytes) continue;
    if (field.number == 1) {
      SentencePieceModel::Piece piece;
      if (!ReadPiece(field.bytes, piece)) {
        return Corrupt(name + ": piece " + std::to_string(model.pieces.size()) + " is malformed");
      }
      model.pieces.push_back(std::move(piece));
    } else if (field.number == 2 && !ReadTrainer(field.bytes, model)) {
      return Corrupt(name + ": the trainer's settings are malformed");
    } else if (field.number == 3 && !ReadNormalizer(field.bytes, model)) {
      return Corrupt(name + ": the normalizer's settings are malformed");
    }
  }
  if (model.pieces.empty()) return Corrupt(name + ": a SentencePiece model without pieces");
  return model;
}

}  // namespace nibble
