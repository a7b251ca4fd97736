/* Changes of single pixels wait, and are then done together while a block is in the first cache. */

#include "picture.h"

#include <stddef.h>

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
