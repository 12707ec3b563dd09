#include <algorithm>

#include "lib/model/content_hash.h"
#include "lib/model/produce_tensor.h"
#include "nibble/quantize_model.h"
#include "nibble/safetensors.h"

namespace nibble {
namespace {

Result<DType> ElementType(Format format) {
  switch (format) {
    case Format::kF32:
      return DType::kF32;
    case Format::kF16:
      return DType::kF16;
    case Format::kBF16:
      return DType::kBF16;
    case Format::kF64:
      return DType::kF64;
    case Format::kI8:
      return DType::kI8;
    case Format::kI16:
      return DType::kI16;
    case Format::kI32:
      return DType::kI32;
    case Format::kI64:
      return DType::kI64;
    default:
      return InvalidArgument(std::string("safetensors files cannot hold ") +
                             GetFormatInfo(format).name + "; choose f32, f16 or bf16");
  }
}

Result<std::vector<SafetensorsInfo>> LayoutOf(const ModelPlan& plan) {
  std::vector<SafetensorsInfo> layout;
  for (const TensorTask& tensor : plan.tensors) {
    SafetensorsInfo info;
    info.name = tensor.source->name;
    info.shape.assign(tensor.source->dims.rbegin(), tensor.source->dims.rend());
    Result<DType> type = ElementType(tensor.choice.format);
    if (!type.ok()) return std::move(type).status().WithContext(info.name);
    info.dtype = *type;
    layout.push_back(std::move(info));
  }
  return layout;
}

SafetensorsWriteOptions WriteOptions(uint64_t max_shard_bytes) {
  // Readers of Hugging Face folders ask for the format.
  return {.metadata = {{"format", "pt"}}, .max_shard_bytes = max_shard_bytes};
}

}  // namespace

Result<uint64_t> PlannedSafetensorsBytes(const ModelPlan& plan, const std::string& target,
                                         uint64_t max_shard_bytes) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<SafetensorsInfo> layout, LayoutOf(plan));
  return SafetensorsWriter::TotalBytes(target, layout, WriteOptions(max_shard_bytes));
}

Status WriteModelSafetensors(const ModelSource& source, const ModelPlan& plan,
                             const std::string& target, uint64_t max_shard_bytes,
                             const ModelRunOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<SafetensorsInfo> layout, LayoutOf(plan));
  NIBBLE_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(target, std::move(layout), WriteOptions(max_shard_bytes)));
  ContentHash source_hash;
  ProgressMeter meter(options, plan.tensors.size(), plan.weights());
  for (const TensorTask& tensor : plan.tensors) {
    NIBBLE_RETURN_IF_ERROR(
        ProduceTensor(source, tensor, plan.recipe, options.parallel, source_hash, meter,
                      [&](std::span<const std::byte> bytes) { return writer.Append(bytes); }));
  }
  return writer.Finish();
}

}  // namespace nibble
