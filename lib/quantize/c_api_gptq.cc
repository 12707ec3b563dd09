#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "lib/core/c_api.h"
#include "lib/quantize/c_api_hessian.h"
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

namespace {

Status CheckCols(int64_t cols) {
  if (cols > 0 && cols <= std::numeric_limits<int32_t>::max()) return OkStatus();
  return InvalidArgument("a Hessian of " + std::to_string(cols) + " columns");
}

nibble::GptqOptions ToGptqOptions(const nibble_gptq_options* options) {
  nibble::GptqOptions gptq;
  if (options == nullptr) return gptq;
  if (options->damping != 0) gptq.damping = options->damping;
  if (options->sweeps != 0) gptq.sweeps = std::max(0, options->sweeps);
  gptq.act_order = options->act_order != 0;
  gptq.static_groups = options->static_groups != 0;
  gptq.search_scales = options->range_scales == 0;
  gptq.parallel = nibble::c_api::ToParallelFor(&options->parallel);
  return gptq;
}

}  // namespace

extern "C" {

nibble_status nibble_hessian_create(int64_t cols, nibble_hessian** hessian, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_RETURN_IF_ERROR(CheckCols(cols));
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

nibble_status nibble_hessian_from_triangle(int64_t cols, int64_t tokens, const float* sums,
                                           size_t count, nibble_hessian** hessian,
                                           nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(sums, "sums"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_RETURN_IF_ERROR(CheckCols(cols));
    return Release(Hessian::FromTriangle(cols, tokens, {sums, count}), hessian);
  });
}

int64_t nibble_hessian_cols(const nibble_hessian* hessian) { return hessian->value.cols(); }

const float* nibble_hessian_sums(const nibble_hessian* hessian) {
  return hessian->value.sums().data();
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
    const nibble::GptqOptions gptq = ToGptqOptions(options);
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
