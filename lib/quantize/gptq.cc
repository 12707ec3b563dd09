#include "nibble/gptq.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/convert.h"
#include "kernels/encode.h"
#include "kernels/feedback.h"
#include "lib/quantize/checks.h"
#include "lib/quantize/hessian.h"

namespace nibble {
namespace {

// Columns that are quantized before their errors reach the rest in one product.
constexpr int64_t kChunk = 256;
// Rows of one task.
constexpr int64_t kSlab = 64;

struct Chunk {
  int64_t first, count;
};

std::vector<Chunk> ChunksOf(int64_t cols) {
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < cols; first += kChunk) {
    chunks.push_back({first, std::min(kChunk, cols - first)});
  }
  return chunks;
}

// What the sweeps need of each group of columns with a scale of their own: its part H_GG of the
// Hessian, factored and inverted, one [group, group] matrix after another.
struct GroupHessians {
  std::vector<float> factors, diagonals, inverses;
};

// Everything that the tasks share.
struct Job {
  Format format;
  int64_t cols;
  size_t row_bytes;
  const FactoredHessian& hessian;
  std::vector<Chunk> chunks;
  GroupHessians groups;  // empty without sweeps
  RefineOptions refine;
};

// A slab of rows on its way.
class Slab {
 public:
  Slab(const Job& job, RowMatrix weights, std::byte* blocks)
      : job_(job),
        weights_(std::move(weights)),
        errors_(RowMatrix::Zero(weights_.rows(), job.cols)),
        blocks_(blocks),
        states_(static_cast<size_t>(weights_.rows() * RowBlocks())),
        losses_(static_cast<size_t>(weights_.rows())) {}

  // From left to right, each chunk with the feedback of all before it.
  void FirstPass() {
    const FeedbackFactor& factor = job_.hessian.factor;
    for (const Chunk& chunk : job_.chunks) {
      RowMatrix target = weights_.middleCols(chunk.first, chunk.count);
      AddProduct(Strided(errors_.data(), job_.cols),
                 Strided(factor.unit.data() + chunk.first, job_.cols), weights_.rows(), chunk.count,
                 chunk.first, 1.0f, target.data(), chunk.count);
      RowMatrix weight = weights_.middleCols(chunk.first, chunk.count);
      RowMatrix error(weights_.rows(), chunk.count);
      FeedbackChunk work;
      work.weights = weight.data();
      work.targets = target.data();
      work.rows = weights_.rows();
      work.cols = chunk.count;
      work.row_stride = chunk.count;
      work.factor = factor.unit.data() + chunk.first * (job_.cols + 1);
      work.factor_stride = job_.cols;
      work.diagonal = factor.diagonal.data() + chunk.first;
      work.blocks = blocks_ + ChunkOffset(chunk);
      work.block_stride = job_.row_bytes;
      work.errors = error.data();
      work.states = states_.data() + FirstBlock(chunk);
      work.state_stride = RowBlocks();
      EncodeWithFeedback(job_.format, work, FeedbackOptions{}, losses_.data());
      errors_.middleCols(chunk.first, chunk.count) = error;
    }
  }

  // Codes and scales of each block again, given the errors of all others.
  void Sweep() {
    const RowMatrix& hessian = job_.hessian.damped;
    const int64_t group = FeedbackGroup(job_.format);
    const int64_t block = GetFormatInfo(job_.format).block_weights;
    for (int64_t first = 0; first < job_.cols; first += block) {
      const Chunk chunk{first, block};
      RowMatrix gradients = RowMatrix::Zero(weights_.rows(), chunk.count);
      AddProduct(Strided(errors_.data(), job_.cols), Strided(hessian.data() + first, job_.cols),
                 weights_.rows(), chunk.count, job_.cols, 1.0f, gradients.data(), chunk.count);
      RefineChunk work;
      work.weights = weights_.data() + chunk.first;
      work.gradients = gradients.data();
      work.rows = weights_.rows();
      work.cols = chunk.count;
      work.row_stride = job_.cols;
      work.hessian = hessian.data() + first * (job_.cols + 1);
      work.hessian_stride = job_.cols;
      work.factors = job_.groups.factors.data() + chunk.first * group;
      work.diagonals = job_.groups.diagonals.data() + chunk.first;
      work.inverses = job_.groups.inverses.data() + chunk.first * group;
      work.errors = errors_.data() + chunk.first;
      work.states = states_.data() + FirstBlock(chunk);
      work.state_stride = RowBlocks();
      work.blocks = blocks_ + ChunkOffset(chunk);
      work.block_stride = job_.row_bytes;
      RefineWithFeedback(job_.format, work, job_.refine);
    }
  }

  // Sum over rows of x (H / tokens) x^T.
  double Energy(const RowMatrix& x) const {
    const FactoredHessian& h = job_.hessian;
    RowMatrix product = RowMatrix::Zero(x.rows(), x.cols());
    AddProduct(Strided(x.data(), job_.cols), Strided(h.damped.data(), job_.cols), x.rows(),
               job_.cols, job_.cols, 1.0f, product.data(), job_.cols);
    product.noalias() -= x * h.added.asDiagonal();
    return product.cast<double>().cwiseProduct(x.cast<double>()).sum();
  }
  const RowMatrix& weights() const { return weights_; }
  const RowMatrix& errors() const { return errors_; }

 private:
  int64_t RowBlocks() const { return job_.cols / GetFormatInfo(job_.format).block_weights; }
  int64_t FirstBlock(const Chunk& chunk) const {
    return chunk.first / GetFormatInfo(job_.format).block_weights;
  }
  size_t ChunkOffset(const Chunk& chunk) const {
    return static_cast<size_t>(FirstBlock(chunk)) * GetFormatInfo(job_.format).block_bytes;
  }

  const Job& job_;
  RowMatrix weights_, errors_;
  std::byte* blocks_;
  std::vector<BlockState> states_;
  std::vector<double> losses_;
};

Status CheckOperands(TensorView weights, Format format, int64_t hessian_cols) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  if (!HasFeedback(format)) {
    return Unsupported(std::string("no error feedback for ") + GetFormatInfo(format).name);
  }
  if (hessian_cols != weights.cols) {
    return InvalidArgument("a Hessian of " + std::to_string(hessian_cols) +
                           " columns for weights of " + std::to_string(weights.cols));
  }
  return OkStatus();
}

Result<GroupHessians> FactorGroups(const RowMatrix& hessian, int64_t group) {
  GroupHessians groups;
  for (int64_t first = 0; first < hessian.cols(); first += group) {
    const RowMatrix block = hessian.block(first, first, group, group);
    NIBBLE_ASSIGN_OR_RETURN(const FeedbackFactor factor, FactorHessian(block));
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix inverse, InverseOf(block));
    groups.factors.insert(groups.factors.end(), factor.unit.data(),
                          factor.unit.data() + group * group);
    groups.diagonals.insert(groups.diagonals.end(), factor.diagonal.data(),
                            factor.diagonal.data() + group);
    groups.inverses.insert(groups.inverses.end(), inverse.data(), inverse.data() + group * group);
  }
  return groups;
}

}  // namespace

Result<QuantizedTensor> QuantizeFactored(TensorView weights, Format format,
                                         const FactoredHessian& hessian, const GptqOptions& options,
                                         GptqReport* report) {
  NIBBLE_RETURN_IF_ERROR(CheckOperands(weights, format, hessian.cols()));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor,
                          QuantizedTensor::Allocate(format, weights.rows, weights.cols));
  Job job{format, weights.cols, tensor.bytes() / static_cast<size_t>(weights.rows), hessian, {}, {},
          {}};
  job.chunks = ChunksOf(weights.cols);
  if (options.sweeps > 0) {
    NIBBLE_ASSIGN_OR_RETURN(job.groups, FactorGroups(hessian.damped, FeedbackGroup(format)));
  }
  const int64_t slabs = (weights.rows + kSlab - 1) / kSlab;
  std::vector<double> error(static_cast<size_t>(slabs)), energy(static_cast<size_t>(slabs));
  std::vector<Status> status(static_cast<size_t>(slabs));
  std::byte* blocks = tensor.plane(Plane::kCodes).data();
  options.parallel(slabs, [&](int64_t s, int) {
    const int64_t first = s * kSlab, count = std::min(kSlab, weights.rows - first);
    RowMatrix w(count, job.cols);
    const float limit = LargestMagnitude(format);
    for (int64_t r = 0; r < count; ++r) {
      ConvertToFloat(weights.dtype, weights.Row(first + r), job.cols, w.row(r).data());
      const int64_t bad = FirstBeyond(w.row(r).data(), job.cols, limit);
      if (bad < job.cols) {
        status[static_cast<size_t>(s)] =
            InvalidArgument("weight that cannot be quantized at row " + std::to_string(first + r) +
                            ", column " + std::to_string(bad));
        return;
      }
    }
    Slab slab(job, std::move(w), blocks + static_cast<size_t>(first) * job.row_bytes);
    slab.FirstPass();
    for (int i = 0; i < options.sweeps; ++i) slab.Sweep();
    if (report == nullptr) return;
    error[static_cast<size_t>(s)] = slab.Energy(slab.errors());
    energy[static_cast<size_t>(s)] = slab.Energy(slab.weights());
  });
  for (const Status& s : status) NIBBLE_RETURN_IF_ERROR(s);
  if (report != nullptr) {
    *report = {hessian.damping, hessian.raised, hessian.dead_columns, 0, 0};
    for (size_t s = 0; s < error.size(); ++s) {
      report->output_error += error[s];
      report->weight_energy += energy[s];
    }
  }
  return tensor;
}

Result<QuantizedTensor> QuantizeGptq(TensorView weights, Format format, const Hessian& hessian,
                                     const GptqOptions& options, GptqReport* report) {
  NIBBLE_RETURN_IF_ERROR(CheckOperands(weights, format, hessian.cols()));
  NIBBLE_ASSIGN_OR_RETURN(RowMatrix mean, MeanHessian(hessian));
  NIBBLE_ASSIGN_OR_RETURN(const FactoredHessian factored,
                          Factor(std::move(mean), options.damping, options.parallel));
  return QuantizeFactored(weights, format, factored, options, report);
}

}  // namespace nibble
