// Rows of cached keys and values: how a warp writes one and a lane reads an element, in the bytes
// of lib/model/kv_cache.h, for device and host.
#ifndef NIBBLE_CUDA_CACHE_ROW_H_
#define NIBBLE_CUDA_CACHE_ROW_H_

#include <cmath>
#include <cstdint>

#include "cuda/element.h"
#include "cuda/packed_format.h"
#include "cuda/warp.h"
#include "kernels/codec_simple.h"
#include "nibble/blocks.h"
#include "nibble/model.h"

namespace nibble::cuda {

// Element i of a row.
NIBBLE_HD inline float CachedValue(CacheType type, const uint8_t* row, int i) {
  switch (type) {
    case CacheType::kF16:
      return HalfToFloat<DType::kF16>(reinterpret_cast<const uint16_t*>(row)[i]);
    case CacheType::kQ8_0: {
      const BlockQ8_0& block = reinterpret_cast<const BlockQ8_0*>(row)[i / 32];
      return HalfToFloat<DType::kF16>(block.d.bits) * static_cast<float>(block.qs[i % 32]);
    }
    case CacheType::kQ4_0: {
      const BlockQ4_0& block = reinterpret_cast<const BlockQ4_0*>(row)[i / 32];
      return HalfToFloat<DType::kF16>(block.d.bits) *
             static_cast<float>(CodecQ4_0::Code(block, i % 32));
    }
    case CacheType::kInt8:
      break;
  }
  return *reinterpret_cast<const float*>(row) *
         static_cast<float>(static_cast<int8_t>(row[sizeof(float) + i]));
}

// What is stored of a value: none is NaN, nor beyond what the type holds.
NIBBLE_HD inline float Storable(float x, float limit) {
  return x != x ? 0.0f : x < -limit ? -limit : x > limit ? limit : x;
}

template <class Warp>
NIBBLE_HD inline float LargestOfLanes(const Warp& warp, typename Warp::template Lanes<float> x) {
  return ReduceLanes(warp, x, [](float a, float b) { return fmaxf(a, b); });
}

// A warp: a block of 32 values, one a lane.
template <class Warp>
NIBBLE_HD inline void EncodeBlock(const Warp& warp,
                                  const typename Warp::template Lanes<float>& values,
                                  BlockQ8_0* block) {
  typename Warp::template Lanes<float> magnitudes;
  warp.Each([&](int lane) { magnitudes[lane] = fabsf(values[lane]); });
  const float d = LargestOfLanes(warp, magnitudes) / 127.0f, inverse = ReciprocalOf(d);
  warp.Each([&](int lane) {
    const float code = IsInfinite(inverse) ? 0.0f : roundf(values[lane] * inverse);
    block->qs[lane] = static_cast<int8_t>(static_cast<int>(code));
    if (lane == 0) block->d.bits = FromFloat<DType::kF16>(d);
  });
}

template <class Warp>
NIBBLE_HD inline void EncodeBlock(const Warp& warp,
                                  const typename Warp::template Lanes<float>& values,
                                  BlockQ4_0* block) {
  // The first value of the largest magnitude, with its sign, becomes code 0.
  typename Warp::template Lanes<float> magnitudes, chosen;
  typename Warp::template Lanes<int> codes, places;
  warp.Each([&](int lane) { magnitudes[lane] = fabsf(values[lane]); });
  const float largest = LargestOfLanes(warp, magnitudes);
  warp.Each([&](int lane) { places[lane] = magnitudes[lane] == largest ? lane : kLanes; });
  const int first = ReduceLanes(warp, places, [](int a, int b) { return a < b ? a : b; });
  warp.Each([&](int lane) { chosen[lane] = lane == first ? values[lane] : 0.0f; });
  const float d = ReduceLanes(warp, chosen, [](float a, float b) { return a + b; }) / -8.0f;
  const float inverse = ReciprocalOf(d);
  warp.Each([&](int lane) {
    const int code = IsInfinite(inverse) ? 0 : static_cast<int>(values[lane] * inverse + 8.5f);
    codes[lane] = code < 15 ? code : 15;
  });
  const auto others = Exchange(warp, codes, 16);
  warp.Each([&](int lane) {
    if (lane < 16) block->qs[lane] = static_cast<uint8_t>(codes[lane] | others[lane] << 4);
    if (lane == 0) block->d.bits = FromFloat<DType::kF16>(d);
  });
}

// A warp: a row of `dims` values, in blocks of 32 where the type has blocks.
template <class Warp>
NIBBLE_HD inline void EncodeCacheRow(const Warp& warp, CacheType type, const float* values,
                                     int64_t dims, float limit, uint8_t* row) {
  if (type == CacheType::kF16) {
    warp.Each([&](int lane) {
      for (int64_t i = lane; i < dims; i += kLanes) {
        reinterpret_cast<uint16_t*>(row)[i] = FromFloat<DType::kF16>(Storable(values[i], limit));
      }
    });
    return;
  }
  if (type == CacheType::kInt8) {
    typename Warp::template Lanes<float> magnitudes;
    warp.Each([&](int lane) {
      float largest = 0.0f;
      for (int64_t i = lane; i < dims; i += kLanes) largest = fmaxf(largest, fabsf(values[i]));
      magnitudes[lane] = largest;
    });
    const float scale = LargestOfLanes(warp, magnitudes) / 127.0f;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    warp.Each([&](int lane) {
      if (lane == 0) *reinterpret_cast<float*>(row) = scale;
      for (int64_t i = lane; i < dims; i += kLanes) {
        const float code = rintf(fminf(fmaxf(values[i] * inverse, -127.0f), 127.0f));
        row[sizeof(float) + static_cast<size_t>(i)] =
            static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(code)));
      }
    });
    return;
  }
  for (int64_t first = 0; first < dims; first += 32) {
    typename Warp::template Lanes<float> some;
    warp.Each([&](int lane) { some[lane] = Storable(values[first + lane], limit); });
    if (type == CacheType::kQ8_0) {
      EncodeBlock(warp, some, reinterpret_cast<BlockQ8_0*>(row) + first / 32);
    } else {
      EncodeBlock(warp, some, reinterpret_cast<BlockQ4_0*>(row) + first / 32);
    }
  }
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_CACHE_ROW_H_
