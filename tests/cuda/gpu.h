// What tests on a GPU share.
#ifndef NIBBLE_TESTS_CUDA_GPU_H_
#define NIBBLE_TESTS_CUDA_GPU_H_

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/cuda.h"
#include "tests/vectors.h"

namespace nibble {

// Skips, and says why, where there is no device.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    const Status status = cuda::Initialize();
    if (!status.ok()) GTEST_SKIP() << "no GPU here: " << status.message();
  }
};

template <class T>
T MustHave(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? *std::move(result) : T();
}

inline std::vector<std::byte> HostBytes(const Buffer& buffer) {
  std::vector<std::byte> bytes(buffer.size());
  EXPECT_TRUE(cuda::Copy(bytes, buffer.bytes()).ok());
  EXPECT_TRUE(cuda::Synchronize().ok());
  return bytes;
}

// Floats in about [-1, 1), a few of them large.
inline std::vector<float> TestWeights(int64_t count, uint64_t seed) {
  std::vector<float> w(static_cast<size_t>(count));
  Random random(seed);
  for (float& x : w) {
    const uint64_t u = random.Next();
    x = static_cast<float>(static_cast<int64_t>(u >> 40) - (1 << 23)) / (1 << 23);
    if (u % 97 == 0) x *= 7.0f;
  }
  return w;
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_CUDA_GPU_H_
