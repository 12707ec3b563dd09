#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/convert.h"
#include "kernels/gemm_f32.h"
#include "kernels/planar.h"
#include "kernels/planar_fit.h"
#include "lib/quantize/additive.h"
#include "lib/quantize/hessian.h"
#include "lib/quantize/planar.h"
#include "lib/quantize/planar_scales.h"
#include "lib/quantize/triangular.h"
#include "nibble/gptq.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

// Rows of one task.
constexpr int64_t kSlab = 64;
// Columns whose errors reach each other one by one; those of all before come in one product.
constexpr int64_t kPanel = 32;

struct Segment {
  int64_t first, count;
};

std::vector<Segment> Cut(Segment whole, int64_t length) {
  std::vector<Segment> pieces;
  const int64_t end = whole.first + whole.count;
  for (int64_t first = whole.first; first < end; first += length) {
    pieces.push_back({first, std::min(length, end - first)});
  }
  return pieces;
}

// A code and what it decodes to.
struct Choice {
  uint8_t code;
  float value;
};

// The code nearest to x, as kernels/planar.h chooses it.
class Chooser {
 public:
  Chooser(const Scheme& scheme, const uint8_t* table)
      : scheme_(scheme), book_(MakePlanarCodebook(scheme, table)) {}

  const PlanarCodebook& book() const { return book_; }

  Choice operator()(float x, ScaleZero fit) const {
    uint32_t code = 0;
    float value = 0;
    const float scale = fit.scale != 0.0f ? fit.scale : 1.0f;
    if (scheme_.code == Code::kUniform) {
      const int q = ChooseInteger(x, scale, fit.zero, book_.low, book_.high);
      code = static_cast<uint32_t>(q) & ((1u << scheme_.bits) - 1);
      value = static_cast<float>(q) - fit.zero;
    } else if (book_.values_count > 0) {
      code = book_.code_of_rank[NearestRank(book_.midpoints, book_.values_count,
                                            x * InverseScale(fit.scale))];
      value = book_.values[code];
    } else {
      code = scheme_.code == Code::kF8E4M3 ? FloatToF8E4M3(x / scale) : FloatToF8E5M2(x / scale);
      value = CodeValue(scheme_, code, nullptr);
    }
    return {static_cast<uint8_t>(code), fit.scale * value};
  }

 private:
  const Scheme& scheme_;
  PlanarCodebook book_;
};

// Everything that the tasks share. "Place" is a column's number in the order of the pass.
struct Job {
  TensorView weights;
  QuantizedTensor* tensor;
  Scheme scheme;
  int64_t groups;               // in a row
  bool fits_ahead;              // scales are there before the pass
  bool search;                  // scales are searched for, not taken from the range
  std::vector<int64_t> column;  // at each place
  std::vector<int64_t> group;   // at each place
  std::vector<Segment> segments;
  std::vector<float> added;  // to the diagonal, at each place
  FeedbackFactor factor;     // in the order of the pass
  const Hessian& hessian;    // in the order of the file
};

// A slab of rows on its way.
class Slab {
 public:
  Slab(const Job& job, const Chooser& choose, int64_t first_row, int64_t rows)
      : job_(job),
        choose_(choose),
        first_row_(first_row),
        rows_(rows),
        cols_(job.weights.cols),
        weights_(rows, cols_),
        errors_(RowMatrix::Zero(rows, cols_)),
        codes_(static_cast<size_t>(rows * cols_)),
        fits_(static_cast<size_t>(rows * job.groups)) {}

  Status Run() {
    Load();
    if (job_.fits_ahead) LoadFits();
    for (const Segment& segment : job_.segments) {
      RowMatrix target = weights_.middleCols(segment.first, segment.count);
      AddFeedback({0, segment.first}, segment, target, 0);
      if (!job_.fits_ahead) NIBBLE_RETURN_IF_ERROR(Fit(segment, target));
      for (const Segment& panel : Cut(segment, kPanel)) {
        AddFeedback({segment.first, panel.first - segment.first}, panel, target,
                    panel.first - segment.first);
        Choose(panel, panel.first - segment.first, target);
      }
    }
    const int64_t row_bytes = PlanarRowBytes(job_.scheme.bits, cols_);
    uint8_t* out = PlaneOf(Plane::kCodes) + first_row_ * row_bytes;
    for (int64_t r = 0; r < rows_; ++r) {
      PackCodes(codes_.data() + r * cols_, job_.scheme.bits, cols_, out + r * row_bytes);
    }
    return OkStatus();
  }

  // e H e^T / tokens, summed over the rows. Known from the pass, but for what damping added.
  double OutputError() const {
    double sum = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t j = 0; j < cols_; ++j) {
        const double e = errors_(r, j);
        sum -= static_cast<double>(job_.added[static_cast<size_t>(j)]) * e * e;
      }
    }
    return std::max(0.0, loss_ + sum);
  }

  // w H w^T / tokens, summed over the rows; overwrites what the pass has left behind.
  double WeightEnergy() {
    errors_.setZero();
    RowMatrix w(rows_, cols_);
    for (int64_t j = 0; j < cols_; ++j) {
      w.col(job_.column[static_cast<size_t>(j)]) = weights_.col(j);
    }
    DotRowsF32(w.data(), cols_, rows_, job_.hessian.sums().data(), cols_, cols_, cols_,
               errors_.data(), cols_);
    return errors_.cast<double>().cwiseProduct(w.cast<double>()).sum() /
           static_cast<double>(job_.hessian.tokens());
  }

 private:
  uint8_t* PlaneOf(Plane p) const {
    return reinterpret_cast<uint8_t*>(job_.tensor->plane(p).data());
  }
  ScaleZero& FitOf(int64_t row, int64_t group) {
    return fits_[static_cast<size_t>(row * job_.groups + group)];
  }

  void Load() {
    std::vector<float> row(static_cast<size_t>(cols_));
    for (int64_t r = 0; r < rows_; ++r) {
      ConvertToFloat(job_.weights.dtype, job_.weights.Row(first_row_ + r), cols_, row.data());
      for (int64_t j = 0; j < cols_; ++j) {
        weights_(r, j) = row[static_cast<size_t>(job_.column[static_cast<size_t>(j)])];
      }
    }
  }

  void LoadFits() {
    const PlanarPlanes planes = PlanesOf(*job_.tensor);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t g = 0; g < job_.groups; ++g) {
        const int64_t at = planes.ScaleAt(first_row_ + r, g);
        FitOf(r, g) = {planes.Scale(at), planes.Zero(at)};
      }
    }
  }

  // target(., at ...) of the places `to` += the errors at the places `from`, fed back.
  void AddFeedback(Segment from, Segment to, RowMatrix& target, int64_t at) const {
    if (from.count == 0) return;
    AddProduct(Strided(errors_.data() + from.first, cols_),
               Strided(job_.factor.unit.data() + from.first * cols_ + to.first, cols_), rows_,
               to.count, from.count, 1.0f, target.data() + at, target.cols());
  }

  // Scales of the group that is this segment, from the weights that would be best now, given the
  // errors of all before. The targets are not that yet: a column's target takes the feedback of the
  // group's earlier columns too, which so far mean to move as the best weights do, so that with d,
  // the best weights' distance from w, target - w = d T.
  Status Fit(Segment segment, const RowMatrix& target) {
    const auto given = weights_.middleCols(segment.first, segment.count);
    RowMatrix best = target - given;
    SolveUpper(job_.factor.unit.data() + segment.first * (cols_ + 1), cols_, segment.count, true,
               best.data(), segment.count, rows_);
    best += given;
    const int64_t group = job_.group[static_cast<size_t>(segment.first)];
    std::vector<uint8_t> codes(static_cast<size_t>(segment.count));
    std::vector<float> decoded(static_cast<size_t>(segment.count));
    for (int64_t r = 0; r < rows_; ++r) {
      const float* x = best.row(r).data();
      ScaleZero fit = FitRange(job_.scheme, choose_.book(), FindRange(x, segment.count));
      const int64_t row = first_row_ + r;
      if (!std::isfinite(fit.scale)) {
        return InvalidArgument(SchemeName(job_.scheme) + ": the scale of row " +
                               std::to_string(row) + ", group " + std::to_string(group) +
                               " is beyond what " + DTypeName(job_.scheme.scale_dtype) + " holds");
      }
      if (job_.search) {
        fit =
            SearchScale(job_.scheme, choose_.book(), x, job_.factor.diagonal.data() + segment.first,
                        segment.count, fit, codes.data(), decoded.data());
      }
      FitOf(r, group) = fit;
      const int64_t at = row * job_.groups + group;
      StorePlaneFloat(PlaneOf(Plane::kScales), job_.scheme.scale_dtype, at, fit.scale);
      if (!job_.scheme.symmetric) {
        StorePlaneFloat(PlaneOf(Plane::kZeros), job_.scheme.zero_dtype, at, fit.zero);
      }
    }
    return OkStatus();
  }

  // Codes of a panel, whose targets begin at column `at`: each column's error goes on to the later
  // ones.
  void Choose(Segment panel, int64_t at, RowMatrix& target) {
    const RowMatrix unit =
        job_.factor.unit.block(panel.first, panel.first, panel.count, panel.count);
    for (int64_t r = 0; r < rows_; ++r) {
      float* v = target.row(r).data() + at;
      const float* w = weights_.row(r).data() + panel.first;
      float* e = errors_.row(r).data() + panel.first;
      uint8_t* codes = codes_.data() + r * cols_;
      for (int64_t j = 0; j < panel.count; ++j) {
        const size_t place = static_cast<size_t>(panel.first + j);
        const Choice choice = choose_(v[j], FitOf(r, job_.group[place]));
        codes[job_.column[place]] = choice.code;
        const double rest = static_cast<double>(v[j]) - static_cast<double>(choice.value);
        loss_ += static_cast<double>(job_.factor.diagonal[panel.first + j]) * rest * rest;
        e[j] = w[j] - choice.value;
        const float* t = unit.row(j).data();
        for (int64_t k = j + 1; k < panel.count; ++k) v[k] += e[j] * t[k];
      }
    }
  }

  const Job& job_;
  const Chooser& choose_;
  const int64_t first_row_, rows_, cols_;
  RowMatrix weights_, errors_;  // in the order of the pass
  std::vector<uint8_t> codes_;  // in the order of the file
  std::vector<ScaleZero> fits_;
  double loss_ = 0;  // with damping
};

Status CheckOrder(const Scheme& scheme, const GptqOptions& options) {
  const bool follows =
      options.act_order && !options.static_groups && scheme.granularity == Granularity::kGroup;
  if (follows != scheme.has_group_index) {
    return InvalidArgument(SchemeName(scheme) +
                           (follows ? ": groups that follow the order of the inputs need a group "
                                      "index; make the groups static or name act-order"
                                    : ": a group index serves act-order without static groups"));
  }
  if (scheme.double_quant && scheme.granularity == Granularity::kGroup && !options.static_groups) {
    return InvalidArgument(SchemeName(scheme) +
                           ": scales that are quantized again must be known before the pass: make "
                           "the groups static");
  }
  return OkStatus();
}

// Columns by falling mean square of their inputs; the first of equals first.
std::vector<int64_t> OrderOf(const RowMatrix& hessian, bool act_order) {
  std::vector<int64_t> columns(static_cast<size_t>(hessian.cols()));
  std::iota(columns.begin(), columns.end(), int64_t{0});
  if (act_order) {
    std::ranges::stable_sort(columns,
                             [&](int64_t a, int64_t b) { return hessian(a, a) > hessian(b, b); });
  }
  return columns;
}

}  // namespace

Result<QuantizedTensor> QuantizeGptq(TensorView weights, const Scheme& scheme,
                                     const Hessian& hessian, const GptqOptions& options,
                                     GptqReport* report, std::span<const float> table) {
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  NIBBLE_RETURN_IF_ERROR(CheckOrder(scheme, options));
  if (hessian.cols() != weights.cols) {
    return InvalidArgument("a Hessian of " + std::to_string(hessian.cols()) +
                           " columns for weights of " + std::to_string(weights.cols));
  }
  if (scheme.code == Code::kAdditive) {
    return QuantizeAdditive(weights, scheme, hessian, options, report);
  }
  GptqReport said;
  NIBBLE_ASSIGN_OR_RETURN(const RowMatrix mean, MeanHessian(hessian));
  const int64_t cols = weights.cols;
  const bool grouped = scheme.granularity == Granularity::kGroup;
  Job job{.weights = weights,
          .tensor = nullptr,
          .scheme = scheme,
          .groups = GroupsPerRow(scheme, cols),
          .fits_ahead = !grouped || options.static_groups,
          .search = options.search_scales,
          .column = OrderOf(mean, options.act_order),
          .group = {},
          .segments = {},
          .added = {},
          .factor = {},
          .hessian = hessian};
  RowMatrix ordered(cols, cols);
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      ordered(i, j) = mean(job.column[static_cast<size_t>(i)], job.column[static_cast<size_t>(j)]);
    }
  }
  {
    NIBBLE_ASSIGN_OR_RETURN(FactoredHessian factored,
                            Factor(std::move(ordered), options.damping, options.parallel));
    said = {factored.damping, factored.raised, factored.dead_columns, 0, 0};
    job.added.assign(factored.added.begin(), factored.added.end());
    job.factor = std::move(factored.factor);
  }

  // Rounding to nearest checks all arguments and weights, and finds the scales that are needed
  // ahead.
  std::vector<float> importance;
  std::vector<int32_t> group_index;
  QuantizeOptions rounding;
  rounding.parallel = options.parallel;
  if (job.fits_ahead && job.search) {
    importance.resize(static_cast<size_t>(cols));
    for (int64_t j = 0; j < cols; ++j) {
      importance[static_cast<size_t>(job.column[static_cast<size_t>(j)])] = job.factor.diagonal[j];
    }
    rounding.importance = importance;
  }
  const int64_t group_size = grouped ? scheme.group_size : cols;
  if (scheme.has_group_index) {
    group_index.resize(static_cast<size_t>(cols));
    for (int64_t j = 0; j < cols; ++j) {
      group_index[static_cast<size_t>(job.column[static_cast<size_t>(j)])] =
          static_cast<int32_t>(j / group_size);
    }
    rounding.group_index = group_index;
  }
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor, Quantize(weights, scheme, rounding, table));
  job.tensor = &tensor;
  for (int64_t j = 0; j < cols; ++j) {
    // Static groups lie where the file has them.
    job.group.push_back((job.fits_ahead ? job.column[static_cast<size_t>(j)] : j) / group_size);
  }
  job.segments = Cut({0, cols}, job.fits_ahead ? cols : group_size);

  const Chooser choose(scheme,
                       reinterpret_cast<const uint8_t*>(tensor.plane(Plane::kTable).data()));
  const std::vector<Segment> slabs = Cut({0, weights.rows}, kSlab);
  std::vector<double> error(slabs.size()), energy(slabs.size());
  std::vector<Status> status(slabs.size());
  options.parallel(static_cast<int64_t>(slabs.size()), [&](int64_t i, int) {
    const size_t s = static_cast<size_t>(i);
    Slab slab(job, choose, slabs[s].first, slabs[s].count);
    status[s] = slab.Run();
    if (report == nullptr) return;
    error[s] = slab.OutputError();
    energy[s] = slab.WeightEnergy();
  });
  for (size_t s = 0; s < slabs.size(); ++s) {
    NIBBLE_RETURN_IF_ERROR(std::move(status[s]));
    said.output_error += error[s];
    said.weight_energy += energy[s];
  }
  if (report != nullptr) *report = said;
  return tensor;
}

}  // namespace nibble
