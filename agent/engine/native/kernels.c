/* The kernels for each instruction set, and the choice among them at run time. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define WIDEST_LANES 16 /* WIDEST, for the preprocessor */
enum { SCRATCH_FLOATS = 4096 }; /* 16 KiB of planes at once: all buffers together stay in a second-level cache */

static long padded(long length) { return (length + 31) / 32 * 32; } /* 32: two vectors of the widest set */

static int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

/* Moves that put `height` x `width` planes into a flat buffer, padding lanes zero. */
static void moves_in(const struct window *g, int height, int width, struct moves *moves) {
    const long plane = (long)g->rows * g->pitch, used = g->block * plane;
    moves->count = 0;
    if ((used + WIDEST - 1) / WIDEST > MAX_MOVES) return;
    for (long first = 0; first < used; first += WIDEST) {
        struct move *move = &moves->each[first / WIDEST];
        memset(move, 0, sizeof *move);
        move->from = -1;
        for (int lane = 0; lane < WIDEST && first + lane < used; lane++) {
            const long t = first + lane, r = t % plane / g->pitch, c = t % g->pitch;
            if (r >= height || c >= width) continue;
            const int value = (int)(t / plane * height * width + r * width + c);
            if (move->from < 0) move->from = value;
            move->place[lane] = (unsigned char)(value - move->from);
            move->lanes |= (unsigned short)(1u << lane);
            move->read |= (unsigned short)(1u << move->place[lane]);
        }
        if (move->from < 0) move->from = 0;
    }
    moves->count = (int)((used + WIDEST - 1) / WIDEST);
}

/* Moves that take `height` x `width` planes out of a flat buffer; 32 values from `from` on are within reach. */
static void moves_out(const struct window *g, int height, int width, struct moves *moves) {
    const long plane = (long)height * width, used = g->block * plane;
    moves->count = 0;
    if ((used + WIDEST - 1) / WIDEST > MAX_MOVES) return;
    for (long first = 0; first < used; first += WIDEST) {
        struct move *move = &moves->each[first / WIDEST];
        memset(move, 0, sizeof *move);
        for (int lane = 0; lane < WIDEST && first + lane < used; lane++) {
            const long value = first + lane;
            const int t = (int)((value / plane * g->rows + value % plane / width) * g->pitch + value % width);
            if (!lane) move->from = t;
            if (t - move->from >= 2 * WIDEST) return;
            move->place[lane] = (unsigned char)(t - move->from);
            move->lanes |= (unsigned short)(1u << lane);
        }
    }
    moves->count = (int)((used + WIDEST - 1) / WIDEST);
}

int window_derive(struct window *g) {
    if (g->kernel_height < 1 || g->kernel_width < 1 || g->kernel_height > MAX_SIDE || g->kernel_width > MAX_SIDE ||
        g->stride < 1 || g->stride > MAX_STRIDE || g->out_height < 1 || g->out_width < 1 || g->channels < 1 ||
        g->samples < 1 || g->height < 1 || g->width < 1 || (long)g->height * g->width > MAX_PLANE)
        return -1;
    const int s = g->stride;
    const int top = floor_div(-g->pad_top, s), bottom = floor_div(g->kernel_height - 1 - g->pad_top, s);
    const int left = floor_div(-g->pad_left, s), right = floor_div(g->kernel_width - 1 - g->pad_left, s);
    const int above = -top > 0 ? -top : 0, below = bottom > 0 ? bottom : 0;
    const int before = -left > 0 ? -left : 0, after = right > 0 ? right : 0;
    const int share_rows = s * g->out_height >= g->height, share_columns = s * g->out_width >= g->width;
    g->rows = g->out_height + (share_rows ? (above > below ? above : below) : above + below);
    g->pitch = g->out_width + (share_columns ? (before > after ? before : after) : before + after);
    g->taps = g->kernel_height * g->kernel_width;
    for (int i = 0; i < g->kernel_height; i++)
        for (int j = 0; j < g->kernel_width; j++) {
            const int a = floor_div(i - g->pad_top, s), b = floor_div(j - g->pad_left, s);
            const int k = i * g->kernel_width + j;
            g->phase[k] = (i - g->pad_top - s * a) * s + (j - g->pad_left - s * b);
            g->offset[k] = (long)a * g->pitch + b;
        }
    for (int u = 0; u < s; u++) {
        const int rows = (g->height - u + s - 1) / s, columns = (g->width - u + s - 1) / s;
        g->phase_rows[u] = rows < g->out_height + below ? rows : g->out_height + below;
        g->phase_columns[u] = columns < g->out_width + after ? columns : g->out_width + after;
    }
    const long plane = (long)g->rows * g->pitch;
    g->block = plane >= SCRATCH_FLOATS ? 1 : (int)(SCRATCH_FLOATS / plane);
    if (g->block > g->samples) g->block = g->samples;
    while (g->samples % g->block) g->block--; /* every block is full, so nothing of a fuller one lies in the buffers */
    g->lead = padded((long)(above > below ? above : below) * g->pitch + before + after);
    g->room = padded(2 * g->lead + g->block * plane + 64);
    moves_in(g, g->out_height, g->out_width, &g->y_in);
    moves_out(g, g->out_height, g->out_width, &g->y_out);
    g->x_in.count = g->x_out.count = 0;
    if (s == 1 && g->phase_rows[0] == g->height && g->phase_columns[0] == g->width) {
        moves_in(g, g->height, g->width, &g->x_in);
        moves_out(g, g->height, g->width, &g->x_out);
    }
    return 0;
}

long window_scratch(const struct window *g) { /* phases of x, the gradient, phases of dx */
    return (2L * g->stride * g->stride + 1) * g->room;
}

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SUFFIX)

#define SUFFIX _base
#define LANES 4
#include "depthwise.inc"
#include "update.inc"
#undef SUFFIX
#undef LANES
static const struct kernels base = {"base", depthwise_base, depthwise_grad_base, clip_grad_base, sgd_base, adamw_base, square_sum_base};

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SUFFIX _avx2
#define LANES 8
#include "depthwise.inc"
#include "update.inc"
#undef SUFFIX
#undef LANES
#pragma GCC pop_options
static const struct kernels avx2 = {"avx2", depthwise_avx2, depthwise_grad_avx2, clip_grad_avx2, sgd_avx2, adamw_avx2, square_sum_avx2};

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define SUFFIX _avx512
#define LANES 16
#include "depthwise.inc"
#include "update.inc"
#undef SUFFIX
#undef LANES
#pragma GCC pop_options
static const struct kernels avx512 = {"avx512", depthwise_avx512, depthwise_grad_avx512, clip_grad_avx512, sgd_avx512, adamw_avx512, square_sum_avx512};
#endif

const struct kernels *kernels_choose(void) {
    const char *most = getenv("TEMPERD_NATIVE"); /* the best set that may be chosen, for tests and measurements */
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int least = most && !strcmp(most, "base") ? 0 : most && !strcmp(most, "avx2") ? 1 : 2;
    if (least == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &avx512;
    if (least >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#endif
    (void)most;
    return &base;
}
