// What each calibrated method gains over rounding to nearest at the same format: the error of the
// layers' outputs, and the model's perplexity and KL divergence, on text that calibration has not
// seen. Prints a page of Markdown.
//
//   methods_report examples/reference-model > docs/results/methods.md
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "nibble/awq.h"
#include "nibble/equivalent.h"
#include "nibble/evaluate.h"
#include "nibble/gptq.h"
#include "nibble/llm_int8.h"
#include "nibble/quantize.h"
#include "nibble/rotate.h"
#include "nibble/smoothquant.h"

namespace nibble {
namespace {

constexpr int64_t kContext = 256, kCalibrationWindows = 32, kEvaluationWindows = 8;
// Planted outliers: every kEvery-th channel of every norm is this many times as large.
constexpr float kOutlier = 30;
constexpr size_t kFirst = 7, kEvery = 61;

[[noreturn]] void Die(const Status& status) {
  std::fprintf(stderr, "methods_report: %s\n", status.message().c_str());
  std::exit(1);
}
template <class T>
T Must(Result<T> result) {
  if (!result.ok()) Die(result.status());
  return *std::move(result);
}
void Must(const Status& status) {
  if (!status.ok()) Die(status);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Die(NotFound(path));
  return {std::istreambuf_iterator<char>(file), {}};
}

using Matrices = std::map<std::string, QuantizedTensor, std::less<>>;
using InputsByName = std::map<std::string, LayerInputs, std::less<>>;

// Those of matrices that see the same share an entry.
std::string InputsOf(const std::string& name) {
  const size_t dot = name.find('.', 4);
  std::string part = name.substr(dot + 1);
  if (part == "attn_k.weight" || part == "attn_v.weight") part = "attn_q.weight";
  if (part == "ffn_up.weight") part = "ffn_gate.weight";
  return name.substr(0, dot + 1) + part;
}

std::vector<std::string> MatrixNames(const Model& model) {
  std::vector<std::string> names;
  for (int64_t layer = 0; layer < model.config().layers; ++layer) {
    for (const char* part :
         {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
      names.push_back("blk." + std::to_string(layer) + "." + part + ".weight");
    }
  }
  return names;
}

std::vector<float> Decoded(const QuantizedTensor& matrix, const ParallelFor& parallel) {
  std::vector<float> out(static_cast<size_t>(matrix.rows() * matrix.cols()));
  Must(Dequantize(matrix, ViewOf(out.data(), matrix.rows(), matrix.cols()), parallel));
  return out;
}

// A model with what its matrices see on both texts.
struct Subject {
  ModelSource source;
  Model model;
  InputsByName calibration, evaluation;
};

class Report {
 public:
  explicit Report(const std::string& folder)
      : source_(Must(ModelSource::Open(folder))), model_(Must(Model::Load(source_))) {
    parallel_ = pool_.parallel_for();
    inputs_.parallel = parallel_;
    calibration_ = Must(CutCalibrationText(model_, ReadFile(folder + "/calibration.txt"), kContext,
                                           kCalibrationWindows));
    evaluation_ = Must(model_.tokenizer().Encode(ReadFile(folder + "/evaluation.txt")));
    evaluation_.resize(static_cast<size_t>(kEvaluationWindows * kContext));
    logits_ = (std::filesystem::temp_directory_path() /
               ("methods_report_" + std::to_string(std::hash<std::string>()(folder))))
                  .string();
    Must(SaveReferenceLogits(model_, evaluation_, logits_, Options()));
  }
  ~Report() { std::filesystem::remove(logits_); }

  // The parts of the page can be made apart.
  void Print(const std::string& part) {
    const auto asked = [&](const char* name) { return part == "all" || part == name; };
    PrintHead();
    const PerplexityResult unquantized = Must(Perplexity(model_, evaluation_, Options()));
    std::printf("\nUnquantized: perplexity %.3f.\n", unquantized.perplexity.value);
    const Subject plain = SubjectOf(source_);
    if (asked("few-bits")) FewBits(plain);
    if (!asked("weights") && !asked("int8")) return;
    const Subject planted = SubjectOf(Planted());
    if (asked("weights")) {
      std::printf("\n## Weights alone: the model as it is\n");
      Compare(plain, {"int3 asym g128 f16", "nf4 g64 f16"}, {Format::kQ3_K});
      std::printf("\n## Weights alone: the same function with planted outliers\n");
      Compare(planted, {"int4 asym g128 f16"}, {Format::kQ4_K});
    }
    if (asked("int8")) {
      PrintInt8Head();
      Activations("The model as it is", plain);
      Activations("The same function with planted outliers", planted);
    }
  }

 private:
  PerplexityOptions Options() const {
    PerplexityOptions options;
    options.context = kContext;
    options.runner.precision = Precision::kF32;
    options.runner.parallel = parallel_;
    return options;
  }

  void PrintHead() const {
    std::printf(
        "# Calibrated methods against rounding to nearest\n\n"
        "Tables written by `methods_report examples/reference-model`, notes by hand. Calibration: "
        "%lld windows of %lld "
        "tokens of `calibration.txt`. Judged on %lld windows of `evaluation.txt`, which no method "
        "has seen: the error of the layers' outputs (mean over the matrices of |(W - Q) x|² / "
        "|W x|² on the inputs that the unquantized model gives), the perplexity, and the mean KL "
        "divergence from the unquantized model, in f32. All matrices of the layers have the format "
        "named, the embedding stays. Each method works on each layer's own inputs; no layer sees "
        "what the quantized ones before it give. *Weighed*: scales searched with the inputs' mean "
        "squares as weights.\n\n"
        "Planted outliers: channels %zu, %zu, %zu, … of every norm are %g times as large and the "
        "columns that use them that much smaller, as large language models have them; the function "
        "is the same.\n",
        static_cast<long long>(kCalibrationWindows), static_cast<long long>(kContext),
        static_cast<long long>(kEvaluationWindows), kFirst, kFirst + kEvery, kFirst + 2 * kEvery,
        static_cast<double>(kOutlier));
  }

  ModelSource Planted() const {
    ModelEdits edits;
    for (const ChannelPair& pair : Must(ChannelPairs(source_))) {
      if (!pair.is_norm) continue;
      std::vector<float> factors(static_cast<size_t>(pair.channels), 1.0f);
      for (size_t i = kFirst; i < factors.size(); i += kEvery) factors[i] = 1 / kOutlier;
      Must(MoveFactors(pair, factors, edits));
    }
    return Must(source_.Edited(std::move(edits)));
  }

  Subject SubjectOf(const ModelSource& source) const {
    Subject subject{source, Must(Model::Load(source)), {}, {}};
    std::vector<std::string> names;
    for (const std::string& name : MatrixNames(subject.model)) {
      if (InputsOf(name) == name) names.push_back(name);
    }
    const auto collect = [&](const CalibrationText& text, InputsByName& into) {
      Must(VisitLayerInputs(subject.model, text, names, inputs_,
                            [&](std::string_view name, const LayerInputs& seen) -> Status {
                              into.emplace(name, seen);
                              return OkStatus();
                            }));
    };
    collect(calibration_, subject.calibration);
    collect({evaluation_, kContext}, subject.evaluation);
    return subject;
  }

  Subject Edited(const Subject& subject, const ModelEdits& edits) const {
    return SubjectOf(Must(subject.source.Edited(edits)));
  }

  // --- A format ---

  using Quantizer =
      std::function<QuantizedTensor(TensorView weights, const LayerInputs& calibration)>;

  // A method's error on the layers, the bits that it takes, and what is left of the model.
  struct Judgement {
    double error, bits;
    PerplexityResult model;
  };

  Judgement Judge(const char* method, const Subject& subject, const Quantizer& quantize) const {
    std::fprintf(stderr, "  %s\n", method);
    Matrices matrices;
    double error = 0, bytes = 0, weights = 0;
    const std::vector<std::string> names = MatrixNames(subject.model);
    for (const std::string& name : names) {
      const QuantizedTensor matrix = Must(subject.model.Matrix(name));
      const int64_t rows = matrix.rows(), cols = matrix.cols();
      std::vector<float> w = Decoded(matrix, parallel_);
      const QuantizedTensor quantized = quantize(ViewOf(std::as_const(w).data(), rows, cols),
                                                 subject.calibration.at(InputsOf(name)));
      bytes += static_cast<double>(quantized.bytes());
      weights += static_cast<double>(rows * cols);
      QuantizedTensor decoded = Must(QuantizedTensor::Allocate(Format::kF32, rows, cols));
      float* q = reinterpret_cast<float*>(decoded.plane(Plane::kCodes).data());
      Must(Dequantize(quantized, ViewOf(q, rows, cols), parallel_));
      const Hessian& hessian = subject.evaluation.at(InputsOf(name)).hessian;
      const double energy = Energy(w, rows, cols, hessian);
      for (size_t i = 0; i < w.size(); ++i) w[i] -= q[i];
      error += Energy(w, rows, cols, hessian) / energy;
      matrices.emplace(name, std::move(decoded));
    }
    const Model changed = Must(subject.model.With(std::move(matrices)));
    PerplexityOptions options = Options();
    options.reference_logits = logits_;
    return {error / static_cast<double>(names.size()), 8 * bytes / weights,
            Must(Perplexity(changed, evaluation_, options))};
  }

  // A row of a table.
  void Row(const char* method, const Subject& subject, const Quantizer& quantize) const {
    const Judgement result = Judge(method, subject, quantize);
    std::printf("| %s | %.5f | %.3f | %.5f |\n", method, result.error,
                result.model.perplexity.value, result.model.divergence.kl.value);
    std::fflush(stdout);
  }

  // Few bits: integers, blocks and codebooks, each to nearest and with the inputs' Hessian.
  void FewBits(const Subject& subject) const {
    std::printf(
        "\n## Two bits and fewer\n\n"
        "*Bits*: of all matrices of the layers together, scales and codebooks included; in "
        "matrices as small as these the codebooks weigh much.\n\n"
        "| format | method | bits | output error | perplexity | mean KL |\n"
        "|---|---|---|---|---|---|\n");
    const std::vector<QuantizationTarget> targets = {
        *ParseScheme("int2 asym g64 f16"), Format::kQ2_K, *ParseScheme("2x8g8 f16"),
        *ParseScheme("2x8g16 f16"), *ParseScheme("1x8g8 f16")};
    for (const QuantizationTarget& target : targets) {
      const Scheme* scheme = std::get_if<Scheme>(&target);
      const std::string name =
          scheme != nullptr ? SchemeName(*scheme) : GetFormatInfo(std::get<Format>(target)).name;
      const auto row = [&](const char* method, const Quantizer& quantize) {
        const Judgement result = Judge((name + ", " + method).c_str(), subject, quantize);
        std::printf("| %s | %s | %.3f | %.5f | %.3f | %.5f |\n", name.c_str(), method, result.bits,
                    result.error, result.model.perplexity.value, result.model.divergence.kl.value);
        std::fflush(stdout);
      };
      row("nearest", [&](TensorView w, const LayerInputs&) { return Nearest(w, target, {}); });
      row("GPTQ", [&](TensorView w, const LayerInputs& inputs) {
        return Gptq(w, target, inputs.hessian, false);
      });
    }
  }

  // Sum over rows of w H w^T, by the product with H.
  double Energy(const std::vector<float>& w, int64_t rows, int64_t cols,
                const Hessian& hessian) const {
    QuantizedTensor h = Must(QuantizedTensor::Create(
        Format::kF32, cols, cols, Buffer::Borrow(std::as_bytes(std::span(hessian.sums())))));
    std::vector<float> product(w.size());
    MatmulOptions options;
    options.precision = Precision::kF32;
    options.parallel = parallel_;
    Must(Matmul(ViewOf(w.data(), rows, cols), h, ViewOf(product.data(), rows, cols), options));
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i) sum += static_cast<double>(w[i]) * product[i];
    return sum;
  }

  QuantizedTensor Nearest(TensorView w, const QuantizationTarget& target,
                          const QuantizeOptions& base) const {
    QuantizeOptions options = base;
    options.parallel = parallel_;
    return Must(std::visit([&](const auto& kind) { return Quantize(w, kind, options); }, target));
  }

  QuantizedTensor Gptq(TensorView w, QuantizationTarget target, const Hessian& hessian,
                       bool act_order) const {
    GptqOptions options;
    options.parallel = parallel_;
    options.act_order = act_order;
    if (Scheme* scheme = std::get_if<Scheme>(&target)) scheme->has_group_index = act_order;
    return Must(std::visit(
        [&](const auto& kind) { return QuantizeGptq(w, kind, hessian, options); }, target));
  }

  void Compare(const Subject& subject, const std::vector<const char*>& schemes,
               const std::vector<Format>& formats) const {
    const Subject rotated = Edited(subject, Must(Rotate(subject.source)));
    for (const char* name : schemes) Weights(subject, rotated, *ParseScheme(name), name);
    for (const Format format : formats) {
      Weights(subject, rotated, format, GetFormatInfo(format).name);
    }
  }

  void Weights(const Subject& subject, const Subject& rotated, const QuantizationTarget& target,
               const char* title) const {
    std::fprintf(stderr, "%s\n", title);
    std::printf("\n### %s\n\n| method | output error | perplexity | mean KL |\n|---|---|---|---|\n",
                title);
    const Scheme* scheme = std::get_if<Scheme>(&target);
    const Quantizer rtn = [&](TensorView w, const LayerInputs&) { return Nearest(w, target, {}); };
    const Quantizer weighed = [&](TensorView w, const LayerInputs& inputs) {
      const std::vector<float> squares = inputs.hessian.MeanSquares();
      QuantizeOptions options;
      options.importance = squares;
      return Nearest(w, target, options);
    };
    const Quantizer gptq = [&](TensorView w, const LayerInputs& inputs) {
      return Gptq(w, target, inputs.hessian, false);
    };
    Row("nearest", subject, rtn);
    Row("weighed", subject, weighed);
    if (scheme != nullptr && !scheme->symmetric) {
      Scheme real = *scheme;
      real.zero_dtype = DType::kF16;
      Row("nearest, f16 zeros", subject,
          [&](TensorView w, const LayerInputs&) { return Nearest(w, real, {}); });
      Row("HQQ, f16 zeros", subject, [&](TensorView w, const LayerInputs&) {
        QuantizeOptions options;
        options.scales = ScaleChoice::kHalfQuadratic;
        return Nearest(w, real, options);
      });
    }
    Row("GPTQ", subject, gptq);
    if (scheme != nullptr) {
      Row("GPTQ, act-order", subject, [&](TensorView w, const LayerInputs& inputs) {
        return Gptq(w, target, inputs.hessian, true);
      });
    }
    AwqOptions options;
    options.target = [&](std::string_view) { return target; };
    options.inputs = inputs_;
    options.steps = 10;
    const Subject awq =
        Edited(subject, Must(Awq(subject.source, subject.model, calibration_, options)));
    Row("AWQ", awq, rtn);
    Row("AWQ, weighed", awq, weighed);
    Row("rotated", rotated, rtn);
    Row("rotated, GPTQ", rotated, gptq);
  }

  // --- int8 weights and activations ---

  // Mean over the matrices of the relative error of the product with the evaluation text's samples.
  double ProductError(const Subject& subject,
                      const std::function<std::vector<int32_t>(const LayerInputs&)>& outliers,
                      size_t* columns) const {
    double sum = 0;
    const std::vector<std::string> names = MatrixNames(subject.model);
    for (const std::string& name : names) {
      const QuantizedTensor matrix = Must(subject.model.Matrix(name));
      const LayerInputs& seen = subject.evaluation.at(InputsOf(name));
      const int64_t rows = matrix.rows(), cols = matrix.cols(), tokens = seen.sample_count();
      const TensorView x = ViewOf(seen.samples.data(), tokens, cols);
      std::vector<float> exact(static_cast<size_t>(tokens * rows)), y(exact.size());
      MatmulOptions options;
      options.precision = Precision::kF32;
      options.parallel = parallel_;
      Must(Matmul(x, matrix, ViewOf(exact.data(), tokens, rows), options));
      const std::vector<int32_t> apart = outliers(subject.calibration.at(InputsOf(name)));
      *columns += apart.size();
      const std::vector<float> w = Decoded(matrix, parallel_);
      const SplitInt8 split = Must(SplitOutliers(ViewOf(w.data(), rows, cols), apart, parallel_));
      Must(Matmul(x, split, ViewOf(y.data(), tokens, rows), options));
      double error = 0, energy = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        const double e = static_cast<double>(y[i]) - exact[i];
        error += e * e;
        energy += static_cast<double>(exact[i]) * exact[i];
      }
      sum += error / energy;
    }
    return sum / static_cast<double>(names.size());
  }

  static void PrintInt8Head() {
    std::printf(
        "\n## int8 weights by row, int8 inputs by token\n\n"
        "*Output error*: of the products themselves, on samples of the evaluation text. Perplexity "
        "and KL: the layers' matrices multiplied in integers. LLM.int8() keeps columns in f16 "
        "whose "
        "inputs reached the threshold on the calibration text; the runner does not run it.\n");
  }

  // The model with its matrices in int8, run in integers.
  PerplexityResult RunInt8(const Subject& subject) const {
    Matrices matrices;
    for (const std::string& name : MatrixNames(subject.model)) {
      const QuantizedTensor matrix = Must(subject.model.Matrix(name));
      const std::vector<float> w = Decoded(matrix, parallel_);
      matrices.emplace(name, Nearest(ViewOf(w.data(), matrix.rows(), matrix.cols()),
                                     *ParseScheme("int8 sym channel"), {}));
    }
    PerplexityOptions options = Options();
    options.runner.precision = Precision::kInt8PerRow;
    options.reference_logits = logits_;
    return Must(Perplexity(Must(subject.model.With(std::move(matrices))), evaluation_, options));
  }

  void Activations(const char* title, const Subject& subject) const {
    std::fprintf(stderr, "%s\n", title);
    std::printf(
        "\n### %s\n\n| method | output error | columns in f16, of a matrix | perplexity | mean KL "
        "|\n|---|---|---|---|---|\n",
        title);
    const auto none = [](const LayerInputs&) { return std::vector<int32_t>(); };
    const auto row = [&](const char* method, const Subject& s, const auto& outliers, bool run) {
      size_t columns = 0;
      const double error = ProductError(s, outliers, &columns);
      std::printf("| %s | %.3g | %.1f |", method, error,
                  static_cast<double>(columns) / static_cast<double>(MatrixNames(s.model).size()));
      if (run) {
        const PerplexityResult result = RunInt8(s);
        std::printf(" %.3f | %.5f |\n", result.perplexity.value, result.divergence.kl.value);
      } else {
        std::printf(" | |\n");
      }
      std::fflush(stdout);
    };
    row("nearest", subject, none, true);
    for (const float threshold : {kLlmInt8Threshold, 4 * kLlmInt8Threshold}) {
      row(
          threshold == kLlmInt8Threshold ? "LLM.int8(), threshold 6" : "LLM.int8(), threshold 24",
          subject,
          [&](const LayerInputs& inputs) { return OutlierColumns(inputs.maxima, threshold); },
          false);
    }
    SmoothQuantOptions options;
    options.inputs = inputs_;
    options.search = options.between_matrices = false;
    row("SmoothQuant, alpha 0.5",
        Edited(subject, Must(SmoothQuant(subject.source, subject.model, calibration_, options))),
        none, true);
    options.search = options.between_matrices = true;
    row("SmoothQuant, alpha searched, all pairs",
        Edited(subject, Must(SmoothQuant(subject.source, subject.model, calibration_, options))),
        none, true);
  }

  ThreadPool pool_{2};
  ParallelFor parallel_;
  LayerInputsOptions inputs_;
  ModelSource source_;
  Model model_;
  CalibrationText calibration_;
  std::vector<int32_t> evaluation_;
  std::string logits_;
};

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const std::string part = argc == 3 ? argv[2] : "all";
  if (argc < 2 || argc > 3 ||
      (part != "all" && part != "weights" && part != "few-bits" && part != "int8")) {
    std::fprintf(stderr, "usage: %s MODEL_FOLDER [weights|few-bits|int8]\n", argv[0]);
    return 2;
  }
  nibble::Report(argv[1]).Print(part);
  return 0;
}
