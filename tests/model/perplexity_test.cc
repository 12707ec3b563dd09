#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "nibble/evaluate.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

std::string Read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class PerplexityTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<Model> model = Model::Load(kFolder);
    ASSERT_TRUE(model.ok()) << model.status().message();
    model_.emplace(*std::move(model));
    TokenizeOptions plain;
    plain.add_special = false;
    const auto ids = model_->tokenizer().Encode(Read(kFolder + "/evaluation.txt"), plain);
    ASSERT_TRUE(ids.ok());
    tokens_ = *ids;
    options_.context = 256;
    options_.runner.precision = Precision::kF32;
    options_.runner.parallel = pool_.parallel_for();
  }

  ThreadPool pool_{2};
  std::optional<Model> model_;
  std::vector<int32_t> tokens_;
  PerplexityOptions options_;
};

TEST_F(PerplexityTest, EqualsTheOneOfTheReferenceImplementation) {
  const nlohmann::json expected = nlohmann::json::parse(
      Read(kFolder + "/expected.json"))["perplexity_windows_of_255_after_bos"]["eval_free"];
  EXPECT_EQ(static_cast<int64_t>(tokens_.size()) / 255, expected["windows"].get<int64_t>());
  options_.scoring = Scoring::kAll;
  const auto result = Perplexity(*model_, tokens_, options_);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->windows, expected["windows"].get<int64_t>());
  EXPECT_EQ(result->scored_tokens, result->windows * 255);
  // The cache holds keys and values in f16: its 11 bits leave perplexity within a few parts in
  // 10^5.
  EXPECT_NEAR(result->perplexity.value / expected["perplexity"].get<double>(), 1.0, 1e-4);
  EXPECT_FALSE(result->has_divergence);
}

TEST_F(PerplexityTest, AModelDoesNotDivergeFromItself) {
  options_.max_windows = 3;
  options_.reference = &*model_;
  const auto result = Perplexity(*model_, tokens_, options_);
  ASSERT_TRUE(result.ok());
  ASSERT_TRUE(result->has_divergence);
  EXPECT_EQ(result->scored_tokens, 3 * 127);
  EXPECT_EQ(result->divergence.kl.value, 0);
  EXPECT_EQ(result->divergence.top1_agreement.value, 1);
  EXPECT_DOUBLE_EQ(result->divergence.reference_perplexity.value, result->perplexity.value);
}

TEST_F(PerplexityTest, SavedLogitsServeAsTheModelDoes) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/reference.logits";
  options_.max_windows = 4;
  ASSERT_TRUE(SaveReferenceLogits(*model_, tokens_, path, options_).ok());
  // A coarser cache makes another model of it.
  options_.cache.keys = options_.cache.values = CacheType::kQ4_0;
  options_.reference_logits = path;
  const auto from_file = Perplexity(*model_, tokens_, options_);
  ASSERT_TRUE(from_file.ok()) << from_file.status().message();
  EXPECT_GT(from_file->divergence.kl.value, 1e-4);
  EXPECT_LE(from_file->divergence.kl_median, from_file->divergence.kl_p99);
  EXPECT_LE(from_file->divergence.kl_p99, from_file->divergence.kl_max);
  options_.cache = {};
  const auto itself = Perplexity(*model_, tokens_, options_);
  ASSERT_TRUE(itself.ok());
  // 24 nats in 65,535 steps: each log-probability is off by at most 2e-4, KL by far less.
  EXPECT_LT(std::abs(itself->divergence.kl.value), 2e-5);
  EXPECT_NEAR(itself->divergence.reference_perplexity.value / itself->perplexity.value, 1, 2e-4);
  options_.context = 128;
  EXPECT_NE(Perplexity(*model_, tokens_, options_).status().message().find("another text"),
            std::string::npos);
  std::ofstream(path, std::ios::app) << "x";
  options_.context = 256;
  EXPECT_EQ(Perplexity(*model_, tokens_, options_).status().code(), StatusCode::kCorrupt);
}

TEST_F(PerplexityTest, RefusesAShortTextAndAWindowBeyondTheContext) {
  EXPECT_FALSE(Perplexity(*model_, std::span(tokens_).first(255), options_).ok());
  options_.context = 257;
  EXPECT_FALSE(Perplexity(*model_, tokens_, options_).ok());
}

TEST_F(PerplexityTest, ProgressCanStopIt) {
  options_.max_windows = 20;
  options_.progress = [](int64_t done, int64_t windows, double perplexity) {
    EXPECT_EQ(windows, 20);
    EXPECT_GT(perplexity, 1);
    return done < 8;
  };
  EXPECT_EQ(Perplexity(*model_, tokens_, options_).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace nibble
