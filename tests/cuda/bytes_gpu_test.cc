// Products of bytes on the device: those of int8 are the CPU's to the bit.
#include <cmath>

#include "nibble/llm_int8.h"
#include "nibble/matmul.h"
#include "tests/cuda/gpu.h"
#include "tests/cuda/products.h"

namespace nibble {
namespace {

class BytesGpuTest : public GpuTest {};

struct Shape {
  int64_t m_rows, rows, cols;
};
// Few and many rows, tails, columns that are no multiple of 16, splits.
constexpr Shape kShapes[] = {{1, 37, 256},   {13, 130, 1040}, {70, 129, 512},
                             {150, 64, 100}, {3, 40, 8192},   {300, 200, 272}};

std::vector<float> OnHost(const Tensor& tensor) {
  const Tensor host = MustHave(cuda::ToHost(tensor.view()));
  const float* data = static_cast<const float*>(host.view().data);
  return std::vector<float>(data, data + host.rows() * host.cols());
}

TEST_F(BytesGpuTest, Int8IsTheCpus) {
  MatmulOptions options;
  options.precision = Precision::kInt8PerRow;
  for (const Shape& shape : kShapes) {
    for (const char* name : {"int8 sym channel", "int8 sym tensor"}) {
      const QuantizedTensor weights = PlanarWeights(name, shape.rows, shape.cols);
      const std::vector<float> a = RandomValues(shape.m_rows * shape.cols, 2);
      const TensorView activations = ViewOf(a.data(), shape.m_rows, shape.cols);
      std::vector<float> want(static_cast<size_t>(shape.m_rows * shape.rows));
      ASSERT_TRUE(
          Matmul(activations, weights, ViewOf(want.data(), shape.m_rows, shape.rows), options)
              .ok());
      const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
      const Tensor a_on_device = MustHave(cuda::ToDevice(activations));
      Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, shape.m_rows, shape.rows));
      const Status status = Matmul(a_on_device.view(), on_device, out.mutable_view(), options);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(OnHost(out), want) << name << ", " << shape.m_rows << " rows";
      const PackedWeights packed = MustHave(Pack(on_device, Precision::kInt8PerRow));
      ASSERT_TRUE(Matmul(a_on_device.view(), packed, out.mutable_view(), options).ok());
      EXPECT_EQ(OnHost(out), want) << name << ", packed";
    }
  }
}

TEST_F(BytesGpuTest, TakesActivationsThatAreBytes) {
  constexpr int64_t kM = 20, kN = 48, kK = 512;
  const QuantizedTensor weights = PlanarWeights("int8 sym channel", kN, kK);
  std::vector<int8_t> codes(kM * kK);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<int8_t>(i * 37 % 251);
  const TensorView activations = {codes.data(), DType::kI8, kM, kK, kK, Device::kCpu};
  const std::vector<float> scale = {0.125f};
  MatmulOptions options;
  options.activation_scales = scale;
  std::vector<float> want(kM * kN);
  ASSERT_TRUE(Matmul(activations, weights, ViewOf(want.data(), kM, kN), options).ok());
  const Tensor a_on_device = MustHave(cuda::ToDevice(activations));
  const Tensor scale_on_device = MustHave(cuda::ToDevice(ViewOf(scale.data(), 1, 1)));
  options.activation_scales = {static_cast<const float*>(scale_on_device.view().data), 1};
  Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, kM, kN));
  const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
  const Status status = Matmul(a_on_device.view(), on_device, out.mutable_view(), options);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(OnHost(out), want);
  // Weights that are no bytes refuse them.
  const QuantizedTensor other = MustHave(cuda::ToDevice(PlanarWeights("int4 sym g128", kN, kK)));
  EXPECT_FALSE(Matmul(a_on_device.view(), other, out.mutable_view(), options).ok());
}

// Activations are rounded to three bits behind the point, and the tensor cores' sums have fewer
// bits than f32.
TEST_F(BytesGpuTest, MultipliesFloatsOfEightBits) {
  MatmulOptions options;
  options.precision = Precision::kInt8PerRow;
  for (const Shape& shape : kShapes) {
    const QuantizedTensor weights = PlanarWeights("f8_e4m3 channel", shape.rows, shape.cols);
    const std::vector<float> a = RandomValues(shape.m_rows * shape.cols, 3);
    const Tensor a_on_device = MustHave(cuda::ToDevice(ViewOf(a.data(), shape.m_rows, shape.cols)));
    Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, shape.m_rows, shape.rows));
    const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
    const Status status = Matmul(a_on_device.view(), on_device, out.mutable_view(), options);
    ASSERT_TRUE(status.ok()) << status.message();
    // The activations as they are rounded.
    std::vector<float> rounded = a;
    for (int64_t m = 0; m < shape.m_rows; ++m) {
      float* row = rounded.data() + m * shape.cols;
      float largest = 0;
      for (int64_t k = 0; k < shape.cols; ++k) largest = std::max(largest, std::fabs(row[k]));
      for (int64_t k = 0; k < shape.cols; ++k) {
        row[k] = F8E4M3ToFloat(FloatToF8E4M3(row[k] * (448.0f / largest))) * (largest / 448.0f);
      }
    }
    ExpectProducts(OnHost(out), rounded, {}, weights, shape.m_rows, 0x1p-10, "f8");
  }
}

TEST_F(BytesGpuTest, LlmInt8KeepsOutlierColumns) {
  for (const Shape& shape : kShapes) {
    const QuantizedTensor weights = PlanarWeights("int8 sym channel", shape.rows, shape.cols);
    std::vector<float> a = RandomValues(shape.m_rows * shape.cols, 5);
    for (int64_t m = 0; m < shape.m_rows; ++m) {
      a[static_cast<size_t>(m * shape.cols + 3)] *= 40;
      a[static_cast<size_t>(m * shape.cols + shape.cols - 1)] *= 30;
    }
    const TensorView activations = ViewOf(a.data(), shape.m_rows, shape.cols);
    std::vector<float> want(static_cast<size_t>(shape.m_rows * shape.rows));
    ASSERT_TRUE(
        MatmulLlmInt8(activations, weights, ViewOf(want.data(), shape.m_rows, shape.rows)).ok());
    const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
    const Tensor a_on_device = MustHave(cuda::ToDevice(activations));
    Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, shape.m_rows, shape.rows));
    const Status status = MatmulLlmInt8(a_on_device.view(), on_device, out.mutable_view());
    ASSERT_TRUE(status.ok()) << status.message();
    const std::vector<float> got = OnHost(out);
    float largest = 0;
    for (float x : want) largest = std::max(largest, std::fabs(x));
    // The integers are the same; a few sums of f32 are in another order.
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5f * largest) << i;
  }
}

TEST_F(BytesGpuTest, RowsThatAreNotFiniteHaveNoProducts) {
  MatmulOptions options;
  options.precision = Precision::kInt8PerRow;
  const QuantizedTensor weights = PlanarWeights("int8 sym channel", 32, 64);
  std::vector<float> a = RandomValues(3 * 64, 4);
  a[64 + 5] = INFINITY;
  const Tensor a_on_device = MustHave(cuda::ToDevice(ViewOf(a.data(), 3, 64)));
  Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, 3, 32));
  const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
  ASSERT_TRUE(Matmul(a_on_device.view(), on_device, out.mutable_view(), options).ok());
  const std::vector<float> got = OnHost(out);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i / 32 == 1) << i;
}

}  // namespace
}  // namespace nibble
