#include "nibble/gptq.h"

#include <Eigen/Cholesky>
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
  RowMatrix hessian;  // damped
  FeedbackFactor factor;
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
        states_(static_cast<size_t>(weights_.rows() * RowBlocks())) {}

  // From left to right, each chunk with the feedback of all before it.
  void FirstPass() {
    std::vector<double> losses(static_cast<size_t>(weights_.rows()));
    for (const Chunk& chunk : job_.chunks) {
      RowMatrix target = weights_.middleCols(chunk.first, chunk.count);
      const RowMatrix weight = target;
      if (chunk.first > 0) {
        target.noalias() += errors_.leftCols(chunk.first) *
                            job_.factor.unit.block(0, chunk.first, chunk.first, chunk.count);
      }
      RowMatrix error(weights_.rows(), chunk.count);
      const RowMatrix unit =
          job_.factor.unit.block(chunk.first, chunk.first, chunk.count, chunk.count);
      Encode(chunk, weight, target, unit, job_.factor.diagonal.segment(chunk.first, chunk.count),
             blocks_ + ChunkOffset(chunk), job_.row_bytes, &error, &losses);
      errors_.middleCols(chunk.first, chunk.count) = error;
    }
  }

  // Codes and scales of each block again, given the errors of all others.
  void Sweep() {
    const int64_t group = FeedbackGroup(job_.format);
    const int64_t block = GetFormatInfo(job_.format).block_weights;
    for (int64_t first = 0; first < job_.cols; first += block) {
      const Chunk chunk{first, block};
      const RowMatrix gradients = errors_ * job_.hessian.middleCols(chunk.first, chunk.count);
      RefineChunk work;
      work.weights = weights_.data() + chunk.first;
      work.gradients = gradients.data();
      work.rows = weights_.rows();
      work.cols = chunk.count;
      work.row_stride = job_.cols;
      work.hessian = job_.hessian.data() + chunk.first * job_.cols + chunk.first;
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

  // Sum over rows of x H x^T.
  static double Energy(const RowMatrix& x, const RowMatrix& hessian) {
    const RowMatrix product = x * hessian;
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

  void Encode(const Chunk& chunk, const RowMatrix& weight, const RowMatrix& target,
              const RowMatrix& unit, const Eigen::VectorXf& diagonal, std::byte* blocks,
              size_t stride, RowMatrix* error, std::vector<double>* losses) {
    FeedbackChunk work;
    work.weights = weight.data();
    work.targets = target.data();
    work.rows = weight.rows();
    work.cols = chunk.count;
    work.row_stride = chunk.count;
    work.factor = unit.data();
    work.factor_stride = chunk.count;
    work.diagonal = diagonal.data();
    work.blocks = blocks;
    work.block_stride = stride;
    work.errors = error->data();
    work.states = states_.data() + FirstBlock(chunk);
    work.state_stride = RowBlocks();
    EncodeWithFeedback(job_.format, work, FeedbackOptions{}, losses->data());
  }

  const Job& job_;
  RowMatrix weights_, errors_;
  std::byte* blocks_;
  std::vector<BlockState> states_;
};

Result<GroupHessians> FactorGroups(const RowMatrix& hessian, int64_t group) {
  GroupHessians groups;
  const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(group, group);
  for (int64_t first = 0; first < hessian.cols(); first += group) {
    const RowMatrix block = hessian.block(first, first, group, group);
    NIBBLE_ASSIGN_OR_RETURN(const FeedbackFactor factor, FactorHessian(block));
    const RowMatrix inverse = block.cast<double>().llt().solve(identity).cast<float>();
    groups.factors.insert(groups.factors.end(), factor.unit.data(),
                          factor.unit.data() + group * group);
    groups.diagonals.insert(groups.diagonals.end(), factor.diagonal.data(),
                            factor.diagonal.data() + group);
    groups.inverses.insert(groups.inverses.end(), inverse.data(), inverse.data() + group * group);
  }
  return groups;
}

}  // namespace

Result<QuantizedTensor> QuantizeGptq(TensorView weights, Format format, const Hessian& hessian,
                                     const GptqOptions& options, GptqReport* report) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  if (!HasFeedback(format)) {
    return Unsupported(std::string("no error feedback for ") + GetFormatInfo(format).name);
  }
  if (hessian.cols() != weights.cols) {
    return InvalidArgument("a Hessian of " + std::to_string(hessian.cols()) +
                           " columns for weights of " + std::to_string(weights.cols));
  }
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor tensor,
                          QuantizedTensor::Allocate(format, weights.rows, weights.cols));
  GptqReport local_report;
  GptqReport& said = report == nullptr ? local_report : *report;
  Job job;
  job.format = format;
  job.cols = weights.cols;
  job.row_bytes = tensor.bytes() / static_cast<size_t>(weights.rows);
  NIBBLE_ASSIGN_OR_RETURN(job.hessian, DampedHessian(hessian, options.damping, &job.factor, &said));
  job.chunks = ChunksOf(weights.cols);
  if (options.sweeps > 0) {
    NIBBLE_ASSIGN_OR_RETURN(job.groups, FactorGroups(job.hessian, FeedbackGroup(format)));
  }
  const RowMatrix plain = Eigen::Map<const RowMatrix>(hessian.sums().data(), job.cols, job.cols) /
                          static_cast<float>(hessian.tokens());
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
    error[static_cast<size_t>(s)] = Slab::Energy(slab.errors(), plain);
    energy[static_cast<size_t>(s)] = Slab::Energy(slab.weights(), plain);
  });
  for (int64_t s = 0; s < slabs; ++s) {
    NIBBLE_RETURN_IF_ERROR(status[static_cast<size_t>(s)]);
    said.output_error += error[static_cast<size_t>(s)];
    said.weight_energy += energy[static_cast<size_t>(s)];
  }
  return tensor;
}

}  // namespace nibble
