// Products on the device against the CPU's exact ones.
#include "nibble/matmul.h"

#include <cmath>

#include "nibble/quantize.h"
#include "tests/cuda/gpu.h"

namespace nibble {
namespace {

class MatmulGpuTest : public GpuTest {};

// |sum| of f32 products may differ by some roundings of the sum of magnitudes.
void ExpectProduct(const Tensor& got, const std::vector<float>& a, const std::vector<float>& w,
                   double epsilon, const std::string& name) {
  const int64_t m_rows = got.rows(), n_rows = got.cols();
  const int64_t cols = static_cast<int64_t>(w.size()) / n_rows;
  for (int64_t m = 0; m < m_rows; ++m) {
    for (int64_t n = 0; n < n_rows; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double product = static_cast<double>(a[static_cast<size_t>(m * cols + k)]) *
                               static_cast<double>(w[static_cast<size_t>(n * cols + k)]);
        sum += product;
        magnitude += std::fabs(product);
      }
      const float* row = static_cast<const float*>(got.view().Row(m));
      ASSERT_LE(std::fabs(static_cast<double>(row[n]) - sum), epsilon * magnitude)
          << name << " at " << m << ", " << n;
    }
  }
}

std::vector<float> Decoded(const QuantizedTensor& tensor) {
  std::vector<float> w(static_cast<size_t>(tensor.rows() * tensor.cols()));
  EXPECT_TRUE(Dequantize(tensor, ViewOf(w.data(), tensor.rows(), tensor.cols())).ok());
  return w;
}

TEST_F(MatmulGpuTest, MultipliesWithEveryFormatAndScheme) {
  const int64_t rows = 37, cols = 512;
  const std::vector<float> w = TestWeights(rows * cols, 1);
  std::vector<QuantizedTensor> tensors;
  for (const FormatInfo& info : AllFormats()) {
    if (info.can_encode()) {
      tensors.push_back(MustHave(Quantize(ViewOf(w.data(), rows, cols), info.format)));
    }
  }
  for (const char* name : {"int4 asym g128 f16", "nf4 g64 double", "int8 sym channel"}) {
    tensors.push_back(
        MustHave(Quantize(ViewOf(w.data(), rows, cols), MustHave(ParseScheme(name)))));
  }
  for (const QuantizedTensor& tensor : tensors) {
    const std::string name = tensor.is_block_format() ? GetFormatInfo(tensor.format()).name
                                                      : SchemeName(tensor.scheme());
    const std::vector<float> decoded = Decoded(tensor);
    const QuantizedTensor on_device = MustHave(cuda::ToDevice(tensor));
    for (int64_t m : {1, 5}) {
      const std::vector<float> a = TestWeights(m * cols, 2);
      const Tensor activations = MustHave(cuda::ToDevice(ViewOf(a.data(), m, cols)));
      Tensor out = MustHave(cuda::AllocateTensor(DType::kF32, m, rows));
      const Status status = Matmul(activations.view(), on_device, out.mutable_view());
      ASSERT_TRUE(status.ok()) << name << ": " << status.message();
      ExpectProduct(MustHave(cuda::ToHost(out.view())), a, decoded, 32 * 0x1p-24, name);
    }
  }
}

}  // namespace
}  // namespace nibble
