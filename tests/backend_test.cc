// What nibble's functions do with operands that lie on a device: refuse them while no backend
// serves it, then hand them over unchanged.
#include "nibble/backend.h"

#include <vector>

#include "gtest/gtest.h"
#include "nibble/llm_int8.h"

namespace nibble {
namespace {

// The last call of the recording backend, whose "device memory" is the host's.
struct Call {
  const void* input = nullptr;
  const void* output = nullptr;
  void* stream = nullptr;
};
Call last_call;

Result<Buffer> Allocate(size_t bytes, void*) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer host, Buffer::Allocate(bytes));
  std::byte* data = host.data();
  return Buffer::Share(std::make_shared<Buffer>(std::move(host)), data, bytes, Device::kCuda);
}
Status QuantizeBlocks(const TensorView& weights, Format, std::span<std::byte> out,
                      const QuantizeOptions& options) {
  last_call = {weights.data, out.data(), options.parallel.stream};
  return OkStatus();
}
Result<QuantizedTensor> QuantizePlanar(const TensorView& weights, const Scheme&,
                                       const QuantizeOptions& options, std::span<const float>) {
  last_call = {weights.data, nullptr, options.parallel.stream};
  return QuantizedTensor();
}
Status DequantizeAny(const QuantizedTensor& tensor, const MutableTensorView& out,
                     const ParallelFor& parallel) {
  EXPECT_EQ(tensor.device(), Device::kCuda);
  last_call = {tensor.plane(Plane::kCodes).data(), out.data, parallel.stream};
  return OkStatus();
}
Status MatmulAny(const TensorView& activations, const QuantizedTensor&,
                 const MutableTensorView& out, const MatmulOptions& options) {
  last_call = {activations.data, out.data, options.parallel.stream};
  return OkStatus();
}
const int packed_details = 0;
Result<PackedWeights> PackAny(const QuantizedTensor& weights, Precision,
                              const ParallelFor& parallel) {
  last_call = {weights.plane(Plane::kCodes).data(), nullptr, parallel.stream};
  return MakePackedWeights(weights.rows(), weights.cols(), 7, Device::kCuda, "recorder/1",
                           std::shared_ptr<const void>(&packed_details, [](const void*) {}));
}
Status MatmulMembers(const TensorView& activations, std::span<const MatmulMember> members,
                     const MatmulOptions& options) {
  const auto* packed = std::get_if<const PackedWeights*>(&members[0].weights);
  EXPECT_TRUE(packed == nullptr || DetailsOf(**packed, Device::kCuda) == &packed_details);
  last_call = {activations.data, members[0].out.data, options.parallel.stream};
  return OkStatus();
}
Status MatmulMixed(const TensorView& activations, const QuantizedTensor&,
                   const MutableTensorView& out, float threshold, const MatmulOptions& options) {
  EXPECT_EQ(threshold, 3.0f);
  last_call = {activations.data, out.data, options.parallel.stream};
  return OkStatus();
}
constexpr Backend kRecorder = {Allocate,  QuantizeBlocks, QuantizePlanar, DequantizeAny,
                               MatmulAny, PackAny,        MatmulMembers,  MatmulMixed};

class BackendTest : public testing::Test {
 protected:
  BackendTest() { view_.device = Device::kCuda; }
  ~BackendTest() override { RegisterBackend(Device::kCuda, nullptr); }

  std::vector<float> values_ = std::vector<float>(64);
  MutableTensorView view_ = ViewOf(values_.data(), 2, 32);
  int stream_ = 0;
  ParallelFor parallel_ = {.stream = &stream_};
};

TEST_F(BackendTest, WithoutOneDeviceOperandsAreRefused) {
  const QuantizedTensor tensor = *QuantizedTensor::Allocate(Format::kQ8_0, 2, 32);
  EXPECT_EQ(Dequantize(tensor, view_).code(), StatusCode::kUnsupported);
  EXPECT_EQ(Matmul(view_, tensor, view_).code(), StatusCode::kUnsupported);
  EXPECT_EQ(Quantize(view_, Format::kQ8_0).status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(Quantize(view_, Scheme()).status().code(), StatusCode::kUnsupported);
  EXPECT_FALSE(FindBackend(Device::kCpu).ok());
}

TEST_F(BackendTest, TakesTheCallsWithTheirStream) {
  RegisterBackend(Device::kCuda, &kRecorder);
  QuantizeOptions options;
  options.parallel = parallel_;
  const Result<QuantizedTensor> blocks = Quantize(view_, Format::kQ8_0, options);
  ASSERT_TRUE(blocks.ok());
  EXPECT_EQ(blocks->device(), Device::kCuda);
  EXPECT_EQ(last_call.input, view_.data);
  EXPECT_EQ(last_call.output, blocks->plane(Plane::kCodes).data());
  EXPECT_EQ(last_call.stream, &stream_);

  last_call = {};
  EXPECT_TRUE(Quantize(view_, Scheme(), options).ok());
  EXPECT_EQ(last_call.input, view_.data);
  EXPECT_EQ(last_call.stream, &stream_);

  EXPECT_TRUE(Dequantize(*blocks, view_, parallel_).ok());
  EXPECT_EQ(last_call.input, blocks->plane(Plane::kCodes).data());
  EXPECT_EQ(last_call.output, view_.data);

  last_call = {};
  EXPECT_TRUE(
      Dequantize(Format::kQ8_0, blocks->plane(Plane::kCodes).bytes(), view_, parallel_).ok());
  EXPECT_EQ(last_call.output, view_.data);

  last_call = {};
  MatmulOptions product;
  product.parallel = parallel_;
  EXPECT_TRUE(Matmul(view_, *blocks, view_, product).ok());
  EXPECT_EQ(last_call.output, view_.data);
  EXPECT_EQ(last_call.stream, &stream_);

  const Result<PackedWeights> packed = Pack(*blocks, Precision::kInt8, parallel_);
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ(last_call.input, blocks->plane(Plane::kCodes).data());
  EXPECT_EQ(packed->bytes(), 7u);
  EXPECT_EQ(packed->target(), "recorder/1");
  EXPECT_TRUE(packed->serialized().empty());
  last_call = {};
  EXPECT_TRUE(Matmul(view_, *packed, view_, product).ok());
  EXPECT_EQ(last_call.stream, &stream_);
  const MatmulMember member = {&*packed, view_, {}, {}};
  last_call = {};
  EXPECT_TRUE(MatmulGroup(view_, {&member, 1}, product).ok());
  EXPECT_EQ(last_call.output, view_.data);

  last_call = {};
  EXPECT_TRUE(MatmulLlmInt8(view_, *blocks, view_, 3.0f, product).ok());
  EXPECT_EQ(last_call.stream, &stream_);

  // Products in host memory cannot take them.
  std::vector<float> host(64);
  EXPECT_EQ(Matmul(ViewOf(host.data(), 2, 32), *packed, ViewOf(host.data(), 2, 2)).code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
