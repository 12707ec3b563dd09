// Multiply activations with quantized weights: out[M, N] = activations[M, K] x weights[N, K]^T.
#ifndef NIBBLE_MATMUL_H_
#define NIBBLE_MATMUL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

#include "nibble/parallel.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// The least exact arithmetic that a product may use: where a more exact one is faster, it is used.
// Results are the same bits for any number of threads, but may differ between processors, between
// packed and canonical weights, and with the number of activation rows.
enum class Precision : uint8_t {
  kInt8,  // the fastest: activations may be rounded to int8 with a scale for each 32 columns
  kBf16,  // activations and decoded weights may be rounded to bf16; sums in f32
  kF32,   // decoded weights in f32, f32 products: the exact reference
  // As kInt8, but with one scale for each row of activations, where weights are "int8 sym" by
  // channel or tensor (W8A8): sums then stay integers, and are the same on every processor. On a
  // GPU likewise, with activations rounded to f8_e4m3, where weights are "f8_e4m3".
  kInt8PerRow,
};

struct MatmulOptions {
  Precision precision = Precision::kInt8;
  bool accumulate = false;      // out += product instead of out = product
  std::span<const float> bias;  // N values added to each row of out, or empty
  // Of activations that are int8 already (DType::kI8), which need weights as kInt8PerRow does: the
  // scale of each of their rows, or one for all (SmoothQuant's static scale). Else empty.
  std::span<const float> activation_scales;
  ParallelFor parallel;
};

// Weights rearranged once for fast products: opaque, made by Pack.
class PackedWeights {
 public:
  int64_t rows() const;
  int64_t cols() const;
  size_t bytes() const;
  // The layout of the bytes and its version, e.g. "tiles16/1".
  const std::string& target() const;

  // The packed bytes with a header, or none where the weights were packed on a device, which takes
  // them as quick as a copy. FromBytes maps them again without a copy, and refuses bytes of a
  // layout that this version does not know. `bytes` must be aligned to 8 bytes (to 64 is faster)
  // and stay alive where it borrows.
  std::span<const std::byte> serialized() const;
  static Result<PackedWeights> FromBytes(Buffer bytes);

 private:
  friend class PackedWeightsAccess;
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

// Rearranges `weights` for products of the given precision, on the device where they lie. (There, a
// group index or a table makes this wait for the stream.) In host memory f32 becomes bf16, unless
// kF32 is asked for: half as much to read.
Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision precision = Precision::kInt8,
                           const ParallelFor& parallel = {});

// What Matmul does with weights and so many activation rows on this machine: the fastest kernel
// that is as exact as asked.
struct MatmulPlan {
  const char* kernel;   // e.g. "int8 dots with packed tiles"
  Precision precision;  // of its arithmetic: at least that of the call
};

// For weights in host memory.
Result<MatmulPlan> PlanMatmul(const QuantizedTensor& weights, int64_t activation_rows,
                              Precision precision = Precision::kInt8);
Result<MatmulPlan> PlanMatmul(const PackedWeights& weights, int64_t activation_rows,
                              Precision precision = Precision::kInt8);

// activations: f32, f16 or bf16 [M, K], or i8 with scales; out: f32 [M, N]. An activation that is
// not finite makes sums that it enters not finite. Straight from canonical bytes, which may
// lie in a mapped file, or from packed weights. Rows of `out` that are aligned to 64 bytes are
// written past the caches, which is faster.
Status Matmul(TensorView activations, const QuantizedTensor& weights, MutableTensorView out,
              const MatmulOptions& options = {});
Status Matmul(TensorView activations, const PackedWeights& weights, MutableTensorView out,
              const MatmulOptions& options = {});

// One of several products with the same activations.
struct MatmulMember {
  std::variant<const QuantizedTensor*, const PackedWeights*> weights;
  MutableTensorView out;        // f32 [M, N]; with no rows at all: nothing is done
  std::span<const float> bias;  // N values, or empty
  // The activation rows that this member takes, in the order of the rows of `out`; any row any
  // number of times. Empty: all of them.
  std::span<const int32_t> rows;
};

// All products in one parallel loop: query, key and value, gate and up, or the experts of a mixture
// with the rows that were sent to each. Activations are converted once for neighbours that take the
// same rows. The results are those of Matmul, bit for bit. Outputs must not overlap; the bias is
// the members' alone. Nothing is written unless every member's operands fit.
Status MatmulGroup(TensorView activations, std::span<const MatmulMember> members,
                   const MatmulOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_MATMUL_H_
