#include "nibble/parallel.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

// Runs a loop of `count` and checks that each index came once, and that no two calls at the same
// time had the same worker.
void ExpectWholeLoop(const ParallelFor& parallel, int64_t count) {
  std::vector<std::atomic<int>> times(static_cast<size_t>(count));
  std::vector<std::atomic<int>> at_work(static_cast<size_t>(parallel.workers));
  std::atomic<int> collisions = 0;
  parallel(count, [&](int64_t i, int worker) {
    if (at_work[static_cast<size_t>(worker)]++ != 0) ++collisions;
    ++times[static_cast<size_t>(i)];
    --at_work[static_cast<size_t>(worker)];
  });
  for (const auto& n : times) ASSERT_EQ(n, 1);
  EXPECT_EQ(collisions, 0);
}

TEST(ThreadPool, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    const ParallelFor parallel = pool.parallel_for();
    EXPECT_EQ(parallel.workers, threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) ExpectWholeLoop(parallel, count);
  }
}

TEST(ThreadPool, LoopsFollowEachOtherQuicklyOrAfterASleep) {
  ThreadPool pool(3);
  const ParallelFor parallel = pool.parallel_for();
  for (int i = 0; i < 2000; ++i) ExpectWholeLoop(parallel, 2 + i % 5);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ExpectWholeLoop(parallel, 100);
  }
}

TEST(ThreadPool, UsesOtherThreads) {
  ThreadPool pool(2);
  const ParallelFor parallel = pool.parallel_for();
  // The first to come waits for the other: one thread alone would never end.
  std::atomic<int> arrived = 0;
  parallel(2, [&](int64_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

TEST(ThreadPool, ServesCallersFromManyThreadsAndFromInside) {
  ThreadPool pool(2);
  const ParallelFor parallel = pool.parallel_for();
  std::atomic<int64_t> sum = 0;
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) parallel(10, [&](int64_t k, int) { sum += k; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 50 * 45);
  sum = 0;
  parallel(8, [&](int64_t, int) { parallel(10, [&](int64_t k, int) { sum += k; }); });
  EXPECT_EQ(sum, 8 * 45);
}

TEST(ThreadPool, MayEndUnusedOrAtOnce) {
  for (int i = 0; i < 20; ++i) ThreadPool pool(4);
  for (int i = 0; i < 20; ++i) {
    ThreadPool pool(4);
    ExpectWholeLoop(pool.parallel_for(), 3);
  }
}

}  // namespace
}  // namespace nibble
