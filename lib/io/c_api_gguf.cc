#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include "lib/core/c_api.h"
#include "nibble/gguf.h"

using nibble::GgufFile;
using nibble::GgufMetadata;
using nibble::GgufTensor;
using nibble::OkStatus;
using nibble::Status;
using nibble::c_api::Call;
using nibble::c_api::CheckPointer;

struct nibble_gguf {
  GgufFile value;
};

namespace {

void CopyTensor(const GgufTensor& from, nibble_gguf_tensor* to) {
  *to = {from.name.c_str(),
         static_cast<uint32_t>(from.format),
         static_cast<int>(from.dims.size()),
         {1, 1, 1, 1},
         from.data.data(),
         from.data.size()};
  std::copy(from.dims.begin(), from.dims.end(), to->dims);
}

// Stores the result of lookup(metadata), a Result.
template <class T, class Lookup>
nibble_status Get(const nibble_gguf* file, const char* key, T* value, nibble_error* error,
                  const Lookup& lookup) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(key, "key"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(value, "value"));
    NIBBLE_ASSIGN_OR_RETURN(*value, lookup(file->value.metadata()));
    return OkStatus();
  });
}

// The string itself, not a copy, so that C can point at it.
nibble::Result<const char*> StringAt(const GgufMetadata& metadata, const char* key) {
  const nibble::GgufValue* found = metadata.Find(key);
  if (found == nullptr) return nibble::NotFound("no key '" + std::string(key) + "'");
  const auto* text = std::get_if<std::string>(found);
  if (text == nullptr)
    return nibble::InvalidArgument("key '" + std::string(key) + "' is no string");
  return text->c_str();
}

}  // namespace

extern "C" {

nibble_status nibble_gguf_open(const char* path, nibble_gguf** file, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(path, "path"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_ASSIGN_OR_RETURN(GgufFile opened, GgufFile::Open(path));
    *file = new nibble_gguf{std::move(opened)};
    return OkStatus();
  });
}

size_t nibble_gguf_tensor_count(const nibble_gguf* file) { return file->value.tensors().size(); }

nibble_status nibble_gguf_tensor_at(const nibble_gguf* file, size_t index,
                                    nibble_gguf_tensor* tensor, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    const auto tensors = file->value.tensors();
    if (index >= tensors.size()) {
      return nibble::NotFound("no tensor " + std::to_string(index) + " among " +
                              std::to_string(tensors.size()));
    }
    CopyTensor(tensors[index], tensor);
    return OkStatus();
  });
}

nibble_status nibble_gguf_find_tensor(const nibble_gguf* file, const char* name,
                                      nibble_gguf_tensor* tensor, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(name, "name"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    const GgufTensor* found = file->value.Find(name);
    if (found == nullptr) return nibble::NotFound("no tensor '" + std::string(name) + "'");
    CopyTensor(*found, tensor);
    return OkStatus();
  });
}

size_t nibble_gguf_key_count(const nibble_gguf* file) {
  return file->value.metadata().entries().size();
}

const char* nibble_gguf_key_at(const nibble_gguf* file, size_t index) {
  const auto& entries = file->value.metadata().entries();
  return index < entries.size() ? entries[index].first.c_str() : nullptr;
}

nibble_status nibble_gguf_get_string(const nibble_gguf* file, const char* key, const char** value,
                                     nibble_error* error) {
  return Get(file, key, value, error, [&](const GgufMetadata& m) { return StringAt(m, key); });
}

nibble_status nibble_gguf_get_uint(const nibble_gguf* file, const char* key, uint64_t* value,
                                   nibble_error* error) {
  return Get(file, key, value, error, [&](const GgufMetadata& m) { return m.GetUint(key); });
}

nibble_status nibble_gguf_get_float(const nibble_gguf* file, const char* key, double* value,
                                    nibble_error* error) {
  return Get(file, key, value, error, [&](const GgufMetadata& m) { return m.GetFloat(key); });
}

void nibble_gguf_close(nibble_gguf* file) { delete file; }

}  // extern "C"
