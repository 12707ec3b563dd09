// What nibble's functions do with operands that lie on a device: refuse them while no backend
// serves it, then hand them over unchanged.
#include "nibble/backend.h"

#include <vector>

#include "gtest/gtest.h"
#include "nibble/c_api.h"
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

// From C: the device of matrices and tensors, and the stream, which needs no threads beside it.
TEST_F(BackendTest, TakesTheCallsOfC) {
  RegisterBackend(Device::kCuda, &kRecorder);
  nibble_error error;
  nibble_matrix in = {values_.data(), NIBBLE_F32, 2, 32, 0, NIBBLE_DEVICE_CUDA};
  const nibble_mutable_matrix out = {values_.data(), NIBBLE_F32, 2, 32, 0, NIBBLE_DEVICE_CUDA};
  nibble_parallel_for parallel = {};
  parallel.stream = &stream_;
  nibble_quantize_options options = {};
  options.parallel = parallel;
  const auto expect_call = [&](nibble_status status, const void* output) {
    EXPECT_EQ(status, NIBBLE_OK) << error.message;
    EXPECT_EQ(last_call.output, output);
    EXPECT_EQ(last_call.stream, &stream_);
    last_call = {};
  };

  nibble_tensor* blocks = nullptr;
  ASSERT_EQ(nibble_tensor_quantize(in, "q8_0", &options, &blocks, &error), NIBBLE_OK);
  EXPECT_EQ(nibble_tensor_device(blocks), NIBBLE_DEVICE_CUDA);
  size_t bytes = 0;
  const void* plane = nibble_tensor_plane(blocks, NIBBLE_PLANE_CODES, &bytes);
  expect_call(NIBBLE_OK, plane);
  expect_call(nibble_tensor_dequantize(blocks, out, &parallel, &error), out.data);
  expect_call(nibble_quantize(in, 8, out.data, bytes, &options, &error), out.data);
  expect_call(nibble_dequantize(8, plane, bytes, out, &parallel, &error), out.data);

  const void* planes[NIBBLE_PLANE_COUNT] = {plane};
  const size_t plane_bytes[NIBBLE_PLANE_COUNT] = {bytes};
  nibble_tensor* borrowed = nullptr;
  ASSERT_EQ(nibble_tensor_borrow("q8_0", 2, 32, NIBBLE_DEVICE_CUDA, planes, plane_bytes, &borrowed,
                                 &error),
            NIBBLE_OK);
  EXPECT_EQ(nibble_tensor_device(borrowed), NIBBLE_DEVICE_CUDA);

  nibble_matmul_options product = {};
  product.parallel = parallel;
  expect_call(nibble_matmul(in, borrowed, out, &product, &error), out.data);
  expect_call(nibble_matmul_llm_int8(in, borrowed, out, 3.0f, &product, &error), out.data);
  nibble_packed* packed = nullptr;
  expect_call(nibble_pack(borrowed, NIBBLE_PRECISION_INT8, &parallel, &packed, &error), nullptr);
  EXPECT_EQ(nibble_packed_bytes(packed, &bytes), nullptr);
  EXPECT_EQ(bytes, 0u);
  nibble_matmul_member member = {};
  member.packed = packed;
  member.out = out;
  expect_call(nibble_matmul_group(in, &member, 1, &product, &error), out.data);

  in.device = NIBBLE_DEVICE_ANY_INT;
  EXPECT_EQ(nibble_matmul(in, borrowed, out, &product, &error), NIBBLE_INVALID_ARGUMENT);
  // What only the CPU does refuses them.
  in.device = NIBBLE_DEVICE_CUDA;
  nibble_hessian* hessian = nullptr;
  ASSERT_EQ(nibble_hessian_create(32, &hessian, &error), NIBBLE_OK);
  EXPECT_NE(nibble_hessian_add(hessian, in, nullptr, &error), NIBBLE_OK);
  nibble_hessian_free(hessian);
  nibble_packed_free(packed);
  nibble_tensor_free(borrowed);
  nibble_tensor_free(blocks);
}

}  // namespace
}  // namespace nibble
