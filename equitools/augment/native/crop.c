/* Windows of a picture, resized by an antialiased bicubic filter in fixed point.

   The arithmetic is that of torch's uint8 interpolation, to the bit: along rows first, each axis
   with 16-bit weights of as many fractional bits as its largest one leaves room for. A
   call of torch spends more around it than all the work on a picture of 32 pixels. */

#include "crop.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Outputs first … end of a side of `from` values, of which each output takes `scale`. */
typedef struct {
    int from, first, end;
    double scale;
} Side;

static double filter(double x, int linear)
{
    const double a = -0.5;
    x = fabs(x);
    if (linear)
        return x < 1 ? 1 - x : 0;
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

/* From `first` to the value before `last` of what output i reads. */
static void reach(const Side *side, int linear, int i, int *first, int *last)
{
    const double support = (linear ? 1 : 2) * (side->scale >= 1 ? side->scale : 1);
    const double center = side->scale * (i + 0.5);
    *first = (int)(center - support + 0.5), *last = (int)(center + support + 0.5);
    *first = *first < 0 ? 0 : *first, *last = *last > side->from ? side->from : *last;
}

/* The normalized weights of one output value; returns the largest. */
static double weigh_one(Axis *axis, int i, const Side *side, int linear)
{
    const double inverse = side->scale >= 1 ? 1 / side->scale : 1;
    const double center = side->scale * (i + 0.5);
    double *weights = axis->exact + (int64_t)i * axis->most, total = 0, largest = 0;
    int first, last;
    reach(side, linear, i, &first, &last);
    axis->first[i] = first;
    axis->count[i] = last - first < axis->most ? last - first : axis->most;
    for (int t = 0; t < axis->count[i]; t++)
        total += weights[t] = filter((t + first - center + 0.5) * inverse, linear);
    for (int t = 0; t < axis->count[i]; t++) {
        weights[t] = total != 0 ? weights[t] / total : weights[t];
        largest = weights[t] > largest ? weights[t] : largest;
    }
    return largest;
}

/* All outputs up to the end: the largest weight decides the precision. */
static void weigh_axis(Axis *axis, const Side *side, int linear, int pairs)
{
    const int to = side->end;
    double largest = 0;
    axis->most = 2 * (int)ceil((linear ? 1 : 2) * (side->scale >= 1 ? side->scale : 1)) + 1;
    for (int i = 0; i < to; i++) {
        const double one = weigh_one(axis, i, side, linear);
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

/* The axis from its output `first` on, its values counted from `start`. */
static Axis later_part(const Axis *axis, const Side *side, int start)
{
    Axis part = *axis;
    part.first += side->first, part.count += side->first;
    part.weights += (int64_t)side->first * axis->most;
    for (int i = 0; i < side->end - side->first; i++)
        part.first[i] -= start;
    return part;
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

/* Outputs of both sides of a window whose rows are `pitch` bytes apart, size × size. */
static void resize(uint8_t *out, const uint8_t *window, int64_t pitch, Side rows, Side columns,
                   int size, int linear, int pairs, Work *work)
{
    const int stride = 3 * size + 1; /* a byte to spare behind each row */
    const Axis whole = work->axis;
    const uint8_t *four[TOGETHER];
    int top, bottom, left, right, unused;
    reach(&rows, linear, rows.first, &top, &unused);
    reach(&rows, linear, rows.end - 1, &unused, &bottom);
    reach(&columns, linear, columns.first, &left, &unused);
    reach(&columns, linear, columns.end - 1, &unused, &right);
    weigh_axis(&work->axis, &columns, linear, pairs); /* 1 and exact where nothing is resized */
    work->axis = later_part(&work->axis, &columns, left);
    for (int y = 0; y < bottom - top; y += TOGETHER) {
        for (int r = 0; r < TOGETHER; r++)
            four[r] = window + (top + y + r < bottom ? top + y + r : bottom - 1) * pitch + 3 * left;
        (pairs ? four_across_pairs : four_across)(work->rows + (int64_t)y * stride, stride, four,
                                                  right - left, size, work);
    }
    work->axis = whole;
    weigh_axis(&work->axis, &rows, linear, pairs);
    work->axis = later_part(&work->axis, &rows, top);
    for (int y = 0; y < size; y++, out += 3 * size)
        (pairs ? one_down_pairs : one_down)(out, work->rows, stride, 3 * size, y, work);
    work->axis = whole;
}

static Side all_of(int from, int to) { return (Side){from, 0, to, (double)from / to}; }

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

static void release(Work *work)
{
    free(work->axis.first), free(work->axis.count);
    free(work->axis.weights), free(work->axis.exact);
    free(work->rows), free(work->bytes), free(work->columns), free(work->sums);
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
        resize(out, window, 3 * (int64_t)width, all_of(windows[2], size), all_of(windows[3], size),
               size, 0, pairs, &work);
        out += 3 * (int64_t)size * size;
    }
    release(&work);
    return !ready;
}

/* An image resized to tall × wide, by its bicubic or linear filter, of which the square from `top`
   and `left` is wanted; plain: as above; out: its pixels. Returns 0, 1 when there is no memory, or
   2 when the square is not inside. */
EXPORTED int resize_part(const uint8_t *image, int height, int width, int tall, int wide, int top,
                         int left, int size, int linear, int plain, uint8_t *out)
{
    /* Scales as torch has them where it is told what they are. */
    const Side rows = {height, top, top + size, 1 / ((double)tall / height)};
    const Side columns = {width, left, left + size, 1 / ((double)wide / width)};
    const int longest = rows.end > columns.end ? rows.end : columns.end;
    Work work;
    if (height < 1 || width < 1 || size < 1 || top < 0 || left < 0 || rows.end > tall
        || columns.end > wide)
        return 2;
    const int ready = prepare(&work, height, width, longest);
    if (ready)
        resize(out, image, 3 * (int64_t)width, rows, columns, size, linear,
               !plain && pairs_work(), &work);
    release(&work);
    return !ready;
}
