// Other libraries to stand beside, loaded at run time where they are found: nibble never links
// them.
//
// ggml: the folder of libggml-base.so and libggml-cpu.so is looked for in the environment variable
// NIBBLE_GGML, then in the virtual environment that `./dev peers` makes.
#ifndef NIBBLE_BENCHMARKS_PEERS_H_
#define NIBBLE_BENCHMARKS_PEERS_H_

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

// A copy of the head of ggml_type_traits, as its public header declares it.
struct GgmlTypeTraits {
  const char* type_name;
  int64_t block_size;
  int64_t block_size_interleave;
  size_t type_size;
  bool is_quantized;
  void (*to_float)(const void* x, float* y, int64_t count);
  void (*from_float_ref)(const float* x, void* y, int64_t count);
};

class Ggml {
 public:
  // The one instance; tells on stderr, once, where ggml was found or that it was not.
  static const Ggml& Get() {
    static const Ggml ggml;
    return ggml;
  }

  bool found() const { return handle_ != nullptr; }

  // A function of libggml-base, libggml-cpu or libggml; nullptr where there is none.
  template <class Function>
  Function* Symbol(const char* name) const {
    return found() ? reinterpret_cast<Function*>(dlsym(handle_, name)) : nullptr;
  }

  const GgmlTypeTraits* Traits(int type) const {
    const auto get = Symbol<const GgmlTypeTraits*(int)>("ggml_get_type_traits");
    return get == nullptr ? nullptr : get(type);
  }

 private:
  Ggml() {
    for (const std::string& folder : Folders()) {
      // libggml depends on the others, whose symbols dlsym then finds through its handle.
      handle_ = dlopen((folder + "/libggml.so").c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ == nullptr) continue;
      std::fprintf(stderr, "ggml: %s\n", folder.c_str());
      // It would tell of every matrix that it lays out anew.
      using Log = void(int level, const char* text, void* user);
      const auto set_log = Symbol<void(Log*, void*)>("ggml_log_set");
      if (set_log != nullptr) set_log([](int, const char*, void*) {}, nullptr);
      return;
    }
    std::fprintf(
        stderr,
        "ggml: not found, so it is not measured (./dev peers installs it; NIBBLE_GGML names "
        "another folder)\n");
  }

  static std::vector<std::string> Folders() {
    namespace fs = std::filesystem;
    if (const char* folder = std::getenv("NIBBLE_GGML")) return {folder};
    std::vector<std::string> folders;
    std::error_code error;
    for (const char* lib : {"build/venv/lib", "../venv/lib", "../../venv/lib"}) {
      for (const auto& python : fs::directory_iterator(lib, error)) {
        folders.push_back((python.path() / "site-packages/llama_cpp/lib").string());
      }
    }
    return folders;
  }

  void* handle_ = nullptr;
};

}  // namespace nibble

#endif  // NIBBLE_BENCHMARKS_PEERS_H_
