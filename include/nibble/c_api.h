/* nibble for C (C99) and for every language that calls C.
 *
 * No function throws, prints, aborts or keeps global state; all may be called from many threads at
 * once on different outputs. Functions that can fail return a nibble_status and, unless `error` is
 * NULL, leave one line there that says why; on success its message is empty. Structs of options may
 * be zeroed for the defaults. What a handle's functions point at lives as long as the handle.
 * Operands may lie in a GPU's memory: all of a call's do then, and nibble/cuda_c_api.h says more.
 * The _ANY_INT members are never used: they widen an enumeration to int, so that a wrong value is
 * an error here and not undefined behaviour. */
#ifndef NIBBLE_C_API_H_
#define NIBBLE_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nibble_status {
  NIBBLE_OK = 0,
  NIBBLE_INVALID_ARGUMENT = 1, /* the arguments contradict each other or the operation */
  NIBBLE_UNSUPPORTED = 2,      /* well-formed, but this version cannot do it */
  NIBBLE_CORRUPT = 3,          /* bytes that violate their format */
  NIBBLE_NOT_FOUND = 4,        /* a file, tensor or key that is not there */
  NIBBLE_IO = 5,               /* the operating system refused */
  NIBBLE_OUT_OF_MEMORY = 6,
  NIBBLE_CANCELLED = 7,
  NIBBLE_INTERNAL = 8, /* a defect in nibble */
  NIBBLE_STATUS_ANY_INT = 0x7fffffff
} nibble_status;

typedef struct nibble_error {
  char message[512]; /* one line, cut where it is longer */
} nibble_error;

/* "invalid_argument", ... */
const char* nibble_status_name(nibble_status status);

/* "0.1.0" */
const char* nibble_version(void);

/* ---- matrices of the caller ---- */

typedef enum nibble_dtype {
  NIBBLE_F32 = 0,
  NIBBLE_F16 = 1,
  NIBBLE_BF16 = 2,
  NIBBLE_I8 = 3, /* activations with scales, no weights */
  NIBBLE_DTYPE_ANY_INT = 0x7fffffff
} nibble_dtype;

/* Where memory lies. */
typedef enum nibble_device {
  NIBBLE_DEVICE_CPU = 0,
  NIBBLE_DEVICE_CUDA = 1,
  NIBBLE_DEVICE_ANY_INT = 0x7fffffff
} nibble_device;

/* Row-major. A weight is [out_features, in_features]. */
typedef struct nibble_matrix {
  const void* data;
  nibble_dtype dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride; /* in elements; 0 stands for cols */
  nibble_device device;
} nibble_matrix;

typedef struct nibble_mutable_matrix {
  void* data;
  nibble_dtype dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  nibble_device device;
} nibble_mutable_matrix;

/* The caller's threads. run(context, count, task, argument) calls task(argument, i, worker) once
 * for every i in [0, count), on any threads, with 0 <= worker < workers and no two concurrent calls
 * sharing a worker, and returns when all are done. Zeroed: the calling thread does everything.
 * `stream` is for operands in a GPU's memory: the cudaStream_t that the work is queued on; calls
 * return before it is done. */
typedef void (*nibble_task)(void* argument, int64_t index, int worker);
typedef struct nibble_parallel_for {
  void (*run)(void* context, int64_t count, nibble_task task, void* argument);
  void* context;
  int workers;
  void* stream;
} nibble_parallel_for;

/* ---- block formats: those of GGUF files ---- */

typedef struct nibble_format_info {
  uint32_t id;      /* the number in GGUF files */
  const char* name; /* "q4_K"; static */
  uint32_t block_weights;
  uint32_t block_bytes;
  int can_encode;
  int can_decode;
} nibble_format_info;

size_t nibble_format_count(void);
/* By place in the list, 0 <= index < nibble_format_count(). */
nibble_status nibble_format_at(size_t index, nibble_format_info* info, nibble_error* error);
nibble_status nibble_format_by_id(uint32_t id, nibble_format_info* info, nibble_error* error);
/* In any letter case. */
nibble_status nibble_format_by_name(const char* name, nibble_format_info* info,
                                    nibble_error* error);

/* Bytes of rows x cols weights. Refuses a `cols` that the block does not divide, and overflow. */
nibble_status nibble_format_bytes(uint32_t format, int64_t rows, int64_t cols, size_t* bytes,
                                  nibble_error* error);

typedef struct nibble_quantize_options {
  /* Mean squares of the layer's inputs, `cols` values: errors of a column count by them. Or NULL.
   */
  const float* importance;
  int clamp_non_finite; /* 0: NaN and infinity are errors that name row and column */
  nibble_parallel_for parallel;
} nibble_quantize_options;

/* Quantizes to a block format. `out` holds exactly nibble_format_bytes bytes, of any alignment. The
 * bytes depend on the weights, format and options alone. `options` may be NULL. */
nibble_status nibble_quantize(nibble_matrix weights, uint32_t format, void* out, size_t out_bytes,
                              const nibble_quantize_options* options, nibble_error* error);

/* Decodes blocks of any alignment into `out`. `parallel` may be NULL. */
nibble_status nibble_dequantize(uint32_t format, const void* blocks, size_t blocks_bytes,
                                nibble_mutable_matrix out, const nibble_parallel_for* parallel,
                                nibble_error* error);

/* ---- quantized matrices: block formats and planar schemes alike ---- */

typedef struct nibble_tensor nibble_tensor;

typedef enum nibble_plane {
  NIBBLE_PLANE_CODES = 0, /* a block format has this one alone */
  NIBBLE_PLANE_SCALES = 1,
  NIBBLE_PLANE_ZEROS = 2,
  NIBBLE_PLANE_GROUP_INDEX = 3,
  NIBBLE_PLANE_TABLE = 4,
  NIBBLE_PLANE_SUPER_SCALES = 5,
  NIBBLE_PLANE_COUNT = 6,
  NIBBLE_PLANE_ANY_INT = 0x7fffffff
} nibble_plane;

/* `type` names a block format ("q4_K") or a planar scheme ("int4 sym g64 f16", "nf4 g64 double").
 */
nibble_status nibble_tensor_quantize(nibble_matrix weights, const char* type,
                                     const nibble_quantize_options* options, nibble_tensor** tensor,
                                     nibble_error* error);

/* Around planes of the caller, on one device, which keeps them alive and unchanged as long as the
 * handle; each has exactly the size that the type asks for (NULL and 0 for those that it does not
 * have). */
nibble_status nibble_tensor_borrow(const char* type, int64_t rows, int64_t cols,
                                   nibble_device device,
                                   const void* const planes[NIBBLE_PLANE_COUNT],
                                   const size_t plane_bytes[NIBBLE_PLANE_COUNT],
                                   nibble_tensor** tensor, nibble_error* error);

int64_t nibble_tensor_rows(const nibble_tensor* tensor);
int64_t nibble_tensor_cols(const nibble_tensor* tensor);
size_t nibble_tensor_bytes(const nibble_tensor* tensor); /* all planes together */
nibble_device nibble_tensor_device(const nibble_tensor* tensor);
/* NULL and 0 for a plane that it does not have. */
const void* nibble_tensor_plane(const nibble_tensor* tensor, nibble_plane plane, size_t* bytes);

nibble_status nibble_tensor_dequantize(const nibble_tensor* tensor, nibble_mutable_matrix out,
                                       const nibble_parallel_for* parallel, nibble_error* error);

void nibble_tensor_free(nibble_tensor* tensor); /* NULL is fine */

/* ---- calibration: what a layer's inputs say about its weights ---- */

/* X^T X of the inputs X [tokens, cols] that the caller's own engine feeds a linear layer. Not to be
 * used by two threads at once while it grows. */
typedef struct nibble_hessian nibble_hessian;

nibble_status nibble_hessian_create(int64_t cols, nibble_hessian** hessian, nibble_error* error);
/* Adds f32 inputs [tokens, cols]. Refuses a value that is not finite, naming token and column.
 * `parallel` may be NULL. */
nibble_status nibble_hessian_add(nibble_hessian* hessian, nibble_matrix inputs,
                                 const nibble_parallel_for* parallel, nibble_error* error);
/* Adds what another saw. */
nibble_status nibble_hessian_merge(nibble_hessian* hessian, const nibble_hessian* other,
                                   nibble_error* error);
/* From sums that the caller has: the upper triangle of X^T X over so many tokens, row by row,
 * cols * (cols + 1) / 2 values. Refuses sums that are not finite, and negative ones of squares. */
nibble_status nibble_hessian_from_triangle(int64_t cols, int64_t tokens, const float* sums,
                                           size_t count, nibble_hessian** hessian,
                                           nibble_error* error);
int64_t nibble_hessian_cols(const nibble_hessian* hessian);
int64_t nibble_hessian_tokens(const nibble_hessian* hessian);
/* X^T X, row-major [cols, cols], symmetric; valid until the Hessian changes. */
const float* nibble_hessian_sums(const nibble_hessian* hessian);
/* Mean squares of the inputs, `cols` values: the importance of nibble_quantize_options. */
nibble_status nibble_hessian_mean_squares(const nibble_hessian* hessian, float* out,
                                          nibble_error* error);
void nibble_hessian_free(nibble_hessian* hessian); /* NULL is fine */

typedef struct nibble_gptq_options {
  double damping; /* share of the mean diagonal added to the diagonal; 0 stands for 0.2 */
  nibble_parallel_for parallel;
  int sweeps; /* further passes, of block formats and codebooks; 0 stands for 2, less for none */
  /* Of planar schemes. act_order: columns by falling mean square of their inputs, which needs a
   * scheme with "act-order" or static groups; static_groups: scales are fixed before the pass;
   * range_scales: they are taken from the range alone, as published. */
  int act_order;
  int static_groups;
  int range_scales;
} nibble_gptq_options;

typedef struct nibble_gptq_report {
  double damping;       /* what was used */
  int damping_raised;   /* because the Hessian was not positive definite with what was asked */
  int64_t dead_columns; /* inputs that were always zero */
  double output_error;  /* of the layer, mean over the tokens, summed over its outputs */
  double weight_energy; /* the same of the outputs themselves */
} nibble_gptq_report;

/* Quantizes for the least error of the layer's outputs: what one column's rounding spoils, the
 * later ones make good. `type` names a block format with searched scales ("q2_K" to "q6_K",
 * "iq4_xs", "q4_0" and so on) or a planar scheme. `options` and `report` may be NULL. */
nibble_status nibble_tensor_quantize_gptq(nibble_matrix weights, const char* type,
                                          const nibble_hessian* hessian,
                                          const nibble_gptq_options* options,
                                          nibble_gptq_report* report, nibble_tensor** tensor,
                                          nibble_error* error);

/* ---- files of Hessians: those of `nibble calibrate --hessians` ---- */

/* Matrices that see the same inputs, in GGUF's naming ("blk.0.attn_q.weight"). */
typedef struct nibble_shared_inputs {
  const char* const* matrices;
  size_t matrix_count; /* at least 1; the first names the Hessian in the file */
  int64_t cols;
} nibble_shared_inputs;

/* The text that the Hessians saw. */
typedef struct nibble_calibration_note {
  const char* text; /* its name */
  const char* hash; /* of its tokens, in whatever way the caller takes it; or NULL */
  int64_t context;  /* tokens in a window */
  int64_t windows;
} nibble_calibration_note;

typedef struct nibble_hessian_file nibble_hessian_file;

/* Maps a file. Everything but the sums is checked before it returns. */
nibble_status nibble_hessian_file_open(const char* path, nibble_hessian_file** file,
                                       nibble_error* error);
size_t nibble_hessian_file_count(const nibble_hessian_file* file); /* of Hessians */
nibble_status nibble_hessian_file_at(const nibble_hessian_file* file, size_t index,
                                     nibble_shared_inputs* inputs, nibble_error* error);
/* The place of the inputs that a matrix sees. */
nibble_status nibble_hessian_file_find(const nibble_hessian_file* file, const char* matrix,
                                       size_t* index, nibble_error* error);
size_t nibble_hessian_file_text_count(const nibble_hessian_file* file);
nibble_status nibble_hessian_file_text_at(const nibble_hessian_file* file, size_t index,
                                          nibble_calibration_note* note, nibble_error* error);
/* Refuses sums that are not finite, and negative ones of squares. */
nibble_status nibble_hessian_file_read(const nibble_hessian_file* file, size_t index,
                                       nibble_hessian** hessian, nibble_error* error);
void nibble_hessian_file_close(nibble_hessian_file* file); /* NULL is fine */

/* Writes the sums of all files: Hessians of the first in their order, then what only others have,
 * one in memory at a time. `path` appears whole or not at all; it is none of the files. Refuses
 * files that disagree on which matrices see the same inputs, or on their number. */
nibble_status nibble_hessian_files_merge(const nibble_hessian_file* const* files, size_t count,
                                         const char* path, nibble_error* error);

/* Writes a file, one Hessian after another in the order of `inputs`. The file takes its name, in
 * place of one that has it, when all are there and nibble_hessian_writer_finish succeeds. */
typedef struct nibble_hessian_writer nibble_hessian_writer;

nibble_status nibble_hessian_writer_create(const char* path, const nibble_shared_inputs* inputs,
                                           size_t inputs_count,
                                           const nibble_calibration_note* notes, size_t notes_count,
                                           nibble_hessian_writer** writer, nibble_error* error);
nibble_status nibble_hessian_writer_append(nibble_hessian_writer* writer,
                                           const nibble_hessian* hessian, nibble_error* error);
nibble_status nibble_hessian_writer_finish(nibble_hessian_writer* writer, nibble_error* error);
/* NULL is fine; leaves nothing behind unless it was finished. */
void nibble_hessian_writer_free(nibble_hessian_writer* writer);

/* ---- products ---- */

typedef enum nibble_precision {
  NIBBLE_PRECISION_INT8 = 0, /* activations rounded to int8 by groups of columns, integer dots */
  NIBBLE_PRECISION_BF16 = 1, /* activations and decoded weights in bf16, sums in f32 */
  NIBBLE_PRECISION_F32 = 2,  /* decoded weights and products in f32: the reference */
  /* as INT8, but with one scale for each row of activations where weights are "int8 sym" by channel
   * or tensor (W8A8); sums then stay integers */
  NIBBLE_PRECISION_INT8_PER_ROW = 3,
  NIBBLE_PRECISION_ANY_INT = 0x7fffffff
} nibble_precision;

typedef struct nibble_matmul_options {
  nibble_precision precision;
  int accumulate;    /* out += product instead of out = product */
  const float* bias; /* a value for each output column, added to every row of out; or NULL */
  nibble_parallel_for parallel;
  /* Of activations of type NIBBLE_I8: a scale for each row, or one for all; or NULL and 0. */
  const float* activation_scales;
  size_t activation_scales_count;
} nibble_matmul_options;

/* out[M, N] (f32) = activations[M, K] (f32, f16, bf16) x weights[N, K]^T. `options` may be NULL. */
nibble_status nibble_matmul(nibble_matrix activations, const nibble_tensor* weights,
                            nibble_mutable_matrix out, const nibble_matmul_options* options,
                            nibble_error* error);

/* LLM.int8() (arXiv 2208.07339): weights "int8 sym" by channel or tensor; columns where an
 * activation's magnitude is at least `threshold` (6 is usual) multiply in f32, all others as
 * NIBBLE_PRECISION_INT8_PER_ROW does. */
nibble_status nibble_matmul_llm_int8(nibble_matrix activations, const nibble_tensor* weights,
                                     nibble_mutable_matrix out, float threshold,
                                     const nibble_matmul_options* options, nibble_error* error);

/* Weights rearranged once for fast products. */
typedef struct nibble_packed nibble_packed;

nibble_status nibble_pack(const nibble_tensor* weights, nibble_precision precision,
                          const nibble_parallel_for* parallel, nibble_packed** packed,
                          nibble_error* error);
/* The bytes of packed weights, to be kept in a file (none of weights packed on a GPU); and packed
 * weights around such bytes, which the caller keeps alive and unchanged as long as the handle.
 * Aligned to 8 bytes, better to 64. */
const void* nibble_packed_bytes(const nibble_packed* packed, size_t* bytes);
nibble_status nibble_packed_borrow(const void* data, size_t bytes, nibble_packed** packed,
                                   nibble_error* error);
void nibble_packed_free(nibble_packed* packed); /* NULL is fine */

/* One of several products with the same activations. */
typedef struct nibble_matmul_member {
  const nibble_tensor* weights; /* this or `packed`, the other NULL */
  const nibble_packed* packed;
  nibble_mutable_matrix out; /* f32 [M, N]; with no rows at all: nothing is done */
  const float* bias;         /* N values, or NULL */
  const int32_t* rows;       /* the activation rows taken, as many as `out` has; NULL: all */
} nibble_matmul_member;

/* All products in one parallel loop, with the same results as one by one: query, key and value,
 * gate and up, or the experts of a mixture with the rows sent to each. The activations are
 * converted once for neighbours that take the same rows. Outputs must not overlap; the options have
 * no bias. `options` may be NULL. */
nibble_status nibble_matmul_group(nibble_matrix activations, const nibble_matmul_member* members,
                                  size_t count, const nibble_matmul_options* options,
                                  nibble_error* error);

/* ---- GGUF files ---- */

typedef struct nibble_gguf nibble_gguf;

typedef struct nibble_gguf_tensor {
  const char* name;
  uint32_t format;
  int dims_count;   /* 1 to 4 */
  int64_t dims[4];  /* dims[0] is the length of a row; unused ones are 1 */
  const void* data; /* in the mapped file */
  size_t bytes;
} nibble_gguf_tensor;

/* Maps a file, or all shards of one; everything is checked before it returns. */
nibble_status nibble_gguf_open(const char* path, nibble_gguf** file, nibble_error* error);
size_t nibble_gguf_tensor_count(const nibble_gguf* file);
nibble_status nibble_gguf_tensor_at(const nibble_gguf* file, size_t index,
                                    nibble_gguf_tensor* tensor, nibble_error* error);
nibble_status nibble_gguf_find_tensor(const nibble_gguf* file, const char* name,
                                      nibble_gguf_tensor* tensor, nibble_error* error);

/* Metadata: keys in file order, and values by key; a value of another type is an invalid argument.
 */
size_t nibble_gguf_key_count(const nibble_gguf* file);
const char* nibble_gguf_key_at(const nibble_gguf* file, size_t index); /* NULL beyond the last */
nibble_status nibble_gguf_get_string(const nibble_gguf* file, const char* key, const char** value,
                                     nibble_error* error);
nibble_status nibble_gguf_get_uint(const nibble_gguf* file, const char* key, uint64_t* value,
                                   nibble_error* error);
nibble_status nibble_gguf_get_float(const nibble_gguf* file, const char* key, double* value,
                                    nibble_error* error);

void nibble_gguf_close(nibble_gguf* file); /* NULL is fine */

#ifdef __cplusplus
}
#endif

#endif /* NIBBLE_C_API_H_ */
