/* Custom operators of domain `temperd`: what stock onnxruntime has no fast kernel for. Tensors are channel-major.
 *
 * Depthwise(x [C, N, H, W], w [C, 1, kh, kw], b [C]) -> y [C, N, P, Q]
 * DepthwiseGrad(x, w, y, dy) -> dx [C, N, H, W], dw [C, 1, kh, kw], db [C], dx_sum [C]
 * ClipGrad(y [C, N, P, Q], dy [C, N, P, Q] or [C, N, 1, 1]) -> dz [C, N, P, Q], its sum [C]
 */
#include "kernels.h"
#include "ort_abi.h"

#include <stdlib.h>
#include <string.h>

enum { TASKS = 16, RANK = 4 }; /* tasks a call is cut into: enough for the cores of a board */

struct kernel {
    OrtApi api;
    const struct kernels *run;
    struct window window; /* its sizes hold from the first call on */
    int input_gradient;
};

#define CALL(place, type, ...) ((type)api[place])(__VA_ARGS__)
#define TRY(expression)                        \
    do {                                       \
        OrtStatus *status = (expression);      \
        if (status) return status;             \
    } while (0)

static OrtStatus *refuse(OrtApi api, const char *why) {
    return CALL(ORT_CREATE_STATUS, ort_create_status, ORT_INVALID_ARGUMENT, why);
}

static OrtStatus *read_int(OrtApi api, const OrtKernelInfo *info, const char *name, int *out) {
    int64_t value;
    TRY(CALL(ORT_GET_ATTRIBUTE_INT, ort_get_int, info, name, &value));
    if (value < 0 || value > 1 << 20) return refuse(api, "temperd: an attribute is out of bounds");
    *out = (int)value;
    return NULL;
}

static OrtStatus *read_window(OrtApi api, const OrtKernelInfo *info, struct window *g) {
    TRY(read_int(api, info, "stride", &g->stride));
    TRY(read_int(api, info, "pad_top", &g->pad_top));
    TRY(read_int(api, info, "pad_left", &g->pad_left));
    TRY(read_int(api, info, "out_height", &g->out_height));
    TRY(read_int(api, info, "out_width", &g->out_width));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "low", &g->low));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "high", &g->high));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "x_low", &g->x_low));
    return CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "x_high", &g->x_high);
}

static OrtStatus *input(OrtApi api, const OrtKernelContext *context, size_t index, const float **data, size_t rank,
                        int64_t *dims) {
    const OrtValue *value;
    OrtTensorInfo *info;
    size_t found;
    TRY(CALL(ORT_GET_INPUT, ort_get_input, context, index, &value));
    TRY(CALL(ORT_GET_TENSOR_MUTABLE_DATA, ort_get_mutable_data, (OrtValue *)value, (void **)data));
    TRY(CALL(ORT_GET_TENSOR_TYPE_AND_SHAPE, ort_get_tensor_info, value, &info));
    OrtStatus *status = CALL(ORT_GET_DIMENSIONS_COUNT, ort_get_count, info, &found);
    if (!status && found != rank) status = refuse(api, "temperd: an input has another rank");
    if (!status) status = CALL(ORT_GET_DIMENSIONS, ort_get_dimensions, info, dims, rank);
    CALL(ORT_RELEASE_TENSOR_INFO, ort_release_info, info);
    return status;
}

static OrtStatus *output(OrtApi api, OrtKernelContext *context, size_t index, float **data, size_t rank,
                         const int64_t *dims) {
    OrtValue *value;
    TRY(CALL(ORT_GET_OUTPUT, ort_get_output, context, index, dims, rank, &value));
    return CALL(ORT_GET_TENSOR_MUTABLE_DATA, ort_get_mutable_data, value, (void **)data);
}

struct call {
    const struct kernel *kernel;
    struct window window;
    const float *x, *w, *b, *y, *dy;
    float *out, *dx, *dw, *db, *dx_sum;
    long shared; /* values of y that one value of dy stands for */
    int failed;
};

/* Zeroed floats of the calling thread, kept from call to call: fresh pages would cost more than the work. */
static float *thread_scratch(size_t count) {
    static __thread float *kept;
    static __thread size_t room;
    if (count > room) {
        free(kept);
        kept = malloc(count * sizeof(float));
        room = kept ? count : 0;
    }
    return kept ? memset(kept, 0, count * sizeof(float)) : NULL;
}

static int first_channel(const struct window *g, size_t task) { return (int)(g->channels * (long)task / TASKS); }

static void depthwise_task(void *data, size_t task) {
    struct call *call = data;
    const struct window *g = &call->window;
    const int from = first_channel(g, task), until = first_channel(g, task + 1);
    if (from >= until) return;
    float *scratch = thread_scratch((size_t)window_scratch(g));
    if (!scratch) {
        call->failed = 1;
        return;
    }
    const long x_step = (long)g->samples * g->height * g->width, y_step = (long)g->samples * g->out_height * g->out_width;
    for (int c = from; c < until; c++) {
        const float *x = call->x + c * x_step, *w = call->w + (long)c * g->taps;
        if (call->out) {
            call->kernel->run->depthwise(g, x, w, call->b[c], call->out + c * y_step, scratch);
            continue;
        }
        float *dw = call->dw + (long)c * g->taps, sums[2] = {0, 0};
        memset(dw, 0, sizeof(float) * g->taps);
        call->kernel->run->depthwise_grad(g, x, w, call->y + c * y_step, call->dy + c * y_step,
                                          call->kernel->input_gradient ? call->dx + c * x_step : NULL, dw, &sums[0],
                                          &sums[1], scratch);
        call->db[c] = sums[0];
        if (call->kernel->input_gradient) call->dx_sum[c] = sums[1];
    }
}

static OrtStatus *run_tasks(OrtApi api, OrtKernelContext *context, struct call *call) {
    TRY(CALL(ORT_PARALLEL_FOR, ort_parallel_for, context, depthwise_task, TASKS, TASKS, call));
    return call->failed ? refuse(api, "temperd: out of memory") : NULL;
}

static OrtStatus *bind_inputs(OrtApi api, OrtKernelContext *context, struct call *call, int64_t *x_dims,
                              int64_t *w_dims) {
    TRY(input(api, context, 0, &call->x, RANK, x_dims));
    TRY(input(api, context, 1, &call->w, RANK, w_dims));
    struct window *g = &call->window;
    *g = call->kernel->window;
    if (w_dims[0] != x_dims[0] || w_dims[1] != 1 || x_dims[1] < 1 || x_dims[2] < 1 || x_dims[3] < 1)
        return refuse(api, "temperd: shapes do not fit a depthwise convolution");
    g->channels = (int)x_dims[0];
    g->samples = (int)x_dims[1];
    g->height = (int)x_dims[2];
    g->width = (int)x_dims[3];
    g->kernel_height = (int)w_dims[2];
    g->kernel_width = (int)w_dims[3];
    if (window_derive(g)) return refuse(api, "temperd: a kernel or stride is too large");
    return NULL;
}

static OrtStatus *depthwise_compute(void *self, OrtKernelContext *context) {
    const struct kernel *kernel = self;
    OrtApi api = kernel->api;
    struct call call = {.kernel = kernel};
    int64_t x_dims[RANK], w_dims[RANK], b_dims[1];
    TRY(bind_inputs(api, context, &call, x_dims, w_dims));
    TRY(input(api, context, 2, &call.b, 1, b_dims));
    if (b_dims[0] != x_dims[0]) return refuse(api, "temperd: the bias has another length");
    const int64_t y_dims[RANK] = {x_dims[0], x_dims[1], call.window.out_height, call.window.out_width};
    TRY(output(api, context, 0, &call.out, RANK, y_dims));
    return run_tasks(api, context, &call);
}

static OrtStatus *depthwise_grad_compute(void *self, OrtKernelContext *context) {
    const struct kernel *kernel = self;
    OrtApi api = kernel->api;
    struct call call = {.kernel = kernel};
    int64_t x_dims[RANK], w_dims[RANK], y_dims[RANK], dy_dims[RANK];
    TRY(bind_inputs(api, context, &call, x_dims, w_dims));
    TRY(input(api, context, 2, &call.y, RANK, y_dims));
    TRY(input(api, context, 3, &call.dy, RANK, dy_dims));
    const int64_t expected[RANK] = {x_dims[0], x_dims[1], call.window.out_height, call.window.out_width};
    if (memcmp(y_dims, expected, sizeof expected) || memcmp(dy_dims, expected, sizeof expected))
        return refuse(api, "temperd: an output gradient has another shape");
    const int64_t none[RANK] = {0, 0, 0, 0};
    TRY(output(api, context, 0, &call.dx, RANK, kernel->input_gradient ? x_dims : none));
    TRY(output(api, context, 1, &call.dw, RANK, w_dims));
    TRY(output(api, context, 2, &call.db, 1, x_dims));
    TRY(output(api, context, 3, &call.dx_sum, 1, kernel->input_gradient ? x_dims : none));
    return run_tasks(api, context, &call);
}

static void clip_grad_task(void *data, size_t task) {
    struct call *call = data;
    const struct window *g = &call->window;
    const long run = (long)g->height * g->width, step = run * g->samples;
    for (int c = first_channel(g, task); c < first_channel(g, task + 1); c++)
        call->db[c] = call->kernel->run->clip_grad(call->y + c * step, call->dy + c * (step / call->shared), call->dx + c * step,
                                                   g->samples, run, call->shared > 1, g->low, g->high);
}

static OrtStatus *clip_grad_compute(void *self, OrtKernelContext *context) {
    const struct kernel *kernel = self;
    OrtApi api = kernel->api;
    struct call call = {.kernel = kernel, .window = kernel->window, .shared = 1};
    int64_t y_dims[RANK], dy_dims[RANK];
    TRY(input(api, context, 0, &call.y, RANK, y_dims));
    TRY(input(api, context, 1, &call.dy, RANK, dy_dims));
    const int whole = dy_dims[2] == y_dims[2] && dy_dims[3] == y_dims[3], one = dy_dims[2] == 1 && dy_dims[3] == 1;
    if (dy_dims[0] != y_dims[0] || dy_dims[1] != y_dims[1] || !(whole || one) || y_dims[1] < 1 || y_dims[2] < 1 ||
        y_dims[3] < 1)
        return refuse(api, "temperd: an output gradient has another shape");
    if (!whole) call.shared = (long)(y_dims[2] * y_dims[3]);
    struct window *g = &call.window;
    g->channels = (int)y_dims[0];
    g->samples = (int)y_dims[1];
    g->height = (int)y_dims[2];
    g->width = (int)y_dims[3];
    TRY(output(api, context, 0, &call.dx, RANK, y_dims));
    TRY(output(api, context, 1, &call.db, 1, y_dims));
    return CALL(ORT_PARALLEL_FOR, ort_parallel_for, context, clip_grad_task, TASKS, TASKS, &call);
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    (void)op;
    struct kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return refuse(api, "temperd: out of memory");
    kernel->api = api;
    kernel->run = kernels_choose();
    OrtStatus *status = read_window(api, info, &kernel->window);
    if (!status) status = read_int(api, info, "input_gradient", &kernel->input_gradient);
    if (status) {
        free(kernel);
        return status;
    }
    *out = kernel;
    return NULL;
}

struct operator_entry {
    OrtCustomOp op;
    const char *name;
    size_t inputs, outputs;
};

static const struct operator_entry *entry(const OrtCustomOp *op) { return (const struct operator_entry *)op; }
static const char *name(const OrtCustomOp *op) { return entry(op)->name; }
static const char *provider(const OrtCustomOp *op) { (void)op; return NULL; }
static int type(const OrtCustomOp *op, size_t index) { (void)op; (void)index; return ORT_FLOAT; }
static int required(const OrtCustomOp *op, size_t index) { (void)op; (void)index; return ORT_REQUIRED; }
static int memory(const OrtCustomOp *op, size_t index) { (void)op; (void)index; return ORT_MEMORY_DEFAULT; }
static int one(const OrtCustomOp *op) { (void)op; return 1; }
static size_t input_count(const OrtCustomOp *op) { return entry(op)->inputs; }
static size_t output_count(const OrtCustomOp *op) { return entry(op)->outputs; }

#define OPERATOR(NAME, INPUTS, OUTPUTS, COMPUTE)                                                                      \
    {{.version = ORT_INTERFACE_VERSION, .name = name, .provider = provider, .input_type = type,                       \
      .input_count = input_count, .output_type = type, .output_count = output_count, .destroy = free,                 \
      .input_kind = required, .output_kind = required, .input_memory = memory, .input_least = one, .input_alike = one,\
      .output_least = one, .output_alike = one, .create_v2 = create, .compute_v2 = COMPUTE},                          \
     NAME, INPUTS, OUTPUTS}

static const struct operator_entry operators[] = {
    OPERATOR("Depthwise", 3, 1, depthwise_compute),
    OPERATOR("DepthwiseGrad", 4, 4, depthwise_grad_compute),
    OPERATOR("ClipGrad", 2, 2, clip_grad_compute),
};

/* What onnxruntime calls when the library is registered with a session. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                    const OrtApiBase *base) {
    OrtApi api = base->get_api(ORT_INTERFACE_VERSION);
    static OrtCustomOpDomain *domain; /* lives as long as the process: sessions keep pointers to it */
    if (!domain) {
        TRY(CALL(ORT_CREATE_CUSTOM_OP_DOMAIN, ort_create_domain, "temperd", &domain));
        for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
            TRY(CALL(ORT_CUSTOM_OP_DOMAIN_ADD, OrtStatus * (*)(OrtCustomOpDomain *, const OrtCustomOp *), domain,
                     &operators[i].op));
    }
    return CALL(ORT_ADD_CUSTOM_OP_DOMAIN, OrtStatus * (*)(OrtSessionOptions *, OrtCustomOpDomain *), options, domain);
}

#define EXPORT __attribute__((visibility("default")))

/* Update rules for the engine's own call, outside any session; v may be null for SGD without momentum. */
EXPORT void temperd_sgd(float *w, float *v, const float *g, long count, float rate, float momentum, float decay,
                        float scale) {
    kernels_choose()->sgd(w, v, g, count, rate, momentum, decay, scale);
}

EXPORT void temperd_adamw(float *w, float *m, float *v, const float *g, long count, const struct adamw *rule) {
    kernels_choose()->adamw(w, m, v, g, count, rule);
}

EXPORT double temperd_square_sum(const float *g, long count) { return kernels_choose()->square_sum(g, count); }

/* The instruction set that runs, for people. */
EXPORT const char *temperd_kernels(void) { return kernels_choose()->name; }
