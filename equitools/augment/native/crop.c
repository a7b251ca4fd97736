/* Windows of a picture, resized by an antialiased bicubic filter in fixed point.

   The arithmetic is that of torch's uint8 interpolation, to the bit: along rows first, each axis
   with 16-bit weights of as many fractional bits as its largest one leaves room for. A
   call of torch spends more around it than all the work on a picture of 32 pixels. */

#include "crop.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

/* The normalized weights of one output value; returns the largest. */
static double weigh_one(Axis *axis, int i, int from, double scale)
{
    const double support = scale >= 1 ? 2 * scale : 2, inverse = scale >= 1 ? 1 / scale : 1;
    const double center = scale * (i + 0.5);
    double *weights = axis->exact + (int64_t)i * axis->most, total = 0, largest = 0;
    int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
    first = first < 0 ? 0 : first, last = last > from ? from : last;
    axis->first[i] = first;
    axis->count[i] = last - first < axis->most ? last - first : axis->most;
    for (int t = 0; t < axis->count[i]; t++)
        total += weights[t] = cubic((t + first - center + 0.5) * inverse);
    for (int t = 0; t < axis->count[i]; t++) {
        weights[t] = total != 0 ? weights[t] / total : weights[t];
        largest = weights[t] > largest ? weights[t] : largest;
    }
    return largest;
}

static void weigh_axis(Axis *axis, int from, int to, int pairs)
{
    const double scale = (double)from / to;
    double largest = 0;
    axis->most = 2 * (int)ceil(scale >= 1 ? 2 * scale : 2) + 1;
    for (int i = 0; i < to; i++) {
        const double one = weigh_one(axis, i, from, scale);
        largest = one > largest ? one : largest;
    }
    for (axis->bits = 0; axis->bits < 22; axis->bits++)
        if ((int)(0.5 + largest * (1 << (axis->bits + 1))) >= 1 << 15)
            break;
    for (int i = 0; i < to * axis->most; i++) {
        const double w = axis->exact[i] * (1 << axis->bits);
        axis->weights[i] = (int)(w < 0 ? w - 0.5 : w + 0.5);
    }
    if (pairs)
        pair_weights(axis, to);
}

static inline uint8_t level(int32_t x) { return x < 0 ? 0 : x > 255 ? 255 : (uint8_t)x; }

VECTORS static void widen(int32_t *restrict out, const uint8_t *bytes, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = bytes[i];
}

VECTORS static void narrow(uint8_t *restrict out, const int32_t *sums, int n, int bits)
{
    for (int i = 0; i < n; i++)
        out[i] = level(sums[i] >> bits);
}

/* Columns of four rows become columns of sums, sixteen numbers each. */
VECTORS static void across(Rows *sums, const Rows *columns, int size, const Axis *axis)
{
    for (int i = 0; i < size; i++) {
        const Rows *from = columns + axis->first[i];
        const int32_t *weights = axis->weights + (int64_t)i * axis->most;
        Rows sum = {0};
        for (int t = 0; t < axis->count[i]; t++)
            sum += weights[t] * from[t];
        sums[i] = sum + (1 << axis->bits >> 1);
    }
}

static void four_across(uint8_t *out, int stride, const uint8_t *const *rows, int width, int size,
                        Work *work)
{
    const Axis *axis = &work->axis;
    uint8_t *bytes = work->bytes;
    for (int r = 0; r < TOGETHER; r++) {
        for (int x = 0; x < width - 1; x++) /* the fourth byte is the next one's first, unused */
            memcpy(bytes + 16 * x + 4 * r, rows[r] + 3 * x, 4);
        memcpy(bytes + 16 * (width - 1) + 4 * r, rows[r] + 3 * (width - 1), 3);
    }
    widen((int32_t *)work->columns, bytes, 16 * width);
    across(work->sums, work->columns, size, axis);
    narrow(bytes, (const int32_t *)work->sums, 16 * size, axis->bits);
    for (int r = 0; r < TOGETHER; r++)
        for (int x = 0; x < size; x++)
            memcpy(out + r * stride + 3 * x, bytes + 16 * x + 4 * r, 4);
}

/* One row of n bytes from `count` rows. */
VECTORS static void down(int32_t *restrict sums, const uint8_t *rows, int stride, int n,
                         const int32_t *w, int count, int bits)
{
    int t = count & 1;
    for (int i = 0; i < n; i++)
        sums[i] = (1 << bits >> 1) + (t ? w[0] * rows[i] : 0);
    for (; t < count; t += 2) {
        const uint8_t *a = rows + t * stride, *b = a + stride;
        for (int i = 0; i < n; i++)
            sums[i] += w[t] * a[i] + w[t + 1] * b[i];
    }
}

static void one_down(uint8_t *out, const uint8_t *rows, int stride, int n, int y, Work *work)
{
    const Axis *axis = &work->axis;
    int32_t *sums = (int32_t *)work->sums;
    down(sums, rows + (int64_t)axis->first[y] * stride, stride, n,
         axis->weights + (int64_t)y * axis->most, axis->count[y], axis->bits);
    narrow(out, sums, n, axis->bits);
}

/* A window of height × width pixels, rows `pitch` bytes apart, to size × size. */
static void resize(uint8_t *out, const uint8_t *window, int64_t pitch, int height, int width,
                   int size, int pairs, Work *work)
{
    const int stride = 3 * size + 1; /* a byte to spare behind each row */
    const uint8_t *four[TOGETHER];
    weigh_axis(&work->axis, width, size, pairs); /* where the width fits, weights are 1 and exact */
    for (int y = 0; y < height; y += TOGETHER) {
        for (int r = 0; r < TOGETHER; r++)
            four[r] = window + (y + r < height ? y + r : height - 1) * pitch;
        (pairs ? four_across_pairs : four_across)(work->rows + (int64_t)y * stride, stride, four,
                                                  width, size, work);
    }
    weigh_axis(&work->axis, height, size, pairs);
    for (int y = 0; y < size; y++, out += 3 * size)
        (pairs ? one_down_pairs : one_down)(out, work->rows, stride, 3 * size, y, work);
}

static int prepare(Work *work, int height, int width, int size)
{
    const int side = height > width ? height : width, longest = side > size ? side : size;
    const size_t weights = 4 * (size_t)side + 5 * (size_t)size; /* enough for smaller sizes too */
    work->axis.first = malloc(size * sizeof(int));
    work->axis.count = malloc(size * sizeof(int));
    work->axis.weights = malloc(weights * sizeof(int32_t));
    work->axis.exact = calloc(weights, sizeof(double));
    work->rows = malloc((size_t)(height + TOGETHER) * (3 * size + 1) + SPARE);
    work->bytes = malloc((longest + 1) * 16);
    work->columns = aligned_alloc(sizeof(Rows), width * sizeof(Rows));
    work->sums = aligned_alloc(sizeof(Rows), size * sizeof(Rows));
    return work->axis.first && work->axis.count && work->axis.weights && work->axis.exact
        && work->rows && work->bytes && work->columns && work->sums;
}

/* The largest side asked for; 0 where a window is not inside the image. */
static int largest_side(int height, int width, const int32_t *windows, int views)
{
    int largest = 1;
    for (int v = 0; v < views; v++, windows += 5) {
        const int64_t top = windows[0], left = windows[1], h = windows[2], w = windows[3];
        if (top < 0 || left < 0 || h < 1 || w < 1 || top + h > height || left + w > width)
            return 0;
        largest = windows[4] > largest ? windows[4] : largest;
    }
    return largest;
}

/* An image of rows of `width` RGB pixels; windows: (top, left, height, width) in pixels and the
   side of the result for each view; plain: without crop_pairs.c, for comparison; out: the views'
   pixels, one after another. Returns 0, 1 when there is no memory, or 2 when a window is not
   inside the image. */
EXPORTED int crop(const uint8_t *image, int height, int width, const int32_t *windows, int views,
                  int plain, uint8_t *out)
{
    Work work;
    const int pairs = !plain && pairs_work();
    const int largest = largest_side(height, width, windows, views);
    if (!largest)
        return 2;
    const int ready = prepare(&work, height, width, largest);
    for (int v = 0; v < views && ready; v++, windows += 5) {
        const int size = windows[4];
        const uint8_t *window = image + 3 * ((int64_t)windows[0] * width + windows[1]);
        resize(out, window, 3 * (int64_t)width, windows[2], windows[3], size, pairs, &work);
        out += 3 * (int64_t)size * size;
    }
    free(work.axis.first), free(work.axis.count), free(work.axis.weights), free(work.axis.exact);
    free(work.rows), free(work.bytes), free(work.columns), free(work.sums);
    return !ready;
}
