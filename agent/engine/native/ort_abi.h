/* The part of onnxruntime's stable C interface that a custom operator needs.
 *
 * The runtime hands out a table of function pointers whose order never changes (a release may only add at its end), and
 * reads a custom operator from a structure of function pointers of a stated version. Places and order as of interface
 * version 16, the first with KernelContext_ParallelFor; tests/agent/test_native.py runs every function used here.
 */
#ifndef TEMPERD_ORT_ABI_H
#define TEMPERD_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { ORT_INTERFACE_VERSION = 16 };

typedef struct OrtStatus OrtStatus;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtValue OrtValue;
typedef struct OrtTensorInfo OrtTensorInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef void *const *OrtApi;

typedef struct {
    OrtApi (*get_api)(uint32_t version);
    const char *(*get_version)(void);
} OrtApiBase;

enum ort_place {
    ORT_CREATE_STATUS = 0,
    ORT_CREATE_CUSTOM_OP_DOMAIN = 26,
    ORT_CUSTOM_OP_DOMAIN_ADD = 27,
    ORT_ADD_CUSTOM_OP_DOMAIN = 28,
    ORT_GET_TENSOR_MUTABLE_DATA = 51,
    ORT_GET_DIMENSIONS_COUNT = 61,
    ORT_GET_DIMENSIONS = 62,
    ORT_GET_TENSOR_TYPE_AND_SHAPE = 65,
    ORT_GET_ATTRIBUTE_FLOAT = 85,
    ORT_GET_ATTRIBUTE_INT = 86,
    ORT_GET_INPUT = 90,
    ORT_GET_OUTPUT = 91,
    ORT_RELEASE_TENSOR_INFO = 99,
    ORT_PARALLEL_FOR = 274
};

typedef OrtStatus *(*ort_create_status)(int code, const char *message);
typedef OrtStatus *(*ort_create_domain)(const char *name, OrtCustomOpDomain **out);
typedef OrtStatus *(*ort_get_mutable_data)(OrtValue *, void **out);
typedef OrtStatus *(*ort_get_count)(const OrtTensorInfo *, size_t *out);
typedef OrtStatus *(*ort_get_dimensions)(const OrtTensorInfo *, int64_t *out, size_t count);
typedef OrtStatus *(*ort_get_tensor_info)(const OrtValue *, OrtTensorInfo **out);
typedef OrtStatus *(*ort_get_float)(const OrtKernelInfo *, const char *name, float *out);
typedef OrtStatus *(*ort_get_int)(const OrtKernelInfo *, const char *name, int64_t *out);
typedef OrtStatus *(*ort_get_input)(const OrtKernelContext *, size_t index, const OrtValue **out);
typedef OrtStatus *(*ort_get_output)(OrtKernelContext *, size_t index, const int64_t *dims, size_t count, OrtValue **);
typedef void (*ort_release_info)(OrtTensorInfo *);
typedef OrtStatus *(*ort_parallel_for)(const OrtKernelContext *, void (*task)(void *, size_t), size_t total,
                                       size_t batches, void *data);

enum { ORT_INVALID_ARGUMENT = 2, ORT_FLOAT = 1, ORT_REQUIRED = 0, ORT_MEMORY_DEFAULT = 0 };

typedef struct OrtCustomOp OrtCustomOp;
struct OrtCustomOp {
    uint32_t version;
    void *(*create)(const OrtCustomOp *, OrtApi, const OrtKernelInfo *);
    const char *(*name)(const OrtCustomOp *);
    const char *(*provider)(const OrtCustomOp *);
    int (*input_type)(const OrtCustomOp *, size_t);
    size_t (*input_count)(const OrtCustomOp *);
    int (*output_type)(const OrtCustomOp *, size_t);
    size_t (*output_count)(const OrtCustomOp *);
    void (*compute)(void *, OrtKernelContext *);
    void (*destroy)(void *);
    int (*input_kind)(const OrtCustomOp *, size_t);
    int (*output_kind)(const OrtCustomOp *, size_t);
    int (*input_memory)(const OrtCustomOp *, size_t);
    int (*input_least)(const OrtCustomOp *);
    int (*input_alike)(const OrtCustomOp *);
    int (*output_least)(const OrtCustomOp *);
    int (*output_alike)(const OrtCustomOp *);
    OrtStatus *(*create_v2)(const OrtCustomOp *, OrtApi, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*compute_v2)(void *, OrtKernelContext *);
};

#endif
