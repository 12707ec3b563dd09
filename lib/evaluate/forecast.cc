// What a type will make of a model, from a sample of its rows.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>

#include "lib/model/produce_tensor.h"
#include "lib/model/sample_rows.h"
#include "nibble/estimate.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

struct SampleSums {
  double energy = 0, error = 0, seconds = 0;
  uint64_t weights = 0;
};

Result<SampleSums> QuantizeSample(const Tensor& sample, Format format, const QuantizeOptions& how,
                                  const ParallelFor& parallel) {
  const TensorView in = sample.view();
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor quantized, Quantize(in, format, how));
  SampleSums sums;
  sums.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  NIBBLE_ASSIGN_OR_RETURN(Tensor decoded, Tensor::Allocate(DType::kF32, in.rows, in.cols));
  NIBBLE_RETURN_IF_ERROR(Dequantize(quantized, decoded.mutable_view(), parallel));
  for (int64_t r = 0; r < in.rows; ++r) {
    const auto* a = static_cast<const float*>(in.Row(r));
    const auto* b = static_cast<const float*>(decoded.view().Row(r));
    for (int64_t i = 0; i < in.cols; ++i) {
      const double x = a[i], error = x - b[i];
      sums.energy += x * x;
      sums.error += error * error;
    }
  }
  sums.weights = static_cast<uint64_t>(in.rows * in.cols);
  return sums;
}

std::vector<float> ImportanceOf(const ImportanceMatrix* importance, const ModelTensor& tensor,
                                Format format) {
  if (importance == nullptr || GetFormatInfo(format).use != FormatUse::kWeight) return {};
  const LayerStatistics* layer = importance->Find(tensor.name);
  // Of stacked experts the sample mixes rows: none of their statistics serves them all.
  if (layer == nullptr || layer->matrices() != 1 || layer->cols != tensor.cols()) return {};
  return layer->MeanSquares();
}

Status Sample(const ModelSource& source, const ModelPlan& plan, const ForecastOptions& options,
              TypeForecast* forecast) {
  struct Rate {
    double seconds = 0;
    uint64_t sampled = 0, weights = 0;
  };
  std::map<Format, Rate> rates;
  forecast->sampled = true;
  for (const TensorTask& task : plan.tensors) {
    const ModelTensor& tensor = *task.source;
    const Format to = task.choice.format;
    const uint64_t weights = static_cast<uint64_t>(tensor.rows() * tensor.cols());
    if (weights == 0 || !GetFormatInfo(tensor.format).can_decode()) continue;
    const bool scalar = ScalarType(tensor.format).has_value();
    // What WriteModel holds of a tensor: its bytes, and a piece of it decoded and quantized.
    const uint64_t piece =
        static_cast<uint64_t>(std::min(RowsPerPiece(tensor.cols()), tensor.rows()) * tensor.cols());
    NIBBLE_ASSIGN_OR_RETURN(const size_t held,
                            FormatBytes(tensor.format, tensor.rows(), tensor.cols()));
    forecast->quantize_memory =
        std::max<uint64_t>(forecast->quantize_memory, held + (scalar ? 0 : piece * sizeof(float)) +
                                                          task.bytes * piece / weights);
    if (tensor.dims.size() < 2 || (to == tensor.format && !scalar)) continue;  // pass as they are
    Result<Tensor> sample = SampleRows(source, tensor, options.sample_weights);
    if (!sample.ok()) return std::move(sample).status().WithContext(tensor.name);
    const std::vector<float> importance = ImportanceOf(options.importance, tensor, to);
    QuantizeOptions how;
    how.importance = importance;
    how.parallel = options.parallel;
    Result<SampleSums> sums = QuantizeSample(*sample, to, how, options.parallel);
    if (!sums.ok()) return std::move(sums).status().WithContext(tensor.name);
    Rate& rate = rates[to];
    rate.seconds += sums->seconds;
    rate.sampled += sums->weights;
    rate.weights += weights;
    const double scale = static_cast<double>(weights) / static_cast<double>(sums->weights);
    forecast->tensors.push_back({tensor.name, to, weights, scale * sums->energy,
                                 sums->energy > 0 ? sums->error / sums->energy : 0});
  }
  for (const auto& [format, rate] : rates) {
    forecast->quantize_seconds +=
        rate.seconds * static_cast<double>(rate.weights) / static_cast<double>(rate.sampled);
  }
  return OkStatus();
}

// What the shapes alone tell. An architecture that cannot be run has no footprint but its weights.
void Foresee(const ModelShape& shape, const ForecastOptions& options, TypeForecast* forecast) {
  uint64_t weights = 0, bytes = 0;
  for (const GgufTensorInfo& tensor : shape.tensors) {
    const Result<size_t> size = FormatBytes(tensor.format, tensor.rows(), tensor.cols());
    bytes += size.ok() ? *size : 0;
    weights += static_cast<uint64_t>(tensor.rows() * tensor.cols());
  }
  forecast->bits_per_weight =
      weights == 0 ? 0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  const Result<Footprint> footprint = ForeseeFootprint(shape, options.footprint);
  forecast->footprint.weights = bytes;
  if (!footprint.ok()) return;
  forecast->footprint = *footprint;
  const TokenCost cost = CostOfToken(shape.tensors);
  const double sequences = static_cast<double>(options.footprint.sequences);
  const double read =
      static_cast<double>(cost.read_bytes) + static_cast<double>(footprint->cache) / sequences;
  forecast->decode_limit = options.machine.read_bytes_per_second / std::max(read, 1.0);
  forecast->prefill_limit = options.machine.multiply_adds_per_second /
                            std::max(static_cast<double>(cost.multiply_adds), 1.0);
}

}  // namespace

std::optional<double> TypeForecast::Nmse() const {
  if (!sampled) return std::nullopt;
  double energy = 0, error = 0;
  for (const SampledTensor& tensor : tensors) {
    energy += tensor.energy;
    error += tensor.nmse * tensor.energy;
  }
  return energy > 0 ? error / energy : 0;
}

std::optional<double> TypeForecast::SnrDb() const {
  const std::optional<double> nmse = Nmse();
  if (!nmse) return std::nullopt;
  return *nmse > 0 ? -10 * std::log10(*nmse) : std::numeric_limits<double>::infinity();
}

Result<TypeForecast> ForecastType(const ModelSource& source, const std::string& type,
                                  const ForecastOptions& options) {
  ModelRecipe recipe;
  recipe.type = type;
  recipe.importance = options.importance;
  const ModelPermissions permissions = {
      .requantize = true, .fallback = true, .missing_importance = true};
  NIBBLE_ASSIGN_OR_RETURN(const ModelPlan plan, PlanModel(source, recipe, permissions));
  TypeForecast forecast;
  forecast.type = plan.recipe.type;
  NIBBLE_ASSIGN_OR_RETURN(forecast.file_bytes, PlannedBytes(plan));
  Foresee({plan.metadata, plan.Layout()}, options, &forecast);
  if (options.sample_weights > 0) {
    NIBBLE_RETURN_IF_ERROR(Sample(source, plan, options, &forecast));
  }
  return forecast;
}

Result<TypeForecast> ForecastType(const ModelShape& shape, const std::string& type,
                                  const ForecastOptions& options) {
  TypeForecast forecast;
  ModelShape made = shape;
  forecast.type = type;
  if (type != kCopyType) {
    NIBBLE_ASSIGN_OR_RETURN(const TypeChoice choice, ParseType(type));
    forecast.type = choice.mix != nullptr ? choice.mix->name : GetFormatInfo(choice.format).name;
    NIBBLE_ASSIGN_OR_RETURN(
        const std::vector<FormatChoice> formats,
        ChooseFormats(shape.metadata, shape.tensors, choice, {}, options.importance != nullptr));
    for (size_t i = 0; i < formats.size(); ++i) made.tensors[i].format = formats[i].format;
  }
  NIBBLE_ASSIGN_OR_RETURN(forecast.file_bytes, GgufWriter::TotalBytes(made.metadata, made.tensors));
  Foresee(made, options, &forecast);
  return forecast;
}

}  // namespace nibble
