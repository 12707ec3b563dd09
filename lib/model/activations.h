// The activations of a whole calibration text, in memory or on disk.
#ifndef NIBBLE_LIB_MODEL_ACTIVATIONS_H_
#define NIBBLE_LIB_MODEL_ACTIVATIONS_H_

#include <cstddef>
#include <cstdint>

#include "nibble/calibrate.h"
#include "nibble/status.h"

namespace nibble {

// f32 [tokens, cols], zeros at first. On disk it is a file without a name, mapped: the system
// writes out and forgets what it needs the memory for, and the bytes are the same.
class Activations {
 public:
  Activations() = default;
  // On disk where it would be larger than `where.memory_bytes`. Fails where there is no room.
  static Result<Activations> Create(int64_t tokens, int64_t cols, const ActivationMemory& where);
  Activations(Activations&& other) noexcept;
  Activations& operator=(Activations&& other) noexcept;
  ~Activations();

  float* data() { return data_; }
  const float* data() const { return data_; }
  bool on_disk() const { return on_disk_; }

 private:
  float* data_ = nullptr;
  size_t bytes_ = 0;
  bool on_disk_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_ACTIVATIONS_H_
