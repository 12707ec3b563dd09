// OpenVINO's product of a compressed matrix with f32 activations, through the public C interface:
// the model is written as its IR (an XML file and one of constants), read, compiled for the CPU and
// run. Its formats are not nibble's: codes of 4 bits in groups of 128 with f16 scales and zeros
// stand beside formats of up to 5 bits, int8 with a scale for each row beside larger ones.
//
// libopenvino_c is looked for in the environment variable NIBBLE_OPENVINO (the folder `libs` of the
// Python package), then in the virtual environment that `./dev peers` makes.
#ifndef NIBBLE_BENCHMARKS_OPENVINO_MATMUL_H_
#define NIBBLE_BENCHMARKS_OPENVINO_MATMUL_H_

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace nibble {

class OpenVinoMatmul {
 public:
  // `found()` is false where the library is missing or refuses the model.
  OpenVinoMatmul(int bits, int64_t rows, int64_t cols, int64_t m_rows, int threads) {
    if (Library() == nullptr || (bits == 4 && cols % kGroup != 0)) return;
    namespace fs = std::filesystem;
    std::ostringstream stem;
    stem << fs::temp_directory_path().string() << "/nibble_openvino_" << getpid();
    const std::string xml = stem.str() + ".xml", bin = stem.str() + ".bin";
    WriteModel(bits, rows, cols, m_rows, xml, bin);

    const auto create = Symbol<int(Handle*)>("ov_core_create");
    const auto read = Symbol<int(Handle, const char*, const char*, Handle*)>("ov_core_read_model");
    const auto compile =
        Symbol<int(Handle, Handle, const char*, size_t, Handle*, ...)>("ov_core_compile_model");
    const auto request = Symbol<int(Handle, Handle*)>("ov_compiled_model_create_infer_request");
    const auto input = Symbol<int(Handle, Handle*)>("ov_infer_request_get_input_tensor");
    const auto data = Symbol<int(Handle, void**)>("ov_tensor_data");
    infer_ = Symbol<int(Handle)>("ov_infer_request_infer");
    void* values = nullptr;
    const std::string thread_count = std::to_string(threads);
    const bool ok = create && read && compile && request && input && data && infer_ &&
                    create(&core_) == 0 && read(core_, xml.c_str(), bin.c_str(), &model_) == 0 &&
                    compile(core_, model_, "CPU", 4, &compiled_, "INFERENCE_NUM_THREADS",
                            thread_count.c_str(), "NUM_STREAMS", "1") == 0 &&
                    request(compiled_, &request_) == 0 && input(request_, &input_) == 0 &&
                    data(input_, &values) == 0;
    std::error_code error;
    fs::remove(xml, error);
    fs::remove(bin, error);
    if (!ok) return;
    for (int64_t i = 0; i < m_rows * cols; ++i) {
      static_cast<float*>(values)[i] = static_cast<float>(i * 2654435761u % 1024) / 512 - 1;
    }
    found_ = true;
  }

  ~OpenVinoMatmul() {
    const auto free = [](const char* name, Handle handle) {
      const auto function = Symbol<void(Handle)>(name);
      if (handle != nullptr && function != nullptr) function(handle);
    };
    free("ov_tensor_free", input_);
    free("ov_infer_request_free", request_);
    free("ov_compiled_model_free", compiled_);
    free("ov_model_free", model_);
    free("ov_core_free", core_);
  }
  OpenVinoMatmul(const OpenVinoMatmul&) = delete;
  OpenVinoMatmul& operator=(const OpenVinoMatmul&) = delete;

  bool found() const { return found_; }
  void Run() const { infer_(request_); }

 private:
  using Handle = void*;
  static constexpr int64_t kGroup = 128;

  static void* Library() {
    static void* const library = [] {
      namespace fs = std::filesystem;
      std::vector<fs::path> folders;
      if (const char* folder = std::getenv("NIBBLE_OPENVINO")) folders.emplace_back(folder);
      std::error_code error;
      for (const char* lib : {"build/venv/lib", "../venv/lib", "../../venv/lib"}) {
        for (const auto& python : fs::directory_iterator(lib, error)) {
          folders.push_back(python.path() / "site-packages/openvino/libs");
        }
      }
      for (const fs::path& folder : folders) {
        for (const auto& file : fs::directory_iterator(folder, error)) {
          const std::string name = file.path().filename().string();
          if (name.rfind("libopenvino_c.so", 0) != 0) continue;
          void* handle = dlopen(file.path().c_str(), RTLD_NOW | RTLD_LOCAL);
          if (handle == nullptr) continue;
          std::fprintf(stderr, "OpenVINO: %s\n", file.path().c_str());
          return handle;
        }
      }
      std::fprintf(stderr,
                   "OpenVINO: not found, so it is not measured (./dev peers installs it; "
                   "NIBBLE_OPENVINO names another folder)\n");
      return static_cast<void*>(nullptr);
    }();
    return library;
  }

  template <class Function>
  static Function* Symbol(const char* name) {
    return reinterpret_cast<Function*>(dlsym(Library(), name));
  }

  // --- The IR ---

  using Shape = std::vector<int64_t>;
  struct Port {
    const char* precision;
    Shape shape;
  };
  struct Network {
    std::ostringstream layers, edges;
    std::ofstream constants;
    int64_t offset = 0;
    int count = 0;
    std::vector<Port> outputs;  // of each layer

    static std::string Dims(const Shape& shape) {
      std::ostringstream text;
      for (int64_t d : shape) text << "<dim>" << d << "</dim>";
      return text.str();
    }
    static std::string List(const Shape& shape) {
      std::ostringstream text;
      for (size_t i = 0; i < shape.size(); ++i) text << (i == 0 ? "" : ",") << shape[i];
      return text.str();
    }

    // A layer; inputs are the numbers of others.
    int Add(const char* type, const std::string& data, const std::vector<int>& inputs,
            const Port& output) {
      layers << "<layer id=\"" << count << "\" name=\"l" << count << "\" type=\"" << type
             << "\" version=\"opset1\">";
      if (!data.empty()) layers << "<data " << data << "/>";
      if (!inputs.empty()) layers << "<input>";
      for (size_t i = 0; i < inputs.size(); ++i) {
        const Port& port = outputs[static_cast<size_t>(inputs[i])];
        layers << "<port id=\"" << i << "\" precision=\"" << port.precision << "\">"
               << Dims(port.shape) << "</port>";
        edges << "<edge from-layer=\"" << inputs[i] << "\" from-port=\"9\" to-layer=\"" << count
              << "\" to-port=\"" << i << "\"/>";
      }
      if (!inputs.empty()) layers << "</input>";
      if (output.precision != nullptr) {
        layers << "<output><port id=\"9\" precision=\"" << output.precision << "\">"
               << Dims(output.shape) << "</port></output>";
      }
      layers << "</layer>";
      outputs.push_back(output);
      return count++;
    }

    int AddConstant(const char* type, const char* precision, const Shape& shape,
                    const std::vector<char>& bytes) {
      std::ostringstream data;
      data << "element_type=\"" << type << "\" shape=\"" << List(shape) << "\" offset=\"" << offset
           << "\" size=\"" << bytes.size() << "\"";
      constants.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      offset += static_cast<int64_t>(bytes.size());
      return Add("Const", data.str(), {}, {precision, shape});
    }

    int AddConvert(int from, const char* type, const char* precision) {
      std::ostringstream data;
      data << "destination_type=\"" << type << '"';
      return Add("Convert", data.str(), {from},
                 {precision, outputs[static_cast<size_t>(from)].shape});
    }
  };

  static std::vector<char> Halves(int64_t count, uint16_t half) {
    std::vector<char> bytes;
    for (int64_t i = 0; i < count; ++i) {
      bytes.push_back(static_cast<char>(half & 255));
      bytes.push_back(static_cast<char>(half >> 8));
    }
    return bytes;
  }

  static void WriteModel(int bits, int64_t rows, int64_t cols, int64_t m_rows,
                         const std::string& xml, const std::string& bin) {
    Network net;
    net.constants.open(bin, std::ios::binary);
    std::ostringstream parameter;
    parameter << "shape=\"" << Network::List({m_rows, cols}) << "\" element_type=\"f32\"";
    const int x = net.Add("Parameter", parameter.str(), {}, {"FP32", {m_rows, cols}});
    std::vector<char> codes(static_cast<size_t>(rows * cols * bits / 8));
    uint32_t state = 1;
    for (char& c : codes) {
      state = state * 1664525u + 1013904223u;
      c = static_cast<char>(state >> 24);
    }
    constexpr uint16_t kScale = 0x2000, kZero = 0x4800;  // 2^-7 and 8, as halves
    const char* numpy = "auto_broadcast=\"numpy\"";
    int w = 0;
    if (bits == 4) {
      const Shape shape = {rows, cols / kGroup, kGroup}, scales = {rows, cols / kGroup, 1};
      const int64_t groups = rows * cols / kGroup;
      w = net.AddConvert(net.AddConstant("u4", "U4", shape, codes), "f16", "FP16");
      const int zeros = net.AddConstant("f16", "FP16", scales, Halves(groups, kZero));
      w = net.Add("Subtract", numpy, {w, zeros}, {"FP16", shape});
      const int scale = net.AddConstant("f16", "FP16", scales, Halves(groups, kScale));
      w = net.Add("Multiply", numpy, {w, scale}, {"FP16", shape});
      std::vector<char> target(16);
      for (int i = 0; i < 8; ++i) {
        target[static_cast<size_t>(i)] = static_cast<char>(rows >> (8 * i));
        target[static_cast<size_t>(8 + i)] = static_cast<char>(cols >> (8 * i));
      }
      const int flat = net.AddConstant("i64", "I64", {2}, target);
      w = net.Add("Reshape", "special_zero=\"false\"", {w, flat}, {"FP16", {rows, cols}});
    } else {
      const Shape shape = {rows, cols};
      w = net.AddConvert(net.AddConstant("i8", "I8", shape, codes), "f16", "FP16");
      const int scale = net.AddConstant("f16", "FP16", {rows, 1}, Halves(rows, kScale));
      w = net.Add("Multiply", numpy, {w, scale}, {"FP16", shape});
    }
    w = net.AddConvert(w, "f32", "FP32");
    const int y = net.Add("MatMul", "transpose_a=\"false\" transpose_b=\"true\"", {x, w},
                          {"FP32", {m_rows, rows}});
    net.Add("Result", "", {y}, {nullptr, {}});
    std::ofstream(xml) << "<?xml version=\"1.0\"?><net name=\"matmul\" version=\"11\"><layers>"
                       << net.layers.str() << "</layers><edges>" << net.edges.str()
                       << "</edges></net>";
  }

  Handle core_ = nullptr, model_ = nullptr, compiled_ = nullptr, request_ = nullptr;
  Handle input_ = nullptr;
  int (*infer_)(Handle) = nullptr;
  bool found_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_BENCHMARKS_OPENVINO_MATMUL_H_
