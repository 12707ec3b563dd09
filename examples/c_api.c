/* The same from C: a matrix to a block format and back, a planar scheme, and an error. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "nibble/c_api.h"

enum { kRows = 64, kCols = 512 };

static float weights[kRows * kCols];
static float restored[kRows * kCols];

static double RelativeError(void) {
  double error = 0, power = 0;
  int i;
  for (i = 0; i < kRows * kCols; ++i) {
    const double difference = restored[i] - weights[i];
    error += difference * difference;
    power += (double)weights[i] * weights[i];
  }
  return sqrt(error / power);
}

static int Fail(const char* what, const nibble_error* error) {
  fprintf(stderr, "%s: %s\n", what, error->message);
  return 1;
}

int main(void) {
  const nibble_matrix in = {weights, NIBBLE_F32, kRows, kCols, 0};
  const nibble_mutable_matrix out = {restored, NIBBLE_F32, kRows, kCols, 0};
  nibble_format_info format;
  nibble_tensor* tensor = NULL;
  nibble_error error;
  size_t bytes = 0;
  void* blocks;
  int i;

  for (i = 0; i < kRows * kCols; ++i) weights[i] = 0.05f * sinf(0.7f * (float)i) * cosf((float)i);
  printf("nibble %s, %d formats\n", nibble_version(), (int)nibble_format_count());

  if (nibble_format_by_name("q8_0", &format, &error) != NIBBLE_OK ||
      nibble_format_bytes(format.id, kRows, kCols, &bytes, &error) != NIBBLE_OK) {
    return Fail("q8_0", &error);
  }
  blocks = malloc(bytes);
  if (blocks == NULL) return 1;
  if (nibble_quantize(in, format.id, blocks, bytes, NULL, &error) != NIBBLE_OK ||
      nibble_dequantize(format.id, blocks, bytes, out, NULL, &error) != NIBBLE_OK) {
    return Fail("quantize", &error);
  }
  free(blocks);
  printf("%s: %d bytes, relative error %.4f\n", format.name, (int)bytes, RelativeError());
  if (!(RelativeError() < 0.01)) return 1; /* a step of 8 bits is under 1% of the largest */

  if (nibble_tensor_quantize(in, "int4 sym g64 f16", NULL, &tensor, &error) != NIBBLE_OK ||
      nibble_tensor_dequantize(tensor, out, NULL, &error) != NIBBLE_OK) {
    return Fail("int4", &error);
  }
  printf("int4 in groups of 64: %d bytes, relative error %.4f\n", (int)nibble_tensor_bytes(tensor),
         RelativeError());
  nibble_tensor_free(tensor);
  if (!(RelativeError() < 0.15)) return 1;

  if (nibble_format_bytes(format.id, 1, 33, &bytes, &error) != NIBBLE_INVALID_ARGUMENT) return 1;
  printf("as expected: %s\n", error.message);
  return 0;
}
