/* Elastic deformation: hashed noise, smoothed with reflected edges, says where pixels come from. */

#include "picture.h"

#include <stddef.h>

typedef float Pixel __attribute__((vector_size(16), aligned(4), may_alias));

static inline uint32_t mix(uint32_t x)
{
    x = (x ^ x >> 16) * 0x21F0AAADu;
    x = (x ^ x >> 15) * 0x735A2D97u;
    return x ^ x >> 15;
}

VECTORS static void noise(float *x, float *y, uint32_t first, uint32_t salt, int n)
{
    for (int i = 0; i < n; i++) {
        const uint32_t word = mix(mix(first + i) ^ salt);
        x[i] = (float)(int32_t)(word >> 16) * (2 / 65536.f) + (1 / 65536.f - 1);
        y[i] = (float)(int32_t)(word & 0xFFFF) * (2 / 65536.f) + (1 / 65536.f - 1);
    }
}

int elastic_reach(double sigma) { return sigma > 0 ? (int)(8 * sigma + 1) / 2 : 0; }

static int reflect(int i, int size)
{
    if (i >= 0 && i < size)
        return i;
    const int period = size > 1 ? 2 * (size - 1) : 1, rest = (i % period + period) % period;
    return rest < size ? rest : period - rest;
}

static void reflect_ends(float *line, int half, int width)
{
    for (int i = 1; i <= half; i++) {
        line[-i] = line[reflect(-i, width)];
        line[width - 1 + i] = line[reflect(width - 1 + i, width)];
    }
}

/* The noise of both axes, smoothed along rows, into two planes of `spare`. */
static void smooth_rows(Picture *p, uint64_t seed, int half)
{
    const int width = p->width, n = p->height * width, count = 2 * half + 1;
    const uint32_t start = mix((uint32_t)seed), salt = mix((uint32_t)(seed >> 32) ^ start);
    float *padded[2] = {p->row, p->row + width + 2 * half};
    for (int y = 0; y < p->height; y++) {
        noise(padded[0] + half, padded[1] + half, start + y * width, salt, width);
        for (int axis = 0; axis < 2; axis++) {
            reflect_ends(padded[axis] + half, half, width);
            for (int t = 0; t < count; t++)
                p->taps[t] = padded[axis] + t;
            weigh(p->spare + axis * n + y * width, p->taps, p->kernel, count, width);
        }
    }
}

/* The border of zeros makes what lies outside weigh nothing. */
VECTORS static void interleave(float *frame, const float *x, int height, int width)
{
    const int n = height * width;
    for (int y = 0; y < height; y++) {
        float *to = frame + ((y + 1) * (width + 3) + 1) * 4;
        for (int i = 0; i < width; i++, x++, to += 4)
            to[0] = x[0], to[1] = x[n], to[2] = x[2 * n], to[3] = 1;
    }
}

/* Where a row is fetched from: numbers of the frame's pixels, and two fractions in place. */
VECTORS static void places(float *dx, float *dy, int32_t *index, int y, int height, int width,
                           float scale)
{
    for (int i = 0; i < width; i++) {
        float u = i + scale * dx[i], v = y + scale * dy[i];
        u = u < -1 ? -1 : u, v = v < -1 ? -1 : v;
        u = u > width ? width : u, v = v > height ? height : v;
        const int left = (int)(u + 1), top = (int)(v + 1);
        dx[i] = u - (left - 1), dy[i] = v - (top - 1);
        index[i] = top * (width + 3) + left;
    }
}

VECTORS static void fetch(float *out, int n, const float *frame, int stride, const Picture *p)
{
    const float *dx = p->row, *dy = p->row + p->width;
    for (int i = 0; i < p->width; i++) {
        const Pixel *above = (const Pixel *)frame + p->index[i], *below = above + stride;
        const Pixel first = above[0] + dx[i] * (above[1] - above[0]);
        const Pixel second = below[0] + dx[i] * (below[1] - below[0]);
        const Pixel found = first + dy[i] * (second - first);
        out[i] = found[0] * found[3];
        out[n + i] = found[1] * found[3];
        out[2 * n + i] = found[2] * found[3];
    }
}

void elastic(Picture *p, const double *given)
{
    const int width = p->width, height = p->height, n = width * height;
    const int half = elastic_reach(given[1]), count = 2 * half + 1;
    pass(p, NULL, NULL, NULL, 0);
    gaussian(p->kernel, half, given[1]);
    interleave(p->frame, p->now, height, width);
    smooth_rows(p, (uint64_t)given[2], half);
    for (int y = 0; y < height; y++) {
        for (int axis = 0; axis < 2; axis++) {
            for (int t = 0; t < count; t++)
                p->taps[t] = p->spare + axis * n + reflect(y + t - half, height) * width;
            weigh(p->row + axis * width, p->taps, p->kernel, count, width);
        }
        places(p->row, p->row + width, p->index, y, height, width, (float)(given[0] / 2));
        fetch(p->now + y * width, n, p->frame, width + 3, p);
    }
}
