#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "lib/core/c_api.h"
#include "nibble/gptq.h"
#include "nibble/scheme.h"

using nibble::Hessian;
using nibble::InvalidArgument;
using nibble::OkStatus;
using nibble::Status;
using nibble::TensorView;
using nibble::c_api::Call;
using nibble::c_api::CheckPointer;
using nibble::c_api::Release;

struct nibble_hessian {
  Hessian value;
};

extern "C" {

nibble_status nibble_hessian_create(int64_t cols, nibble_hessian** hessian, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    if (cols <= 0 || cols > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument("a Hessian of " + std::to_string(cols) + " columns");
    }
    *hessian = new nibble_hessian{Hessian(cols)};
    return OkStatus();
  });
}

nibble_status nibble_hessian_add(nibble_hessian* hessian, nibble_matrix inputs,
                                 const nibble_parallel_for* parallel, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_ASSIGN_OR_RETURN(const auto view, nibble::c_api::ToView<TensorView>(inputs));
    return hessian->value.Add(view, nibble::c_api::ToParallelFor(parallel));
  });
}

nibble_status nibble_hessian_merge(nibble_hessian* hessian, const nibble_hessian* other,
                                   nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(other, "other"));
    return hessian->value.Merge(other->value);
  });
}

int64_t nibble_hessian_tokens(const nibble_hessian* hessian) { return hessian->value.tokens(); }

nibble_status nibble_hessian_mean_squares(const nibble_hessian* hessian, float* out,
                                          nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(out, "out"));
    std::ranges::copy(hessian->value.MeanSquares(), out);
    return OkStatus();
  });
}

void nibble_hessian_free(nibble_hessian* hessian) { delete hessian; }

nibble_status nibble_tensor_quantize_gptq(nibble_matrix weights, const char* type,
                                          const nibble_hessian* hessian,
                                          const nibble_gptq_options* options,
                                          nibble_gptq_report* report, nibble_tensor** tensor,
                                          nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(type, "type"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    NIBBLE_ASSIGN_OR_RETURN(const auto view, nibble::c_api::ToView<TensorView>(weights));
    nibble::GptqOptions gptq;
    if (options != nullptr) {
      if (options->damping != 0) gptq.damping = options->damping;
      gptq.parallel = nibble::c_api::ToParallelFor(&options->parallel);
    }
    nibble::GptqReport said;
    if (const nibble::FormatInfo* info = nibble::FindFormat(type)) {
      NIBBLE_RETURN_IF_ERROR(
          Release(nibble::QuantizeGptq(view, info->format, hessian->value, gptq, &said), tensor));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const nibble::Scheme scheme, nibble::ParseScheme(type));
      NIBBLE_RETURN_IF_ERROR(
          Release(nibble::QuantizeGptq(view, scheme, hessian->value, gptq, &said), tensor));
    }
    if (report != nullptr) {
      *report = {said.damping, said.damping_raised, said.dead_columns, said.output_error,
                 said.weight_energy};
    }
    return OkStatus();
  });
}

}  // extern "C"
