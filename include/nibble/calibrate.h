// Quantizes whole models on the inputs that calibration text gives: layer after layer, each with
// error feedback.
#ifndef NIBBLE_CALIBRATE_H_
#define NIBBLE_CALIBRATE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/gptq.h"
#include "nibble/hessian_file.h"
#include "nibble/model.h"
#include "nibble/quantize_model.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble {

// Text in windows of equal length that do not overlap, as llama.cpp's imatrix tool cuts it: a BOS,
// where the tokenizer adds one, takes the place of each window's first token.
struct CalibrationText {
  std::vector<int32_t> tokens;  // [windows, context]
  int64_t context = 0;

  int64_t windows() const {
    return context == 0 ? 0 : static_cast<int64_t>(tokens.size()) / context;
  }
  // For the recipe: `name` is the text's.
  CalibrationNote Note(const std::string& name) const;
};

// The first `max_windows` windows (0: all). Fails where the text is shorter than a window or a
// window longer than the model's context.
Result<CalibrationText> CutCalibrationText(const Model& model, std::string_view text,
                                           int64_t context, int64_t max_windows = 0);

// Where the activations of a whole text lie while a model is run layer by layer.
struct ActivationMemory {
  size_t memory_bytes = size_t{1} << 30;  // larger ones, each by itself, lie on disk
  std::string folder;                     // of their files, which have no name; empty: the system's
};

struct StatisticsOptions {
  int64_t batch_tokens = 2048;   // run at once
  bool output = false;           // of the output matrix, too
  ActivationMemory activations;  // of VisitHessians
  ParallelFor parallel;
  // After each batch: windows done and in all; false stops (kCancelled).
  std::function<bool(int64_t done, int64_t windows)> progress;
};

// Runs the model, in f32, over the text and gathers the statistics of every matrix's inputs,
// counted as llama.cpp's imatrix tool counts them: every token of every window. `dataset` names the
// text. Fails where an activation is not finite, naming the matrix that sees it.
Result<ImportanceMatrix> GatherStatistics(const Model& model, const CalibrationText& text,
                                          const std::string& dataset,
                                          const StatisticsOptions& options = {});

// The inputs of a model's matrices in the order of a run: layer by layer, the output's last.
std::vector<SharedInputs> InputsOf(const Model& model);

// Runs the model, in f32, layer by layer over the text and hands over the Hessian of each of
// InputsOf() in that order. Memory: the residual stream of all windows (f32 [tokens, width], on
// disk where it is large) and the Hessians of half a layer. Progress counts batches, over all
// halves. Fails where an activation is not finite, naming the matrix that sees it.
Status VisitHessians(const Model& model, const CalibrationText& text,
                     const StatisticsOptions& options,
                     const std::function<Status(const SharedInputs&, const Hessian&)>& visit);

struct LayerwiseOptions {
  int64_t batch_tokens = 2048;  // run at once
  GptqOptions gptq;             // its `parallel` serves all the work
  // Share of the errors in a layer's inputs, and in the residual stream that its output is added
  // to, that its weights are asked to make good (as in GPTAQ, arXiv 2504.02692).
  float input_correction = 1.0f;
  float residual_correction = 1.0f;
  ActivationMemory activations;
  // After each batch and matrix; false stops (kCancelled).
  std::function<bool(const ModelProgress&)> progress;
};

// What became of one matrix.
struct MatrixReport {
  std::string name;
  Format format = Format::kF32;
  bool feedback =
      false;            // false: the format has none, or the matrix is looked up too; weighed only
  GptqReport gptq;      // of feedback
  bool unseen = false;  // no token's inputs are known: to nearest
};

struct CalibratedTensors {
  std::map<std::string, QuantizedTensor, std::less<>> tensors;  // by name, for ModelRunOptions
  std::vector<MatrixReport> reports;                            // in the order of the work
};

// The matrices that `plan` gives a block format, by name. Layers are quantized in order: each sees
// the inputs that the quantized layers before it give, and is fitted to what the original layer
// makes of the original inputs; errors that go to the residual stream count in the measure of the
// norm behind, relative to the stream. An output matrix of its own is the last; embeddings, which
// are looked up, are the first, weighed where they are the output too, and without error feedback.
// Memory: the residual streams of all windows twice (f32 [tokens, width]), the inputs of one
// matrix (f32 [tokens, feed-forward width]), both on disk where they are large, the Hessians of one
// layer's inputs, the result.
// Fails where an activation is not finite, naming the matrix that sees it.
Result<CalibratedTensors> QuantizeLayerwise(const Model& model, const ModelPlan& plan,
                                            const CalibrationText& text,
                                            const LayerwiseOptions& options = {});

// The same with Hessians from a file, which are the original model's: each matrix by itself, no
// model is run, and of `options` only `gptq` and `progress` count. Matrices of formats without
// error feedback are weighed by the mean squares of their inputs, embeddings too where the file
// knows them; embeddings that it does not know are left to WriteModel. Experts stacked in one
// tensor have inputs of their own (ExpertName). Any other matrix that the file does not know, or
// whose inputs saw no token, is an error, or rounded to nearest where `allow_missing`: here, or by
// WriteModel where the file knows nothing of its tensor. Memory: one Hessian and its factors, the
// result, the tensors whose experts are not all done.
Result<CalibratedTensors> QuantizeWithHessians(const ModelSource& source, const ModelPlan& plan,
                                               const HessianFile& hessians,
                                               const LayerwiseOptions& options = {},
                                               bool allow_missing = false);

// The note that a recipe keeps of such a file.
CalibrationNote NoteOf(const HessianFile& hessians);

// What a person should know of the reports, a line each; empty where nothing was unusual.
std::vector<std::string> CalibrationNotices(std::span<const MatrixReport> reports);

}  // namespace nibble

#endif  // NIBBLE_CALIBRATE_H_
