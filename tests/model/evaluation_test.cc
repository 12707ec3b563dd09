// Whole evaluations of the reference model against quantized ones.
#include "nibble/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "nibble/gguf.h"
#include "nibble/quantize_model.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

class EvaluationTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    for (const char* type : {"Q8_0", "Q2_K"}) {
      const Result<ModelSource> source = ModelSource::Open(kFolder);
      ASSERT_TRUE(source.ok());
      ModelRecipe recipe;
      recipe.type = type;
      const Result<ModelPlan> plan = PlanModel(*source, recipe);
      ASSERT_TRUE(plan.ok());
      ASSERT_TRUE(WriteModel(*source, *plan, Path(type)).ok());
    }
  }
  static void TearDownTestSuite() { delete folder_; }
  static std::string Path(const std::string& type) { return *folder_ / (type + ".gguf"); }

  EvaluateOptions Options() {
    EvaluateOptions options;
    options.text = ReadWholeFile(kFolder + "/evaluation.txt");
    options.perplexity.context = 128;
    options.perplexity.max_windows = 12;
    options.runner.precision = Precision::kF32;
    options.runner.parallel = pool_.parallel_for();
    options.speed.prompt_tokens = 32;
    options.speed.decode_tokens = 4;
    options.speed.runs = 2;
    return options;
  }

  static const TemporaryFolder* folder_;
  ThreadPool pool_{2};
};

const TemporaryFolder* EvaluationTest::folder_ = nullptr;

TEST_F(EvaluationTest, MeasuresEveryModelBesideTheReference) {
  EvaluateOptions options = Options();
  const auto tasks = LoadTasks(std::string(NIBBLE_EXAMPLES) + "/tasks/basics.jsonl");
  ASSERT_TRUE(tasks.ok());
  options.tasks = {(*tasks)[1], (*tasks)[4]};
  options.tasks[0].items.resize(10);
  options.tasks[1].items.resize(3);
  double last = 0;
  options.progress = [&](const EvaluateProgress& progress) {
    EXPECT_GE(progress.fraction, last);
    EXPECT_LE(progress.fraction, 1);
    last = progress.fraction;
    return true;
  };
  const std::string models[] = {Path("Q8_0"), Path("Q2_K")};
  const auto evaluation = Evaluate(kFolder, models, options);
  ASSERT_TRUE(evaluation.ok()) << evaluation.status().message();
  EXPECT_GT(last, 0.9);
  ASSERT_EQ(evaluation->models.size(), 2u);
  const ModelEvaluation &f16 = evaluation->reference, &q8 = evaluation->models[0],
                        &q2 = evaluation->models[1];
  EXPECT_EQ(f16.weights, 7344384u);
  EXPECT_NEAR(f16.bits_per_weight, 16, 0.02);
  EXPECT_NEAR(q8.bits_per_weight, 8.5, 0.05);
  EXPECT_LT(q2.file_bytes, q8.file_bytes);

  // One pass over all models gives what a pass for each gives.
  const Result<Model> reference = Model::Load(kFolder), model = Model::Load(Path("Q2_K"));
  ASSERT_TRUE(reference.ok() && model.ok());
  PerplexityOptions alone = options.perplexity;
  alone.runner = options.runner;
  alone.reference = &*reference;
  const auto tokens = reference->tokenizer().Encode(options.text);
  const auto separate = Perplexity(*model, *tokens, alone);
  ASSERT_TRUE(separate.ok());
  EXPECT_EQ(q2.perplexity.perplexity.value, separate->perplexity.value);
  EXPECT_EQ(q2.perplexity.divergence.kl.value, separate->divergence.kl.value);
  EXPECT_EQ(f16.perplexity.perplexity.value, separate->divergence.reference_perplexity.value);
  EXPECT_GT(q2.perplexity.divergence.kl.value, 10 * q8.perplexity.divergence.kl.value);
  EXPECT_GT(q8.perplexity.divergence.top1_agreement.value,
            q2.perplexity.divergence.top1_agreement.value);

  ASSERT_EQ(q2.tensors.size(), q8.tensors.size());
  ASSERT_EQ(q2.tensors.size(), 1 + 8 * 7u);  // the embedding and seven matrices of each layer
  for (size_t i = 0; i < q2.tensors.size(); ++i) {
    EXPECT_GT(q8.tensors[i].error.SnrDb(), q2.tensors[i].error.SnrDb() + 5) << q2.tensors[i].name;
  }
  for (const ModelEvaluation* each : {&f16, &q8, &q2}) {
    EXPECT_GT(each->speed.prefill_tokens_per_second, 0);
    EXPECT_GT(each->speed.decode_tokens_per_second, 0);
    ASSERT_EQ(each->tasks.size(), 2u);
    EXPECT_EQ(each->tasks[0].correct.size(), 10u);
    EXPECT_EQ(each->tasks[1].correct.size(), 3u);
    if (each->peak_memory_bytes > 0) {  // the weights were all read
      EXPECT_GT(each->peak_memory_bytes, each->file_bytes * 9 / 10);
    }
  }
  EXPECT_TRUE(f16.tensors.empty() && f16.criteria.empty());
  ASSERT_EQ(q2.criteria.size(), 3u);
  EXPECT_DOUBLE_EQ(q2.criteria[0].value.value,
                   q2.perplexity.perplexity.value - f16.perplexity.perplexity.value);
}

TEST_F(EvaluationTest, DecodingTheSameTwiceGivesTheSameTokens) {
  const Result<Model> model = Model::Load(Path("Q8_0"));
  ASSERT_TRUE(model.ok());
  SpeedOptions options;
  options.prompt_tokens = 16;
  options.decode_tokens = 5;
  options.sequences = 3;
  options.runs = 2;
  int reported = 0;
  options.progress = [&](int done, int runs) {
    EXPECT_EQ(done, ++reported);
    EXPECT_EQ(runs, 3);
    return true;
  };
  const auto speed = MeasureSpeed(*model, options);
  ASSERT_TRUE(speed.ok()) << speed.status().message();
  EXPECT_EQ(reported, 3);
  ASSERT_EQ(speed->runs.size(), 2u);
  EXPECT_EQ(speed->runs[0].step_seconds.size(), 5u);
  EXPECT_EQ(speed->runs[0].tokens.size(), 3 * 6u);
  EXPECT_EQ(speed->runs[0].tokens, speed->runs[1].tokens);
  options.prompt_tokens = 252;
  EXPECT_NE(MeasureSpeed(*model, options).status().message().find("context of 256"),
            std::string::npos);
  options.prompt_tokens = 0;
  EXPECT_FALSE(MeasureSpeed(*model, options).ok());
}

TEST(Quantile, Interpolates) {
  EXPECT_EQ(Quantile({}, 0.5), 0);
  EXPECT_EQ(Quantile({3}, 0.99), 3);
  EXPECT_DOUBLE_EQ(Quantile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Quantile({4, 1, 3, 2}, 1), 4);
}

TEST(Judge, ComparesEachFigureWithItsLimit) {
  ModelEvaluation reference, model;
  reference.tasks = {{"a", TaskKind::kMultipleChoice, std::vector<bool>(20, true), {1, 0}}};
  model.tasks = reference.tasks;
  model.tasks[0].correct[3] = false;  // exactly 5 %
  model.perplexity.has_divergence = true;
  model.perplexity.perplexity.value = 11;
  model.perplexity.divergence.reference_perplexity.value = 10;
  model.perplexity.divergence.log_ratio = {std::log(1.1), 0.01};
  Thresholds thresholds;
  model.criteria = Judge(model, reference, thresholds);
  ASSERT_EQ(model.criteria.size(), 2u);
  EXPECT_TRUE(model.passed());  // a limit is what may be reached
  EXPECT_DOUBLE_EQ(model.criteria[0].value.value, 1);
  EXPECT_NEAR(model.criteria[0].value.error, 10 * 1.1 * 0.01, 1e-12);
  thresholds.perplexity_share = 0.099;
  model.criteria = Judge(model, reference, thresholds);
  ASSERT_EQ(model.criteria.size(), 3u);
  EXPECT_FALSE(model.criteria[1].passed());
  EXPECT_FALSE(model.passed());
  thresholds.perplexity_share = 0.2;
  thresholds.task_drop = 0.04;
  model.criteria = Judge(model, reference, thresholds);
  EXPECT_EQ(model.criteria[2].task, "a");
  EXPECT_FALSE(model.criteria[2].passed());
  thresholds.task_drop = 0.05;
  model.perplexity.perplexity.value = 11.01;
  EXPECT_FALSE(Judge(model, reference, thresholds)[0].passed());
}

TEST_F(EvaluationTest, RefusesAnotherVocabularyAndWhatIsTooLong) {
  // The same model, with one token renamed.
  const Result<GgufFile> file = GgufFile::Open(Path("Q2_K"));
  ASSERT_TRUE(file.ok());
  GgufMetadata metadata = file->metadata();
  auto tokens = std::get<std::vector<std::string>>(*metadata.Find("tokenizer.ggml.tokens"));
  tokens[1000] = "otherwise";
  metadata.Set("tokenizer.ggml.tokens", tokens);
  std::vector<GgufTensorInfo> infos(file->tensors().begin(), file->tensors().end());
  const std::string other = *folder_ / "other.gguf";
  Result<GgufWriter> writer = GgufWriter::Create(other, metadata, infos);
  ASSERT_TRUE(writer.ok());
  for (const GgufTensor& tensor : file->tensors()) ASSERT_TRUE(writer->Append(tensor.data).ok());
  ASSERT_TRUE(writer->Finish().ok());

  EvaluateOptions options = Options();
  options.progress = [](const EvaluateProgress&) {
    ADD_FAILURE() << "refused before the work";
    return true;
  };
  const auto message = [&](const std::string& model) {
    return Evaluate(kFolder, {&model, 1}, options).status().message();
  };
  EXPECT_NE(message(other).find("other.gguf: its vocabulary is not the reference's: token 1000"),
            std::string::npos)
      << message(other);
  EXPECT_NE(message(*folder_ / "none.gguf").find("none.gguf"), std::string::npos);
  options.perplexity.context = 257;
  EXPECT_NE(message(Path("Q8_0")).find("windows of 257"), std::string::npos);
  options.perplexity.context = 0;
  options.text = "Too short.";
  EXPECT_NE(message(Path("Q8_0")).find("windows of 256"), std::string::npos);
  EXPECT_FALSE(Evaluate(kFolder, {}, options).ok());
}

TEST_F(EvaluationTest, ProgressCanStopIt) {
  EvaluateOptions options = Options();
  options.progress = [](const EvaluateProgress& progress) { return progress.step != "perplexity"; };
  const std::string model = Path("Q8_0");
  EXPECT_EQ(Evaluate(kFolder, {&model, 1}, options).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace nibble
