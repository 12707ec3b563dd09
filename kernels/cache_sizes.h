// The sizes that blocking follows.
#ifndef NIBBLE_KERNELS_CACHE_SIZES_H_
#define NIBBLE_KERNELS_CACHE_SIZES_H_

#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace nibble {

// Of one core; a common size where the system does not tell.
inline int64_t SecondLevelCacheBytes() {
  constexpr int64_t kCommon = int64_t{1} << 20;
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = [] {
    const int64_t told = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return told > 0 ? told : kCommon;
  }();
  return bytes;
#else
  return kCommon;
#endif
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CACHE_SIZES_H_
