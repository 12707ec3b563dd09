// A warp, on the device and emulated on the host, so that kernels' arithmetic and indexing can be
// run and compared where there is no GPU.
//
// Kernels written as templates over a warp keep what every lane has in warp.Lanes<T>, do what lanes
// do by themselves in warp.Each([&](int lane) { ... }), and what they do together by the functions
// below. On the device a lane has its own T alone, and Each runs once.
#ifndef NIBBLE_CUDA_WARP_H_
#define NIBBLE_CUDA_WARP_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/half2.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

// Registers of the left operand and the result of a tensor core's product.
using LeftOperand = Words4;
template <class T>
struct FourSums {
  T v[4];
};
using Sums4 = FourSums<float>;

// What products of kType, f16, bf16, i8 or f8_e4m3, are summed in, and how many elements of it a
// register of an operand holds.
template <DType kType>
using SumOf = std::conditional_t<kType == DType::kI8, int32_t, float>;
template <DType kType>
inline constexpr int kPerWord = DTypeBytes(kType) == 1 ? 4 : 2;

#if defined(__CUDACC__)
struct DeviceWarp {
  template <class T>
  struct Lanes {
    T own;
    NIBBLE_HD T& operator[](int) { return own; }
    NIBBLE_HD const T& operator[](int) const { return own; }
  };
  int lane;

  template <class Function>
  NIBBLE_HD void Each(const Function& function) const {
    function(lane);
  }
};
#endif

struct HostWarp {
  template <class T>
  struct Lanes {
    T all[32];
    T& operator[](int lane) { return all[lane]; }
    const T& operator[](int lane) const { return all[lane]; }
  };

  template <class Function>
  void Each(const Function& function) const {
    for (int lane = 0; lane < 32; ++lane) function(lane);
  }
};

// --- mma.sync.m16n8, by 16 columns of 16-bit floats or 32 of bytes: sums += left x right. Lane l,
// --- g = l / 4, t = l % 4, w elements a register, holds of
// ---   left   [16][8 w], register r: row g + 8 (r % 2), columns w t + 4 w (r / 2) .. + w - 1
// ---   right  [8 w][8],  register r: rows w t + 4 w r .. + w - 1, column g
// ---   sums   [16][8],   element i:  row g + 8 (i / 2), column 2 t + i % 2

// Element i of a register.
template <DType kType>
float ElementOf(uint32_t word, int i) {
  if constexpr (kType == DType::kI8) return static_cast<float>(static_cast<int8_t>(word >> 8 * i));
  if constexpr (kType == DType::kF8E4M3) return F8E4M3ToFloat(static_cast<uint8_t>(word >> 8 * i));
  return HalfToFloat<kType>(word >> (16 * i % 32));
}

template <DType kType>
void Mma(const HostWarp&, HostWarp::Lanes<FourSums<SumOf<kType>>>& sums,
         const HostWarp::Lanes<LeftOperand>& left, const HostWarp::Lanes<Words4>& right,
         int first) {
  constexpr int kWidth = kPerWord<kType>, kDepth = 8 * kWidth;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < kWidth; ++i) {
      for (int r = 0; r < 4; ++r) {
        a[g + 8 * (r % 2)][kWidth * (t + 4 * (r / 2)) + i] = ElementOf<kType>(left[lane].v[r], i);
      }
      for (int r = 0; r < 2; ++r) {
        b[kWidth * (t + 4 * r) + i][g] = ElementOf<kType>(right[lane].v[first + r], i);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      double sum = static_cast<double>(sums[lane].v[i]);
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<double>(a[lane / 4 + 8 * (i / 2)][k]) *
               static_cast<double>(b[k][2 * (lane % 4) + i % 2]);
      }
      sums[lane].v[i] = static_cast<SumOf<kType>>(sum);
    }
  }
}

// --- ldmatrix.x4: four matrices of eight rows of 16 bytes. Lane l gives the address, in shared
// --- memory, of row l % 8 of matrix l / 8; it gets the bytes 4 (l % 4) .. + 3 of row l / 4 of
// each.

inline void LoadMatrices(const HostWarp&, const HostWarp::Lanes<const uint8_t*>& rows,
                         HostWarp::Lanes<Words4>& out) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int m = 0; m < 4; ++m) {
      std::memcpy(&out[lane].v[m], rows[8 * m + lane / 4] + 4 * (lane % 4), 4);
    }
  }
}

// --- Every lane gets what the lane has whose number differs by the bits of `mask`.

template <class T>
HostWarp::Lanes<T> Exchange(const HostWarp&, const HostWarp::Lanes<T>& values, int mask) {
  HostWarp::Lanes<T> result;
  for (int lane = 0; lane < 32; ++lane) result[lane] = values[lane ^ mask];
  return result;
}

// --- Bit l of the result: whether lane l's value holds.

inline uint32_t Ballot(const HostWarp&, const HostWarp::Lanes<bool>& values) {
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= uint32_t{values[lane]} << lane;
  return bits;
}

#if defined(__CUDACC__)
#define NIBBLE_MMA(shape_types, constraint)                                             \
  asm volatile("mma.sync.aligned." shape_types                                          \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
               : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <DType kType>
NIBBLE_HD inline void Mma(const DeviceWarp&, DeviceWarp::Lanes<FourSums<SumOf<kType>>>& sums,
                          const DeviceWarp::Lanes<LeftOperand>& left,
                          const DeviceWarp::Lanes<Words4>& right, int first) {
#if defined(__CUDA_ARCH__)
  auto* c = sums.own.v;
  const uint32_t* a = left.own.v;
  const uint32_t b0 = right.own.v[first], b1 = right.own.v[first + 1];
  if constexpr (kType == DType::kF16) {
    NIBBLE_MMA("m16n8k16.row.col.f32.f16.f16.f32", "+f");
  } else if constexpr (kType == DType::kBF16) {
    NIBBLE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", "+f");
  } else if constexpr (kType == DType::kI8) {
    NIBBLE_MMA("m16n8k32.row.col.s32.s8.s8.s32", "+r");
  } else {
#if __CUDA_ARCH__ >= 890
    NIBBLE_MMA("m16n8k32.row.col.f32.e4m3.e4m3.f32", "+f");
#else
    __trap();  // not launched on processors without products of f8
#endif
  }
#endif
}
#undef NIBBLE_MMA

template <class T>
NIBBLE_HD inline DeviceWarp::Lanes<T> Exchange(const DeviceWarp&,
                                               const DeviceWarp::Lanes<T>& values, int mask) {
#if defined(__CUDA_ARCH__)
  return {__shfl_xor_sync(0xFFFFFFFFu, values.own, mask)};
#else
  return values;
#endif
}

NIBBLE_HD inline uint32_t Ballot(const DeviceWarp&, const DeviceWarp::Lanes<bool>& values) {
#if defined(__CUDA_ARCH__)
  return __ballot_sync(0xFFFFFFFFu, values.own);
#else
  return values.own;
#endif
}

NIBBLE_HD inline void LoadMatrices(const DeviceWarp&, const DeviceWarp::Lanes<const uint8_t*>& rows,
                                   DeviceWarp::Lanes<Words4>& out) {
#if defined(__CUDA_ARCH__)
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(rows.own));
  uint32_t* v = out.own.v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(address)
               : "memory");
#endif
}
#endif  // __CUDACC__

// combine(a, b), which is symmetric, over all lanes, in the same order on device and host.
template <class Warp, class Values, class Combine>
NIBBLE_HD inline auto ReduceLanes(const Warp& warp, Values values, const Combine& combine) {
  for (int step = 16; step > 0; step /= 2) {
    const Values others = Exchange(warp, values, step);
    warp.Each([&](int lane) { values[lane] = combine(values[lane], others[lane]); });
  }
  return values[0];
}

// --- Operands of tensor cores in shared memory: 128 bytes a row, whose 16-byte parts are permuted
// by
// --- the row's number (the 128-byte swizzle), as wgmma needs them and ldmatrix can take them.

constexpr NIBBLE_HD int SwizzledPart(int row, int part) {
  return 128 * row + 16 * (part ^ (row % 8));
}

// sums[kTokens / 8] += left x right: 16 rows by kTokens tokens, the rows of `right`, over the 32
// bytes of each that are number `step` of four.
template <DType kType, int kTokens, class Warp>
NIBBLE_HD inline void MultiplyTokens(const Warp& warp,
                                     const typename Warp::template Lanes<LeftOperand>& left,
                                     const uint8_t* right, int step,
                                     typename Warp::template Lanes<FourSums<SumOf<kType>>>* sums) {
  NIBBLE_UNROLL
  for (int tile = 0; tile < kTokens / 8; tile += 2) {
    typename Warp::template Lanes<const uint8_t*> rows;
    typename Warp::template Lanes<Words4> operand;
    warp.Each([&](int lane) {
      const int token = 8 * tile + 8 * (lane / 16) + lane % 8;
      rows[lane] = right + SwizzledPart(token, 2 * step + lane / 8 % 2);
    });
    LoadMatrices(warp, rows, operand);
    Mma<kType>(warp, sums[tile], left, operand, 0);
    Mma<kType>(warp, sums[tile + 1], left, operand, 2);
  }
}

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_WARP_H_
