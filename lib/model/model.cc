#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "lib/model/device_weights.h"
#include "lib/model/weights.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

class Loader {
 public:
  explicit Loader(const ModelSource& source) : source_(source) {}

  // A matrix of exactly rows x cols; rows = 0: any number.
  Status Matrix(const std::string& name, int64_t rows, int64_t cols, QuantizedTensor* out) const {
    const ModelTensor* tensor = source_.Find(name);
    if (tensor == nullptr) return NotFound("tensor " + name + " is missing");
    const FormatInfo& info = GetFormatInfo(tensor->format);
    if (!info.can_decode()) {
      return Unsupported("tensor " + name + ": type " + info.name + " cannot be multiplied with");
    }
    if (tensor->dims.size() > 2 || tensor->cols() != cols ||
        (rows != 0 && tensor->rows() != rows)) {
      return Corrupt("tensor " + name + " is " + std::to_string(tensor->rows()) + " x " +
                     std::to_string(tensor->cols()) + ", the model needs " +
                     (rows != 0 ? std::to_string(rows) + " x " : std::string("rows of ")) +
                     std::to_string(cols));
    }
    NIBBLE_ASSIGN_OR_RETURN(Buffer bytes, source_.Read(*tensor));
    Result<QuantizedTensor> matrix =
        QuantizedTensor::Create(tensor->format, tensor->rows(), cols, std::move(bytes));
    if (!matrix.ok()) return std::move(matrix).status().WithContext("tensor " + name);
    *out = *std::move(matrix);
    return OkStatus();
  }

  // `count` numbers, decoded.
  Status Vector(const std::string& name, int64_t count, std::vector<float>* out) const {
    QuantizedTensor tensor;
    NIBBLE_RETURN_IF_ERROR(Matrix(name, 1, count, &tensor));
    out->resize(static_cast<size_t>(count));
    return Dequantize(tensor, ViewOf(out->data(), 1, count)).WithContext("tensor " + name);
  }

  bool Has(const std::string& name) const { return source_.Find(name) != nullptr; }

  // PREFIX.weight and, where the file has it, PREFIX.bias.
  Status LinearLayer(const std::string& prefix, int64_t rows, int64_t cols, Linear* out) const {
    out->name = prefix + ".weight";
    NIBBLE_RETURN_IF_ERROR(Matrix(out->name, rows, cols, &out->weight));
    if (Has(prefix + ".bias")) return Vector(prefix + ".bias", rows, &out->bias);
    return OkStatus();
  }

 private:
  const ModelSource& source_;
};

Status LoadLayer(const Loader& load, const ModelConfig& c, const std::string& prefix,
                 DecoderLayer* layer) {
  const int64_t queries = c.heads * c.head_dim;
  NIBBLE_RETURN_IF_ERROR(load.Vector(prefix + "attn_norm.weight", c.width, &layer->attention_norm));
  NIBBLE_RETURN_IF_ERROR(load.Vector(prefix + "ffn_norm.weight", c.width, &layer->ffn_norm));
  NIBBLE_RETURN_IF_ERROR(load.LinearLayer(prefix + "attn_q", queries, c.width, &layer->query));
  NIBBLE_RETURN_IF_ERROR(
      load.LinearLayer(prefix + "attn_k", c.kv_heads * c.head_dim, c.width, &layer->key));
  NIBBLE_RETURN_IF_ERROR(
      load.LinearLayer(prefix + "attn_v", c.kv_heads * c.value_dim, c.width, &layer->value));
  NIBBLE_RETURN_IF_ERROR(load.LinearLayer(prefix + "attn_output", c.width, c.heads * c.value_dim,
                                          &layer->attention_output));
  NIBBLE_RETURN_IF_ERROR(load.LinearLayer(prefix + "ffn_gate", c.ffn_width, c.width, &layer->gate));
  NIBBLE_RETURN_IF_ERROR(load.LinearLayer(prefix + "ffn_up", c.ffn_width, c.width, &layer->up));
  NIBBLE_RETURN_IF_ERROR(load.LinearLayer(prefix + "ffn_down", c.width, c.ffn_width, &layer->down));
  if (load.Has(prefix + "attn_q_norm.weight") || c.architecture == "qwen3") {
    NIBBLE_RETURN_IF_ERROR(
        load.Vector(prefix + "attn_q_norm.weight", c.head_dim, &layer->query_norm));
    NIBBLE_RETURN_IF_ERROR(
        load.Vector(prefix + "attn_k_norm.weight", c.head_dim, &layer->key_norm));
  }
  if (c.architecture == "gemma2") {
    NIBBLE_RETURN_IF_ERROR(
        load.Vector(prefix + "post_attention_norm.weight", c.width, &layer->post_attention_norm));
    NIBBLE_RETURN_IF_ERROR(
        load.Vector(prefix + "post_ffw_norm.weight", c.width, &layer->post_ffn_norm));
  }
  return OkStatus();
}

}  // namespace

Result<Model::Weights> LoadWeights(const ModelSource& source, const ModelConfig& config) {
  const Loader load(source);
  Model::Weights weights;
  NIBBLE_RETURN_IF_ERROR(
      load.Matrix("token_embd.weight", config.vocab_size, config.width, &weights.embedding));
  NIBBLE_RETURN_IF_ERROR(load.Vector("output_norm.weight", config.width, &weights.output_norm));
  if (load.Has("output.weight")) {
    NIBBLE_RETURN_IF_ERROR(
        load.LinearLayer("output", config.vocab_size, config.width, &weights.head));
  } else {
    weights.head.name = "token_embd.weight";
    weights.head.weight = weights.embedding;
  }
  if (load.Has("rope_freqs.weight")) {
    NIBBLE_RETURN_IF_ERROR(
        load.Vector("rope_freqs.weight", config.rope.dims / 2, &weights.rope_divisors));
  }
  weights.layers.resize(static_cast<size_t>(config.layers));
  for (int64_t i = 0; i < config.layers; ++i) {
    NIBBLE_RETURN_IF_ERROR(LoadLayer(load, config, "blk." + std::to_string(i) + ".",
                                     &weights.layers[static_cast<size_t>(i)]));
  }
  return weights;
}

struct Model::Impl {
  ModelSource source;  // keeps the mapping alive that the weights borrow
  ModelConfig config;
  Tokenizer tokenizer;
  Weights weights;
  std::shared_ptr<const DeviceWeights> device_weights = nullptr;  // of these `weights`, or null
};

Result<Model> Model::Load(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Open(path));
  Result<Model> model = Load(source);
  if (!model.ok()) return std::move(model).status().WithContext(path);
  return model;
}

Result<Model> Model::Load(const ModelSource& source) {
  NIBBLE_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromMetadata(source.metadata()));
  NIBBLE_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::FromMetadata(source.shared_metadata()));
  if (config.vocab_size == 0) config.vocab_size = tokenizer.vocab_size();
  NIBBLE_ASSIGN_OR_RETURN(Weights weights, LoadWeights(source, config));
  Model model;
  model.impl_ = std::make_shared<const Impl>(
      Impl{source, std::move(config), std::move(tokenizer), std::move(weights)});
  return model;
}

namespace {

// Every matrix that is multiplied with. Of tied embeddings the name means the product.
template <class Weights, class Function>  // void(Linear&), const or not
void ForLinears(Weights& weights, const Function& function) {
  for (auto& layer : weights.layers) {
    for (auto* linear : {&layer.query, &layer.key, &layer.value, &layer.attention_output,
                         &layer.gate, &layer.up, &layer.down}) {
      function(*linear);
    }
  }
  function(weights.head);
}

}  // namespace

Result<QuantizedTensor> Model::Matrix(std::string_view name) const {
  const Linear* found = nullptr;
  ForLinears(weights(), [&](const Linear& linear) {
    if (linear.name == name) found = &linear;
  });
  if (found == nullptr) return NotFound("no matrix " + std::string(name) + " in the model");
  return found->weight;
}

Result<Model> Model::With(std::map<std::string, QuantizedTensor, std::less<>> matrices) const {
  auto impl = std::make_shared<Impl>(*impl_);
  impl->device_weights = nullptr;
  Status status;
  size_t used = 0;
  ForLinears(impl->weights, [&](Linear& linear) {
    const auto it = matrices.find(linear.name);
    if (it == matrices.end()) return;
    ++used;
    const QuantizedTensor& now = linear.weight;
    const QuantizedTensor& next = it->second;
    if (next.rows() != now.rows() || next.cols() != now.cols()) {
      status = InvalidArgument(linear.name + ": " + std::to_string(next.rows()) + " x " +
                               std::to_string(next.cols()) + " in place of " +
                               std::to_string(now.rows()) + " x " + std::to_string(now.cols()));
      return;
    }
    linear.weight = std::move(it->second);
  });
  NIBBLE_RETURN_IF_ERROR(status);
  if (used < matrices.size()) return NotFound("a matrix that is none of the model's");
  Model model;
  model.impl_ = std::move(impl);
  return model;
}

Result<Model> Model::OnDevice(Device device, Precision precision) const {
  Model model = *this;
  if (device == Device::kCpu && this->device() == device) return model;
  auto impl = std::make_shared<Impl>(*impl_);
  impl->device_weights = nullptr;
  if (device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(impl->device_weights, CopyToDevice(impl->weights, device, precision));
  }
  model.impl_ = std::move(impl);
  return model;
}

Device Model::device() const {
  return impl_->device_weights == nullptr ? Device::kCpu : impl_->device_weights->device;
}
size_t Model::device_bytes() const {
  return impl_->device_weights == nullptr ? 0 : impl_->device_weights->bytes;
}
const Model::DeviceWeights* Model::device_weights() const { return impl_->device_weights.get(); }

const ModelConfig& Model::config() const { return impl_->config; }
const GgufMetadata& Model::metadata() const { return impl_->source.metadata(); }
const Tokenizer& Model::tokenizer() const { return impl_->tokenizer; }
uint64_t Model::file_bytes() const { return impl_->source.file_bytes(); }
const Model::Weights& Model::weights() const { return impl_->weights; }

}  // namespace nibble
