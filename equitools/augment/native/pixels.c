/* Changes of single pixels, planes of n floats in [0, 1]: the formulae of jitter, gray, solarize. */

#include "picture.h"

#include <math.h>

static inline float unit(float x)
{
    x = x < 0 ? 0 : x;
    return x > 1 ? 1 : x;
}

/* x ← f x + l · luma + c: brightness, contrast (c from the mean luma) and saturation. */
VECTORS void blend(float *r, float *g, float *b, int n, float f, float l, float c)
{
    for (int i = 0; i < n; i++) {
        const float rest = (0.2989f * r[i] + 0.587f * g[i] + 0.114f * b[i]) * l + c;
        r[i] = unit(f * r[i] + rest);
        g[i] = unit(f * g[i] + rest);
        b[i] = unit(f * b[i] + rest);
    }
}

/* The closed form of HSV → RGB; sixths of a turn in [-3, 3]. */
VECTORS void turn_hue(float *r, float *g, float *b, int n, float sixths)
{
    for (int i = 0; i < n; i++) {
        const float x = r[i], y = g[i], z = b[i];
        float high = x > y ? x : y, low = x < y ? x : y;
        high = high > z ? high : z, low = low < z ? low : z;
        const float chroma = high - low, scale = 1 / (chroma > 1e-12f ? chroma : 1e-12f);
        float angle = high == y ? (z - x) * scale + 2 : (x - y) * scale + 4;
        angle = (high == x ? (y - z) * scale : angle) + sixths;
        /* Into [0, 6): above -6 a cast rounds down, and vectors have no faster floor. */
        angle -= 6 * ((float)(int)(angle * (1 / 6.f) + 1) - 1);
        r[i] = unit(high - chroma * unit(2 - fabsf(angle - 3)));
        g[i] = unit(high - chroma * unit(fabsf(angle - 2) - 1));
        b[i] = unit(high - chroma * unit(fabsf(angle - 4) - 1));
    }
}

VECTORS void lose_color(float *r, float *g, float *b, int n)
{
    for (int i = 0; i < n; i++)
        r[i] = g[i] = b[i] = 0.2989f * r[i] + 0.587f * g[i] + 0.114f * b[i];
}

VECTORS void invert(float *x, int n, float bound)
{
    for (int i = 0; i < n; i++)
        x[i] = x[i] >= bound ? 1 - x[i] : x[i];
}

VECTORS void normalize(float *out, const float *x, int n, float mean, float scale)
{
    for (int i = 0; i < n; i++)
        out[i] = (x[i] - mean) * scale;
}

/* The sum over n pixels. */
VECTORS float luma(const float *r, const float *g, const float *b, int n)
{
    float total = 0;
    for (int i = 0; i < n; i++)
        total += 0.2989f * r[i] + 0.587f * g[i] + 0.114f * b[i];
    return total;
}
