// The model of examples/reference-model, loaded once.
#ifndef NIBBLE_TESTS_MODEL_REFERENCE_MODEL_H_
#define NIBBLE_TESTS_MODEL_REFERENCE_MODEL_H_

#include <cstdlib>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "nibble/model.h"

namespace nibble {

inline const std::string kReferenceFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

inline const Model& ReferenceModel() {
  static const Model* model = [] {
    Result<Model> loaded = Model::Load(kReferenceFolder);
    if (!loaded.ok()) {
      ADD_FAILURE() << loaded.status().message();
      std::abort();
    }
    return new Model(*std::move(loaded));
  }();
  return *model;
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_MODEL_REFERENCE_MODEL_H_
