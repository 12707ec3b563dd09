// Copies to shared memory that the rest of a thread's work does not wait for, and the barriers of a
// warp. On the host barriers are nothing, and copies are made at once or, for tests, as late as the
// waits allow.
#ifndef NIBBLE_CUDA_ASYNC_COPY_H_
#define NIBBLE_CUDA_ASYNC_COPY_H_

#include <cstdint>
#include <cstring>

#include "cuda/half2.h"
#include "nibble/dtype.h"

#if !defined(__CUDACC__)
#include <deque>
#include <utility>
#include <vector>
#endif

namespace nibble::cuda {

#if !defined(__CUDACC__)
// The copies under way of a warp, whose lanes begin and end groups together.
class HostCopies {
 public:
  // While another lane of the warp is still to add to the group.
  bool is_group_open = false;

  void Add(uint8_t* to, const void* from, int bytes) { group_.push_back({to, from, bytes}); }
  void Commit() {
    if (!is_group_open) groups_.push_back(std::exchange(group_, {}));
  }
  void WaitForAllBut(size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front()) {
      for (const Copy& copy : groups_.front()) Make(copy.to, copy.from, copy.bytes);
    }
  }
  static void Make(uint8_t* to, const void* from, int bytes) {
    std::memset(to, 0, 16);
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
  }

 private:
  struct Copy {
    uint8_t* to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> group_;
  std::deque<std::vector<Copy>> groups_;
};

// Of the warp that this thread plays; null: copies are made at once.
inline thread_local HostCopies* host_copies = nullptr;
#endif

#if defined(__CUDA_ARCH__)
__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// 16 bytes, of which the first `bytes` are copied and others zero; `from` is not read for none.
// No policy of the second-level cache is given: of copies that have one, ptxas before 13.4 makes
// some read it from a register that nothing writes, and they trap.
NIBBLE_HD inline void CopyAsync(uint8_t* to, const void* from, int bytes = 16) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)), "l"(from),
               "r"(bytes)
               : "memory");
#elif !defined(__CUDACC__)
  host_copies != nullptr ? host_copies->Add(to, from, bytes) : HostCopies::Make(to, from, bytes);
#endif
}

// A lane's part of what a warp copies: `bytes`, a multiple of 16 that is at least kLeast.
template <int kLeast>
NIBBLE_HD inline void CopyByLane(int lane, const uint8_t* from, int bytes, uint8_t* to) {
  constexpr int kWarpBytes = 32 * 16;
  NIBBLE_UNROLL
  for (int at = 0; at + kWarpBytes <= kLeast; at += kWarpBytes) {
    CopyAsync(to + at + 16 * lane, from + at + 16 * lane);
  }
  NIBBLE_NO_UNROLL
  for (int at = kLeast / kWarpBytes * kWarpBytes + 16 * lane; at < bytes; at += kWarpBytes) {
    CopyAsync(to + at, from + at);
  }
}
// Ends a group of copies of the thread.
NIBBLE_HD inline void CommitCopies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  if (host_copies != nullptr) host_copies->Commit();
#endif
}
// Until all but the last kPending groups of the thread have arrived.
template <int kPending>
NIBBLE_HD inline void WaitForCopies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  if (host_copies != nullptr) host_copies->WaitForAllBut(kPending);
#endif
}
NIBBLE_HD inline void SyncWarp() {
#if defined(__CUDA_ARCH__)
  __syncwarp();
#endif
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_ASYNC_COPY_H_
