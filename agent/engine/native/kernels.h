/* Numeric kernels behind the operators of ops.c. They know nothing of onnxruntime. */
#ifndef TEMPERD_KERNELS_H
#define TEMPERD_KERNELS_H

enum { MAX_SIDE = 15, MAX_TAPS = MAX_SIDE * MAX_SIDE, MAX_STRIDE = 4, WIDEST = 16, MAX_MOVES = 272, MAX_PLANE = 1 << 22 };

/* How one vector is filled from planes without padding or from a flat buffer: lane i gets value `from + place[i]`. */
struct move {
    int from;
    unsigned short lanes, read; /* lanes that get a value; values that are read from `from` on, at most 16 */
    unsigned char place[WIDEST];
};

/* Moves of one block of planes, in order; none where rows are moved one by one instead. */
struct moves {
    int count;
    struct move each[MAX_MOVES];
};

/* One depthwise convolution of [C, N, H, W] by kernels [C, 1, kh, kw]; everything is derived once by `window_derive`.
 *
 * With i - pad = stride a + u, 0 <= u < stride, tap i of output row p reads row p + a of phase u. Rows of padding are
 * shared between neighbouring planes, columns of padding between neighbouring rows, where the input ends before them. */
struct window {
    int channels, samples, height, width, out_height, out_width, kernel_height, kernel_width, stride, pad_top, pad_left;
    float low, high;      /* clip behind the convolution; infinite where there is none */
    float x_low, x_high;  /* clip that made x */
    int taps, rows, pitch, block;                          /* block: planes that go through the buffers at once */
    struct moves x_in, y_in, y_out, x_out;                 /* into and out of the flat buffers */
    int phase[MAX_TAPS];
    long offset[MAX_TAPS], lead, room;                     /* floats before the first plane, floats of one buffer */
    int phase_rows[MAX_STRIDE], phase_columns[MAX_STRIDE]; /* of the input that some tap reads */
};

/* 0, or -1 when sizes are outside what the kernels are made for. */
int window_derive(struct window *g);
long window_scratch(const struct window *g); /* floats that one call needs, zeroed before the first use */

/* Constants of one AdamW update; the bias corrections are in step_size and root_correction. */
struct adamw {
    float beta1, beta2, epsilon, shrink, step_size, root_correction, scale;
};

struct kernels {
    const char *name;
    void (*depthwise)(const struct window *, const float *x, const float *w, float bias, float *y, float *scratch);
    void (*depthwise_grad)(const struct window *, const float *x, const float *w, const float *y, const float *dy,
                           float *dx, float *dw, float *db, float *dx_sum, float *scratch);
    float (*clip_grad)(const float *y, const float *dy, float *dz, long groups, long run, int spread, float low,
                       float high);
    void (*sgd)(float *w, float *v, const float *g, long count, float rate, float momentum, float decay, float scale);
    void (*adamw)(float *w, float *m, float *v, const float *g, long count, const struct adamw *rule);
    double (*square_sum)(const float *g, long count);
};

/* The best set that this processor runs. */
const struct kernels *kernels_choose(void);

#endif
