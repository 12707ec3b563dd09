#include "lib/evaluate/reference_logits.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

constexpr char kMagic[8] = {'n', 'i', 'b', 'b', 'l', 'e', '-', 'r'};
constexpr float kRange = 24.0f;  // nats below a row's highest that are told apart
constexpr float kSteps = 65535.0f;

// A row: the highest log-probability and the step as f32, then a code for each token.
size_t RowBytes(int64_t vocab) { return 2 * sizeof(float) + static_cast<size_t>(vocab) * 2; }

uint64_t HashTokens(std::span<const int32_t> tokens) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325u;
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001B3u;
  }
  return hash;
}

}  // namespace

void LogSoftmax(std::span<float> logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - top);
  const double log_sum = top + std::log(sum);
  for (float& x : logits) x = static_cast<float>(x - log_sum);
}

ReferenceHeader ReferenceHeader::Make(int64_t vocab, std::span<const int32_t> tokens,
                                      const WindowPlan& plan, const PerplexityOptions& options) {
  ReferenceHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = 1;
  header.scoring = static_cast<uint32_t>(options.scoring);
  header.vocab = vocab;
  header.context = options.context;
  header.windows = plan.windows;
  header.rows = plan.rows();
  header.text_hash = HashTokens(tokens.first(static_cast<size_t>(plan.windows * plan.stride)));
  return header;
}

Result<ReferenceLogitsWriter> ReferenceLogitsWriter::Create(const std::string& path,
                                                            const ReferenceHeader& header) {
  const uint64_t bytes =
      sizeof(header) + static_cast<uint64_t>(header.rows) * RowBytes(header.vocab);
  NIBBLE_RETURN_IF_ERROR(CheckFreeSpace(path, bytes));
  NIBBLE_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path, bytes));
  ReferenceLogitsWriter writer(std::move(file));
  writer.path_ = path;
  NIBBLE_RETURN_IF_ERROR(writer.file_.Append(std::as_bytes(std::span(&header, 1))));
  return writer;
}

Status ReferenceLogitsWriter::Append(std::span<const float> logits) {
  std::vector<float> log_p(logits.begin(), logits.end());
  LogSoftmax(log_p);
  const auto [low, high] = std::minmax_element(log_p.begin(), log_p.end());
  const float top = *high;
  const float step = std::min(kRange, top - *low) / kSteps;
  row_.resize(RowBytes(static_cast<int64_t>(logits.size())));
  std::memcpy(row_.data(), &top, sizeof(top));
  std::memcpy(row_.data() + sizeof(top), &step, sizeof(step));
  const float inverse = step > 0 ? 1.0f / step : 0.0f;
  for (size_t i = 0; i < log_p.size(); ++i) {
    const uint16_t code =
        static_cast<uint16_t>(std::min(kSteps, std::round((top - log_p[i]) * inverse)));
    std::memcpy(row_.data() + 2 * sizeof(float) + 2 * i, &code, sizeof(code));
  }
  return file_.Append(row_);
}

Status ReferenceLogitsWriter::Finish() {
  NIBBLE_RETURN_IF_ERROR(file_.Close());
  NIBBLE_RETURN_IF_ERROR(file_.Commit());
  return SyncFolderOf(path_);
}

Result<ReferenceLogitsReader> ReferenceLogitsReader::Open(const std::string& path,
                                                          const ReferenceHeader& expected) {
  NIBBLE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ReferenceHeader header = {};
  if (file.bytes().size() < sizeof(header))
    return Corrupt(path + ": too short for reference logits");
  std::memcpy(&header, file.bytes().data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0 || header.version != 1) {
    return Corrupt(path + ": no reference logits of this version");
  }
  if (std::memcmp(&header, &expected, sizeof(header)) != 0) {
    return InvalidArgument(path + ": was made from another text, vocabulary, context or scoring");
  }
  const uint64_t bytes =
      sizeof(header) + static_cast<uint64_t>(header.rows) * RowBytes(header.vocab);
  if (file.bytes().size() != bytes) {
    return Corrupt(path + ": " + std::to_string(file.bytes().size()) + " bytes instead of " +
                   std::to_string(bytes));
  }
  return ReferenceLogitsReader(std::move(file));
}

void ReferenceLogitsReader::Read(int64_t row, std::span<float> log_probabilities) const {
  const size_t row_bytes = RowBytes(static_cast<int64_t>(log_probabilities.size()));
  const std::byte* data =
      file_.bytes().data() + sizeof(ReferenceHeader) + static_cast<size_t>(row) * row_bytes;
  float top, step;
  std::memcpy(&top, data, sizeof(top));
  std::memcpy(&step, data + sizeof(top), sizeof(step));
  for (size_t i = 0; i < log_probabilities.size(); ++i) {
    uint16_t code;
    std::memcpy(&code, data + 2 * sizeof(float) + 2 * i, sizeof(code));
    log_probabilities[i] = top - step * static_cast<float>(code);
  }
  DropPages({data, row_bytes});
}

}  // namespace nibble
