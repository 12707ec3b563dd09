// Contestants measured in turn, round by round, so that whatever disturbs the machine disturbs all
// of them; medians over the rounds.
#ifndef NIBBLE_BENCHMARKS_TURNS_H_
#define NIBBLE_BENCHMARKS_TURNS_H_

#include <time.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

namespace nibble {

class Turns {
 public:
  // One thread is timed by its processor time, which others on the machine change less; more
  // threads by the clock on the wall. A library that works on a thread of its own even then is
  // timed by the process's.
  explicit Turns(int threads, bool own_thread = false)
      : threads_(threads),
        clock_(threads > 1  ? CLOCK_MONOTONIC
               : own_thread ? CLOCK_PROCESS_CPUTIME_ID
                            : CLOCK_THREAD_CPUTIME_ID) {}

  // Runs `function` and remembers its time; returns it.
  template <class Function>
  double Run(const Function& function) {
    // Threads of the contestant before, which wait for work without sleeping, would take part.
    if (threads_ > 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const double start = Now();
    function();
    times_.push_back(Now() - start);
    return times_.back();
  }

  // 0 where it never ran.
  double Median() const {
    if (times_.empty()) return 0;
    std::vector<double> sorted = times_;
    std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
    return sorted[sorted.size() / 2];
  }

 private:
  double Now() const {
    timespec t;
    clock_gettime(clock_, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }

  int threads_;
  clockid_t clock_;
  std::vector<double> times_;
};

}  // namespace nibble

#endif  // NIBBLE_BENCHMARKS_TURNS_H_
