// From C: memory, tensors and products on the device.
#include "nibble/cuda_c_api.h"

#include <cmath>
#include <vector>

#include "tests/cuda/gpu.h"

namespace nibble {
namespace {

class CApiGpuTest : public GpuTest {};

TEST_F(CApiGpuTest, MultipliesAsOnTheCpu) {
  constexpr int64_t kM = 3, kN = 40, kK = 256;
  const std::vector<float> w = TestWeights(kN * kK, 1), a = TestWeights(kM * kK, 2);
  nibble_error error;
  ASSERT_EQ(nibble_cuda_initialize(&error), NIBBLE_OK) << error.message;
  nibble_tensor *host = nullptr, *device = nullptr, *back = nullptr;
  ASSERT_EQ(nibble_tensor_quantize({w.data(), NIBBLE_F32, kN, kK, 0, NIBBLE_DEVICE_CPU}, "q8_0",
                                   nullptr, &host, &error),
            NIBBLE_OK);
  ASSERT_EQ(nibble_cuda_tensor_to_device(host, nullptr, &device, &error), NIBBLE_OK)
      << error.message;
  EXPECT_EQ(nibble_tensor_device(device), NIBBLE_DEVICE_CUDA);
  ASSERT_EQ(nibble_cuda_tensor_to_host(device, nullptr, &back, &error), NIBBLE_OK);
  size_t bytes = 0, back_bytes = 0;
  const void* plane = nibble_tensor_plane(host, NIBBLE_PLANE_CODES, &bytes);
  const void* back_plane = nibble_tensor_plane(back, NIBBLE_PLANE_CODES, &back_bytes);
  ASSERT_EQ(bytes, back_bytes);
  EXPECT_EQ(std::memcmp(plane, back_plane, bytes), 0);

  nibble_cuda_memory *in = nullptr, *out = nullptr;
  ASSERT_EQ(nibble_cuda_allocate(a.size() * 4, nullptr, &in, &error), NIBBLE_OK);
  ASSERT_EQ(nibble_cuda_allocate(kM * kN * 4, nullptr, &out, &error), NIBBLE_OK);
  ASSERT_EQ(nibble_cuda_copy(nibble_cuda_memory_data(in), a.data(), a.size() * 4, nullptr, &error),
            NIBBLE_OK);
  nibble_packed* packed = nullptr;
  ASSERT_EQ(nibble_pack(device, NIBBLE_PRECISION_INT8, nullptr, &packed, &error), NIBBLE_OK);
  nibble_matmul_member member = {};
  member.packed = packed;
  member.out = {nibble_cuda_memory_data(out), NIBBLE_F32, kM, kN, 0, NIBBLE_DEVICE_CUDA};
  const nibble_matrix activations = {nibble_cuda_memory_data(in), NIBBLE_F32, kM, kK, 0,
                                     NIBBLE_DEVICE_CUDA};
  ASSERT_EQ(nibble_matmul_group(activations, &member, 1, nullptr, &error), NIBBLE_OK)
      << error.message;
  std::vector<float> got(kM * kN), want(kM * kN);
  ASSERT_EQ(
      nibble_cuda_copy(got.data(), nibble_cuda_memory_data(out), got.size() * 4, nullptr, &error),
      NIBBLE_OK);
  ASSERT_EQ(nibble_cuda_synchronize(nullptr, &error), NIBBLE_OK) << error.message;
  nibble_matmul_options exact = {};
  exact.precision = NIBBLE_PRECISION_F32;
  ASSERT_EQ(nibble_matmul({a.data(), NIBBLE_F32, kM, kK, 0, NIBBLE_DEVICE_CPU}, host,
                          {want.data(), NIBBLE_F32, kM, kN, 0, NIBBLE_DEVICE_CPU}, &exact, &error),
            NIBBLE_OK);
  float largest = 0;
  for (float x : want) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 0.02f * largest) << i;
  nibble_packed_free(packed);
  nibble_cuda_memory_free(in);
  nibble_cuda_memory_free(out);
  nibble_tensor_free(back);
  nibble_tensor_free(device);
  nibble_tensor_free(host);
}

}  // namespace
}  // namespace nibble
