#include "nibble/rotate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "nibble/model.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

float* RowOf(const MutableTensorView& weights, int64_t row) {
  return static_cast<float*>(weights.Row(row));
}

// splitmix64: bits that are the same on every machine.
uint64_t NextBits(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// x_i, x_(i + half) := their sum and difference, for every `half`.
void Hadamard(std::span<double> x) {
  for (size_t half = 1; half < x.size(); half *= 2) {
    for (size_t block = 0; block < x.size(); block += 2 * half) {
      for (size_t i = block; i < block + half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

}  // namespace

Rotation::Rotation(int64_t n, uint64_t seed) : power_of_two_(n & -n) {
  for (int64_t i = 0; i < n; ++i) signs_.push_back((NextBits(seed) & 1) != 0 ? 1.0f : -1.0f);
  const int64_t m = n / power_of_two_;
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t k = 0; k < m; ++k) {
      const double size = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(m));
      rest_.push_back(size * std::cos(M_PI * static_cast<double>((2 * j + 1) * k) /
                                      static_cast<double>(2 * m)));
    }
  }
}

void Rotation::Apply(float* x, int64_t stride) const {
  const int64_t n = size(), h = power_of_two_, m = n / h;
  std::vector<double> v(static_cast<size_t>(n)), mixed(static_cast<size_t>(m));
  for (int64_t i = 0; i < n; ++i) {
    v[static_cast<size_t>(i)] = static_cast<double>(x[i * stride]) * signs_[static_cast<size_t>(i)];
  }
  const double size = 1 / std::sqrt(static_cast<double>(h));
  for (int64_t j = 0; j < m; ++j)
    Hadamard(std::span(v).subspan(static_cast<size_t>(j * h), static_cast<size_t>(h)));
  for (int64_t i = 0; i < h; ++i) {
    std::ranges::fill(mixed, 0.0);
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t k = 0; k < m; ++k) {
        mixed[static_cast<size_t>(k)] +=
            v[static_cast<size_t>(j * h + i)] * rest_[static_cast<size_t>(j * m + k)];
      }
    }
    for (int64_t k = 0; k < m; ++k) {
      x[(k * h + i) * stride] = static_cast<float>(mixed[static_cast<size_t>(k)] * size);
    }
  }
}

namespace {

using SharedRotation = std::shared_ptr<const Rotation>;
using SharedVector = std::shared_ptr<const std::vector<float>>;

// Each row, in pieces of the rotation's size.
TensorEdit RotateRows(SharedRotation q) {
  return [q](MutableTensorView w) -> Status {
    if (w.cols % q->size() != 0) return InvalidArgument("rows that the rotation does not divide");
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; c += q->size()) q->Apply(RowOf(w, r) + c);
    }
    return OkStatus();
  };
}

// Each column likewise; of a vector, which is one row, the elements: what makes them is rotated.
TensorEdit RotateColumns(SharedRotation q) {
  return [q](MutableTensorView w) -> Status {
    if (w.rows == 1) return RotateRows(q)(w);
    if (w.rows % q->size() != 0)
      return InvalidArgument("columns that the rotation does not divide");
    for (int64_t c = 0; c < w.cols; ++c) {
      for (int64_t r = 0; r < w.rows; r += q->size()) q->Apply(RowOf(w, r) + c, w.row_stride);
    }
    return OkStatus();
  };
}

TensorEdit ScaleColumns(SharedVector gains) {
  return [gains](MutableTensorView w) -> Status {
    if (w.cols != static_cast<int64_t>(gains->size()))
      return InvalidArgument("gains of another size");
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) RowOf(w, r)[c] *= (*gains)[static_cast<size_t>(c)];
    }
    return OkStatus();
  };
}

Status FillOnes(MutableTensorView w) {
  for (int64_t r = 0; r < w.rows; ++r) std::fill_n(RowOf(w, r), w.cols, 1.0f);
  return OkStatus();
}

class Rotator {
 public:
  Rotator(const ModelSource& source, ModelConfig config, const RotateOptions& options)
      : source_(source), config_(std::move(config)), options_(options) {}

  Result<ModelEdits> Run() {
    edits_.label = "rotate";
    if (options_.values) {
      // First: the attention output's columns are heads still, whatever happens to its rows.
      values_ = std::make_shared<const Rotation>(config_.value_dim, options_.seed + 1);
      for (int64_t layer = 0; layer < config_.layers; ++layer) {
        EditMaker(Name(layer, "attn_v"), values_);
        Edit(Name(layer, "attn_output") + ".weight", RotateRows(values_));
      }
    }
    if (options_.residual) NIBBLE_RETURN_IF_ERROR(RotateResidual());
    return std::move(edits_);
  }

 private:
  static std::string Name(int64_t layer, const char* part) {
    return "blk." + std::to_string(layer) + "." + part;
  }
  void Edit(const std::string& name, TensorEdit edit) {
    edits_.edits[name].push_back(std::move(edit));
  }
  // A matrix whose outputs are rotated, and its bias.
  void EditMaker(const std::string& prefix, const SharedRotation& q) {
    Edit(prefix + ".weight", RotateColumns(q));
    if (source_.Find(prefix + ".bias") != nullptr) Edit(prefix + ".bias", RotateColumns(q));
  }

  // Takes a norm's gains away.
  Result<SharedVector> TakeGains(const std::string& name) {
    const ModelTensor* tensor = source_.Find(name);
    if (tensor == nullptr) return NotFound("no tensor " + name);
    NIBBLE_ASSIGN_OR_RETURN(const Buffer bytes, source_.Read(*tensor));
    std::vector<float> gains(static_cast<size_t>(tensor->cols()));
    NIBBLE_RETURN_IF_ERROR(
        Dequantize(tensor->format, bytes.bytes(), ViewOf(gains.data(), 1, tensor->cols())));
    Edit(name, FillOnes);
    return std::make_shared<const std::vector<float>>(std::move(gains));
  }

  Status EditUsers(const std::string& norm, const std::vector<std::string>& users) {
    NIBBLE_ASSIGN_OR_RETURN(const SharedVector gains, TakeGains(norm));
    for (const std::string& user : users) {
      Edit(user, ScaleColumns(gains));
      Edit(user, RotateRows(residual_));
    }
    return OkStatus();
  }

  Status RotateResidual() {
    residual_ = std::make_shared<const Rotation>(config_.width, options_.seed);
    Edit("token_embd.weight", RotateRows(residual_));
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      const auto weight = [&](const char* part) { return Name(layer, part) + ".weight"; };
      for (const char* norm : {"attn_norm.bias", "ffn_norm.bias", "post_attention_norm.weight",
                               "post_ffw_norm.weight"}) {
        if (source_.Find(Name(layer, norm)) != nullptr) {
          return Unsupported("rotation: " + Name(layer, norm) + " is between two matrices");
        }
      }
      NIBBLE_RETURN_IF_ERROR(
          EditUsers(weight("attn_norm"), {weight("attn_q"), weight("attn_k"), weight("attn_v")}));
      EditMaker(Name(layer, "attn_output"), residual_);
      NIBBLE_RETURN_IF_ERROR(EditUsers(weight("ffn_norm"), {weight("ffn_gate"), weight("ffn_up")}));
      EditMaker(Name(layer, "ffn_down"), residual_);
    }
    // The output takes the last norm's gains, the embeddings do not: they part here.
    if (source_.Find("output.weight") == nullptr) {
      edits_.copies["output.weight"] = "token_embd.weight";
    }
    return EditUsers("output_norm.weight", {"output.weight"});
  }

  const ModelSource& source_;
  const ModelConfig config_;
  const RotateOptions options_;
  SharedRotation residual_, values_;
  ModelEdits edits_;
};

}  // namespace

Result<ModelEdits> Rotate(const ModelSource& source, const RotateOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromMetadata(source.metadata()));
  if (config.architecture == "gemma2") {
    return Unsupported("gemma2 cannot be rotated: norms lie between its matrices and the residual");
  }
  return Rotator(source, std::move(config), options).Run();
}

}  // namespace nibble
