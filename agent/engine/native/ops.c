/* Custom operators of domain `temperd`: what stock onnxruntime has no fast kernel for. Tensors are channel-major.
 *
 * Depthwise(x [C, N, H, W], w [C, 1, kh, kw], b [C]) -> y [C, N, P, Q]
 * DepthwiseGrad(x, w, y, dy) -> dx [C, N, H, W], dw [C, 1, kh, kw], db [C], dx_sum [C]
 * ClipGrad(y [C, N, H, W], dy [C, N, H, W] or [C, N, 1, 1]) -> dz [C, N, H, W], its sum [C]
 *
 * All sizes are attributes: what follows from them is worked out once, when a session is made.
 */
#include "kernels.h"
#include "ort_abi.h"

#include <stdlib.h>
#include <string.h>

enum { TASKS = 16, RANK = 4 }; /* tasks a call is cut into: enough for the cores of a board */

struct kernel {
    OrtApi api;
    const struct kernels *run;
    struct window window;
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
    const struct { const char *name; int *place; } sizes[] = {
        {"channels", &g->channels}, {"samples", &g->samples}, {"height", &g->height}, {"width", &g->width},
        {"out_height", &g->out_height}, {"out_width", &g->out_width}, {"kernel_height", &g->kernel_height},
        {"kernel_width", &g->kernel_width}, {"stride", &g->stride}, {"pad_top", &g->pad_top},
        {"pad_left", &g->pad_left},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) TRY(read_int(api, info, sizes[i].name, sizes[i].place));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "low", &g->low));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "high", &g->high));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "x_low", &g->x_low));
    TRY(CALL(ORT_GET_ATTRIBUTE_FLOAT, ort_get_float, info, "x_high", &g->x_high));
    return window_derive(g) ? refuse(api, "temperd: a size, kernel or stride is out of bounds") : NULL;
}

/* Data of an input that has exactly these sizes. */
static OrtStatus *input(OrtApi api, const OrtKernelContext *context, size_t index, const float **data, size_t rank,
                        const int64_t *expected) {
    const OrtValue *value;
    OrtTensorInfo *info;
    int64_t dims[RANK];
    size_t found;
    TRY(CALL(ORT_GET_INPUT, ort_get_input, context, index, &value));
    TRY(CALL(ORT_GET_TENSOR_MUTABLE_DATA, ort_get_mutable_data, (OrtValue *)value, (void **)data));
    TRY(CALL(ORT_GET_TENSOR_TYPE_AND_SHAPE, ort_get_tensor_info, value, &info));
    OrtStatus *status = CALL(ORT_GET_DIMENSIONS_COUNT, ort_get_count, info, &found);
    int fits = !status && found == rank;
    if (fits) status = CALL(ORT_GET_DIMENSIONS, ort_get_dimensions, info, dims, rank);
    CALL(ORT_RELEASE_TENSOR_INFO, ort_release_info, info);
    if (status) return status;
    return fits && !memcmp(dims, expected, rank * sizeof *dims) ? NULL : refuse(api, "temperd: an input has another shape");
}

static OrtStatus *output(OrtApi api, OrtKernelContext *context, size_t index, float **data, size_t rank,
                         const int64_t *dims) {
    OrtValue *value;
    TRY(CALL(ORT_GET_OUTPUT, ort_get_output, context, index, dims, rank, &value));
    return CALL(ORT_GET_TENSOR_MUTABLE_DATA, ort_get_mutable_data, value, (void **)data);
}

struct call {
    const struct kernel *kernel;
    const float *x, *w, *b, *y, *dy;
    float *out, *dx, *dw, *db, *dx_sum;
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
    const struct window *g = &call->kernel->window;
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

/* Shapes of x, w and y, all of the same rank. */
struct shapes {
    int64_t x[RANK], w[RANK], y[RANK];
};

static struct shapes shapes_of(const struct window *g) {
    return (struct shapes){{g->channels, g->samples, g->height, g->width},
                           {g->channels, 1, g->kernel_height, g->kernel_width},
                           {g->channels, g->samples, g->out_height, g->out_width}};
}

static OrtStatus *depthwise_compute(void *self, OrtKernelContext *context) {
    const struct kernel *kernel = self;
    OrtApi api = kernel->api;
    struct call call = {.kernel = kernel};
    const struct shapes sizes = shapes_of(&kernel->window);
    TRY(input(api, context, 0, &call.x, RANK, sizes.x));
    TRY(input(api, context, 1, &call.w, RANK, sizes.w));
    TRY(input(api, context, 2, &call.b, 1, sizes.x));
    TRY(output(api, context, 0, &call.out, RANK, sizes.y));
    return run_tasks(api, context, &call);
}

static OrtStatus *depthwise_grad_compute(void *self, OrtKernelContext *context) {
    const struct kernel *kernel = self;
    OrtApi api = kernel->api;
    struct call call = {.kernel = kernel};
    const struct shapes sizes = shapes_of(&kernel->window);
    const int64_t none[RANK] = {0, 0, 0, 0};
    TRY(input(api, context, 0, &call.x, RANK, sizes.x));
    TRY(input(api, context, 1, &call.w, RANK, sizes.w));
    TRY(input(api, context, 2, &call.y, RANK, sizes.y));
    TRY(input(api, context, 3, &call.dy, RANK, sizes.y));
    TRY(output(api, context, 0, &call.dx, RANK, kernel->input_gradient ? sizes.x : none));
    TRY(output(api, context, 1, &call.dw, RANK, sizes.w));
    TRY(output(api, context, 2, &call.db, 1, sizes.x));
    TRY(output(api, context, 3, &call.dx_sum, 1, kernel->input_gradient ? sizes.x : none));
    return run_tasks(api, context, &call);
}

static void clip_grad_task(void *data, size_t task) {
    struct call *call = data;
    const struct window *g = &call->kernel->window;
    const long run = (long)g->height * g->width, step = run * g->samples;
    const long dy_step = (long)g->samples * g->out_height * g->out_width;
    for (int c = first_channel(g, task); c < first_channel(g, task + 1); c++)
        call->db[c] = call->kernel->run->clip_grad(call->y + c * step, call->dy + c * dy_step, call->dx + c * step,
                                                   g->samples, run, dy_step < step, g->low, g->high);
}

static OrtStatus *clip_grad_compute(void *self, OrtKernelContext *context) {
    const struct kernel *kernel = self;
    OrtApi api = kernel->api;
    struct call call = {.kernel = kernel};
    const struct shapes sizes = shapes_of(&kernel->window);
    TRY(input(api, context, 0, &call.y, RANK, sizes.x));
    TRY(input(api, context, 1, &call.dy, RANK, sizes.y));
    TRY(output(api, context, 0, &call.dx, RANK, sizes.x));
    TRY(output(api, context, 1, &call.db, 1, sizes.x));
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
