/* Everything after the crop, one picture at a time: bytes in, normalized floats out.

   Operations come in the recipe's order, with the formulae of the modules one folder up. No
   globals and no locks: threads that are given the same counter share a batch. */

#include "picture.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

enum { FLIP, ROTATION, ELASTIC, JITTER, GRAY, BLUR, SOLARIZE }; /* operations of an order */
/* Where each one's parameters begin in a picture's row. */
enum {
    AT_FLIP = 0, AT_ROTATION = 1, AT_ELASTIC = 8, AT_JITTER = 11, AT_GRAY = 19, AT_BLUR = 20,
    AT_SOLARIZE = 21, COLUMNS = 22
};

static void jitter(Picture *p, const double *given)
{
    for (int slot = 0; slot < 4; slot++) {
        const int kind = (int)given[4 + slot];
        const float f = (float)given[kind];
        if (kind == HUE && f != 0)
            later(p, HUE, (float)(6 * (given[HUE] - floor(given[HUE] + 0.5))), 0, 0);
        else if (kind == CONTRAST && f != 1)
            later(p, kind, f, 0, (1 - f) * pass(p, NULL, NULL, NULL, 1));
        else if (kind != HUE && f != 1)
            later(p, kind, f, kind == SATURATION ? 1 - f : 0, 0);
    }
}

static void operate(Picture *p, int operation, const double *row)
{
    if (operation == FLIP && row[AT_FLIP] != 0)
        flip(p);
    else if (operation == ROTATION && row[AT_ROTATION] != 0)
        rotate(p, row + AT_ROTATION + 1);
    else if (operation == ELASTIC && row[AT_ELASTIC] != 0)
        elastic(p, row + AT_ELASTIC);
    else if (operation == JITTER)
        jitter(p, row + AT_JITTER);
    else if (operation == GRAY && row[AT_GRAY] != 0)
        later(p, LUMA, 0, 0, 0);
    else if (operation == BLUR && row[AT_BLUR] != 0)
        blur(p, row[AT_BLUR]);
    else if (operation == SOLARIZE && row[AT_SOLARIZE] < 1)
        later(p, INVERT, (float)row[AT_SOLARIZE], 0, 0);
}

/* Working memory for all pictures of a batch; 0 where there is not enough. */
static int prepare(Picture *p, const double *rows, int pictures)
{
    const size_t n = (size_t)p->height * p->width, width = p->width;
    size_t reach = 0, framed = 1;
    for (const double *row = rows; row < rows + (size_t)pictures * COLUMNS; row += COLUMNS) {
        const size_t one = blur_reach(row[AT_BLUR]), other = elastic_reach(row[AT_ELASTIC + 1]);
        if (row[AT_ELASTIC] != 0) {
            framed = (width + 3) * (p->height + 3);
            reach = other > reach ? other : reach;
        }
        reach = one > reach ? one : reach;
    }
    p->now = malloc(6 * n * sizeof(float));
    p->frame = calloc(framed, 4 * sizeof(float));
    p->row = malloc(4 * (width + reach) * sizeof(float));
    p->index = malloc(width * sizeof(int32_t));
    p->kernel = malloc((2 * reach + 1) * sizeof(float));
    p->taps = malloc((2 * reach + 1) * sizeof(float *));
    return p->now && p->frame && p->row && p->index && p->kernel && p->taps;
}

/* Pictures of height × width: bytes, with their channels last or as planes, to planes of floats.
   rows: COLUMNS parameters each; order: operations by number; next: the first picture that no
   thread has taken, 0 at first. Returns 0, or 1 when there is no memory. */
EXPORTED int finish(const uint8_t *bytes, float *out, const double *rows, const int32_t *order,
                    int steps, int32_t *next, int pictures, int height, int width, int planar,
                    const float *mean, const float *scale)
{
    const ptrdiff_t size = 3 * (ptrdiff_t)height * width;
    Picture p = {.height = height, .width = width};
    const int ready = prepare(&p, rows, pictures);
    float *const planes = p.now;
    p.pixel = planar ? 1 : 3, p.channel = planar ? height * width : 1;
    while (ready) {
        const int i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= pictures)
            break;
        p.bytes = bytes + i * size, p.count = p.flip_first = p.turned = p.flip_last = 0;
        p.now = planes, p.spare = planes + size;
        for (int s = 0; s < steps; s++)
            operate(&p, order[s], rows + (ptrdiff_t)i * COLUMNS);
        pass(&p, out + i * size, mean, scale, 0);
    }
    free(planes), free(p.frame), free(p.row), free(p.index), free(p.kernel), free(p.taps);
    return !ready;
}

EXPORTED int interface(void) { return INTERFACE; }
