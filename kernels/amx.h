// The AMX tile unit: whether this process may use it.
#ifndef NIBBLE_KERNELS_AMX_H_
#define NIBBLE_KERNELS_AMX_H_

namespace nibble {

struct AmxSupport {
  bool bf16 = false;
  bool int8 = false;
};

// Asks the processor, then the system for permission, once. Tiles belong to the target "avx3_spr":
// nothing is supported while another one is in use (nibble/target.h).
AmxSupport GetAmxSupport();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_AMX_H_
