// How nibble borrows threads: the caller decides, nibble never starts a pool of its own unasked.
#ifndef NIBBLE_PARALLEL_H_
#define NIBBLE_PARALLEL_H_

#include <cstdint>
#include <memory>

namespace nibble {

// An adapter to somebody's threads, plain enough for C. `run(context, count, task, argument)` calls
// task(argument, i, worker) once for every i in [0, count), on any threads in any order, with
// 0 <= worker < workers and no two concurrent calls sharing a worker, and returns when all are
// done. The default runs everything on the calling thread.
struct ParallelFor {
  using Task = void (*)(void* argument, int64_t index, int worker);

  void (*run)(void* context, int64_t count, Task task, void* argument) = nullptr;
  void* context = nullptr;
  int workers = 1;
  // For operands in device memory: the stream (a cudaStream_t) that the work is queued on; the call
  // returns before it is done. Unused on the CPU.
  void* stream = nullptr;

  template <class Function>  // void(int64_t index, int worker)
  void operator()(int64_t count, const Function& function) const {
    if (run == nullptr || workers <= 1 || count <= 1) {
      for (int64_t i = 0; i < count; ++i) function(i, 0);
      return;
    }
    run(
        context, count,
        [](void* argument, int64_t i, int worker) {
          (*static_cast<const Function*>(argument))(i, worker);
        },
        const_cast<void*>(static_cast<const void*>(&function)));
  }
};

// A pool of threads for callers that have none. Calls from several threads at once are safe: the
// pool serves one at a time and the others run their loop on their own thread.
class ThreadPool {
 public:
  // 0: as many threads as the process may use cores.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // Valid for as long as the pool lives.
  ParallelFor parallel_for();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_PARALLEL_H_
