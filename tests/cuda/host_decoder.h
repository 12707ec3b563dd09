// A device that is none: its memory is the host's, its products are the CPU's, and what it runs of
// a decoder are the kernels of cuda/decoder.h, block by block, on emulated warps. So all of a
// Runner but launches and copies can be tested without a GPU.
#ifndef NIBBLE_TESTS_CUDA_HOST_DECODER_H_
#define NIBBLE_TESTS_CUDA_HOST_DECODER_H_

#include <cstring>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/decoder.h"
#include "nibble/backend.h"
#include "nibble/decoder_backend.h"
#include "nibble/quantize.h"

namespace nibble::cuda {

// --- A launch of each kernel

inline void EmulateRmsNorm(RmsNormRow norm, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r, norm.x += norm.width, norm.out += norm.width) {
    float shared[kWarps];
    for (int w = 0; w < kWarps; ++w) norm.AddSquares(HostWarp(), w, shared);
    for (int t = 0; t < kThreads; ++t) norm.Write(t, shared);
  }
}

inline void EmulateStore(const DecoderBatch& batch, const AttentionLayer& layer, float* query,
                         float* key, const float* value) {
  for (int64_t row = 0; row < batch.rows; ++row) {
    for (int64_t head = 0; head < layer.heads + layer.kv_heads; ++head) {
      StoreHead(HostWarp(), batch, layer, row, head, query, key, value);
    }
  }
}

template <int kParts>
void EmulateAttend(const DecoderBatch& batch, const AttentionLayer& layer, const float* query,
                   float* out) {
  for (int64_t b = 0; b < batch.rows * layer.heads; ++b) {
    WarpAttention<kParts> shared[kWarps];
    std::memset(static_cast<void*>(shared), 0xFF, sizeof(shared));
    const AttentionBlock<kParts> block(batch, layer, b, query, out);
    for (int w = 0; w < kWarps; ++w) block.AddKeys(HostWarp(), w, shared);
    for (int t = 0; t < kThreads; ++t) block.Combine(t, shared);
  }
}

inline int32_t EmulateLikeliest(const float* logits, int64_t count) {
  const LikeliestRow row = {logits, count};
  Candidate shared[kWarps];
  for (int w = 0; w < kWarps; ++w) row.Find(HostWarp(), w, shared);
  return LikeliestRow::Choose(shared);
}

// --- The device

class HostDecoder {
 public:
  static void Register() {
    static const DecoderBackend decoder = {MakeStream, CopyBytes, Synchronize, ToDevice, Record,
                                           Replay,     Embed,     RmsNorm,     Add,      Gate,
                                           SoftCap,    Store,     Attend,      Keep,     Likeliest};
    static const Backend backend = {Allocate, nullptr,     nullptr, nullptr, nullptr,
                                    Pack,     MatmulGroup, nullptr, &decoder};
    RegisterBackend(Device::kCuda, &backend);
  }
  static void Forget() { RegisterBackend(Device::kCuda, nullptr); }

  static inline int recorded = 0, replayed = 0;

 private:
  static Result<Buffer> Allocate(size_t bytes, void*) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer host, Buffer::Allocate(bytes));
    std::byte* data = host.data();
    if (bytes > 0) std::memset(data, 0xFF, bytes);  // as it was left
    return Buffer::Share(std::make_shared<Buffer>(std::move(host)), data, bytes, Device::kCuda);
  }
  static Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision, const ParallelFor&) {
    return MakePackedWeights(weights.rows(), weights.cols(), weights.bytes(), Device::kCuda,
                             "host/1", std::make_shared<QuantizedTensor>(OnHost(weights)));
  }
  static Status MatmulGroup(const TensorView& activations, std::span<const MatmulMember> members,
                            const MatmulOptions& options) {
    std::vector<MatmulMember> on_host(members.begin(), members.end());
    for (MatmulMember& member : on_host) {
      member.out.device = Device::kCpu;
      const auto* packed = std::get<const PackedWeights*>(member.weights);
      member.weights = static_cast<const QuantizedTensor*>(DetailsOf(*packed, Device::kCuda));
    }
    TensorView host = activations;
    host.device = Device::kCpu;
    MatmulOptions exact = options;
    exact.precision = Precision::kF32;
    // Errors in what is recorded would come from a first call, which is not recorded.
    return Queue([=] { (void)nibble::MatmulGroup(host, on_host, exact); });
  }

  // The same memory, called the host's or the device's.
  static QuantizedTensor Relabelled(const QuantizedTensor& tensor, Device device) {
    const Buffer& blocks = tensor.plane(Plane::kCodes);
    auto copy =
        std::make_shared<std::vector<std::byte>>(blocks.bytes().begin(), blocks.bytes().end());
    std::byte* data = copy->data();
    return *QuantizedTensor::Create(tensor.format(), tensor.rows(), tensor.cols(),
                                    Buffer::Share(copy, data, copy->size(), device));
  }
  static QuantizedTensor OnHost(const QuantizedTensor& tensor) {
    return Relabelled(tensor, Device::kCpu);
  }

  static Result<std::shared_ptr<void>> MakeStream() {
    return std::shared_ptr<void>(std::make_shared<int>(0));
  }
  static Status CopyBytes(void* to, const void* from, size_t bytes, void*) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return OkStatus();
  }
  static Status Synchronize(void*) { return OkStatus(); }
  static Result<QuantizedTensor> ToDevice(const QuantizedTensor& tensor, void*) {
    return Relabelled(tensor, Device::kCuda);
  }
  // A graph is what to call again: whoever recorded it must have left all that it names alive, as
  // arguments of kernels are copied but the memory they point to is not.
  static Result<std::shared_ptr<void>> Record(void*, const std::function<Status()>& work) {
    ++recorded;
    recording_ = std::make_shared<Graph>();
    const Status status = work();
    auto graph = std::exchange(recording_, nullptr);
    if (!status.ok()) return status;
    return std::shared_ptr<void>(graph);
  }
  static Status Replay(void* graph, void*) {
    ++replayed;
    for (const auto& call : *static_cast<Graph*>(graph)) NIBBLE_RETURN_IF_ERROR(call());
    return OkStatus();
  }
  using Graph = std::vector<std::function<Status()>>;
  static inline std::shared_ptr<Graph> recording_;
  // Runs a launch, or records it; all that it captures it copies.
  template <class Launch>
  static Status Queue(const Launch& launch) {
    const auto call = [launch] {
      launch();
      return OkStatus();
    };
    if (recording_ == nullptr) return call();
    recording_->push_back(call);
    return OkStatus();
  }

  static Status Embed(const QuantizedTensor& table, const int32_t* tokens, int64_t rows,
                      float scale, float* out, void*) {
    return Queue([=, table = OnHost(table)] {
      const size_t row_bytes = table.bytes() / static_cast<size_t>(table.rows());
      for (int64_t r = 0; r < rows; ++r) {
        const auto row = table.plane(Plane::kCodes)
                             .bytes()
                             .subspan(static_cast<size_t>(tokens[r]) * row_bytes, row_bytes);
        float* to = out + r * table.cols();
        (void)Dequantize(table.format(), row, ViewOf(to, 1, table.cols()));
        for (int64_t i = 0; i < table.cols(); ++i) to[i] *= scale;
      }
    });
  }
  static Status RmsNorm(const float* x, const float* weight, int64_t rows, int64_t width, float eps,
                        float* out, void*) {
    return Queue([=] { EmulateRmsNorm({x, weight, width, eps, out}, rows); });
  }
  static Status Add(float* x, const float* y, int64_t count, void*) {
    return Queue([=] {
      for (int64_t i = 0; i < count; ++i) x[i] += y[i];
    });
  }
  static Status Gate(Activation activation, float* gate, const float* up, int64_t count, void*) {
    return Queue([=] {
      for (int64_t i = 0; i < count; ++i) gate[i] = Gated(activation, gate[i], up[i]);
    });
  }
  static Status SoftCap(float* x, int64_t count, float cap, void*) {
    return Queue([=] {
      for (int64_t i = 0; i < count; ++i) x[i] = SoftCapped(x[i], cap);
    });
  }
  static Status Store(const DecoderBatch& batch, const AttentionLayer& layer, float* query,
                      float* key, const float* value, void*) {
    return Queue([=] { EmulateStore(batch, layer, query, key, value); });
  }
  static Status Attend(const DecoderBatch& batch, const AttentionLayer& layer, const float* query,
                       float* out, void*) {
    return Queue([=] { EmulateAttend<kMostHeadDims / 32>(batch, layer, query, out); });
  }
  static Status Keep(const int32_t* rows, int64_t count, int64_t width, float* x, void*) {
    return Queue([=] {
      for (int64_t col = 0; col < width; ++col) {
        for (int64_t i = 0; i < count; ++i) x[i * width + col] = x[rows[i] * width + col];
      }
    });
  }
  static Status Likeliest(const float* logits, int64_t rows, int64_t cols, int32_t* out, void*) {
    return Queue([=] {
      for (int64_t r = 0; r < rows; ++r) out[r] = EmulateLikeliest(logits + r * cols, cols);
    });
  }
};

}  // namespace nibble::cuda

#endif  // NIBBLE_TESTS_CUDA_HOST_DECODER_H_
