// What a device does to run a decoder beyond matrix products: a part of its table of functions
// (nibble/backend.h). Programs never need this header; libraries of kernels do.
#ifndef NIBBLE_DECODER_BACKEND_H_
#define NIBBLE_DECODER_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "nibble/model.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble {

// Tokens that run side by side, a row each. All pointers are the device's.
struct DecoderBatch {
  int64_t rows = 0;
  const int32_t* tokens = nullptr;     // [rows]
  const int32_t* sequences = nullptr;  // [rows]: rows of `pages`
  const int32_t* positions = nullptr;  // [rows], in the sequence
  // [sequences][most_pages]: the pages of the sequences' keys and values.
  std::byte* const* pages = nullptr;
  int64_t most_pages = 0;
  const float* cosines = nullptr;  // [rows][pairs], of the angles of each row's position
  const float* sines = nullptr;
};

// A layer's attention, and where its keys and values lie in a page: the keys of each head,
// [kv_heads][page_tokens] rows of key_row bytes, then the values likewise.
struct AttentionLayer {
  int64_t heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
  int64_t pairs = 0;  // of each head's dimensions that are turned
  bool half_split = false;
  const float* query_norm = nullptr;  // [head_dim] on the device, or null
  const float* key_norm = nullptr;
  float norm_eps = 0;
  float query_scale = 1;
  float soft_cap = 0;  // 0: none
  int64_t window = 0;  // 0: all earlier tokens are seen
  CacheType keys = CacheType::kF16, values = CacheType::kF16;
  // The largest magnitudes that the types hold; keys and values beyond are clamped.
  float largest_key = 0, largest_value = 0;
  int64_t page_tokens = 0;
  size_t offset = 0;  // of the layer, in bytes from a page's beginning
  size_t key_row = 0, value_row = 0;
};

// All floats are f32, matrices are row-major without gaps, and pointers the device's, unless said
// otherwise. Functions queue their work on `stream` and do not wait for it.
struct DecoderBackend {
  // A stream that waits for no other, and ends with its last owner.
  Result<std::shared_ptr<void>> (*make_stream)();
  // Between any two memories. What lies in the host's is read before this returns; what is written
  // there may not be read before synchronize().
  Status (*copy)(void* to, const void* from, size_t bytes, void* stream);
  Status (*synchronize)(void* stream);
  Result<QuantizedTensor> (*to_device)(const QuantizedTensor& tensor, void* stream);

  // Records what `work` queues on `stream`, which is not run; replay() runs it as one.
  Result<std::shared_ptr<void>> (*record)(void* stream, const std::function<Status()>& work);
  Status (*replay)(void* recorded, void* stream);

  // out[rows, table.cols] = scale * table[tokens]
  Status (*embed)(const QuantizedTensor& table, const int32_t* tokens, int64_t rows, float scale,
                  float* out, void* stream);
  // out = x / sqrt(mean of each row's squares + eps) * weight. out may be x.
  Status (*rms_norm)(const float* x, const float* weight, int64_t rows, int64_t width, float eps,
                     float* out, void* stream);
  Status (*add)(float* x, const float* y, int64_t count, void* stream);  // x += y
  // gate = activation(gate) * up
  Status (*gate)(Activation activation, float* gate, const float* up, int64_t count, void* stream);
  Status (*soft_cap)(float* x, int64_t count, float cap, void* stream);  // x = cap tanh(x / cap)
  // Norms, turns and scales `query`, [rows, heads, head_dim]; norms and turns `key`, [rows,
  // kv_heads, head_dim]; stores it and `value` in the pages.
  Status (*store)(const DecoderBatch& batch, const AttentionLayer& layer, float* query, float* key,
                  const float* value, void* stream);
  // out[rows, heads, value_dim]: attention of each row to its sequence up to its own position.
  Status (*attend)(const DecoderBatch& batch, const AttentionLayer& layer, const float* query,
                   float* out, void* stream);
  // x[i] = x[rows[i]], for ascending rows.
  Status (*keep_rows)(const int32_t* rows, int64_t count, int64_t width, float* x, void* stream);
  // The first of the largest logits of each row.
  Status (*likeliest)(const float* logits, int64_t rows, int64_t cols, int32_t* out, void* stream);
};

// Of a device; an error where no backend serves it, or only for products. Needs nibble::model.
Result<const DecoderBackend*> FindDecoder(Device device);

}  // namespace nibble

#endif  // NIBBLE_DECODER_BACKEND_H_
