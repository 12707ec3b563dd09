// On the device as on the CPU: decoded weights to the bit, quantized bytes to the byte.
#include "nibble/quantize.h"

#include <cuda_runtime_api.h>

#include <cmath>

#include "tests/cuda/gpu.h"

namespace nibble {
namespace {

class QuantizeGpuTest : public GpuTest {};

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr const char* kSchemes[] = {
    "int4 sym g64 f16", "int4 asym g128 f16", "int8 sym channel",  "int8 asym channel",
    "int3 sym g32",     "int5 asym g64",      "int2 asym g64 f16", "int8 sym tensor",
    "nf4 g64",          "nf4 g64 double",     "fp4 g64",           "fp4 g64 double",
    "f8_e4m3 channel",  "f8_e5m2 tensor",     "f8_e4m3 g64"};

bool IsNan(DType dtype, const std::byte* at) {
  if (dtype == DType::kF32) {
    float x = 0;
    std::memcpy(&x, at, sizeof(x));
    return std::isnan(x);
  }
  uint16_t half = 0;
  std::memcpy(&half, at, sizeof(half));
  return std::isnan(dtype == DType::kF16 ? ToFloat(F16{half}) : ToFloat(BF16{half}));
}

// Elements that differ; two NaNs do not.
int64_t Differences(const TensorView& a, const TensorView& b) {
  const size_t element = DTypeBytes(a.dtype);
  int64_t count = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) {
      const auto* x = static_cast<const std::byte*>(a.Row(r)) + static_cast<size_t>(c) * element;
      const auto* y = static_cast<const std::byte*>(b.Row(r)) + static_cast<size_t>(c) * element;
      count += std::memcmp(x, y, element) != 0 && !(IsNan(a.dtype, x) && IsNan(a.dtype, y));
    }
  }
  return count;
}

void ExpectSameDecoded(const QuantizedTensor& tensor, const std::string& name) {
  const QuantizedTensor on_device = MustHave(cuda::ToDevice(tensor));
  for (DType dtype : kTypes) {
    Tensor want = MustHave(Tensor::Allocate(dtype, tensor.rows(), tensor.cols()));
    ASSERT_TRUE(Dequantize(tensor, want.mutable_view()).ok());
    Tensor got = MustHave(cuda::AllocateTensor(dtype, tensor.rows(), tensor.cols()));
    const Status status = Dequantize(on_device, got.mutable_view());
    ASSERT_TRUE(status.ok()) << name << ": " << status.message();
    const Tensor back = MustHave(cuda::ToHost(got.view()));
    EXPECT_EQ(Differences(want.view(), back.view()), 0) << name << " to " << DTypeName(dtype);
  }
}

TEST_F(QuantizeGpuTest, DecodesRandomBlocksOfEveryFormatAsTheCpuDoes) {
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    const int64_t rows = 5, cols = int64_t{info.block_weights} * 33;
    QuantizedTensor tensor = MustHave(QuantizedTensor::Allocate(info.format, rows, cols));
    const auto bytes = RandomBytes(7, tensor.bytes());
    std::memcpy(tensor.plane(Plane::kCodes).data(), bytes.data(), bytes.size());
    ExpectSameDecoded(tensor, info.name);
  }
}

TEST_F(QuantizeGpuTest, DecodesPlanarSchemesAsTheCpuDoes) {
  const int64_t rows = 7, cols = 389;
  const std::vector<float> w = TestWeights(rows * cols, 3);
  for (const char* name : kSchemes) {
    const Scheme scheme = MustHave(ParseScheme(name));
    ExpectSameDecoded(MustHave(Quantize(ViewOf(w.data(), rows, cols), scheme)), name);
  }
}

TEST_F(QuantizeGpuTest, DecodesByAGroupIndex) {
  const int64_t rows = 3, cols = 192;
  const std::vector<float> w = TestWeights(rows * cols, 4);
  Scheme scheme = MustHave(ParseScheme("int4 asym g64 f16"));
  scheme.has_group_index = true;
  std::vector<int32_t> index(cols);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 7 % 3);
  QuantizeOptions options;
  options.group_index = index;
  ExpectSameDecoded(MustHave(Quantize(ViewOf(w.data(), rows, cols), scheme, options)), "act-order");
}

TEST_F(QuantizeGpuTest, DecodesAdditiveCodebooksAsTheCpuDoes) {
  for (const char* name : {"1x8g8 f16", "2x8g8 f16", "3x8g16 bf16"}) {
    const Scheme scheme = MustHave(ParseScheme(name));
    QuantizedTensor tensor = MustHave(QuantizedTensor::Allocate(scheme, 5, 261));
    for (const Plane p : {Plane::kCodes, Plane::kScales, Plane::kTable}) {
      const auto bytes = RandomBytes(3, tensor.plane(p).size());
      std::memcpy(tensor.plane(p).data(), bytes.data(), bytes.size());
    }
    ExpectSameDecoded(tensor, name);
  }
}

TEST_F(QuantizeGpuTest, QuantizesToTheBytesOfTheCpu) {
  for (const char* input : kCases) {
    const std::vector<float> w = CaseFloats(input);
    const TensorView host = ViewOf(w.data(), kCaseWeights / 512, 512);
    const Tensor device = MustHave(cuda::ToDevice(host));
    for (Format format : {Format::kQ8_0, Format::kQ4_0, Format::kF16, Format::kBF16}) {
      const QuantizedTensor want = MustHave(Quantize(host, format));
      const QuantizedTensor got = MustHave(Quantize(device.view(), format));
      const auto bytes = want.plane(Plane::kCodes).bytes();
      EXPECT_EQ(HostBytes(got.plane(Plane::kCodes)),
                std::vector<std::byte>(bytes.begin(), bytes.end()))
          << GetFormatInfo(format).name << ", " << input;
    }
  }
}

TEST_F(QuantizeGpuTest, QuantizesPlanarSchemesToTheBytesOfTheCpu) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{9, 512}, {5, 389}, {1, 7}}) {
    const std::vector<float> w = TestWeights(rows * cols, 5);
    const TensorView host = ViewOf(w.data(), rows, cols);
    const Tensor device = MustHave(cuda::ToDevice(host));
    for (const char* name : kSchemes) {
      const Scheme scheme = MustHave(ParseScheme(name));
      const QuantizedTensor want = MustHave(Quantize(host, scheme));
      const QuantizedTensor got = MustHave(Quantize(device.view(), scheme));
      for (int p = 0; p < kPlaneCount; ++p) {
        const auto bytes = want.plane(static_cast<Plane>(p)).bytes();
        EXPECT_EQ(HostBytes(got.plane(static_cast<Plane>(p))),
                  std::vector<std::byte>(bytes.begin(), bytes.end()))
            << name << ", plane " << p << ", " << rows << " x " << cols;
      }
    }
  }
}

TEST_F(QuantizeGpuTest, NamesTheFirstWeightThatIsNotFinite) {
  std::vector<float> w = TestWeights(4 * 64, 6);
  w[2 * 64 + 9] = NAN;
  w[3 * 64] = INFINITY;
  const Tensor device = MustHave(cuda::ToDevice(ViewOf(w.data(), 4, 64)));
  const auto blocks = Quantize(device.view(), Format::kQ8_0);
  ASSERT_FALSE(blocks.ok());
  EXPECT_NE(blocks.status().message().find("row 2, column 9"), std::string::npos);
  const auto planar = Quantize(device.view(), MustHave(ParseScheme("int8 sym channel")));
  ASSERT_FALSE(planar.ok());
  EXPECT_NE(planar.status().message().find("row 2, column 9"), std::string::npos);
}

// Where nothing can be reported nothing is waited for: quantizing fits into a graph.
TEST_F(QuantizeGpuTest, ClampsWithoutWaiting) {
  const std::vector<float> w = TestWeights(9 * 512, 7);
  const TensorView host = ViewOf(w.data(), 9, 512);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const Tensor device = MustHave(cuda::ToDevice(host, stream));
  QuantizeOptions options;
  options.non_finite = NonFinite::kClamp;
  options.parallel.stream = stream;
  for (const char* name : {"int8 sym channel", "nf4 g64 double", "f8_e4m3 tensor"}) {
    const Scheme scheme = MustHave(ParseScheme(name));
    const QuantizedTensor want = MustHave(Quantize(host, scheme));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, 9, 512, stream));
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    {
      const QuantizedTensor got = MustHave(Quantize(device.view(), scheme, options));
      EXPECT_TRUE(Dequantize(got, out.mutable_view(), options.parallel).ok());
    }
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << name;
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    const Tensor back = MustHave(cuda::ToHost(out.view(), stream));
    Tensor decoded = MustHave(Tensor::Allocate(DType::kF32, 9, 512));
    ASSERT_TRUE(Dequantize(want, decoded.mutable_view()).ok());
    EXPECT_EQ(Differences(decoded.view(), back.view()), 0) << name;
    EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
}

TEST_F(QuantizeGpuTest, RefusesOperandsInHostMemory) {
  const std::vector<float> w = TestWeights(64, 8);
  QuantizedTensor host = MustHave(Quantize(ViewOf(w.data(), 1, 64), Format::kQ8_0));
  Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, 1, 64));
  EXPECT_FALSE(Dequantize(host, out.mutable_view()).ok());
}

}  // namespace
}  // namespace nibble
