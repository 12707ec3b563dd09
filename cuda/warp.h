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

#include "cuda/half2.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

// Registers of one operand or result of a 16 x 8 x 16 product.
struct LeftOperand {
  uint32_t v[4];
};
struct Sums4 {
  float v[4];
};

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

// --- mma.sync.m16n8k16: sums += left x right, with 16-bit floats of kType and f32 sums. Lane l, g
// =
// --- l / 4, t = l % 4, holds of
// ---   left   [16][16], register r: row g + 8 (r % 2), columns 2 t + 8 (r / 2), + 1
// ---   right  [16][8],  register r: rows 2 t + 8 r, + 1, column g
// ---   sums   [16][8],  element i:  row g + 8 (i / 2), column 2 t + i % 2

template <DType kType>
void Mma(const HostWarp&, HostWarp::Lanes<Sums4>& sums, const HostWarp::Lanes<LeftOperand>& left,
         const HostWarp::Lanes<Words4>& right, int first) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < 4; ++r) {
        a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + i] =
            HalfToFloat<kType>(left[lane].v[r] >> (16 * i));
      }
      for (int r = 0; r < 2; ++r) {
        b[2 * t + 8 * r + i][g] = HalfToFloat<kType>(right[lane].v[first + r] >> (16 * i));
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      double sum = static_cast<double>(sums[lane].v[i]);
      for (int k = 0; k < 16; ++k) {
        sum += static_cast<double>(a[lane / 4 + 8 * (i / 2)][k]) *
               static_cast<double>(b[k][2 * (lane % 4) + i % 2]);
      }
      sums[lane].v[i] = static_cast<float>(sum);
    }
  }
}

// --- ldmatrix.x4: four matrices of eight rows of 16 bytes. Lane l gives the address of row l % 8
// of
// --- matrix l / 8, in shared memory; it gets the bytes 4 (l % 4) .. + 3 of row l / 4 of each.

inline void LoadMatrices(const HostWarp&, const HostWarp::Lanes<const uint8_t*>& rows,
                         HostWarp::Lanes<Words4>& out) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int m = 0; m < 4; ++m) {
      std::memcpy(&out[lane].v[m], rows[8 * m + lane / 4] + 4 * (lane % 4), 4);
    }
  }
}

#if defined(__CUDACC__)
template <DType kType>
NIBBLE_HD inline void Mma(const DeviceWarp&, DeviceWarp::Lanes<Sums4>& sums,
                          const DeviceWarp::Lanes<LeftOperand>& left,
                          const DeviceWarp::Lanes<Words4>& right, int first) {
#if defined(__CUDA_ARCH__)
  float* c = sums.own.v;
  const uint32_t* a = left.own.v;
  const uint32_t b0 = right.own.v[first], b1 = right.own.v[first + 1];
  if constexpr (kType == DType::kF16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
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

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_WARP_H_
