#include "nibble/model_source.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <thread>

#include "nibble/gguf.h"
#include "tests/hf_folder.h"

namespace nibble {
namespace {

using testing::HfFolder;

std::string Error(const std::string& path) {
  const Result<ModelSource> source = ModelSource::Open(path);
  return source.ok() ? "opened" : source.status().message();
}

uint64_t Hash(std::string_view bytes, uint64_t hash = 14695981039346656037u) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

std::string_view Chars(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The name, format, shape and bytes of every tensor, and every metadata key and value as GGUF
// stores them: taken from the file that the writer makes of a source.
uint64_t HashOfGguf(const ModelSource& source, const std::string& path) {
  std::vector<GgufTensorInfo> infos(source.tensors().begin(), source.tensors().end());
  Result<GgufWriter> writer = GgufWriter::Create(path, source.metadata(), infos);
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  for (const ModelTensor& tensor : source.tensors()) {
    const Result<Buffer> data = source.Read(tensor);
    EXPECT_TRUE(data.ok()) << data.status().message();
    EXPECT_TRUE(writer->Append(data->bytes()).ok());
    source.Release(tensor);
  }
  EXPECT_TRUE(writer->Finish().ok());
  return Hash(ReadWholeFile(path));
}

TEST(ModelSource, GivesAGgufFileAsItIs) {
  HfFolder folder;
  GgufMetadata metadata;
  metadata.Set("general.architecture", std::string("llama"));
  metadata.Set("llama.block_count", uint32_t{1});
  const std::string path = folder.File("model.gguf");
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  Result<GgufWriter> writer = GgufWriter::Create(
      path, metadata, {{"a.weight", Format::kF32, {3, 2}}, {"b.weight", Format::kF32, {3}}});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  ASSERT_TRUE(writer->Append(std::as_bytes(std::span(values))).ok());
  ASSERT_TRUE(writer->Append(std::as_bytes(std::span(values).first(3))).ok());
  ASSERT_TRUE(writer->Finish().ok());

  const Result<ModelSource> source = ModelSource::Open(path);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(source->container(), Container::kGguf);
  EXPECT_EQ(*source->metadata().GetString("general.architecture"), "llama");
  ASSERT_EQ(source->tensors().size(), 2u);
  EXPECT_EQ(source->tensors()[0].name, "a.weight");
  EXPECT_EQ(source->tensors()[0].source_name, "a.weight");
  EXPECT_EQ(source->tensors()[0].dims, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(source->Find("none"), nullptr);
  EXPECT_TRUE(source->notices().empty());
  EXPECT_EQ(source->paths().size(), 1u);
  EXPECT_EQ(source->file_bytes(), std::filesystem::file_size(path));
  const Result<Buffer> first = source->Read(*source->Find("a.weight"));
  const Result<Buffer> again = source->Read(*source->Find("a.weight"));
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->data(), again->data()) << "the mapped bytes themselves";
  EXPECT_EQ(std::memcmp(first->data(), values.data(), 24), 0);
  source->Release(source->tensors()[0]);
  EXPECT_EQ(std::memcmp(first->data(), values.data(), 24), 0) << "released pages read again";
}

TEST(ModelSource, KeepsTheNamesOfALoneSafetensorsFile) {
  HfFolder folder;
  folder.Add("layer.weight", {2, 3, 4}, "F32");
  folder.Add("layer.bias", {3}, "BF16");
  folder.Add("positions", {1, 6}, "I64");
  folder.Add("scale", {}, "F32");
  folder.Add("mask", {4}, "BOOL");
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.File("model.safetensors"));
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(source->container(), Container::kSafetensors);
  EXPECT_EQ(*source->metadata().GetString("general.architecture"), "unknown");
  EXPECT_EQ(*source->metadata().GetUint("general.file_type"), 0u);
  std::map<std::string, std::pair<Format, std::vector<int64_t>>> seen;
  for (const ModelTensor& tensor : source->tensors())
    seen[tensor.name] = {tensor.format, tensor.dims};
  const decltype(seen) expected = {{"layer.weight", {Format::kF32, {4, 3, 2}}},
                                   {"layer.bias", {Format::kBF16, {3}}},
                                   {"positions", {Format::kI64, {6, 1}}},
                                   {"scale", {Format::kF32, {1}}}};
  EXPECT_EQ(seen, expected);
  ASSERT_EQ(source->notices().size(), 2u);
  EXPECT_NE(source->notices()[0].find("keep their names"), std::string::npos);
  EXPECT_NE(source->notices()[1].find("mask"), std::string::npos);
  const Result<Buffer> data = source->Read(*source->Find("layer.weight"));
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(Chars(data->bytes()), folder.tensors["layer.weight"].bytes);
}

TEST(ModelSource, RefusesWhatGgufCannotHold) {
  for (const auto& [dtype, shape, reason] :
       std::vector<std::tuple<std::string, std::vector<int64_t>, std::string>>{
           {"U8", {4}, "u8"},
           {"F8_E4M3", {4}, "f8_e4m3"},
           {"F32", {1, 1, 1, 1, 2}, "at most 4 dimensions"},
           {"F32", {0, 4}, "empty"}}) {
    HfFolder folder;
    folder.Add("odd", shape, dtype == "F8_E4M3" ? "U8" : dtype);
    folder.tensors["odd"].dtype = dtype;
    folder.Write();
    const std::string message = Error(folder.path());
    EXPECT_NE(message.find("odd"), std::string::npos) << message;
    EXPECT_NE(message.find(reason), std::string::npos) << message;
  }
}

TEST(ModelSource, KeepsTheNamesOfAnUnknownArchitecture) {
  HfFolder folder;
  folder.config = {{"architectures", {"BertModel"}}, {"model_type", "bert"}};
  folder.Add("encoder.weight", {4, 8});
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(*source->metadata().GetString("general.architecture"), "bert");
  ASSERT_NE(source->Find("encoder.weight"), nullptr);
  EXPECT_EQ(source->Find("encoder.weight")->dims, (std::vector<int64_t>{8, 4}));
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("not known"), std::string::npos);
}

// A classifier's class outranks its model type: its head is no language model's.
TEST(ModelSource, DoesNotTakeAClassifierForALanguageModel) {
  HfFolder folder;
  folder.config = {{"architectures", {"LlamaForSequenceClassification"}}, {"model_type", "llama"}};
  folder.Add("score.weight", {4, 8});
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_NE(source->Find("score.weight"), nullptr);
}

TEST(ModelSource, NamesWhatIsMissing) {
  HfFolder folder;
  EXPECT_NE(Error(folder.File("nothing.gguf")).find("nothing.gguf"), std::string::npos);
  EXPECT_NE(Error(folder.path()).find(folder.path()), std::string::npos);
  folder.Text("text.bin", "this is no model");
  EXPECT_NE(Error(folder.File("text.bin")).find("text.bin"), std::string::npos);
  folder.config = {{"model_type", "llama"}, {"quantization_config", {{"quant_method", "exl2"}}}};
  folder.Add("a", {2});
  folder.Write();
  EXPECT_NE(Error(folder.path()).find("quantized already (exl2)"), std::string::npos);
}

TEST(ModelSource, ReadsSafelyFromManyThreads) {
  const Result<ModelSource> source = ModelSource::Open(NIBBLE_EXAMPLES "/reference-model");
  ASSERT_TRUE(source.ok()) << source.status().message();
  std::vector<uint64_t> hashes(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < hashes.size(); ++i) {
    threads.emplace_back([&, i] {
      for (const ModelTensor& tensor : source->tensors()) {
        const Result<Buffer> data = source->Read(tensor);
        if (data.ok()) hashes[i] = Hash(Chars(data->bytes()), hashes[i]);
        source->Release(tensor);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const uint64_t hash : hashes) EXPECT_EQ(hash, hashes[0]);
}

TEST(ModelSource, BorrowsWhatItNeedNotRearrange) {
  const Result<ModelSource> source = ModelSource::Open(NIBBLE_EXAMPLES "/reference-model");
  ASSERT_TRUE(source.ok()) << source.status().message();
  const auto same = [&](const char* name) {
    const ModelTensor& tensor = *source->Find(name);
    return source->Read(tensor)->data() == source->Read(tensor)->data();
  };
  EXPECT_TRUE(same("token_embd.weight"));
  EXPECT_TRUE(same("blk.0.attn_v.weight"));
}

// The bytes from which llama.cpp reproduces the greedy tokens of expected.json.
TEST(ModelSource, ConvertsTheReferenceModelToKnownBytes) {
  HfFolder folder;
  const Result<ModelSource> source = ModelSource::Open(NIBBLE_EXAMPLES "/reference-model");
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_TRUE(source->notices().empty());
  EXPECT_EQ(source->tensors().size(), 74u);
  EXPECT_EQ(source->paths().size(), 3u);
  EXPECT_EQ(source->metadata().Find("general.name"), nullptr);  // not the folder's
  EXPECT_EQ(*source->metadata().GetString("general.size_label"), "7.3M");
  EXPECT_EQ(*source->metadata().GetUint("general.file_type"), 1u);
  EXPECT_EQ(HashOfGguf(*source, folder.File("model.gguf")), 0xf7c4078464e287fau);
}

}  // namespace
}  // namespace nibble
