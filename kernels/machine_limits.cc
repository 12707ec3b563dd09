#include "kernels/machine_limits.h"

#include <cstdint>
#include <string>

#include "hwy/base.h"
#include "kernels/amx.h"
#include "nibble/target.h"

#if HWY_ARCH_X86_64
#include <immintrin.h>
#endif

namespace nibble {

void ReadBytes(std::span<const std::byte> bytes) {
  typedef uint64_t Line __attribute__((vector_size(64), aligned(1), may_alias));
  constexpr size_t kStreams = 4, kAhead = 1024;
  const size_t part = bytes.size() / kStreams / sizeof(Line) * sizeof(Line);
  Line sums[kStreams] = {};
  for (size_t i = 0; i < part; i += sizeof(Line)) {
    for (size_t s = 0; s < kStreams; ++s) {
      const std::byte* at = bytes.data() + s * part + i;
      __builtin_prefetch(at + kAhead);
      sums[s] ^= *reinterpret_cast<const Line*>(at);
    }
  }
  __asm__ volatile("" : : "m"(sums));  // used, so that the reads are not left out
}

void ReadBytes(std::span<const std::span<const std::byte>> pieces, const ParallelFor& parallel) {
  // Small enough to even out what the machine's other work takes, as kernels do.
  const int64_t parts = parallel.workers <= 1 ? 1 : 4 * int64_t{parallel.workers};
  parallel(parts * static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    const std::span<const std::byte> piece = pieces[static_cast<size_t>(i / parts)];
    const size_t part = piece.size() / static_cast<size_t>(parts);
    ReadBytes(piece.subspan(static_cast<size_t>(i % parts) * part, part));
  });
}

void BareLoop::Run(const ParallelFor& parallel) const {
  if (run == nullptr) return;
  parallel(kRunsPerWorker * parallel.workers, [this](int64_t, int) { run(); });
}

#if HWY_ARCH_X86_64

HWY_PUSH_ATTRIBUTES("amx-tile,amx-bf16,amx-int8")
namespace {

constexpr int kRounds = 20000;

struct alignas(64) BareTileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const BareTileConfig kBareTiles;

// Operands of ordinary numbers: with zeros, the tile unit draws so little power that its clock
// stays half as high again as any product's can be.
struct BareOperands {
  alignas(64) uint16_t bf16[4 * 512];
  alignas(64) uint8_t int8[4 * 1024];

  BareOperands() {
    uint32_t state = 1;
    const auto next = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
    for (uint16_t& v : bf16) v = static_cast<uint16_t>(0x3F00u | (next() & 0x80FFu));  // 0.5 to 2
    for (uint8_t& v : int8) v = static_cast<uint8_t>(next());
  }
};
const BareOperands& Operands() {
  static const BareOperands operands;
  return operands;
}

void LoadBareTiles(const void* operands) {
  const char* at = static_cast<const char*>(operands);
  _tile_loadconfig(&kBareTiles);
  _tile_loadd(4, at, 64);
  _tile_loadd(5, at + 1024, 64);
  _tile_loadd(6, at + 2048, 64);
  _tile_loadd(7, at + 3072, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

void RunAmxBf16() {
  LoadBareTiles(Operands().bf16);
  for (int i = 0; i < kRounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

void RunAmxInt8() {
  LoadBareTiles(Operands().int8);
  for (int i = 0; i < kRounds; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
}

}  // namespace
HWY_POP_ATTRIBUTES

// Eight chains hide the latency of these instructions on every processor that has them.
#define NIBBLE_BARE_LOOP(Name, Vector, zero, operation)                               \
  void Name() {                                                                       \
    Vector s0 = zero, s1 = zero, s2 = zero, s3 = zero;                                \
    Vector s4 = zero, s5 = zero, s6 = zero, s7 = zero;                                \
    Vector x = zero, y = zero;                                                        \
    __asm__ volatile("" : "+v"(x), "+v"(y));                                          \
    for (int i = 0; i < kRounds; ++i) {                                               \
      s0 = operation(s0), s1 = operation(s1), s2 = operation(s2), s3 = operation(s3); \
      s4 = operation(s4), s5 = operation(s5), s6 = operation(s6), s7 = operation(s7); \
      __asm__ volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3));                  \
      __asm__ volatile("" : "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7));                  \
    }                                                                                 \
  }

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512vnni")
namespace {
#define NIBBLE_VNNI(s) _mm512_dpbusd_epi32(s, x, y)
NIBBLE_BARE_LOOP(RunVnni, __m512i, _mm512_setzero_si512(), NIBBLE_VNNI)
#undef NIBBLE_VNNI
#define NIBBLE_FMA(s) _mm512_fmadd_ps(x, y, s)
NIBBLE_BARE_LOOP(RunAvx512, __m512, _mm512_setzero_ps(), NIBBLE_FMA)
#undef NIBBLE_FMA
}  // namespace
HWY_POP_ATTRIBUTES

HWY_PUSH_ATTRIBUTES("avx2,fma,avxvnni")
namespace {
#define NIBBLE_VNNI(s) _mm256_dpbusd_avx_epi32(s, x, y)
NIBBLE_BARE_LOOP(RunAvxVnni, __m256i, _mm256_setzero_si256(), NIBBLE_VNNI)
#undef NIBBLE_VNNI
}  // namespace
HWY_POP_ATTRIBUTES

HWY_PUSH_ATTRIBUTES("avx2,fma")
namespace {
#define NIBBLE_FMA(s) _mm256_fmadd_ps(x, y, s)
NIBBLE_BARE_LOOP(RunAvx2, __m256, _mm256_setzero_ps(), NIBBLE_FMA)
#undef NIBBLE_FMA
}  // namespace
HWY_POP_ATTRIBUTES
#undef NIBBLE_BARE_LOOP

#endif  // HWY_ARCH_X86_64

BareLoop FastestBareLoop() {
#if HWY_ARCH_X86_64
  if (GetAmxSupport().bf16) return {"AMX bf16", 4.0 * kRounds * 16 * 16 * 32 * 2, RunAmxBf16};
  const BareLoop int8 = FastestInt8BareLoop();
  if (int8.run != nullptr) return int8;
  const std::string target = CurrentTarget();
  if (target == "avx3") return {"AVX-512 f32", 8.0 * kRounds * 16 * 2, RunAvx512};
  if (target == "avx2") return {"AVX2 f32", 8.0 * kRounds * 8 * 2, RunAvx2};
#endif
  return {"none", 0, nullptr};
}

BareLoop FastestInt8BareLoop() {
#if HWY_ARCH_X86_64
  if (GetAmxSupport().int8) return {"AMX int8", 4.0 * kRounds * 16 * 16 * 64 * 2, RunAmxInt8};
  const std::string target = CurrentTarget();
  if (target == "avx3_dl" || target == "avx3_zen4" || target == "avx3_spr") {
    return {"AVX-512 VNNI", 8.0 * kRounds * 64 * 2, RunVnni};
  }
  if (target == "avx2_vnni") return {"AVX-VNNI", 8.0 * kRounds * 32 * 2, RunAvxVnni};
#endif
  return {"none", 0, nullptr};
}

}  // namespace nibble
