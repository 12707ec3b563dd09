// A file of log-probabilities: what a reference model thought of a text.
#ifndef NIBBLE_LIB_EVALUATE_REFERENCE_LOGITS_H_
#define NIBBLE_LIB_EVALUATE_REFERENCE_LOGITS_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lib/evaluate/windows.h"
#include "lib/io/mapped_file.h"
#include "lib/io/output_file.h"
#include "nibble/status.h"

namespace nibble {

// What has to agree between the run that wrote a file and the run that reads it.
struct ReferenceHeader {
  char magic[8];  // "nibble-r"
  uint32_t version;
  uint32_t scoring;
  int64_t vocab, context, windows, rows;
  uint64_t text_hash;  // of the token ids

  static ReferenceHeader Make(int64_t vocab, std::span<const int32_t> tokens,
                              const WindowPlan& plan, const PerplexityOptions& options);
};

// Log-probabilities are kept as 16-bit steps between a row's lowest (at most 24 below its highest,
// beyond which a probability no longer matters) and its highest.
class ReferenceLogitsWriter {
 public:
  static Result<ReferenceLogitsWriter> Create(const std::string& path,
                                              const ReferenceHeader& header);
  Status Append(std::span<const float> logits);  // one row
  Status Finish();                               // until then there is no file of that name

 private:
  explicit ReferenceLogitsWriter(OutputFile file) : file_(std::move(file)) {}
  OutputFile file_;
  std::string path_;
  std::vector<std::byte> row_;
};

class ReferenceLogitsReader {
 public:
  // Refuses a file of another text, vocabulary, context or scoring.
  static Result<ReferenceLogitsReader> Open(const std::string& path,
                                            const ReferenceHeader& expected);
  // Row r's log-probabilities.
  void Read(int64_t row, std::span<float> log_probabilities) const;

 private:
  explicit ReferenceLogitsReader(MappedFile file) : file_(std::move(file)) {}
  MappedFile file_;
};

// In place: logits become natural logarithms of probabilities. Sums in f64.
void LogSoftmax(std::span<float> logits);

}  // namespace nibble

#endif  // NIBBLE_LIB_EVALUATE_REFERENCE_LOGITS_H_
