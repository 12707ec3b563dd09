#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "kernels/planar.h"
#include "lib/quantize/additive.h"
#include "lib/quantize/checks.h"
#include "lib/quantize/finite_rows.h"
#include "lib/quantize/hqq.h"
#include "lib/quantize/planar_scales.h"
#include "lib/quantize/planar_spans.h"
#include "nibble/backend.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

Status CheckTable(const Scheme& scheme, std::span<const float> table) {
  const size_t count = scheme.code == Code::kTable ? size_t{1} << scheme.bits : 0;
  if (table.size() != count) {
    return InvalidArgument(SchemeName(scheme) + ": a table of " + std::to_string(table.size()) +
                           " values where " + std::to_string(count) + " are needed");
  }
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(table[i]) || (i > 0 && !(table[i - 1] < table[i]))) {
      return InvalidArgument("table: value " + std::to_string(i) + " is not finite or not above " +
                             "the one before it");
    }
  }
  return OkStatus();
}

Status CheckGroupIndex(const Scheme& scheme, std::span<const int32_t> index, int64_t cols) {
  const int64_t count = scheme.has_group_index ? cols : 0;
  if (static_cast<int64_t>(index.size()) == count) return OkStatus();
  return InvalidArgument(SchemeName(scheme) + ": a group index of " + std::to_string(index.size()) +
                         " columns where " + std::to_string(count) + " are needed");
}

// What half-quadratic optimisation can choose.
Status CheckScaleChoice(const Scheme& scheme, const QuantizeOptions& options) {
  if (options.scales == ScaleChoice::kRange) return OkStatus();
  if (scheme.code != Code::kUniform || scheme.symmetric ||
      scheme.granularity == Granularity::kTensor || !options.importance.empty()) {
    return InvalidArgument(SchemeName(scheme) +
                           ": half-quadratic optimisation is for integer codes "
                           "with a zero, by channel or group, without importance");
  }
  return OkStatus();
}

// One matrix being quantized.
class PlanarQuantizer {
 public:
  PlanarQuantizer(const TensorView& weights, const QuantizeOptions& options, QuantizedTensor* out)
      : weights_(weights),
        finite_(weights, options.non_finite),
        options_(options),
        scheme_(out->scheme()),
        indexed_(scheme_.has_group_index),
        // Search wants all the weights under one scale at once.
        searches_(!options.importance.empty() || options.scales != ScaleChoice::kRange),
        spans_(scheme_, weights.cols, searches_ && scheme_.granularity == Granularity::kChannel),
        book_(MakePlanarCodebook(scheme_, PlaneOf(out, Plane::kTable))),
        row_bytes_(PlanarRowBytes(scheme_.bits, weights.cols)),
        codes_(PlaneOf(out, Plane::kCodes)),
        scales_(PlaneOf(out, Plane::kScales)),
        zeros_(PlaneOf(out, Plane::kZeros)),
        group_index_(PlaneOf(out, Plane::kGroupIndex)),
        super_scales_(PlaneOf(out, Plane::kSuperScales)) {}

  Status Run() {
    const int64_t scale_count = weights_.rows * spans_.groups_per_row;
    Buffer exact_scales;
    uint8_t* scale_codes = scales_;
    if (scheme_.double_quant) {
      NIBBLE_ASSIGN_OR_RETURN(exact_scales, Buffer::Allocate(static_cast<size_t>(scale_count) * 4));
      scales_ = reinterpret_cast<uint8_t*>(exact_scales.data());
    }
    if (indexed_) {
      NIBBLE_ASSIGN_OR_RETURN(order_,
                              GroupOrder::Make(group_index_, weights_.cols, spans_.groups_per_row));
    }
    // Twice the room: one half for a candidate's decoded weights and ordered importance.
    scratch_bytes_ = PlanarScratch::Bytes(spans_, indexed_) +
                     (searches_ ? static_cast<size_t>(spans_.length) * 8 + 64 : 0);
    const size_t workers = static_cast<size_t>(std::max(1, options_.parallel.workers));
    NIBBLE_ASSIGN_OR_RETURN(scratch_, Buffer::Allocate(scratch_bytes_ * workers));

    switch (scheme_.granularity) {
      case Granularity::kTensor:
        NIBBLE_RETURN_IF_ERROR(QuantizeTensor());
        break;
      case Granularity::kChannel:
        QuantizeChannels();
        break;
      case Granularity::kGroup:
        QuantizeGroups();
        break;
    }
    NIBBLE_RETURN_IF_ERROR(Found());
    if (scheme_.double_quant) {
      QuantizeScales(reinterpret_cast<const float*>(exact_scales.data()), scale_count, scale_codes,
                     super_scales_);
    }
    return OkStatus();
  }

 private:
  static uint8_t* PlaneOf(QuantizedTensor* tensor, Plane p) {
    return reinterpret_cast<uint8_t*>(tensor->plane(p).data());
  }

  PlanarScratch Scratch(int worker) {
    return PlanarScratch(scratch_.data() + scratch_bytes_ * static_cast<size_t>(worker), spans_,
                         indexed_);
  }

  bool Load(int64_t row, int64_t first, int64_t count, float* x) {
    return finite_.Load(row, first, count, x);
  }

  // The scale and zero of a group; false where the scale's type cannot hold it.
  bool Fit(const float* x, const float* importance, int64_t count, const PlanarScratch& scratch,
           int64_t at, ScaleZero* fit) {
    *fit = {};
    if (count > 0) {
      *fit = FitRange(scheme_, book_, FindRange(x, count));
      if (!std::isfinite(fit->scale)) {
        bad_scale_.Report(at);
        return false;
      }
      if (options_.scales == ScaleChoice::kHalfQuadratic) {
        *fit =
            FitHalfQuadratic(scheme_, book_, x, count, scratch.ordered_codes, SearchRoom(scratch));
      } else if (importance != nullptr) {
        *fit = SearchScale(scheme_, book_, x, importance, count, *fit, scratch.ordered_codes,
                           SearchRoom(scratch));
      }
    }
    Store(at, *fit);
    return true;
  }

  void Store(int64_t at, ScaleZero fit) {
    StorePlaneFloat(scales_, scheme_.scale_dtype, at, fit.scale);
    if (!scheme_.symmetric) StorePlaneFloat(zeros_, scheme_.zero_dtype, at, fit.zero);
  }

  // Behind the scratch of the span: what a search decodes, and the importance by group.
  float* SearchRoom(const PlanarScratch& scratch) const {
    return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(scratch.weights) +
                                    PlanarScratch::Bytes(spans_, indexed_));
  }

  // The importance of columns from `first`, in the order of the groups; null where there is none.
  const float* Importance(int64_t first, int64_t count, const PlanarScratch& scratch) const {
    if (options_.importance.empty()) return nullptr;
    const float* importance = options_.importance.data() + first;
    if (!indexed_) return importance;
    float* ordered = SearchRoom(scratch) + spans_.length;
    for (int64_t i = 0; i < count; ++i) ordered[i] = importance[order_.columns()[i]];
    return ordered;
  }

  void Encode(int64_t row, int64_t first, int64_t count, const PlanarScratch& scratch,
              int64_t groups) {
    ChooseCodes(book_, {scratch.groups, static_cast<size_t>(groups)}, scratch.ordered,
                scratch.ordered_codes);
    if (indexed_) {
      for (int64_t i = 0; i < count; ++i) {
        scratch.codes[order_.columns()[i]] = scratch.ordered_codes[i];
      }
    }
    PackCodes(scratch.codes, scheme_.bits, count,
              codes_ + row * row_bytes_ + first / 8 * scheme_.bits);
  }

  void QuantizeGroups() {
    ForSpans(spans_, weights_.rows, weights_.cols, options_.parallel,
             [&](int64_t row, int64_t first, int64_t count, int worker) {
               const PlanarScratch scratch = Scratch(worker);
               if (!Load(row, first, count, scratch.weights)) return;
               for (int64_t i = 0; indexed_ && i < count; ++i) {
                 scratch.ordered[i] = scratch.weights[order_.columns()[i]];
               }
               const float* importance = Importance(first, count, scratch);
               const int64_t groups =
                   indexed_ ? spans_.groups : (count + spans_.group - 1) / spans_.group;
               int64_t begin = 0;
               for (int64_t g = 0; g < groups; ++g) {
                 const int64_t end =
                     indexed_ ? order_.ends()[g] : std::min(count, begin + spans_.group);
                 const int64_t at = row * spans_.groups_per_row + first / spans_.group + g;
                 ScaleZero fit;
                 if (!Fit(scratch.ordered + begin, importance ? importance + begin : nullptr,
                          end - begin, scratch, at, &fit)) {
                   return;
                 }
                 scratch.groups[g] = {end, fit.scale, fit.zero};
                 begin = end;
               }
               Encode(row, first, count, scratch, groups);
             });
  }

  // Calls function(first, count) for each span of a row.
  template <class Function>
  void ForSpansOfRow(const Function& function) const {
    for (int64_t first = 0; first < weights_.cols; first += spans_.length) {
      function(first, std::min(spans_.length, weights_.cols - first));
    }
  }

  // The range of a row; false where it holds what cannot be quantized.
  bool RowRange(int64_t row, const PlanarScratch& scratch, Range* range) {
    bool ok = true;
    ForSpansOfRow([&](int64_t first, int64_t count) {
      if (!ok || !(ok = Load(row, first, count, scratch.weights))) return;
      const Range part = FindRange(scratch.weights, count);
      *range =
          first == 0 ? part : Range{std::min(range->min, part.min), std::max(range->max, part.max)};
    });
    return ok;
  }

  void EncodeRow(int64_t row, ScaleZero fit, const PlanarScratch& scratch) {
    ForSpansOfRow([&](int64_t first, int64_t count) {
      if (spans_.per_row > 1 || scheme_.granularity == Granularity::kTensor) {
        Load(row, first, count, scratch.weights);
      }
      scratch.groups[0] = {count, fit.scale, fit.zero};
      Encode(row, first, count, scratch, 1);
    });
  }

  void QuantizeChannels() {
    ForRows([&](int64_t row, int worker) {
      const PlanarScratch scratch = Scratch(worker);
      ScaleZero fit;
      if (spans_.per_row == 1) {
        if (!Load(row, 0, weights_.cols, scratch.weights) ||
            !Fit(scratch.weights, Importance(0, weights_.cols, scratch), weights_.cols, scratch,
                 row, &fit)) {
          return;
        }
      } else {
        Range range;
        if (!RowRange(row, scratch, &range)) return;
        fit = FitRange(scheme_, book_, range);
        if (!std::isfinite(fit.scale)) return bad_scale_.Report(row);
        Store(row, fit);
      }
      EncodeRow(row, fit, scratch);
    });
  }

  Status QuantizeTensor() {
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                            Buffer::Allocate(static_cast<size_t>(weights_.rows) * sizeof(Range)));
    Range* ranges = reinterpret_cast<Range*>(buffer.data());
    ForRows([&](int64_t row, int worker) { RowRange(row, Scratch(worker), &ranges[row]); });
    NIBBLE_RETURN_IF_ERROR(Found());
    Range range = ranges[0];
    for (int64_t r = 1; r < weights_.rows; ++r) {
      range = {std::min(range.min, ranges[r].min), std::max(range.max, ranges[r].max)};
    }
    const ScaleZero fit = FitRange(scheme_, book_, range);
    if (!std::isfinite(fit.scale)) {
      bad_scale_.Report(0);
      return Found();
    }
    Store(0, fit);
    ForRows([&](int64_t row, int worker) { EncodeRow(row, fit, Scratch(worker)); });
    return OkStatus();
  }

  template <class Function>
  void ForRows(const Function& function) {
    const int64_t step = std::max<int64_t>(1, (int64_t{1} << 14) / weights_.cols);
    options_.parallel((weights_.rows + step - 1) / step, [&](int64_t task, int worker) {
      for (int64_t r = task * step; r < std::min(weights_.rows, (task + 1) * step); ++r) {
        function(r, worker);
      }
    });
  }

  // What stands in the way of a result.
  Status Found() const {
    NIBBLE_RETURN_IF_ERROR(finite_.Found());
    if (bad_scale_.any()) {
      const bool tensor = scheme_.granularity == Granularity::kTensor;
      const int64_t row = bad_scale_.place() / spans_.groups_per_row;
      const int64_t group = bad_scale_.place() % spans_.groups_per_row;
      return InvalidArgument(
          SchemeName(scheme_) + ": the scale of " +
          (tensor ? std::string("the tensor")
                  : "row " + std::to_string(row) + ", group " + std::to_string(group)) +
          " is beyond what " + DTypeName(scheme_.scale_dtype) + " holds");
    }
    return OkStatus();
  }

  const TensorView weights_;
  FiniteRows finite_;
  const QuantizeOptions& options_;
  const Scheme scheme_;
  const bool indexed_;
  const bool searches_;
  const PlanarSpans spans_;
  const PlanarCodebook book_;
  const int64_t row_bytes_;
  uint8_t* const codes_;
  uint8_t* scales_;
  uint8_t* const zeros_;
  const uint8_t* const group_index_;
  uint8_t* const super_scales_;
  GroupOrder order_;
  size_t scratch_bytes_ = 0;
  Buffer scratch_;
  FirstPlace bad_scale_;  // row * groups + group
};

}  // namespace

Result<QuantizedTensor> Quantize(TensorView weights, const Scheme& scheme,
                                 const QuantizeOptions& options, std::span<const float> table) {
  if (weights.device != Device::kCpu) {
    if (options.scales != ScaleChoice::kRange) {
      return Unsupported("half-quadratic optimisation of weights in device memory");
    }
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(weights.device));
    return backend->quantize_planar(weights, scheme, options, table);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  NIBBLE_RETURN_IF_ERROR(CheckTable(scheme, table));
  NIBBLE_RETURN_IF_ERROR(CheckImportance(options.importance, weights.cols));
  NIBBLE_RETURN_IF_ERROR(CheckGroupIndex(scheme, options.group_index, weights.cols));
  NIBBLE_RETURN_IF_ERROR(CheckScaleChoice(scheme, options));
  if (scheme.code == Code::kAdditive) return QuantizeAdditive(weights, scheme, options);
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor,
                          QuantizedTensor::Allocate(scheme, weights.rows, weights.cols));
  if (!table.empty()) {
    std::memcpy(tensor.plane(Plane::kTable).data(), table.data(), table.size_bytes());
  }
  if (!options.group_index.empty()) {
    std::memcpy(tensor.plane(Plane::kGroupIndex).data(), options.group_index.data(),
                options.group_index.size_bytes());
  }
  NIBBLE_RETURN_IF_ERROR(PlanarQuantizer(weights, options, &tensor).Run());
  return tensor;
}

}  // namespace nibble
