// ggml's product of a quantized matrix with f32 activations, through the public C interface of its
// CPU backend, with the fastest of its weight layouts ("buffer types").
#ifndef NIBBLE_BENCHMARKS_GGML_MATMUL_H_
#define NIBBLE_BENCHMARKS_GGML_MATMUL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "benchmarks/peers.h"
#include "nibble/format.h"

namespace nibble {

// Copies of one matrix in one of ggml's layouts, each with a graph that multiplies with it.
class GgmlMatmul {
 public:
  // The names of the layouts that hold such a matrix; "" is the plain one.
  static std::vector<std::string> Layouts() {
    std::vector<std::string> names = {""};
    for (Type buffer_type : ExtraTypes()) names.push_back(Name(buffer_type));
    return names;
  }

  // `found()` is false where ggml lacks something or the layout does not take this matrix.
  GgmlMatmul(const std::string& layout, Format format, std::span<const std::byte> blocks,
             int64_t rows, int64_t cols, int64_t m_rows, int copies, int threads) {
    const Ggml& ggml = Ggml::Get();
    if (!ggml.found()) return;
    const auto new_matrix =
        ggml.Symbol<Handle(Handle, int, int64_t, int64_t)>("ggml_new_tensor_2d");
    const auto multiply = ggml.Symbol<Handle(Handle, Handle, Handle)>("ggml_mul_mat");
    const auto new_graph = ggml.Symbol<Handle(Handle)>("ggml_new_graph");
    const auto expand = ggml.Symbol<void(Handle, Handle)>("ggml_build_forward_expand");
    const auto allocate =
        ggml.Symbol<Handle(Handle, Type)>("ggml_backend_alloc_ctx_tensors_from_buft");
    const auto set =
        ggml.Symbol<void(Handle, const void*, size_t, size_t)>("ggml_backend_tensor_set");
    const auto supports = ggml.Symbol<bool(Handle, Handle)>("ggml_backend_dev_supports_op");
    const auto device = ggml.Symbol<Handle(Handle)>("ggml_backend_get_device");
    const auto plain = ggml.Symbol<Type(Handle)>("ggml_backend_get_default_buffer_type");
    const auto set_threads = ggml.Symbol<void(Handle, int)>("ggml_backend_cpu_set_n_threads");
    compute_ = ggml.Symbol<int(Handle, Handle)>("ggml_backend_graph_compute");
    const Handle backend = Backend();
    if (backend == nullptr || !new_matrix || !multiply || !new_graph || !expand || !allocate ||
        !set || !supports || !device || !plain || !set_threads || !compute_) {
      return;
    }
    Type weight_type = layout.empty() ? plain(backend) : nullptr;
    for (Type type : ExtraTypes()) {
      if (!layout.empty() && Name(type) == layout) weight_type = type;
    }
    if (weight_type == nullptr) return;

    weights_ = NewContext();
    work_ = NewContext();
    std::vector<Handle> matrices;
    for (int i = 0; i < copies; ++i) {
      matrices.push_back(new_matrix(weights_, static_cast<int>(format), cols, rows));
    }
    weight_buffer_ = allocate(weights_, weight_type);
    if (weight_buffer_ == nullptr) return;
    const Handle activations = new_matrix(work_, 0 /* f32 */, cols, m_rows);
    std::vector<Handle> products;
    for (Handle matrix : matrices) products.push_back(multiply(work_, matrix, activations));
    work_buffer_ = allocate(work_, plain(backend));
    if (work_buffer_ == nullptr || !supports(device(backend), products[0])) return;
    for (Handle matrix : matrices) set(matrix, blocks.data(), 0, blocks.size());
    const std::vector<float> values(static_cast<size_t>(cols * m_rows), 0.5f);
    set(activations, values.data(), 0, values.size() * sizeof(float));
    set_threads(backend, threads);
    for (Handle product : products) {
      graphs_.push_back(new_graph(work_));
      expand(graphs_.back(), product);
    }
  }

  ~GgmlMatmul() {
    const Ggml& ggml = Ggml::Get();
    if (!ggml.found()) return;
    const auto free_buffer = ggml.Symbol<void(Handle)>("ggml_backend_buffer_free");
    const auto free_context = ggml.Symbol<void(Handle)>("ggml_free");
    for (Handle buffer : {weight_buffer_, work_buffer_}) {
      if (buffer != nullptr && free_buffer != nullptr) free_buffer(buffer);
    }
    for (Handle context : {weights_, work_}) {
      if (context != nullptr && free_context != nullptr) free_context(context);
    }
  }
  GgmlMatmul(const GgmlMatmul&) = delete;
  GgmlMatmul& operator=(const GgmlMatmul&) = delete;

  bool found() const { return !graphs_.empty(); }

  // Multiplies with every copy.
  void Run() const {
    for (Handle graph : graphs_) compute_(Backend(), graph);
  }

 private:
  using Handle = void*;  // ggml_context, ggml_tensor, ggml_backend, ...
  using Type = void*;    // ggml_backend_buffer_type

  static Handle Backend() {
    static const Handle backend = [] {
      const auto init = Ggml::Get().Symbol<Handle()>("ggml_backend_cpu_init");
      return init == nullptr ? nullptr : init();
    }();
    return backend;
  }

  static std::vector<Type> ExtraTypes() {
    const Ggml& ggml = Ggml::Get();
    const auto registry = ggml.Symbol<Handle()>("ggml_backend_cpu_reg");
    const auto find = ggml.Symbol<void*(Handle, const char*)>("ggml_backend_reg_get_proc_address");
    const auto device = ggml.Symbol<Handle(Handle)>("ggml_backend_get_device");
    if (!registry || !find || !device || Backend() == nullptr) return {};
    using Extra = Type* (*)(Handle device);
    const auto extra =
        reinterpret_cast<Extra>(find(registry(), "ggml_backend_dev_get_extra_bufts"));
    std::vector<Type> types;
    if (extra == nullptr) return types;
    for (Type* type = extra(device(Backend())); type != nullptr && *type != nullptr; ++type) {
      types.push_back(*type);
    }
    return types;
  }

  static std::string Name(Type type) {
    const auto name = Ggml::Get().Symbol<const char*(Type)>("ggml_backend_buft_name");
    return name == nullptr ? "" : name(type);
  }

  // A context for descriptions alone: the data lie in buffers.
  static Handle NewContext() {
    struct Parameters {
      size_t bytes;
      void* memory;
      bool no_alloc;
    };
    const auto init = Ggml::Get().Symbol<Handle(Parameters)>("ggml_init");
    return init == nullptr ? nullptr : init({64 << 20, nullptr, true});
  }

  Handle weights_ = nullptr, work_ = nullptr;
  Handle weight_buffer_ = nullptr, work_buffer_ = nullptr;
  std::vector<Handle> graphs_;
  int (*compute_)(Handle, Handle) = nullptr;
};

}  // namespace nibble

#endif  // NIBBLE_BENCHMARKS_GGML_MATMUL_H_
