// Opens a model through the installed nibble::model.
#include <cstdio>

#include "nibble/model_source.h"

int main(int argc, char** argv) {
  const auto source = nibble::ModelSource::Open(argc > 1 ? argv[1] : ".");
  if (!source.ok()) {
    std::fprintf(stderr, "%s\n", source.status().message().c_str());
    return 1;
  }
  std::printf("%zu tensors\n", source->tensors().size());
  return source->tensors().empty() ? 1 : 0;
}
