/* The same from C: a matrix to a block format and back, a planar scheme, rounded and calibrated,
 * and an error. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "nibble/c_api.h"

enum { kRows = 64, kCols = 512, kTokens = 256 };

static float weights[kRows * kCols];
static float inputs[kTokens * kCols];
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
  const nibble_matrix in = {weights, NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU};
  const nibble_mutable_matrix out = {restored, NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU};
  nibble_format_info format;
  const nibble_matrix x = {inputs, NIBBLE_F32, kTokens, kCols, 0};
  nibble_tensor* tensor = NULL;
  nibble_hessian* hessian = NULL;
  nibble_gptq_report report;
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

  /* Calibrated: what one column's rounding spoils, the later ones make good for these inputs. */
  for (i = 0; i < kTokens * kCols; ++i) {
    inputs[i] = sinf(0.3f * (float)i) + 3.0f * cosf(0.01f * (float)(i / kCols) * (float)i);
  }
  if (nibble_hessian_create(kCols, &hessian, &error) != NIBBLE_OK ||
      nibble_hessian_add(hessian, x, NULL, &error) != NIBBLE_OK ||
      nibble_tensor_quantize_gptq(in, "int4 sym g64 f16", hessian, NULL, &report, &tensor,
                                  &error) != NIBBLE_OK) {
    return Fail("gptq", &error);
  }
  printf("the same by error feedback over %d tokens: relative error of the outputs %.4f\n",
         (int)nibble_hessian_tokens(hessian), sqrt(report.output_error / report.weight_energy));
  nibble_tensor_free(tensor);
  nibble_hessian_free(hessian);
  if (!(report.output_error < 0.01 * report.weight_energy)) return 1;

  if (nibble_format_bytes(format.id, 1, 33, &bytes, &error) != NIBBLE_INVALID_ARGUMENT) return 1;
  printf("as expected: %s\n", error.message);
  return 0;
}
