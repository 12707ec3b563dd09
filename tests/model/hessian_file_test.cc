// Files of Hessians: written, read, merged, damaged; a model quantized from one.
#include "nibble/hessian_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/safetensors.h"
#include "tests/method_fixture.h"
#include "tests/synthetic_model.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

// Of `tokens` made-up inputs.
Hessian MakeHessian(int64_t cols, int64_t tokens, uint32_t seed) {
  std::vector<float> x(static_cast<size_t>(cols * tokens));
  for (float& v : x) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(seed) >> 24) / 16.0f;  // sums are exact
  }
  Hessian hessian(cols);
  EXPECT_TRUE(hessian.Add(ViewOf(std::as_const(x).data(), tokens, cols)).ok());
  return hessian;
}

std::vector<SharedInputs> TwoInputs() { return {{{"a.q", "a.v", "a.k"}, 5}, {{"a.down"}, 7}}; }

Status WriteFile(const std::string& path, uint32_t seed) {
  const std::vector<CalibrationNote> texts = {{"text \"" + std::to_string(seed), "hash", 64, 3}};
  auto writer = HessianWriter::Create(path, TwoInputs(), texts);
  if (!writer.ok()) return writer.status();
  NIBBLE_RETURN_IF_ERROR(writer->Append(MakeHessian(5, 11, seed)));
  NIBBLE_RETURN_IF_ERROR(writer->Append(MakeHessian(7, 12, seed + 1)));
  return writer->Finish();
}

TEST(HessianFile, ComesBackToTheBit) {
  TemporaryFolder folder;
  const std::string path = folder / "h.safetensors";
  ASSERT_TRUE(WriteFile(path, 1).ok());
  const auto file = HessianFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_EQ(file->texts().size(), 1u);
  EXPECT_EQ(file->texts()[0].text, "text \"1");
  EXPECT_EQ(file->texts()[0].context, 64);
  EXPECT_EQ(file->texts()[0].windows, 3);
  EXPECT_EQ(*HessianWriter::FileBytes(TwoInputs(), file->texts()),
            std::filesystem::file_size(path));
  for (const char* name : {"a.q", "a.k", "a.v"}) {
    const SharedInputs* inputs = file->Find(name);
    ASSERT_NE(inputs, nullptr) << name;
    EXPECT_EQ(inputs->matrices, (std::vector<std::string>{"a.q", "a.k", "a.v"}));
    const auto read = file->Read(*inputs);
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read->tokens(), 11);
    EXPECT_EQ(read->sums(), MakeHessian(5, 11, 1).sums());
  }
  EXPECT_EQ(file->Read(*file->Find("a.down"))->sums(), MakeHessian(7, 12, 2).sums());
  EXPECT_EQ(file->Find("a"), nullptr);
}

// The layout that the header documents, taken apart by its words alone.
TEST(HessianFile, IsTheDocumentedTriangle) {
  TemporaryFolder folder;
  ASSERT_TRUE(WriteFile(folder / "h", 3).ok());
  const auto raw = SafetensorsFile::Open(folder / "h");
  ASSERT_TRUE(raw.ok());
  const SafetensorsTensor* sums = raw->Find("a.down.hessian");
  ASSERT_NE(sums, nullptr);
  EXPECT_EQ(sums->shape, std::vector<int64_t>{28});
  const Hessian expected = MakeHessian(7, 12, 4);
  size_t at = 0;
  for (size_t i = 0; i < 7; ++i) {
    for (size_t j = i; j < 7; ++j, ++at) {
      float value;
      std::memcpy(&value, sums->data.data() + 4 * at, 4);
      EXPECT_EQ(value, expected.sums()[7 * i + j]) << i << " " << j;
    }
  }
  int64_t tokens;
  std::memcpy(&tokens, raw->Find("a.down.tokens")->data.data(), 8);
  EXPECT_EQ(tokens, 12);
  EXPECT_EQ(raw->metadata().at("shared"), R"({"a.k":"a.q","a.v":"a.q"})");
}

TEST(HessianFile, MergesSumsAndTokens) {
  TemporaryFolder folder;
  std::vector<HessianFile> files;
  for (const uint32_t seed : {1u, 9u}) {
    const std::string path = folder / std::to_string(seed);
    ASSERT_TRUE(WriteFile(path, seed).ok());
    files.push_back(*HessianFile::Open(path));
  }
  const auto inputs = MergedInputs(files);
  ASSERT_TRUE(inputs.ok()) << inputs.status().message();
  ASSERT_EQ(inputs->size(), 2u);
  const auto sum = MergedHessian(files, inputs->front());
  ASSERT_TRUE(sum.ok());
  Hessian expected = MakeHessian(5, 11, 1);
  ASSERT_TRUE(expected.Merge(MakeHessian(5, 11, 9)).ok());
  EXPECT_EQ(sum->tokens(), 22);
  EXPECT_EQ(sum->sums(), expected.sums());

  // Other matrices share the inputs, or there are more of them.
  const auto with = [&](std::vector<SharedInputs> other) {
    const std::string path = folder / "other";
    auto writer = HessianWriter::Create(path, other, {});
    EXPECT_TRUE(writer.ok());
    for (const SharedInputs& shared : other) {
      EXPECT_TRUE(writer->Append(MakeHessian(shared.cols, 1, 1)).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    const std::vector<HessianFile> both = {files[0], *HessianFile::Open(path)};
    return MergedInputs(both);
  };
  EXPECT_EQ(with({{{"a.q", "a.k"}, 5}}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(with({{{"a.v"}, 5}}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(with({{{"a.down"}, 8}}).status().code(), StatusCode::kInvalidArgument);
  const auto more = with({{{"b.down"}, 8}});
  ASSERT_TRUE(more.ok());
  EXPECT_EQ(more->size(), 3u);
}

TEST(HessianFile, WriterRefusesWhatDoesNotFit) {
  TemporaryFolder folder;
  const std::string path = folder / "h";
  EXPECT_FALSE(HessianWriter::Create(path, {}, {}).ok());
  EXPECT_FALSE(HessianWriter::Create(path, {{{}, 5}}, {}).ok());
  EXPECT_FALSE(HessianWriter::Create(path, {{{"a"}, 0}}, {}).ok());
  EXPECT_FALSE(HessianWriter::Create(path, {{{"a", "b"}, 5}, {{"b"}, 5}}, {}).ok());
  {
    auto writer = HessianWriter::Create(path, TwoInputs(), {});
    ASSERT_TRUE(writer.ok());
    EXPECT_FALSE(writer->Append(MakeHessian(6, 1, 1)).ok());
    ASSERT_TRUE(writer->Append(MakeHessian(5, 1, 1)).ok());
    EXPECT_FALSE(writer->Finish().ok());  // one is missing
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

// A file of plain safetensors, with what is asked for left out or changed.
class Damaged {
 public:
  std::vector<SafetensorsInfo> tensors = {{"a.hessian", DType::kF32, {6}},
                                          {"a.tokens", DType::kI64, {1}}};
  std::map<std::string, std::string> metadata = {
      {"nibble.hessians", "1"}, {"texts", "[]"}, {"shared", "{}"}};
  std::vector<float> sums = {4, 1, 2, 5, 3, 6};
  int64_t tokens = 3;

  // The status of opening the file and reading all of it.
  Status Try() const {
    TemporaryFolder folder;
    const std::string path = folder / "h.safetensors";
    auto writer = SafetensorsWriter::Create(path, tensors, {.metadata = metadata});
    EXPECT_TRUE(writer.ok()) << writer.status().message();
    for (const SafetensorsInfo& tensor : tensors) {
      std::vector<std::byte> bytes(static_cast<size_t>(tensor.elements()) *
                                   DTypeBytes(tensor.dtype));
      const bool is_sums = tensor.dtype == DType::kF32;
      std::memcpy(
          bytes.data(),
          is_sums ? static_cast<const void*>(sums.data()) : static_cast<const void*>(&tokens),
          std::min(bytes.size(), is_sums ? sums.size() * 4 : size_t{8}));
      EXPECT_TRUE(writer->Append(bytes).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    const auto file = HessianFile::Open(path);
    if (!file.ok()) return file.status();
    for (const SharedInputs& inputs : file->inputs()) {
      const auto read = file->Read(inputs);
      if (!read.ok()) return read.status();
    }
    return OkStatus();
  }
};

TEST(HessianFile, RefusesDamage) {
  ASSERT_TRUE(Damaged().Try().ok()) << Damaged().Try().message();
  const auto code = [](const std::function<void(Damaged&)>& damage) {
    Damaged file;
    damage(file);
    return file.Try().code();
  };
  EXPECT_EQ(code([](Damaged& f) { f.metadata.erase("nibble.hessians"); }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Damaged& f) { f.metadata["nibble.hessians"] = "2"; }),
            StatusCode::kUnsupported);
  for (const char* texts :
       {"", "{}", "[1]", "[{\"text\":\"a\"}]", R"([{"text":1,"hash":"","context":1,"windows":1}])",
        R"([{"text":"a","hash":"","context":-1,"windows":1}])",
        R"([{"text":"a","hash":"","context":1,"windows":1e30}])"}) {
    EXPECT_EQ(code([&](Damaged& f) { f.metadata["texts"] = texts; }), StatusCode::kCorrupt)
        << texts;
  }
  for (const char* shared :
       {"", "[]", R"({"b":1})", R"({"b":"c"})", R"({"a":"a"})", R"({"b":"a","c":"b"})"}) {
    EXPECT_EQ(code([&](Damaged& f) { f.metadata["shared"] = shared; }), StatusCode::kCorrupt)
        << shared;
  }
  EXPECT_EQ(code([](Damaged& f) { f.tensors[0].shape = {5}; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tensors[0].shape = {0}; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tensors[0].shape = {2, 3}; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tensors[0].dtype = DType::kI32; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tensors[0].name = ".hessian"; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tensors[1].shape = {2}; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tensors.pop_back(); }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) {
              f.tensors.push_back({"b", DType::kF32, {1}});
            }),
            StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.sums[1] = std::nanf(""); }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.sums[3] = -5; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tokens = -1; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) { f.tokens = 0; }), StatusCode::kCorrupt);
  EXPECT_EQ(code([](Damaged& f) {
              f.sums.assign(6, 0.0f);
              f.tokens = 0;
            }),
            StatusCode::kOk);  // saw none
}

TEST(HessianFile, RefusesEveryTruncation) {
  TemporaryFolder folder;
  ASSERT_TRUE(WriteFile(folder / "h", 1).ok());
  const std::string whole = ReadWholeFile(folder / "h");
  for (size_t bytes = 0; bytes < whole.size(); bytes += 7) {
    WriteWholeFile(folder / "part", whole.substr(0, bytes));
    EXPECT_FALSE(HessianFile::Open(folder / "part").ok()) << bytes;
  }
}

class WithHessiansTest : public MethodTest {
 protected:
  std::string Gather(const std::string& name, const CalibrationText& text) {
    const std::string path = folder_ / name;
    const std::vector<CalibrationNote> notes = {text.Note("text")};
    auto writer = HessianWriter::Create(path, InputsOf(*model_), notes);
    EXPECT_TRUE(writer.ok());
    StatisticsOptions options;
    options.parallel = inputs_.parallel;
    const Status visited =
        VisitHessians(*model_, text, options,
                      [&](const SharedInputs&, const Hessian& h) { return writer->Append(h); });
    EXPECT_TRUE(visited.ok()) << visited.message();
    EXPECT_TRUE(writer->Finish().ok());
    return path;
  }

  ModelPlan Plan(const std::string& type) {
    ModelRecipe recipe;
    recipe.type = type;
    recipe.pure = true;
    recipe.tensor_types = {*ParseTensorTypeRule("token_embd.weight=f16")};
    auto plan = PlanModel(*source_, recipe);
    EXPECT_TRUE(plan.ok());
    return *std::move(plan);
  }

  TemporaryFolder folder_;
};

// The inputs that a plain run shows to an observer.
TEST_F(WithHessiansTest, LayerByLayerIsWhatTheRunnerSees) {
  const auto file = HessianFile::Open(Gather("h", calibration_));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->inputs().size(), static_cast<size_t>(4 * model_->config().layers + 1));
  const std::vector<std::string> names = {"blk.0.attn_k.weight", "blk.3.attn_output.weight",
                                          "blk.7.ffn_up.weight", "blk.7.ffn_down.weight"};
  size_t visited = 0;
  ASSERT_TRUE(VisitLayerInputs(*model_, calibration_, names, inputs_,
                               [&](std::string_view name, const LayerInputs& seen) -> Status {
                                 const SharedInputs* inputs = file->Find(name);
                                 EXPECT_NE(inputs, nullptr);
                                 const auto hessian = file->Read(*inputs);
                                 EXPECT_TRUE(hessian.ok());
                                 EXPECT_EQ(hessian->tokens(), seen.hessian.tokens());
                                 double difference = 0, energy = 0;
                                 for (size_t i = 0; i < hessian->sums().size(); ++i) {
                                   const double a = hessian->sums()[i], b = seen.hessian.sums()[i];
                                   difference += (a - b) * (a - b);
                                   energy += b * b;
                                 }
                                 EXPECT_LT(difference, 1e-10 * energy) << name;
                                 ++visited;
                                 return OkStatus();
                               })
                  .ok());
  EXPECT_EQ(visited, names.size());
}

TEST_F(WithHessiansTest, QuantizesWithoutTheModelAndBeatsRounding) {
  const auto file = HessianFile::Open(Gather("h", calibration_));
  ASSERT_TRUE(file.ok());
  const ModelPlan plan = Plan("q3_K");
  LayerwiseOptions options;
  options.gptq.parallel = inputs_.parallel;
  const auto made = QuantizeWithHessians(*source_, plan, *file, options);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_EQ(made->tensors.size(), static_cast<size_t>(7 * model_->config().layers));
  // Each matrix is what QuantizeGptq makes of it.
  const std::string name = "blk.2.ffn_up.weight";
  const auto matrix = model_->Matrix(name);
  std::vector<float> weights(static_cast<size_t>(matrix->rows() * matrix->cols()));
  ASSERT_TRUE(Dequantize(*matrix, ViewOf(weights.data(), matrix->rows(), matrix->cols())).ok());
  const auto alone =
      QuantizeGptq(ViewOf(std::as_const(weights).data(), matrix->rows(), matrix->cols()),
                   Format::kQ3_K, *file->Read(*file->Find(name)), options.gptq);
  ASSERT_TRUE(alone.ok());
  EXPECT_TRUE(std::ranges::equal(alone->plane(Plane::kCodes).bytes(),
                                 made->tensors.at(name).plane(Plane::kCodes).bytes()));

  const Model fed = *model_->With(made->tensors);
  const double before = Compare(Rounded(*model_, Format::kQ3_K)).kl.value;
  const double after = Compare(fed).kl.value;
  RecordProperty("rounded", std::to_string(before));
  RecordProperty("fed", std::to_string(after));
  EXPECT_LT(after, 0.6 * before);
}

// Experts that an engine of its own has fed: each is fitted to the tokens that it saw.
TEST(WithHessians, ExpertsHaveInputsOfTheirOwn) {
  TemporaryFolder folder;
  const std::string gate = "blk.0.ffn_gate_exps.weight", up = "blk.0.ffn_up_exps.weight";
  constexpr int64_t kRows = 32, kCols = 256, kExperts = 3;
  WriteSyntheticModel(folder / "in.gguf", {{gate, {kCols, kRows, kExperts}, Format::kF32},
                                           {up, {kCols, kRows, kExperts}, Format::kF32}});
  const auto source = ModelSource::Open(folder / "in.gguf");
  ASSERT_TRUE(source.ok()) << source.status().message();
  ModelRecipe recipe;
  recipe.type = "q4_K";
  const auto plan = PlanModel(*source, recipe);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const auto write = [&](const std::string& name, int64_t experts, int64_t unseen) {
    std::vector<SharedInputs> inputs;
    for (int64_t e = 0; e < experts; ++e) {
      inputs.push_back({{ExpertName(gate, e), ExpertName(up, e)}, kCols});
    }
    auto writer = HessianWriter::Create(folder / name, inputs, {});
    EXPECT_TRUE(writer.ok());
    for (int64_t e = 0; e < experts; ++e) {
      EXPECT_TRUE(writer
                      ->Append(e == unseen ? Hessian(kCols)
                                           : MakeHessian(kCols, 300 + e, static_cast<uint32_t>(e)))
                      .ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    return *HessianFile::Open(folder / name);
  };
  const HessianFile all = write("all", kExperts, -1);
  EXPECT_EQ(all.inputs()[2].matrices[0], "blk.0.ffn_gate_exps.weight#2");
  const auto fed = QuantizeWithHessians(*source, *plan, all);
  ASSERT_TRUE(fed.ok()) << fed.status().message();
  EXPECT_EQ(fed->reports.size(), 2u * kExperts);
  EXPECT_EQ(fed->tensors.size(), 2u);

  // Expert by expert what QuantizeGptq makes, or nearest codes where none of its tokens is known.
  const auto expect = [&](const CalibratedTensors& made, const HessianFile& file) {
    for (const std::string& name : {gate, up}) {
      const std::vector<float> weights =
          SyntheticWeights({name, {kCols, kRows, kExperts}, Format::kF32});
      const auto bytes = made.tensors.at(name).plane(Plane::kCodes).bytes();
      for (int64_t e = 0; e < kExperts; ++e) {
        const TensorView view = ViewOf(weights.data() + e * kRows * kCols, kRows, kCols);
        const SharedInputs* inputs = file.Find(ExpertName(name, e));
        const bool seen = inputs != nullptr && file.Read(*inputs)->tokens() > 0;
        const auto alone = seen ? QuantizeGptq(view, Format::kQ4_K, *file.Read(*inputs))
                                : Quantize(view, Format::kQ4_K);
        ASSERT_TRUE(alone.ok());
        const size_t size = alone->bytes();
        EXPECT_TRUE(std::ranges::equal(alone->plane(Plane::kCodes).bytes(),
                                       bytes.subspan(static_cast<size_t>(e) * size, size)))
            << name << " " << e;
      }
    }
  };
  expect(*fed, all);

  const HessianFile few = write("few", 2, 1);
  const Status refused = QuantizeWithHessians(*source, *plan, few).status();
  EXPECT_NE(refused.message().find("lacks 2 matrices, the first: " + gate + "#2"),
            std::string::npos)
      << refused.message();
  const auto some = QuantizeWithHessians(*source, *plan, few, {}, /*allow_missing=*/true);
  ASSERT_TRUE(some.ok()) << some.status().message();
  expect(*some, few);
  EXPECT_EQ(std::ranges::count(some->reports, true, &MatrixReport::unseen), 4);
  const HessianFile unseen = write("unseen", kExperts, 1);
  EXPECT_NE(QuantizeWithHessians(*source, *plan, unseen).status().message().find("no token"),
            std::string::npos);
}

TEST_F(WithHessiansTest, SaysWhatIsMissing) {
  const std::string path = folder_ / "few";
  auto writer = HessianWriter::Create(
      path, {{{"blk.0.attn_q.weight"}, 256}, {{"blk.0.ffn_down.weight"}, 768}}, {});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Append(MakeHessian(256, 300, 1)).ok());
  ASSERT_TRUE(writer->Append(Hessian(768)).ok());  // saw no token
  ASSERT_TRUE(writer->Finish().ok());
  const auto file = HessianFile::Open(path);
  ASSERT_TRUE(file.ok());
  const ModelPlan plan = Plan("q4_K");
  LayerwiseOptions options;
  options.gptq.parallel = inputs_.parallel;
  const Status refused = QuantizeWithHessians(*source_, plan, *file, options).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message().find("lacks 54 matrices"), std::string::npos) << refused.message();
  const auto some = QuantizeWithHessians(*source_, plan, *file, options, /*allow_missing=*/true);
  ASSERT_TRUE(some.ok()) << some.status().message();
  EXPECT_EQ(some->tensors.size(), 2u);  // the rest is left to WriteModel
  const auto unseen = std::ranges::count(some->reports, true, &MatrixReport::unseen);
  EXPECT_EQ(unseen, 55);
  const std::vector<std::string> notices = CalibrationNotices(some->reports);
  ASSERT_FALSE(notices.empty());
  EXPECT_TRUE(notices[0].starts_with("55 matrices (")) << notices[0];
  EXPECT_NE(notices[0].find("rounded to nearest"), std::string::npos) << notices[0];

  auto wrong = HessianWriter::Create(folder_ / "wrong", {{{"blk.0.attn_q.weight"}, 8}}, {});
  ASSERT_TRUE(wrong->Append(MakeHessian(8, 9, 1)).ok() && wrong->Finish().ok());
  const Status size =
      QuantizeWithHessians(*source_, plan, *HessianFile::Open(folder_ / "wrong"), options, true)
          .status();
  EXPECT_NE(size.message().find("blk.0.attn_q.weight"), std::string::npos) << size.message();
}

}  // namespace
}  // namespace nibble
