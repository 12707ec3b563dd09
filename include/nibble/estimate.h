// What a type will cost, before anything is made: size, memory, time and error foreseen from a
// model's shapes, a sample of its weights and two measurements of the machine. And which to take.
#ifndef NIBBLE_ESTIMATE_H_
#define NIBBLE_ESTIMATE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/calibration.h"
#include "nibble/gguf.h"
#include "nibble/method.h"
#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/parallel.h"
#include "nibble/quantize_model.h"
#include "nibble/status.h"

namespace nibble {

// A model without its weights.
struct ModelShape {
  GgufMetadata metadata;
  std::vector<GgufTensorInfo> tensors;
};

// A dense Llama-family model of about so many weights in f16, of usual proportions: about 128
// times as wide as it has layers, heads of 128, 8 for keys and values, 32,000 tokens.
Result<ModelShape> UsualShape(uint64_t weights);

// What the tensors of a model cost each token.
struct TokenCost {
  uint64_t read_bytes = 0;     // to decode one: every matrix, of the embedding a row
  uint64_t multiply_adds = 0;  // to read one of a prompt: the matrices of the layers
};
TokenCost CostOfToken(std::span<const GgufTensorInfo> tensors);

struct FootprintOptions {
  int64_t context = 0;  // tokens of each sequence; 0: all that the model takes
  int64_t sequences = 1;
  int64_t batch_tokens = 512;  // of a prompt that run at once
  KvCacheOptions cache;
};

// The memory of a running model, in bytes.
struct Footprint {
  uint64_t weights = 0;  // as in the file
  uint64_t cache = 0;    // keys and values of all sequences at full length
  uint64_t scratch = 0;  // activations and logits

  uint64_t total() const { return weights + cache + scratch; }
};
Result<Footprint> ForeseeFootprint(const ModelShape& shape, const FootprintOptions& options = {});

struct Machine {
  double read_bytes_per_second = 0;     // from memory, all threads together
  double multiply_adds_per_second = 0;  // of nibble's product of 256 activation rows with q8_0
};
// Takes a quarter of a second and 256 MiB.
Result<Machine> MeasureMachine(const ParallelFor& parallel);

// How one tensor took to its format, by a sample of its rows.
struct SampledTensor {
  std::string name;
  Format format = Format::kF32;
  uint64_t weights = 0;  // of the whole tensor
  double energy = 0;     // sum of squares of the whole, estimated
  double nmse = 0;       // error energy over energy; importance does not count here
};

struct TypeForecast {
  std::string type;
  uint64_t file_bytes = 0;  // exact, where the model's metadata is known
  double bits_per_weight = 0;
  Footprint footprint;
  // The machine's limits: no program can be faster without reading or computing less. 0: unknown.
  double decode_limit = 0, prefill_limit = 0;  // tokens per second of one sequence
  bool sampled = false;                        // what follows is known
  std::vector<SampledTensor> tensors;          // the matrices that change
  double quantize_seconds = 0;                 // of arithmetic, all tensors
  uint64_t quantize_memory = 0;                // at its peak, beside the program itself

  // Error energy over energy of all weights; 0 where nothing changes, nullopt without a sample.
  std::optional<double> Nmse() const;
  std::optional<double> SnrDb() const;  // infinite where nothing changes
};

struct ForecastOptions {
  FootprintOptions footprint;
  Machine machine;                               // zeros: no limits are told
  int64_t sample_weights = 1 << 16;              // of each tensor; 0: no sample
  const ImportanceMatrix* importance = nullptr;  // to quantize with
  ParallelFor parallel;
};

// Of a model at hand. The type is a name for ParseType, or kCopyType.
Result<TypeForecast> ForecastType(const ModelSource& source, const std::string& type,
                                  const ForecastOptions& options = {});
// Of a shape alone.
Result<TypeForecast> ForecastType(const ModelShape& shape, const std::string& type,
                                  const ForecastOptions& options = {});

struct AdviceGoal {
  uint64_t max_file_bytes = 0;  // 0: no limit; likewise below
  uint64_t max_memory_bytes = 0;
  double min_decode = 0;  // tokens per second, of the machine's limit
  double min_snr_db = 0;
  bool smallest = false;  // of those that fit the smallest, instead of the one with the least error
};

struct RankedType {
  size_t index = 0;                  // among the forecasts
  bool fits = false;                 // every limit
  std::vector<std::string> reasons;  // why it does not, or who beats it
};

struct Advice {
  std::vector<RankedType> ranking;  // the best first: those that fit, then the others
  bool found = false;               // the first one fits
  // How to quantize to the first one.
  Method method = Method::kRtn;
  bool importance = false;  // weighing errors by an importance matrix
  std::string method_reason;
};

// Pure: ranks by the forecasts' figures alone. Without samples more bits are taken for less error.
Advice Advise(std::span<const TypeForecast> forecasts, const AdviceGoal& goal);

}  // namespace nibble

#endif  // NIBBLE_ESTIMATE_H_
