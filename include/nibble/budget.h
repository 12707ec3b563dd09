// Mixes by budget: which format each matrix gets so that the model loses least within a size.
//
// What a model loses when matrix i is rounded to format f is taken as slope_i * error_i(f): the
// relative error of the matrix' output times a factor of its own, as in the linearity theorem of
// HIGGS (arXiv 2411.17525). The factors are measured on text, one matrix at a time; without a text
// they are rough shares. The sum over matrices is then made least by choosing formats: a knapsack.
#ifndef NIBBLE_BUDGET_H_
#define NIBBLE_BUDGET_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/format.h"
#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/quantize_model.h"
#include "nibble/status.h"

namespace nibble {

// --- The knapsack. ---

struct AllocationOption {
  uint64_t bytes = 0;
  double loss = 0;  // finite, >= 0
};

// One option of each item, its index: the least sum of losses whose bytes stay within `budget`, or
// one at most a ten-thousandth larger. Partial sums are searched under the bound of the Lagrangian
// relaxation; where more than 65536 of them compete, the least promising are dropped. Fails where
// even the smallest options are too large.
Result<std::vector<size_t>> Allocate(std::span<const std::vector<AllocationOption>> items,
                                     uint64_t budget);

// --- What each matrix loses. ---

struct FormatError {
  Format format = Format::kF32;
  double error = 0;  // squared error of the output over its energy, from the inputs' mean squares
                     // (all alike where they are not known), of a sample of rows
};

struct MatrixSensitivity {
  std::string name;
  std::vector<FormatError> errors;  // of every candidate that its rows fit
  // What its error counts where nothing else is known: 1 for the matrix that makes the logits, for
  // all others together as much again. On the reference model both sums of factors are near 1.5.
  double share = 1;
  // The mean KL divergence of the model with this matrix alone in the format `probe`, in nats.
  Format probe = Format::kF32;
  std::optional<double> kl;

  std::optional<double> ErrorOf(Format format) const;
  // What the model loses: in nats where `kl` was measured, else the error times the share.
  std::optional<double> LossOf(Format format) const;
};

struct Sensitivity {
  std::string source;      // hash of the tensors
  std::string importance;  // hash of the importance matrix; empty: none
  std::string text;        // hash of the windows that the divergence was measured on; empty: none
  std::vector<MatrixSensitivity> matrices;

  const MatrixSensitivity* Find(std::string_view name) const;
  // JSON. Load() checks everything that it reads.
  Status Save(const std::string& path) const;
  static Result<Sensitivity> Load(const std::string& path);
};

struct SensitivityOptions {
  const ImportanceMatrix* importance = nullptr;  // weighs errors; may be left out
  int64_t sample_weights = int64_t{1} << 19;     // rounded of each matrix, at most
  // To measure divergence: both or neither. `model` was loaded from the source.
  const Model* model = nullptr;
  const CalibrationText* text = nullptr;
  int64_t windows = 8;  // of the text, at even distances
  int64_t at_once = 8;  // matrices, each in a model of its own, that share a run of the original
  ParallelFor parallel;
  // After each piece of work; false stops (kCancelled).
  std::function<bool(double fraction, std::string_view matrix)> progress;
  // After each piece, with all that is measured so far: for instance Save().
  std::function<Status(const Sensitivity& so_far)> keep;
};

// Formats that a budget chooses from, from small to large: those of GGUF that pay at their size.
std::span<const Format> BudgetFormats();

// Measures every matrix that quantization may change. What `known` tells of the same source,
// importance and text is taken over; from another it is refused.
Result<Sensitivity> MeasureSensitivity(const ModelSource& source, const SensitivityOptions& options,
                                       const std::optional<Sensitivity>& known = {});

// --- The mix. ---

// At least one bound; both hold where both are given.
struct Budget {
  double bits_per_weight = 0;  // of all tensors, norms and the like included; 0: no bound
  uint64_t file_bytes = 0;     // of the whole file or files; 0: no bound
};

struct BudgetChoice {
  std::string name;
  Format format = Format::kF32;
  uint64_t bytes = 0;
  double loss = 0;     // see MatrixSensitivity::LossOf
  bool fixed = false;  // by one of the recipe's own rules
};

struct BudgetMix {
  ModelPlan plan;
  std::vector<BudgetChoice> choices;  // of the matrices, in the order of the plan
  double loss = 0;                    // their sum
};

// `recipe` with the formats that serve best within `budget`: as its type and rules, so that the
// recipe in the file makes it again. Its own rules stay in force; its type is not looked at.
// `allowed` narrows BudgetFormats(); empty: all of them.
Result<BudgetMix> PlanBudget(const ModelSource& source, const ModelRecipe& recipe,
                             const ModelPermissions& permissions, const Sensitivity& sensitivity,
                             const Budget& budget, std::span<const Format> allowed = {},
                             const GgufWriteOptions& files = {});

}  // namespace nibble

#endif  // NIBBLE_BUDGET_H_
