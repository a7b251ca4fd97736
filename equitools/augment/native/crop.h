/* What crop.c and its faster halves in crop_pairs.c share. */

#ifndef CROP_H
#define CROP_H

#include "picture.h"

typedef int32_t Rows __attribute__((vector_size(64), may_alias));
enum { TOGETHER = 4, SPARE = 32 }; /* rows; bytes that may be read behind the last of them */

/* How one side is resized: output i reads count[i] values from first[i] with weights[i · most]. */
typedef struct {
    int most, bits;
    int *first, *count;
    int32_t *weights;
    double *exact;
} Axis;

typedef struct {
    Axis axis;
    uint8_t *rows, *bytes;
    Rows *columns, *sums;
} Work;

/* Four rows of `width` pixels to four of `size`, `stride` bytes apart. */
typedef void FourAcross(uint8_t *out, int stride, const uint8_t *const *rows, int width, int size,
                        Work *work);
/* Output row y of n bytes from the rows that its weights want. */
typedef void OneDown(uint8_t *out, const uint8_t *rows, int stride, int n, int y, Work *work);

/* crop_pairs.c; only where `pairs_work` says so */
int pairs_work(void);
void pair_weights(Axis *axis, int to);
FourAcross four_across_pairs;
OneDown one_down_pairs;

#endif
