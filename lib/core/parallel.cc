#include "nibble/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "hwy/cache_control.h"  // Pause

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

// A token of a small model takes a few milliseconds and over a hundred loops, with little between
// them; waking a sleeping thread takes tens of microseconds. So threads wait a moment before they
// sleep.
constexpr auto kAwake = std::chrono::microseconds(50);

// Returns what `value` holds once that is not `old`.
uint32_t WaitWhile(const std::atomic<uint32_t>& value, uint32_t old) {
  constexpr int kPausesPerLook = 16;
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const uint32_t now = value.load();
      if (now != old) return now;
      hwy::Pause();
    }
  } while (std::chrono::steady_clock::now() - start < kAwake);
  value.wait(old);
  return value.load();
}

}  // namespace

// Highway's pool waits for every thread to have woken before a loop ends; here a loop ends with its
// last task, and threads that come late find it closed.
struct ThreadPool::Impl {
  explicit Impl(int count) : workers(count) {
    for (int worker = 1; worker < count; ++worker) {
      threads.emplace_back([this, worker] { Serve(worker); });
    }
  }
  ~Impl() {
    stop = true;
    epoch += 2;  // as after a loop that nobody saw
    epoch.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void Run(int64_t tasks, ParallelFor::Task function, void* with) {
    count = tasks;
    task = function;
    argument = with;
    next = 0;
    ++epoch;  // open
    epoch.notify_all();
    Work(0);
    ++epoch;  // closed: whoever is not inside now stays outside
    for (uint32_t now = inside; now != 0;) now = WaitWhile(inside, now);
  }

  void Work(int worker) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      task(argument, i, worker);
    }
  }

  void Serve(int worker) {
    uint32_t seen = 0;
    for (;;) {
      seen = WaitWhile(epoch, seen);
      if (stop) return;
      if (seen % 2 == 0) continue;
      ++inside;
      if (epoch == seen) Work(worker);  // else the loop was closed before this thread was inside
      if (--inside == 0) inside.notify_all();
    }
  }

  const int workers;
  std::atomic<bool> busy = false;  // a caller has the pool
  std::atomic<bool> stop = false;

  // The loop: written while it is closed and nobody is inside.
  int64_t count = 0;
  ParallelFor::Task task = nullptr;
  void* argument = nullptr;

  alignas(64) std::atomic<uint32_t> epoch = 0;   // odd while a loop is open
  alignas(64) std::atomic<uint32_t> inside = 0;  // threads in the loop, beside the one that called
  alignas(64) std::atomic<int64_t> next = 0;     // task to take

  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads)
    : impl_(std::make_unique<Impl>(threads > 0 ? threads : UsableCores())) {}

ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return impl_->workers; }

ParallelFor ThreadPool::parallel_for() {
  ParallelFor result;
  result.context = impl_.get();
  result.workers = threads();
  result.run = [](void* context, int64_t count, ParallelFor::Task task, void* argument) {
    Impl& impl = *static_cast<Impl*>(context);
    if (impl.busy.exchange(true, std::memory_order_acquire)) {
      for (int64_t i = 0; i < count; ++i) task(argument, i, 0);
      return;
    }
    impl.Run(count, task, argument);
    impl.busy.store(false, std::memory_order_release);
  };
  return result;
}

}  // namespace nibble
