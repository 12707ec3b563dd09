// Products with packed weights on the device, against the CPU's decoded weights.
#include <cuda_runtime_api.h>

#include <cmath>

#include "cuda/dense_plan.h"
#include "nibble/backend.h"
#include "nibble/decoder_backend.h"
#include "nibble/matmul.h"
#include "tests/cuda/gpu.h"
#include "tests/cuda/products.h"

namespace nibble {
namespace {

class PackedGpuTest : public GpuTest {};

struct Case {
  int64_t m_rows;
  DType dtype = DType::kF16;
};

Tensor ActivationsOnDevice(const TypedValues& values, int64_t cols) {
  const int64_t rows = static_cast<int64_t>(values.floats.size()) / cols;
  return MustHave(cuda::ToDevice(
      TensorView{values.bytes.data(), values.dtype, rows, cols, cols, Device::kCpu}));
}

std::vector<float> OnHost(const Tensor& tensor) {
  const Tensor host = MustHave(cuda::ToHost(tensor.view()));
  const float* data = static_cast<const float*>(host.view().data);
  return std::vector<float>(data, data + host.rows() * host.cols());
}

// Few activation rows take values of codes as they are; many take weights rounded to 16 bits.
double Epsilon(const QuantizedTensor& weights, const Case& test) {
  const bool is_f16 = test.dtype == DType::kF16;
  double epsilon = test.m_rows > 16            ? (is_f16 ? 0x1p-9 : 0x1p-6)
                   : HasRoundedValues(weights) ? (is_f16 ? 0x1p-11 : 0x1p-8)
                                               : 0x1p-17;
  if (test.dtype == DType::kF32) epsilon += 0x1p-8;
  return epsilon;
}

void ExpectProduct(const QuantizedTensor& weights, const Case& test, double epsilon = 0) {
  const std::string what =
      NameOf(weights) + ", " + std::to_string(test.m_rows) + " rows of " + DTypeName(test.dtype);
  const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
  const PackedWeights packed = MustHave(Pack(on_device));
  EXPECT_EQ(packed.target(), "cuda16/1") << what;
  const TypedValues a = RandomActivations(test.dtype, test.m_rows * weights.cols(), 6);
  const Tensor activations = ActivationsOnDevice(a, weights.cols());
  Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, test.m_rows, weights.rows()));
  const Status status = Matmul(activations.view(), packed, out.mutable_view());
  ASSERT_TRUE(status.ok()) << what << ": " << status.message();
  ExpectProducts(OnHost(out), a.floats, {}, weights, test.m_rows,
                 epsilon > 0 ? epsilon : Epsilon(weights, test), what);
}

// Weights rounded to 16 bits, activations of f32 to bf16.
double DenseEpsilon(DType dtype) { return dtype == DType::kF16 ? 0x1p-9 : 0x1p-6; }

// Whether cuBLAS is there: else the kernels of few and many tokens do, as exactly as is asked here.
TEST_F(PackedGpuTest, MultipliesWithDequantizedWeights) {
  const cuda::DenseFrom always(1);
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (Format format : kPackedBlockFormats) {
      ExpectProduct(RandomWeights(format, 163, 768, 3), {21, dtype}, DenseEpsilon(dtype));
    }
    for (const char* name : kPackedSchemes) {
      ExpectProduct(PlanarWeights(name, 37, 320), {3, dtype}, DenseEpsilon(dtype));
    }
    ExpectProduct(PlanarWeights("int4 asym g128 f16", 130, 999), {70, dtype}, DenseEpsilon(dtype));
  }
}

TEST_F(PackedGpuTest, MultipliesCanonicalWeightsDequantized) {
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (Format format :
         {Format::kF16, Format::kBF16, Format::kF32, Format::kIQ2_S, Format::kQ4_K}) {
      const QuantizedTensor weights = RandomWeights(format, 77, 512, 4);
      const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights));
      for (int64_t m_rows : {1, 40}) {
        const TypedValues a = RandomActivations(dtype, m_rows * 512, 5);
        const Tensor activations = ActivationsOnDevice(a, 512);
        Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, m_rows, 77));
        const Status status = Matmul(activations.view(), on_device, out.mutable_view());
        ASSERT_TRUE(status.ok()) << status.message();
        ExpectProducts(OnHost(out), a.floats, {}, weights, m_rows, DenseEpsilon(dtype),
                       NameOf(weights));
      }
    }
  }
}

TEST_F(PackedGpuTest, MultipliesWithEveryFormat) {
  for (Format format : kPackedBlockFormats) {
    const QuantizedTensor weights = RandomWeights(format, 163, 768, 3);
    for (int64_t m_rows : {1, 8, 13, 40, 150}) {
      ExpectProduct(weights, {m_rows, DType::kF16});
      ExpectProduct(weights, {m_rows, DType::kBF16});
    }
  }
}

TEST_F(PackedGpuTest, MultipliesWithPlanarSchemes) {
  for (const char* name : kPackedSchemes) {
    const QuantizedTensor weights = PlanarWeights(name, 37, 320);
    for (int64_t m_rows : {1, 13, 40}) {
      ExpectProduct(weights, {m_rows, DType::kF16});
      ExpectProduct(weights, {m_rows, DType::kBF16});
    }
  }
}

TEST_F(PackedGpuTest, TakesShapesWithTails) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 32}, {16, 100}, {130, 999}, {1029, 1288}, {5, 8192}}) {
    const QuantizedTensor weights = PlanarWeights("int4 asym g128 f16", rows, cols);
    for (int64_t m_rows : {1, 2, 9, 16, 17, 70}) {
      ExpectProduct(weights, {m_rows, DType::kF16});
      ExpectProduct(weights, {m_rows, DType::kF32});
    }
  }
}

TEST_F(PackedGpuTest, TakesSegmentsAndSplitsOfTheColumns) {
  const QuantizedTensor weights = PlanarWeights("int4 sym g128 f16", 48, 1 << 15);
  for (int64_t m_rows : {1, 7, 16}) ExpectProduct(weights, {m_rows, DType::kF16});
}

TEST_F(PackedGpuTest, FollowsAGroupIndex) {
  Scheme scheme = *ParseScheme("int4 asym g64 f16");
  scheme.has_group_index = true;
  std::vector<int32_t> index(320);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 3 % 5);
  QuantizeOptions options;
  options.group_index = index;
  const QuantizedTensor weights = PlanarWeights(scheme, 35, 320, options);
  for (int64_t m_rows : {3, 33}) ExpectProduct(weights, {m_rows});
}

TEST_F(PackedGpuTest, ServesGroupsWithRowsAndBiases) {
  constexpr int64_t kCols = 512, kRows = 6;
  const QuantizedTensor weights[3] = {RandomWeights(Format::kQ4_K, 70, kCols, 7),
                                      RandomWeights(Format::kQ4_K, 33, kCols, 8),
                                      RandomWeights(Format::kQ6_K, 18, kCols, 9)};
  const std::vector<int32_t> lists[3] = {
      {}, {5, 0, 3}, {1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 0, 0, 0, 0, 3, 3, 3, 3, 5}};
  const TypedValues a = RandomActivations(DType::kF16, kRows * kCols, 10);
  const Tensor activations = ActivationsOnDevice(a, kCols);
  std::vector<PackedWeights> packed;
  std::vector<Tensor> outs;
  std::vector<Buffer> rows;
  const std::vector<float> bias = RandomValues(33, 11);
  const Tensor bias_on_device = MustHave(cuda::ToDevice(ViewOf(bias.data(), 1, 33)));
  std::vector<MatmulMember> members;
  for (size_t i = 0; i < 3; ++i) {
    packed.push_back(MustHave(Pack(MustHave(cuda::ToDevice(weights[i])))));
    const int64_t m_rows = i == 0 ? kRows : static_cast<int64_t>(lists[i].size());
    outs.push_back(MustHave(cuda::AllocateTensor(DType::kF32, m_rows, weights[i].rows())));
    rows.push_back(MustHave(cuda::Allocate(lists[i].size() * 4)));
    ASSERT_TRUE(
        cuda::Copy(rows[i].mutable_bytes(), std::as_bytes(std::span<const int32_t>(lists[i])))
            .ok());
  }
  for (size_t i = 0; i < 3; ++i) {
    MatmulMember member = {&packed[i], outs[i].mutable_view(), {}, {}};
    member.rows = {reinterpret_cast<const int32_t*>(rows[i].data()), lists[i].size()};
    if (i == 1) member.bias = {static_cast<const float*>(bias_on_device.view().data), 33};
    members.push_back(member);
  }
  const Status status = MatmulGroup(activations.view(), members);
  ASSERT_TRUE(status.ok()) << status.message();
  for (size_t i = 0; i < 3; ++i) {
    std::vector<float> out = OnHost(outs[i]);
    if (i == 1) {
      for (size_t j = 0; j < out.size(); ++j) out[j] -= bias[j % 33];
    }
    ExpectProducts(out, a.floats, lists[i], weights[i], outs[i].rows(), i == 2 ? 0x1p-9 : 0x1p-15,
                   "member " + std::to_string(i));
  }
}

// Query, key and value, and experts with rows of their own, of many tokens: one launch of the
// kernel of many, or dequantized weights; the same members as weights that are not packed.
TEST_F(PackedGpuTest, ServesGroupsOfManyTokens) {
  constexpr int64_t kCols = 512, kRows = 150;
  const QuantizedTensor weights[4] = {
      RandomWeights(Format::kQ4_0, 170, kCols, 7), RandomWeights(Format::kQ4_0, 33, kCols, 8),
      RandomWeights(Format::kQ4_0, 260, kCols, 9), RandomWeights(Format::kQ6_K, 18, kCols, 10)};
  std::vector<int32_t> lists[4] = {{}, std::vector<int32_t>(90), std::vector<int32_t>(20), {}};
  for (size_t i = 0; i < 90; ++i) lists[1][i] = static_cast<int32_t>(i * 37 % kRows);
  for (size_t i = 0; i < 20; ++i) lists[2][i] = static_cast<int32_t>(i * 7);
  const TypedValues a = RandomActivations(DType::kF16, kRows * kCols, 10);
  const Tensor activations = ActivationsOnDevice(a, kCols);
  const std::vector<float> bias = RandomValues(33, 11);
  const Tensor bias_on_device = MustHave(cuda::ToDevice(ViewOf(bias.data(), 1, 33)));
  std::vector<QuantizedTensor> canonical;
  std::vector<PackedWeights> packed;
  std::vector<Buffer> rows;
  for (size_t i = 0; i < 4; ++i) {
    canonical.push_back(MustHave(cuda::ToDevice(weights[i])));
    packed.push_back(MustHave(Pack(canonical.back())));
    rows.push_back(MustHave(cuda::Allocate(lists[i].size() * 4)));
    ASSERT_TRUE(
        cuda::Copy(rows[i].mutable_bytes(), std::as_bytes(std::span<const int32_t>(lists[i])))
            .ok());
  }
  for (const bool is_packed : {true, false}) {
    for (const int64_t dense : {INT64_MAX, int64_t{1}}) {
      const cuda::DenseFrom from(dense);
      std::vector<Tensor> outs;
      std::vector<MatmulMember> members;
      for (size_t i = 0; i < 4; ++i) {
        const int64_t m_rows = lists[i].empty() ? kRows : static_cast<int64_t>(lists[i].size());
        outs.push_back(MustHave(cuda::AllocateTensor(DType::kF32, m_rows, weights[i].rows())));
      }
      for (size_t i = 0; i < 4; ++i) {
        MatmulMember member = {&packed[i], outs[i].mutable_view(), {}, {}};
        if (!is_packed) member.weights = &canonical[i];
        member.rows = {reinterpret_cast<const int32_t*>(rows[i].data()), lists[i].size()};
        if (i == 1) member.bias = {static_cast<const float*>(bias_on_device.view().data), 33};
        members.push_back(member);
      }
      const Status status = MatmulGroup(activations.view(), members);
      ASSERT_TRUE(status.ok()) << status.message();
      for (size_t i = 0; i < 4; ++i) {
        std::vector<float> out = OnHost(outs[i]);
        if (i == 1) {
          for (size_t j = 0; j < out.size(); ++j) out[j] -= bias[j % 33];
        }
        ExpectProducts(out, a.floats, lists[i], weights[i], outs[i].rows(), 0x1p-9,
                       "member " + std::to_string(i));
      }
    }
  }
}

// Calls of every kind in a graph, which gives what they gave before it was recorded.
TEST_F(PackedGpuTest, IsRecordedInGraphs) {
  const Backend* backend = MustHave(FindBackend(Device::kCuda));
  const DecoderBackend& decoder = *backend->decoder;
  const std::shared_ptr<void> stream = MustHave(decoder.make_stream());
  const QuantizedTensor weights = RandomWeights(Format::kQ4_K, 100, 512, 7);
  MatmulOptions options;
  options.parallel.stream = stream.get();
  const QuantizedTensor on_device = MustHave(cuda::ToDevice(weights, stream.get()));
  const PackedWeights packed = MustHave(Pack(on_device, Precision::kInt8, options.parallel));
  for (const int64_t dense : {INT64_MAX, int64_t{1}}) {
    const cuda::DenseFrom from(dense);
    for (const int64_t m_rows : {1, 40}) {
      for (const DType dtype : {DType::kF16, DType::kF32}) {
        const TypedValues a = RandomActivations(dtype, m_rows * 512, 5);
        const Tensor activations = ActivationsOnDevice(a, 512);
        ASSERT_TRUE(cuda::Synchronize().ok());
        Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, m_rows, 100, stream.get()));
        const auto multiply = [&]() -> Status {
          return Matmul(activations.view(), packed, out.mutable_view(), options);
        };
        const auto result = [&] {
          EXPECT_TRUE(decoder.synchronize(stream.get()).ok());
          return OnHost(out);
        };
        ASSERT_TRUE(multiply().ok());
        const std::vector<float> want = result();
        ASSERT_EQ(cudaMemset(out.mutable_view().data, 0xFF, want.size() * 4), cudaSuccess);
        ASSERT_TRUE(cuda::Synchronize().ok());
        const std::shared_ptr<void> graph = MustHave(decoder.record(stream.get(), multiply));
        ASSERT_TRUE(decoder.replay(graph.get(), stream.get()).ok());
        ASSERT_TRUE(decoder.replay(graph.get(), stream.get()).ok());
        EXPECT_EQ(result(), want) << m_rows;
      }
    }
  }
}

TEST_F(PackedGpuTest, AddsToTheOutput) {
  const QuantizedTensor weights = RandomWeights(Format::kQ8_0, 40, 256, 12);
  const PackedWeights packed = MustHave(Pack(MustHave(cuda::ToDevice(weights))));
  for (int64_t m_rows : {2, 20}) {
    const TypedValues a = RandomActivations(DType::kBF16, m_rows * 256, 13);
    const Tensor activations = ActivationsOnDevice(a, 256);
    Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, m_rows, 40));
    MatmulOptions options;
    ASSERT_TRUE(Matmul(activations.view(), packed, out.mutable_view(), options).ok());
    options.accumulate = true;
    ASSERT_TRUE(Matmul(activations.view(), packed, out.mutable_view(), options).ok());
    std::vector<float> half = OnHost(out);
    for (float& x : half) x /= 2;
    ExpectProducts(half, a.floats, {}, weights, m_rows, m_rows > 16 ? 0x1p-6 : 0x1p-17, "twice");
  }
}

// The same bits in every run, whatever the order in which blocks end.
TEST_F(PackedGpuTest, RepeatsItself) {
  const QuantizedTensor weights = PlanarWeights("int4 sym g128 f16", 256, 8192);
  const PackedWeights packed = MustHave(Pack(MustHave(cuda::ToDevice(weights))));
  for (int64_t m_rows : {1, 16, 64}) {
    const TypedValues a = RandomActivations(DType::kF16, m_rows * 8192, 14);
    const Tensor activations = ActivationsOnDevice(a, 8192);
    std::vector<float> first;
    for (int run = 0; run < 5; ++run) {
      Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, m_rows, 256));
      ASSERT_TRUE(Matmul(activations.view(), packed, out.mutable_view()).ok());
      const std::vector<float> got = OnHost(out);
      if (run == 0) first = got;
      ASSERT_EQ(got, first) << m_rows;
    }
  }
}

TEST_F(PackedGpuTest, KeepsWhatItCannotPack) {
  const QuantizedTensor weights = RandomWeights(Format::kIQ2_S, 9, 512, 15);
  const PackedWeights packed = MustHave(Pack(MustHave(cuda::ToDevice(weights))));
  EXPECT_EQ(packed.target(), "canonical/1");
  const TypedValues a = RandomActivations(DType::kF32, 3 * 512, 16);
  const Tensor activations = ActivationsOnDevice(a, 512);
  Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, 3, 9));
  ASSERT_TRUE(Matmul(activations.view(), packed, out.mutable_view()).ok());
  ExpectProducts(OnHost(out), a.floats, {}, weights, 3, 0x1p-17, "canonical");
}

}  // namespace
}  // namespace nibble
