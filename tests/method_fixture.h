// The reference model, its texts, and what a changed model costs on text that calibration has not
// seen.
#ifndef NIBBLE_TESTS_METHOD_FIXTURE_H_
#define NIBBLE_TESTS_METHOD_FIXTURE_H_

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "nibble/awq.h"
#include "nibble/equivalent.h"
#include "nibble/evaluate.h"
#include "nibble/layer_inputs.h"
#include "nibble/model.h"
#include "nibble/quantize.h"
#include "tests/temporary_folder.h"

namespace nibble {

using Matrices = std::map<std::string, QuantizedTensor, std::less<>>;

class MethodTest : public testing::Test {
 protected:
  static constexpr int64_t kContext = 128;

  void SetUp() override {
    const std::string folder = std::string(NIBBLE_EXAMPLES) + "/reference-model";
    Result<ModelSource> source = ModelSource::Open(folder);
    ASSERT_TRUE(source.ok()) << source.status().message();
    source_.emplace(*std::move(source));
    Result<Model> model = Model::Load(*source_);
    ASSERT_TRUE(model.ok()) << model.status().message();
    model_.emplace(*std::move(model));
    const auto calibration =
        CutCalibrationText(*model_, ReadWholeFile(folder + "/calibration.txt"), kContext, 16);
    ASSERT_TRUE(calibration.ok()) << calibration.status().message();
    calibration_ = *calibration;
    evaluation_ = Tokens(folder + "/evaluation.txt", 6);
    inputs_.parallel = pool_.parallel_for();
  }

  std::vector<int32_t> Tokens(const std::string& path, int64_t windows) const {
    const auto tokens = model_->tokenizer().Encode(ReadWholeFile(path));
    EXPECT_TRUE(tokens.ok());
    const auto count = static_cast<ptrdiff_t>(windows * kContext);
    return {tokens->begin(), tokens->begin() + count};
  }

  Model Loaded(const ModelSource& source) const {
    Result<Model> model = Model::Load(source);
    EXPECT_TRUE(model.ok()) << model.status().message();
    return *std::move(model);
  }

  ModelSource Edited(const ModelSource& source, ModelEdits edits) const {
    Result<ModelSource> edited = source.Edited(std::move(edits));
    EXPECT_TRUE(edited.ok()) << edited.status().message();
    return *std::move(edited);
  }

  // The logits of some tokens, f32.
  std::vector<float> Logits(const Model& model) const {
    RunnerOptions options;
    options.precision = Precision::kF32;
    options.parallel = inputs_.parallel;
    Runner runner(model, options);
    KvCache cache = *KvCache::Create(model.config());
    const SequenceInput input = {cache.AddSequence(), std::span(evaluation_).first(40), true};
    std::vector<float> hidden;
    EXPECT_TRUE(runner.Forward(cache, {&input, 1}, &hidden).ok());
    std::vector<float> logits(static_cast<size_t>(40 * model.config().vocab_size));
    EXPECT_TRUE(runner
                    .Logits(ViewOf(std::as_const(hidden).data(), 40, model.config().width),
                            ViewOf(logits.data(), 40, model.config().vocab_size))
                    .ok());
    return logits;
  }

  static double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - b[i]));
    }
    return largest;
  }

  // The same function with large inputs in some channels of every norm, as language models of
  // billions of weights have them.
  ModelSource WithOutliers(float factor) const {
    const auto pairs = ChannelPairs(*source_);
    EXPECT_TRUE(pairs.ok());
    ModelEdits edits;
    for (const ChannelPair& pair : *pairs) {
      if (pair.producer.find("norm") == std::string::npos) continue;
      std::vector<float> factors(static_cast<size_t>(pair.channels), 1.0f);
      for (size_t i = 7; i < factors.size(); i += 61) factors[i] = 1.0f / factor;
      EXPECT_TRUE(MoveFactors(pair, factors, edits).ok());
    }
    return Edited(*source_, std::move(edits));
  }

  // Calls function(name, weights) for the matrices of all layers.
  void ForMatrices(const Model& model,
                   const std::function<void(const std::string&, const Tensor&)>& function) const {
    for (int64_t layer = 0; layer < model.config().layers; ++layer) {
      for (const char* part :
           {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
        const std::string name = "blk." + std::to_string(layer) + "." + part + ".weight";
        const Result<QuantizedTensor> matrix = model.Matrix(name);
        ASSERT_TRUE(matrix.ok()) << matrix.status().message();
        Result<Tensor> weights = Tensor::Allocate(DType::kF32, matrix->rows(), matrix->cols());
        ASSERT_TRUE(weights.ok());
        ASSERT_TRUE(Dequantize(*matrix, weights->mutable_view(), inputs_.parallel).ok());
        function(name, *weights);
      }
    }
  }

  // The model with its layers' matrices rounded to `target` by `quantize`.
  using Quantizer = std::function<Result<QuantizedTensor>(const std::string& name, TensorView w)>;
  Model Quantized(const Model& model, const Quantizer& quantize) const {
    Matrices matrices;
    ForMatrices(model, [&](const std::string& name, const Tensor& weights) {
      const Result<QuantizedTensor> q = quantize(name, weights.view());
      ASSERT_TRUE(q.ok()) << name << ": " << q.status().message();
      // Decoded once, for speed.
      Result<QuantizedTensor> f32 = QuantizedTensor::Allocate(Format::kF32, q->rows(), q->cols());
      ASSERT_TRUE(f32.ok());
      float* out = reinterpret_cast<float*>(f32->plane(Plane::kCodes).data());
      ASSERT_TRUE(Dequantize(*q, ViewOf(out, q->rows(), q->cols()), inputs_.parallel).ok());
      matrices.emplace(name, *std::move(f32));
    });
    Result<Model> changed = model.With(std::move(matrices));
    EXPECT_TRUE(changed.ok()) << changed.status().message();
    return *std::move(changed);
  }
  Model Rounded(const Model& model, const QuantizationTarget& target) const {
    return Quantized(model, [&](const std::string&, TensorView w) {
      QuantizeOptions options;
      options.parallel = inputs_.parallel;
      return std::visit([&](const auto& kind) { return Quantize(w, kind, options); }, target);
    });
  }

  // Against the model as it came.
  Divergence Compare(const Model& model) const {
    PerplexityOptions options;
    options.context = kContext;
    options.runner.precision = Precision::kF32;
    options.runner.parallel = inputs_.parallel;
    options.reference = &*model_;
    const Result<PerplexityResult> result = Perplexity(model, evaluation_, options);
    EXPECT_TRUE(result.ok()) << result.status().message();
    return result->divergence;
  }

  ThreadPool pool_{2};
  std::optional<ModelSource> source_;
  std::optional<Model> model_;
  CalibrationText calibration_;
  std::vector<int32_t> evaluation_;
  LayerInputsOptions inputs_;
};

}  // namespace nibble

#endif  // NIBBLE_TESTS_METHOD_FIXTURE_H_
