#include "lib/io/gguf_reader.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "lib/io/errors.h"
#include "lib/io/gguf_layout.h"
#include "lib/io/name_index.h"

namespace nibble {
namespace {

// The fewest bytes that one pair or one tensor can take: bounds the counts of the header.
constexpr uint64_t kSmallestPair = 8 + 4 + 1;
constexpr uint64_t kSmallestTensor = 8 + 4 + 4 + 8;

// Calls function(std::type_identity<T>()) with the C++ type of a scalar type number; false when
// there is no such type.
template <class Function>
bool VisitScalarType(uint32_t type, const Function& function) {
  switch (static_cast<GgufType>(type)) {
    case GgufType::kU8:
      function(std::type_identity<uint8_t>());
      return true;
    case GgufType::kI8:
      function(std::type_identity<int8_t>());
      return true;
    case GgufType::kU16:
      function(std::type_identity<uint16_t>());
      return true;
    case GgufType::kI16:
      function(std::type_identity<int16_t>());
      return true;
    case GgufType::kU32:
      function(std::type_identity<uint32_t>());
      return true;
    case GgufType::kI32:
      function(std::type_identity<int32_t>());
      return true;
    case GgufType::kF32:
      function(std::type_identity<float>());
      return true;
    case GgufType::kBool:
      function(std::type_identity<bool>());
      return true;
    case GgufType::kString:
      function(std::type_identity<std::string>());
      return true;
    case GgufType::kU64:
      function(std::type_identity<uint64_t>());
      return true;
    case GgufType::kI64:
      function(std::type_identity<int64_t>());
      return true;
    case GgufType::kF64:
      function(std::type_identity<double>());
      return true;
    default:
      return false;
  }
}

class Parser {
 public:
  Parser(std::span<const std::byte> file, const std::string& path) : file_(file), path_(path) {}

  Result<ParsedGguf> Parse() {
    NIBBLE_RETURN_IF_ERROR(ReadHeader());
    NIBBLE_RETURN_IF_ERROR(ReadMetadata());
    NIBBLE_RETURN_IF_ERROR(ReadTensorInfos());
    NIBBLE_RETURN_IF_ERROR(PlaceTensors());
    return std::move(parsed_);
  }

 private:
  uint64_t remaining() const { return file_.size() - position_; }

  Status Error(uint64_t offset, const std::string& reason,
               StatusCode code = StatusCode::kCorrupt) const {
    const std::string context = context_.empty() ? "" : context_ + ": ";
    return {code, path_ + ": " + context + reason + " (byte " + std::to_string(offset) + ")"};
  }

  Status Truncated(uint64_t needed) const {
    return Error(position_, "the file ends here: " + std::to_string(needed) + " bytes needed, " +
                                std::to_string(remaining()) + " left");
  }

  template <class T>
  Status Read(T* value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (remaining() < sizeof(T)) return Truncated(sizeof(T));
    std::memcpy(value, file_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return OkStatus();
  }

  Status Read(bool* value) {
    uint8_t byte = 0;
    NIBBLE_RETURN_IF_ERROR(Read(&byte));
    if (byte > 1) return Error(position_ - 1, "a bool of value " + std::to_string(byte));
    *value = byte != 0;
    return OkStatus();
  }

  Status Read(std::string* value) { return ReadString(value, UINT64_MAX); }

  Status ReadString(std::string* value, uint64_t longest) {
    uint64_t length = 0;
    NIBBLE_RETURN_IF_ERROR(Read(&length));
    if (length > longest) {
      return Error(position_ - 8, "a name of " + std::to_string(length) + " bytes, more than the " +
                                      std::to_string(longest) + " allowed");
    }
    if (length > remaining()) {
      return Error(position_ - 8, "a string of " + std::to_string(length) + " bytes with " +
                                      std::to_string(remaining()) + " left in the file");
    }
    value->assign(reinterpret_cast<const char*>(file_.data() + position_), length);
    position_ += length;
    return OkStatus();
  }

  template <class T>
  Status ReadArray(uint64_t count, std::vector<T>* values) {
    // A string takes at least its length field, everything else its own size.
    constexpr uint64_t kSmallest = std::is_same_v<T, std::string> ? 8 : sizeof(T);
    if (count > remaining() / kSmallest) {
      return Error(position_ - 8, "an array of " + std::to_string(count) + " elements with " +
                                      std::to_string(remaining()) + " bytes left in the file");
    }
    if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, bool>) {
      values->reserve(count);
      for (uint64_t i = 0; i < count; ++i) {
        T value{};
        NIBBLE_RETURN_IF_ERROR(Read(&value));
        values->push_back(std::move(value));
      }
    } else {
      values->resize(count);
      if (count > 0) std::memcpy(values->data(), file_.data() + position_, count * sizeof(T));
      position_ += count * sizeof(T);
    }
    return OkStatus();
  }

  Status ReadHeader() {
    char magic[4] = {};
    if (Status status = Read(&magic); !status.ok() || std::string_view(magic, 4) != kGgufMagic) {
      return Error(0, "not a GGUF file");
    }
    NIBBLE_RETURN_IF_ERROR(Read(&parsed_.version));
    const std::string version = std::to_string(parsed_.version);
    if (parsed_.version != 0 && (parsed_.version & 0xFFFF) == 0) {
      return Error(4, "a big-endian GGUF file; only little-endian ones are supported",
                   StatusCode::kUnsupported);
    }
    if (parsed_.version != 2 && parsed_.version != kGgufVersion) {
      return Error(4, "GGUF version " + version + "; versions 2 and 3 are supported",
                   StatusCode::kUnsupported);
    }
    NIBBLE_RETURN_IF_ERROR(Read(&tensor_count_));
    NIBBLE_RETURN_IF_ERROR(Read(&pair_count_));
    if (tensor_count_ > remaining() / kSmallestTensor) {
      return Error(8, std::to_string(tensor_count_) + " tensors cannot fit in the " +
                          std::to_string(remaining()) + " bytes that follow");
    }
    if (pair_count_ > remaining() / kSmallestPair) {
      return Error(16, std::to_string(pair_count_) + " metadata pairs cannot fit in the " +
                           std::to_string(remaining()) + " bytes that follow");
    }
    return OkStatus();
  }

  Status ReadMetadata() {
    std::vector<GgufMetadata::Entry> entries;
    std::vector<uint64_t> offsets;
    entries.reserve(pair_count_);
    offsets.reserve(pair_count_);
    for (uint64_t i = 0; i < pair_count_; ++i) {
      context_ = "metadata pair " + std::to_string(i);
      GgufMetadata::Entry& entry = entries.emplace_back();
      offsets.push_back(position_);
      NIBBLE_RETURN_IF_ERROR(ReadString(&entry.first, kGgufLongestName));
      if (entry.first.empty()) return Error(offsets.back(), "an empty key");
      context_ = "metadata " + Quoted(entry.first);
      NIBBLE_RETURN_IF_ERROR(ReadValue(&entry.second));
    }
    const NameIndex index =
        IndexNames(entries, [](const auto& entry) { return std::string_view(entry.first); });
    if (const size_t i = index.FindDuplicate(); i != NameIndex::kNone) {
      context_ = "metadata " + Quoted(entries[i].first);
      return Error(offsets[i], "the key stands in the file twice");
    }
    parsed_.metadata = GgufMetadata(std::move(entries));

    context_ = "metadata " + Quoted(kAlignmentKey);
    parsed_.alignment = kGgufDefaultAlignment;
    if (const size_t i = index.Find(kAlignmentKey); i != NameIndex::kNone) {
      const Result<uint64_t> alignment = parsed_.metadata.GetUint(kAlignmentKey);
      if (!alignment.ok()) return Error(offsets[i], "is not an unsigned integer");
      if (!IsValidGgufAlignment(*alignment)) {
        return Error(offsets[i],
                     std::to_string(*alignment) + " is not a power of two of at least 8");
      }
      parsed_.alignment = *alignment;
    }
    return OkStatus();
  }

  Status ReadValue(GgufValue* value) {
    uint32_t type = 0;
    const uint64_t type_offset = position_;
    NIBBLE_RETURN_IF_ERROR(Read(&type));
    Status status;
    if (type != static_cast<uint32_t>(GgufType::kArray)) {
      const bool known = VisitScalarType(
          type, [&]<class T>(std::type_identity<T>) { status = Read(&value->emplace<T>()); });
      return known ? status : Error(type_offset, "unknown value type " + std::to_string(type));
    }
    uint32_t element_type = 0;
    uint64_t count = 0;
    NIBBLE_RETURN_IF_ERROR(Read(&element_type));
    if (element_type == static_cast<uint32_t>(GgufType::kArray)) {
      return Error(type_offset + 4, "an array of arrays", StatusCode::kUnsupported);
    }
    NIBBLE_RETURN_IF_ERROR(Read(&count));
    const bool known = VisitScalarType(element_type, [&]<class T>(std::type_identity<T>) {
      status = ReadArray(count, &value->emplace<std::vector<T>>());
    });
    return known ? status
                 : Error(type_offset + 4, "unknown element type " + std::to_string(element_type));
  }

  Status ReadTensorInfos() {
    parsed_.tensors.reserve(tensor_count_);
    info_offsets_.reserve(tensor_count_);
    for (uint64_t i = 0; i < tensor_count_; ++i) {
      context_ = "tensor " + std::to_string(i);
      info_offsets_.push_back(position_);
      NIBBLE_RETURN_IF_ERROR(ReadTensorInfo(&parsed_.tensors.emplace_back()));
    }
    const NameIndex index = IndexNames(
        parsed_.tensors, [](const auto& tensor) { return std::string_view(tensor.name); });
    if (const size_t i = index.FindDuplicate(); i != NameIndex::kNone) {
      context_ = "tensor " + Quoted(parsed_.tensors[i].name);
      return Error(info_offsets_[i], "the name stands in the file twice");
    }
    return OkStatus();
  }

  // Leaves the offset as the file has it, from the beginning of the data, in file_offset.
  Status ReadTensorInfo(GgufTensor* tensor) {
    NIBBLE_RETURN_IF_ERROR(ReadString(&tensor->name, kGgufLongestName));
    context_ = "tensor " + Quoted(tensor->name);
    uint32_t dims = 0;
    NIBBLE_RETURN_IF_ERROR(Read(&dims));
    if (dims > kGgufMaxDims) {
      return Error(position_ - 4,
                   std::to_string(dims) + " dimensions, more than " + std::to_string(kGgufMaxDims));
    }
    const uint64_t dims_offset = position_;
    tensor->dims.resize(dims);
    for (int64_t& dim : tensor->dims) NIBBLE_RETURN_IF_ERROR(Read(&dim));
    if (dims == 0) tensor->dims = {1};  // a scalar
    uint32_t format = 0;
    NIBBLE_RETURN_IF_ERROR(Read(&format));
    tensor->format = static_cast<Format>(format);
    if (FindFormat(tensor->format) == nullptr) {
      return Error(position_ - 4, "unknown tensor type " + std::to_string(format),
                   StatusCode::kUnsupported);
    }
    if (const Result<uint64_t> bytes = GgufTensorBytes(*tensor); !bytes.ok()) {
      return Error(dims_offset, bytes.status().message());
    }
    return Read(&tensor->file_offset);
  }

  // Gives every tensor its bytes, once it is known that they are there and nobody else's.
  Status PlaceTensors() {
    if (parsed_.tensors.empty()) return OkStatus();
    const uint64_t data_begin = AlignUp(position_, parsed_.alignment);
    context_ = "tensor data";
    if (data_begin > file_.size()) {
      return Error(data_begin, "the file ends before it, at " + std::to_string(file_.size()));
    }
    const uint64_t data_bytes = file_.size() - data_begin;
    for (size_t i = 0; i < parsed_.tensors.size(); ++i) {
      GgufTensor& tensor = parsed_.tensors[i];
      context_ = "tensor " + Quoted(tensor.name);
      const uint64_t offset = tensor.file_offset;
      if (offset % parsed_.alignment != 0) {
        return Error(info_offsets_[i], "its data offset " + std::to_string(offset) +
                                           " is not a multiple of the alignment " +
                                           std::to_string(parsed_.alignment));
      }
      NIBBLE_ASSIGN_OR_RETURN(const uint64_t bytes, GgufTensorBytes(tensor));
      if (offset > data_bytes || bytes > data_bytes - offset) {
        return Error(info_offsets_[i], "its data, " + std::to_string(bytes) + " bytes at offset " +
                                           std::to_string(offset) + " of " +
                                           std::to_string(data_bytes) +
                                           ", lies beyond the end of the file");
      }
      tensor.file_offset = data_begin + offset;
      tensor.data = file_.subspan(tensor.file_offset, bytes);
    }
    return CheckOverlaps();
  }

  Status CheckOverlaps() {
    std::vector<size_t> order(parsed_.tensors.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [this](size_t a, size_t b) {
      return parsed_.tensors[a].file_offset < parsed_.tensors[b].file_offset;
    });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = parsed_.tensors[order[i - 1]];
      const GgufTensor& tensor = parsed_.tensors[order[i]];
      if (before.file_offset + before.data.size() > tensor.file_offset) {
        context_ = "tensor " + Quoted(tensor.name);
        return Error(info_offsets_[order[i]], "its data overlaps that of " + Quoted(before.name));
      }
    }
    return OkStatus();
  }

  std::span<const std::byte> file_;
  const std::string& path_;
  size_t position_ = 0;
  std::string context_;  // the pair or tensor being read, for messages
  uint64_t tensor_count_ = 0;
  uint64_t pair_count_ = 0;
  std::vector<uint64_t> info_offsets_;  // where each tensor's description begins
  ParsedGguf parsed_;
};

}  // namespace

Result<ParsedGguf> ParseGguf(std::span<const std::byte> file, const std::string& path) {
  return CatchAllocationFailure(path, [&] { return Parser(file, path).Parse(); });
}

}  // namespace nibble
