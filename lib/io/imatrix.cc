// llama.cpp's importance matrices. The older ".dat" format, little-endian:
//   i32 entries, then for each: i32 name length, name, i32 chunks, i32 values, f32[values];
//   then optionally i32 chunks, i32 length, path of the text.
// A value is a mean square times the entry's chunks. The GGUF format holds two tensors an entry,
// NAME.in_sum2 [cols, matrices] and NAME.counts [1, matrices], both f32, and imatrix.* metadata;
// here also NAME.in_max [cols, matrices], which llama.cpp ignores.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "lib/io/errors.h"
#include "lib/io/mapped_file.h"
#include "lib/io/output_file.h"
#include "nibble/calibration.h"
#include "nibble/gguf.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "the files are little-endian");

constexpr std::string_view kSums = ".in_sum2";
constexpr std::string_view kCounts = ".counts";
constexpr std::string_view kMaxima = ".in_max";
// The older format does not tell the tokens of a chunk; this is llama.cpp's default.
constexpr int64_t kDefaultChunkTokens = 512;

Status CheckSums(const std::string& path, const std::string& name, std::span<const float> sums) {
  for (size_t i = 0; i < sums.size(); ++i) {
    if (!std::isfinite(sums[i]) || sums[i] < 0) {
      return Corrupt(path + ": " + Quoted(name) + ": value " + std::to_string(i) +
                     " is not a sum of squares");
    }
  }
  return OkStatus();
}

// Takes the older format apart, checking every length against what is left.
class DatReader {
 public:
  DatReader(std::span<const std::byte> bytes, const std::string& path)
      : bytes_(bytes), path_(path) {}

  bool AtEnd() const { return position_ == bytes_.size(); }

  Result<int32_t> Count(const char* what, int32_t least) {
    int32_t value = 0;
    NIBBLE_RETURN_IF_ERROR(Take(&value, sizeof(value), what));
    if (value >= least) return value;
    position_ -= sizeof(value);
    return Fail(what, "is " + std::to_string(value));
  }

  Result<std::string> String(const char* what, int32_t least) {
    NIBBLE_ASSIGN_OR_RETURN(const int32_t length, Count(what, least));
    if (static_cast<size_t>(length) > Left()) return Fail(what, "runs over the end of the file");
    std::string text(static_cast<size_t>(length), '\0');
    NIBBLE_RETURN_IF_ERROR(Take(text.data(), text.size(), what));
    return text;
  }

  Result<std::vector<float>> Floats(const char* what) {
    NIBBLE_ASSIGN_OR_RETURN(const int32_t count, Count(what, 1));
    if (static_cast<size_t>(count) > Left() / sizeof(float)) {
      return Fail(what, "run over the end of the file");
    }
    std::vector<float> values(static_cast<size_t>(count));
    NIBBLE_RETURN_IF_ERROR(Take(values.data(), values.size() * sizeof(float), what));
    return values;
  }

 private:
  size_t Left() const { return bytes_.size() - position_; }

  Status Take(void* out, size_t bytes, const char* what) {
    if (bytes > Left()) return Fail(what, "is missing: the file ends");
    if (bytes > 0) std::memcpy(out, bytes_.data() + position_, bytes);
    position_ += bytes;
    return OkStatus();
  }

  Status Fail(const char* what, const std::string& why) const {
    return Corrupt(path_ + ": offset " + std::to_string(position_) + ": " + what + " " + why);
  }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  size_t position_ = 0;
};

Result<ImportanceMatrix> LoadDat(std::span<const std::byte> bytes, const std::string& path) {
  DatReader reader(bytes, path);
  ImportanceMatrix result;
  result.chunk_tokens = kDefaultChunkTokens;
  NIBBLE_ASSIGN_OR_RETURN(const int32_t entries, reader.Count("the number of entries", 1));
  for (int32_t i = 0; i < entries; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, reader.String("an entry's name", 1));
    NIBBLE_ASSIGN_OR_RETURN(const int32_t chunks, reader.Count("the chunks of an entry", 0));
    LayerStatistics layer;
    NIBBLE_ASSIGN_OR_RETURN(layer.sum_squares, reader.Floats("the values of an entry"));
    NIBBLE_RETURN_IF_ERROR(CheckSums(path, name, layer.sum_squares));
    // Without chunks the values are the means themselves. 512 scales them without rounding.
    layer.counts = {std::max(chunks, 1) * kDefaultChunkTokens};
    for (float& sum : layer.sum_squares) sum *= static_cast<float>(kDefaultChunkTokens);
    layer.cols = static_cast<int64_t>(layer.sum_squares.size());
    if (!result.layers.emplace(name, std::move(layer)).second) {
      return Corrupt(path + ": " + Quoted(name) + " stands twice");
    }
  }
  if (!reader.AtEnd()) {
    NIBBLE_ASSIGN_OR_RETURN(result.chunks, reader.Count("the number of chunks", 0));
  }
  if (!reader.AtEnd()) {
    NIBBLE_ASSIGN_OR_RETURN(std::string dataset, reader.String("the text's name", 0));
    if (!dataset.empty()) result.datasets.push_back(std::move(dataset));
  }
  return result;
}

Result<std::vector<float>> ReadFloats(const std::string& path, const GgufTensor& tensor) {
  if (tensor.format != Format::kF32) {
    return Corrupt(path + ": " + Quoted(tensor.name) + " is not f32");
  }
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), values.size() * sizeof(float));
  return values;
}

Result<ImportanceMatrix> LoadGguf(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  ImportanceMatrix result;
  if (const Result<uint64_t> n = file.metadata().GetUint("imatrix.chunk_count"); n.ok()) {
    result.chunks = static_cast<int64_t>(*n);
  }
  if (const Result<uint64_t> n = file.metadata().GetUint("imatrix.chunk_size"); n.ok()) {
    result.chunk_tokens = static_cast<int64_t>(*n);
  }
  if (const GgufValue* value = file.metadata().Find("imatrix.datasets"); value != nullptr) {
    if (const auto* names = std::get_if<std::vector<std::string>>(value)) result.datasets = *names;
  }
  for (const GgufTensor& sums : file.tensors()) {
    if (!sums.name.ends_with(kSums)) continue;
    const std::string name = sums.name.substr(0, sums.name.size() - kSums.size());
    const GgufTensor* counts = file.Find(name + std::string(kCounts));
    if (counts == nullptr) return Corrupt(path + ": " + Quoted(name) + " has sums but no counts");
    LayerStatistics layer;
    NIBBLE_ASSIGN_OR_RETURN(layer.sum_squares, ReadFloats(path, sums));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> numbers, ReadFloats(path, *counts));
    NIBBLE_RETURN_IF_ERROR(CheckSums(path, name, layer.sum_squares));
    if (layer.sum_squares.size() % numbers.size() != 0) {
      return Corrupt(path + ": " + Quoted(name) + ": " + std::to_string(layer.sum_squares.size()) +
                     " sums do not divide among " + std::to_string(numbers.size()) + " counts");
    }
    for (const float n : numbers) {
      if (!(n >= 0 && n < 9e18f)) return Corrupt(path + ": " + Quoted(name) + ": a bad count");
      layer.counts.push_back(std::llround(n));
    }
    layer.cols = static_cast<int64_t>(layer.sum_squares.size() / numbers.size());
    if (const GgufTensor* maxima = file.Find(name + std::string(kMaxima)); maxima != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(layer.maxima, ReadFloats(path, *maxima));
      NIBBLE_RETURN_IF_ERROR(CheckSums(path, name, layer.maxima));
      if (layer.maxima.size() != layer.sum_squares.size()) {
        return Corrupt(path + ": " + Quoted(name) + ": " + std::to_string(layer.maxima.size()) +
                       " maxima beside " + std::to_string(layer.sum_squares.size()) + " sums");
      }
    }
    result.layers.emplace(name, std::move(layer));
  }
  if (result.layers.empty()) return Corrupt(path + ": holds no importance matrix");
  return result;
}

void AppendInt(std::string& out, int64_t value) {
  const auto number = static_cast<int32_t>(std::clamp<int64_t>(
      value, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
  out.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

void AppendString(std::string& out, std::string_view text) {
  AppendInt(out, static_cast<int64_t>(text.size()));
  out += text;
}

}  // namespace

Result<ImportanceMatrix> ImportanceMatrix::Load(const std::string& path) {
  return CatchAllocationFailure(path, [&]() -> Result<ImportanceMatrix> {
    NIBBLE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
    const std::span<const std::byte> bytes = file.bytes();
    if (bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0) return LoadGguf(path);
    return LoadDat(bytes, path);
  });
}

Status ImportanceMatrix::SaveGguf(const std::string& path) const {
  GgufMetadata metadata;
  metadata.Set("general.type", std::string("imatrix"));
  metadata.Set("imatrix.datasets", datasets);
  metadata.Set("imatrix.chunk_count", static_cast<uint32_t>(chunks));
  metadata.Set("imatrix.chunk_size", static_cast<uint32_t>(chunk_tokens));
  std::vector<GgufTensorInfo> tensors;
  for (const auto& [name, layer] : layers) {
    GgufTensorInfo sums, counts;
    sums.name = name + std::string(kSums);
    sums.dims = {layer.cols, layer.matrices()};
    counts.name = name + std::string(kCounts);
    counts.dims = {1, layer.matrices()};
    tensors.push_back(std::move(sums));
    tensors.push_back(std::move(counts));
    if (layer.maxima.empty()) continue;
    GgufTensorInfo maxima;
    maxima.name = name + std::string(kMaxima);
    maxima.dims = {layer.cols, layer.matrices()};
    tensors.push_back(std::move(maxima));
  }
  NIBBLE_ASSIGN_OR_RETURN(GgufWriter writer, GgufWriter::Create(path, metadata, tensors));
  for (const auto& [name, layer] : layers) {
    const std::vector<float> counts(layer.counts.begin(), layer.counts.end());
    NIBBLE_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(layer.sum_squares))));
    NIBBLE_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(counts))));
    if (layer.maxima.empty()) continue;
    NIBBLE_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(layer.maxima))));
  }
  return writer.Finish();
}

Status ImportanceMatrix::SaveDat(const std::string& path) const {
  const int64_t tokens = chunk_tokens > 0 ? chunk_tokens : kDefaultChunkTokens;
  std::string out, body;
  int64_t entries = 0;
  for (const auto& [name, layer] : layers) {
    const int64_t most = layer.counts.empty() ? 0 : *std::ranges::max_element(layer.counts);
    if (most <= 0) continue;  // the format has no way to say "no data"
    const int64_t layer_chunks = (most + tokens - 1) / tokens;
    ++entries;
    AppendString(body, name);
    AppendInt(body, layer_chunks);
    AppendInt(body, static_cast<int64_t>(layer.sum_squares.size()));
    for (int64_t m = 0; m < layer.matrices(); ++m) {
      std::vector<float> values = layer.MeanSquares(m);
      // An expert that saw no token counts all its columns alike.
      if (values.empty()) values.assign(static_cast<size_t>(layer.cols), 1.0f);
      for (float& value : values) value *= static_cast<float>(layer_chunks);
      body.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    }
  }
  if (entries == 0) return InvalidArgument(path + ": an importance matrix without data");
  AppendInt(out, entries);
  out += body;
  AppendInt(out, chunks);
  AppendString(out, datasets.empty() ? std::string_view() : datasets.back());
  NIBBLE_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path, out.size()));
  NIBBLE_RETURN_IF_ERROR(file.Append(out));
  NIBBLE_RETURN_IF_ERROR(file.Close());
  NIBBLE_RETURN_IF_ERROR(file.Commit());
  return SyncFolderOf(path);
}

}  // namespace nibble
