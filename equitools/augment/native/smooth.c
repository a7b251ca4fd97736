/* Sums with a kernel along rows or columns; the Gaussian blur with repeated edges. */

#include "picture.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));

/* Eight times `vectors` sums at a time, which stay in registers. Returns where it stopped. */
static inline __attribute__((always_inline)) int
weigh_some(float *out, const float *const *taps, const float *kernel, int count, int x, int n,
           const int vectors)
{
    for (; x + 8 * vectors <= n; x += 8 * vectors) {
        Lanes sum[8] = {0};
        for (int t = 0; t < count; t++) {
            const Lanes *from = (const Lanes *)(taps[t] + x);
            for (int i = 0; i < vectors; i++)
                sum[i] += kernel[t] * from[i];
        }
        for (int i = 0; i < vectors; i++)
            ((Lanes *)(out + x))[i] = sum[i];
    }
    return x;
}

/* out[x] = Σ kernel[t] · taps[t][x], t below count, x below n. */
VECTORS void weigh(float *out, const float *const *taps, const float *kernel, int count, int n)
{
    int x = weigh_some(out, taps, kernel, count, 0, n, 8);
    x = weigh_some(out, taps, kernel, count, x, n, 4);
    x = weigh_some(out, taps, kernel, count, x, n, 1);
    for (; x < n; x++) {
        float sum = 0;
        for (int t = 0; t < count; t++)
            sum += kernel[t] * taps[t][x];
        out[x] = sum;
    }
}

/* 2 · half + 1 weights that sum to one; sigma above 0 unless half is 0. */
void gaussian(float *kernel, int half, double sigma)
{
    double total = 1;
    for (int i = 1; i <= half; i++)
        total += 2 * exp(-0.5 * i * i / (sigma * sigma));
    kernel[half] = (float)(1 / total);
    for (int i = 1; i <= half; i++)
        kernel[half - i] = kernel[half + i] = (float)(exp(-0.5 * i * i / (sigma * sigma)) / total);
}

int blur_reach(double sigma) { return (int)(4 * (float)sigma); }

void blur(Picture *p, double sigma)
{
    const int width = p->width, height = p->height, half = blur_reach(sigma), count = 2 * half + 1;
    float *padded = p->row;
    if (!half)
        return;
    pass(p, NULL, NULL, NULL, 0);
    gaussian(p->kernel, half, (float)sigma);
    for (int t = 0; t < count; t++)
        p->taps[t] = padded + t;
    for (int y = 0; y < 3 * height; y++) {
        const float *from = p->now + y * width;
        memcpy(padded + half, from, width * sizeof(float));
        for (int i = 0; i < half; i++)
            padded[i] = from[0], padded[half + width + i] = from[width - 1];
        weigh(p->spare + y * width, p->taps, p->kernel, count, width);
    }
    for (int y = 0; y < 3 * height; y++) {
        const float *first = p->spare + (y - y % height) * width;
        for (int t = 0; t < count; t++) {
            const int from = y % height + t - half;
            p->taps[t] = first + (from < 0 ? 0 : from < height ? from : height - 1) * width;
        }
        weigh(p->now + y * width, p->taps, p->kernel, count, width);
    }
}
