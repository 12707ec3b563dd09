#include "nibble/parallel.h"

#include <mutex>
#include <thread>

#include "hwy/contrib/thread_pool/thread_pool.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace nibble {
namespace {

int UsableCores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(int threads) : pool(static_cast<size_t>(threads)) {}

  hwy::ThreadPool pool;  // counts the calling thread as one of its workers
  std::mutex busy;
};

ThreadPool::ThreadPool(int threads)
    : impl_(std::make_unique<Impl>(threads > 0 ? threads : UsableCores())) {}

ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return static_cast<int>(impl_->pool.NumWorkers()); }

ParallelFor ThreadPool::parallel_for() {
  ParallelFor result;
  result.context = impl_.get();
  result.workers = threads();
  result.run = [](void* context, int64_t count, ParallelFor::Task task, void* argument) {
    Impl& impl = *static_cast<Impl*>(context);
    std::unique_lock<std::mutex> lock(impl.busy, std::try_to_lock);
    if (!lock.owns_lock()) {
      for (int64_t i = 0; i < count; ++i) task(argument, i, 0);
      return;
    }
    impl.pool.Run(0, static_cast<uint64_t>(count), [&](uint64_t i, size_t worker) {
      task(argument, static_cast<int64_t>(i), static_cast<int>(worker));
    });
  };
  return result;
}

}  // namespace nibble
