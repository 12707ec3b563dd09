// What a product needs in memory while it runs, in one piece: allocators hand several large pieces
// back to the system after each call, and every page of the next ones costs a fault again.
#ifndef NIBBLE_KERNELS_WORK_MEMORY_H_
#define NIBBLE_KERNELS_WORK_MEMORY_H_

#include <cstddef>
#include <cstdint>

#include "hwy/aligned_allocator.h"

namespace nibble {

class WorkMemory {
 public:
  // A part of the piece: `count` elements, on a cache line of their own.
  template <class T>
  struct Part {
    size_t offset;
  };
  template <class T>
  Part<T> Add(int64_t count) {
    const size_t offset = bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return {offset};
  }

  // Allocates all parts, not initialised; false where there is no memory for them.
  bool Allocate() {
    memory_ = hwy::AllocateAligned<std::byte>(bytes_ + 1);
    return memory_ != nullptr;
  }
  template <class T>
  T* At(Part<T> part) const {
    return reinterpret_cast<T*>(memory_.get() + part.offset);
  }

 private:
  size_t bytes_ = 0;
  hwy::AlignedFreeUniquePtr<std::byte[]> memory_;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_WORK_MEMORY_H_
