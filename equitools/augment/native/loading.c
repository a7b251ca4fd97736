/* Bytes to planes of floats in [0, 1]; flips and rotations, done while loading where they can be.
   Changes of single pixels wait, and are then done together while a block is in the first cache. */

#include "picture.h"

#include <stddef.h>
#include <string.h>

/* Numbers of the pixels that a row of a rotated picture looks up, -1 outside. */
VECTORS static void look_up(const Picture *p, int y, int mirrored, int32_t *index)
{
    const int width = p->width, height = p->height;
    const uint32_t x0 = (uint32_t)p->turn[1] * y + p->turn[2], dx = p->turn[0];
    const uint32_t y0 = (uint32_t)p->turn[4] * y + p->turn[5], dy = p->turn[3];
    const int first = mirrored ? width - 1 : 0, sign = mirrored ? -1 : 1;
    for (int x = 0; x < width; x++) {
        const int u = (int32_t)(x0 + dx * x) >> 16, v = (int32_t)(y0 + dy * x) >> 16;
        const int inside = (u >= 0) & (u < width) & (v >= 0) & (v < height);
        index[x] = inside ? v * width + first + sign * u : -1;
    }
}

VECTORS static void mirror(float *out, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = x[n - 1 - i];
}

VECTORS static void interleaved(float *r, float *g, float *b, const uint8_t *from, int n)
{
    for (int i = 0; i < n; i++) {
        r[i] = from[3 * i] / 255.f;
        g[i] = from[3 * i + 1] / 255.f;
        b[i] = from[3 * i + 2] / 255.f;
    }
}

VECTORS static void plane(float *x, const uint8_t *from, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = from[i] / 255.f;
}

VECTORS static void unpack(float *r, float *g, float *b, const int32_t *words, int n)
{
    for (int i = 0; i < n; i++) {
        r[i] = (words[i] & 255) / 255.f;
        g[i] = (words[i] >> 8 & 255) / 255.f;
        b[i] = (words[i] >> 16) / 255.f;
    }
}

static void load_turned(const Picture *p, int y, float *const *into)
{
    look_up(p, y, p->flip_first, p->index);
    for (int x = 0; x < p->width; x++) {
        const int32_t i = p->index[x];
        const uint8_t *from = p->bytes + (ptrdiff_t)i * p->pixel;
        p->index[x] = i < 0 ? 0 : from[0] | from[p->channel] << 8 | from[2 * p->channel] << 16;
    }
    unpack(into[0], into[1], into[2], p->index, p->width);
}

void load_row(const Picture *p, int y, float *r, float *g, float *b)
{
    const int width = p->width, flipped = p->turned ? p->flip_last : p->flip_first;
    const uint8_t *from = p->bytes + (ptrdiff_t)y * width * p->pixel;
    float *const out[3] = {r, g, b}, *into[3] = {r, g, b};
    for (int c = 0; c < 3 && flipped; c++)
        into[c] = p->row + c * width;
    if (p->turned)
        load_turned(p, y, into);
    else if (p->pixel == 3)
        interleaved(into[0], into[1], into[2], from, width);
    else
        for (int c = 0; c < 3; c++)
            plane(into[c], from + (ptrdiff_t)c * p->channel, width);
    for (int c = 0; c < 3 && flipped; c++)
        mirror(out[c], into[c], width);
}

enum { BLOCK = 1024 }; /* pixels; three planes of floats are 12 KiB */

void later(Picture *p, int kind, float factor, float of_luma, float constant)
{
    p->steps[p->count++] = (Step){kind, factor, of_luma, constant};
}

static void act(const Step *s, float *r, float *g, float *b, int n)
{
    if (s->kind == HUE)
        turn_hue(r, g, b, n, s->factor);
    else if (s->kind == LUMA)
        lose_color(r, g, b, n);
    else if (s->kind == INVERT)
        invert(r, n, s->factor), invert(g, n, s->factor), invert(b, n, s->factor);
    else
        blend(r, g, b, n, s->factor, s->of_luma, s->constant);
}

/* Load what is not loaded and do what waits; to `out`, normalized, where it is given. Returns the
   picture's mean luma if asked. */
float pass(Picture *p, float *out, const float *mean, const float *scale, int asked)
{
    const int n = p->height * p->width, rows = p->width < BLOCK ? BLOCK / p->width : 1;
    double total = 0;
    if (!p->bytes && !p->count && !out && !asked)
        return 0;
    for (int y = 0; y < p->height; y += rows) {
        const int many = y + rows < p->height ? rows : p->height - y, size = many * p->width;
        /* What goes from bytes straight to the output needs no place of its own. */
        float *r = p->now + (p->bytes && out ? 0 : y * p->width), *g = r + n, *b = g + n;
        for (int i = 0; i < many && p->bytes; i++)
            load_row(p, y + i, r + i * p->width, g + i * p->width, b + i * p->width);
        for (int i = 0; i < p->count; i++)
            act(&p->steps[i], r, g, b, size);
        for (int c = 0; c < 3 && out; c++)
            normalize(out + c * n + y * p->width, r + c * n, size, mean[c], scale[c]);
        if (asked)
            total += luma(r, g, b, size);
    }
    p->bytes = NULL, p->count = 0;
    return (float)(total / n);
}

void flip(Picture *p)
{
    if (p->bytes && !p->count) {
        *(p->turned ? &p->flip_last : &p->flip_first) = 1;
        return;
    }
    pass(p, NULL, NULL, NULL, 0);
    for (int y = 0; y < 3 * p->height; y++) {
        mirror(p->row, p->now + y * p->width, p->width);
        memcpy(p->now + y * p->width, p->row, p->width * sizeof(float));
    }
}

VECTORS static void gather(float *out, const float *from, const int32_t *index, int n)
{
    for (int x = 0; x < n; x++)
        out[x] = index[x] < 0 ? 0 : from[index[x]];
}

void rotate(Picture *p, const double *given)
{
    const int n = p->height * p->width;
    float *from = p->now, *to = p->spare;
    for (int i = 0; i < 6; i++)
        p->turn[i] = (int32_t)given[i];
    if (p->bytes && !p->count) {
        p->turned = 1;
        for (int i = 0; i < 3 * n; i += 64) /* rows are about to be read across */
            __builtin_prefetch(p->bytes + i);
        return;
    }
    pass(p, NULL, NULL, NULL, 0);
    for (int y = 0; y < p->height; y++) {
        look_up(p, y, 0, p->index);
        for (int c = 0; c < 3; c++)
            gather(to + c * n + y * p->width, from + c * n, p->index, p->width);
    }
    p->now = to, p->spare = from;
}
