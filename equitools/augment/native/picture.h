/* A picture on its way through the operations, and what the files beside this one do to it. */

#ifndef PICTURE_H
#define PICTURE_H

#include <stdint.h>

/* One binary for every processor: the dynamic linker picks the widest vectors that it has. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__)
#define VECTORS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORS
#endif

#define EXPORTED __attribute__((visibility("default")))
#define INTERFACE 3 /* as in compiled.py; goes up when a function's arguments or meaning change */

/* Steps on single pixels; the first four are numbered as in jitter's order. */
enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, LUMA, INVERT };

typedef struct {
    int kind;
    float factor, of_luma, constant;
} Step;

typedef struct {
    const uint8_t *bytes; /* of a picture that is not loaded yet, else null */
    int height, width;
    int pixel, channel;                /* distances between pixels and between channels, bytes */
    int flip_first, turned, flip_last; /* what loading does besides */
    int32_t turn[6];                   /* x and then y of the source from (x, y, 1), 16.16 */
    Step steps[8];                     /* what waits for the next pass */
    int count;
    float *now, *spare; /* three planes each */
    float *frame;       /* (r, g, b, 1) with a border of zeros */
    float *row;         /* two rows, padded by the longest kernel */
    int32_t *index;     /* a row */
    float *kernel;
    const float **taps;
} Picture;

/* pixels.c */
void blend(float *r, float *g, float *b, int n, float factor, float of_luma, float constant);
void turn_hue(float *r, float *g, float *b, int n, float sixths);
void lose_color(float *r, float *g, float *b, int n);
void invert(float *x, int n, float bound);
void normalize(float *out, const float *x, int n, float mean, float scale);
float luma(const float *r, const float *g, const float *b, int n);

/* loading.c */
void load_row(const Picture *p, int y, float *r, float *g, float *b);
void flip(Picture *p);
void rotate(Picture *p, const double *given);

/* passes.c */
void later(Picture *p, int kind, float factor, float of_luma, float constant);
float pass(Picture *p, float *out, const float *mean, const float *scale, int asked);

/* smooth.c */
void weigh(float *out, const float *const *taps, const float *kernel, int count, int n);
void gaussian(float *kernel, int half, double sigma);
int blur_reach(double sigma);
void blur(Picture *p, double sigma);

/* elastic.c */
int elastic_reach(double sigma);
void elastic(Picture *p, const double *given);

#endif
