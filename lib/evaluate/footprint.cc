// Memory and limits of speed from a model's shapes.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>

#include "kernels/machine_limits.h"
#include "nibble/estimate.h"
#include "nibble/matmul.h"
#include "nibble/speed.h"

namespace nibble {
namespace {

constexpr const char* kEmbedding = "token_embd.weight";
constexpr const char* kHead = "output.weight";

uint64_t Bytes(const GgufTensorInfo& tensor) {
  const Result<size_t> bytes = FormatBytes(tensor.format, tensor.rows(), tensor.cols());
  return bytes.ok() ? *bytes : 0;
}

const GgufTensorInfo* Find(std::span<const GgufTensorInfo> tensors, std::string_view name) {
  for (const GgufTensorInfo& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

double Seconds(const std::chrono::steady_clock::time_point& since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// The fastest of a few turns: a limit is what the machine can do when nobody disturbs it.
template <class Function>
double LeastSeconds(int turns, const Function& function) {
  double least = INFINITY;
  for (int i = 0; i < turns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    function();
    least = std::min(least, Seconds(start));
  }
  return std::max(least, 1e-9);
}

}  // namespace

Result<ModelShape> UsualShape(uint64_t weights) {
  constexpr int64_t kHeadDim = 128, kVocabulary = 32000;
  if (weights < 100'000'000 || weights > 4'000'000'000'000) {
    return InvalidArgument("a usual shape has from 100 million to 4 trillion weights");
  }
  const auto layer_of = [](int64_t width) {  // 4 + 3 * 8/3 matrices of width^2, less for k and v
    const double w = static_cast<double>(width);
    return w * (2 * w + 2 * std::min(8.0 * kHeadDim, w) + 8 * w);
  };
  const auto tables_of = [](int64_t width) {
    return 2.0 * kVocabulary * static_cast<double>(width);
  };
  const double total = static_cast<double>(weights);
  const auto proportioned = [&](int64_t width) {  // with as many layers as heads
    return tables_of(width) + layer_of(width) * static_cast<double>(width / kHeadDim);
  };
  // A multiple of 1024: every block format fits, and 8 key heads serve all others alike.
  int64_t width = 1024;
  while (proportioned(width + 1024) * proportioned(width) < total * total) width += 1024;
  const int64_t layers =
      std::max<int64_t>(1, std::llround((total - tables_of(width)) / layer_of(width)));
  const int64_t heads = width / kHeadDim;
  const int64_t kv_width = kHeadDim * std::min<int64_t>(8, heads);
  const int64_t ffn = (width * 8 / 3 + 255) / 256 * 256;
  ModelShape shape;
  GgufMetadata& m = shape.metadata;
  m.Set("general.architecture", std::string("llama"));
  m.Set("llama.context_length", uint32_t{8192});
  m.Set("llama.embedding_length", static_cast<uint32_t>(width));
  m.Set("llama.block_count", static_cast<uint32_t>(layers));
  m.Set("llama.feed_forward_length", static_cast<uint32_t>(ffn));
  m.Set("llama.attention.head_count", static_cast<uint32_t>(heads));
  m.Set("llama.attention.head_count_kv", static_cast<uint32_t>(kv_width / kHeadDim));
  const auto add = [&](const std::string& name, std::vector<int64_t> dims) {
    GgufTensorInfo tensor;
    tensor.name = name;
    tensor.format = dims.size() > 1 ? Format::kF16 : Format::kF32;
    tensor.dims = std::move(dims);
    shape.tensors.push_back(std::move(tensor));
  };
  add(kEmbedding, {width, kVocabulary});
  for (int64_t i = 0; i < layers; ++i) {
    const std::string layer = "blk." + std::to_string(i) + ".";
    add(layer + "attn_norm.weight", {width});
    add(layer + "attn_q.weight", {width, width});
    add(layer + "attn_k.weight", {width, kv_width});
    add(layer + "attn_v.weight", {width, kv_width});
    add(layer + "attn_output.weight", {width, width});
    add(layer + "ffn_norm.weight", {width});
    add(layer + "ffn_gate.weight", {width, ffn});
    add(layer + "ffn_up.weight", {width, ffn});
    add(layer + "ffn_down.weight", {ffn, width});
  }
  add("output_norm.weight", {width});
  add(kHead, {width, kVocabulary});
  return shape;
}

TokenCost CostOfToken(std::span<const GgufTensorInfo> tensors) {
  TokenCost cost;
  const bool has_head = Find(tensors, kHead) != nullptr;
  for (const GgufTensorInfo& tensor : tensors) {
    const bool embedding = tensor.name == kEmbedding;
    const uint64_t rows = static_cast<uint64_t>(std::max<int64_t>(1, tensor.rows()));
    cost.read_bytes += embedding && has_head ? Bytes(tensor) / rows : Bytes(tensor);
    if (tensor.name.starts_with("blk.") && tensor.dims.size() > 1) {
      cost.multiply_adds += rows * static_cast<uint64_t>(tensor.cols());
    }
  }
  return cost;
}

Result<Footprint> ForeseeFootprint(const ModelShape& shape, const FootprintOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromMetadata(shape.metadata));
  if (const GgufTensorInfo* embedding = Find(shape.tensors, kEmbedding)) {
    config.vocab_size = embedding->rows();
  }
  NIBBLE_ASSIGN_OR_RETURN(const KvCache cache, KvCache::Create(config, options.cache));
  Footprint footprint;
  for (const GgufTensorInfo& tensor : shape.tensors) footprint.weights += Bytes(tensor);
  const int64_t context = options.context > 0 ? options.context : config.context;
  const int64_t page = std::max<int64_t>(1, options.cache.page_tokens);
  footprint.cache = static_cast<uint64_t>((context + page - 1) / page * page * options.sequences) *
                    cache.bytes_per_token();
  // What a Runner keeps in f32 for each token that it runs, and the logits of each sequence.
  const int64_t attention = (config.heads + config.kv_heads) * (config.head_dim + config.value_dim);
  const int64_t row =
      2 * config.width + std::max(attention, 2 * config.ffn_width) + config.rope.dims;
  footprint.scratch = sizeof(float) * static_cast<uint64_t>(options.batch_tokens * row +
                                                            options.sequences * config.vocab_size);
  return footprint;
}

Result<Machine> MeasureMachine(const ParallelFor& parallel) {
  Machine machine;
  {
    constexpr size_t kBytes = size_t{256} << 20;  // more than caches hold
    constexpr int64_t kPieces = 256;
    NIBBLE_ASSIGN_OR_RETURN(Buffer memory, Buffer::Allocate(kBytes));
    std::fill(memory.mutable_bytes().begin(), memory.mutable_bytes().end(), std::byte{1});
    const double seconds = LeastSeconds(3, [&] {
      parallel(kPieces, [&](int64_t i, int) {
        constexpr size_t kPiece = kBytes / kPieces;
        ReadBytes(memory.bytes().subspan(static_cast<size_t>(i) * kPiece, kPiece));
      });
    });
    machine.read_bytes_per_second = static_cast<double>(kBytes) / seconds;
  }
  constexpr int64_t kRows = 1024, kCols = 1024, kTokens = 256;
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor weights,
                          QuantizedTensor::Allocate(Format::kQ8_0, kRows, kCols));
  NIBBLE_ASSIGN_OR_RETURN(const PackedWeights packed, Pack(weights, Precision::kInt8, parallel));
  const std::vector<float> input(kTokens * kCols, 1.0f);
  std::vector<float> output(kTokens * kRows);
  MatmulOptions options;
  options.parallel = parallel;
  Status status;
  const double seconds = LeastSeconds(5, [&] {
    Status done = Matmul(ViewOf(input.data(), kTokens, kCols), packed,
                         ViewOf(output.data(), kTokens, kRows), options);
    if (!done.ok()) status = std::move(done);
  });
  NIBBLE_RETURN_IF_ERROR(status);
  machine.multiply_adds_per_second = static_cast<double>(kRows * kCols * kTokens) / seconds;
  return machine;
}

}  // namespace nibble
