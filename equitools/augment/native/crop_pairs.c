/* The two filters of crop.c where one instruction multiplies two taps and adds them (AVX2).

   Weights and levels fit in 16 bits and sums in 32, so the results are those of crop.c. A pair of
   values or weights is a 32-bit number, the first of them in its lower half. */

#include "crop.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

int pairs_work(void) { return __builtin_cpu_supports("avx2"); }

/* Weights become pairs, and count[i] that of pairs: the last may weigh what is behind with 0. */
void pair_weights(Axis *axis, int to)
{
    for (int i = 0; i < to; i++) {
        int32_t *w = axis->weights + (int64_t)i * axis->most;
        const int taps = axis->count[i], pairs = axis->count[i] = (taps + 1) / 2;
        for (int p = 0; p < pairs; p++) {
            const int32_t second = 2 * p + 1 < taps ? w[2 * p + 1] : 0;
            w[p] = (int32_t)((uint32_t)second << 16 | (uint16_t)w[2 * p]);
        }
    }
}

/* Pixels of four rows side by side: 16 bytes a column, four a pixel, of which one is unused. */
AVX2 static void side_by_side(uint8_t *bytes, const uint8_t *const *rows, int width)
{
    const __m128i spread = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    int x = 0;
    for (; x + 6 <= width; x += 4) { /* 16 bytes are loaded for the 12 of four pixels */
        __m128i row[TOGETHER];
        for (int r = 0; r < TOGETHER; r++)
            row[r] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(rows[r] + 3 * x)), spread);
        const __m128i a = _mm_unpacklo_epi32(row[0], row[1]), b = _mm_unpacklo_epi32(row[2], row[3]);
        const __m128i c = _mm_unpackhi_epi32(row[0], row[1]), d = _mm_unpackhi_epi32(row[2], row[3]);
        __m128i *out = (__m128i *)(bytes + 16 * x);
        _mm_storeu_si128(out, _mm_unpacklo_epi64(a, b));
        _mm_storeu_si128(out + 1, _mm_unpackhi_epi64(a, b));
        _mm_storeu_si128(out + 2, _mm_unpacklo_epi64(c, d));
        _mm_storeu_si128(out + 3, _mm_unpackhi_epi64(c, d));
    }
    for (; x < width; x++)
        for (int r = 0; r < TOGETHER; r++)
            memcpy(bytes + 16 * x + 4 * r, rows[r] + 3 * x, 3);
}

/* Each column paired with the next; what the last is paired with has no weight. */
AVX2 static void pair_columns(__m256i *columns, const uint8_t *bytes, int width)
{
    __m128i next = _mm_loadu_si128((const void *)bytes);
    for (; width; width--, columns += 2) {
        const __m128i now = next;
        next = _mm_loadu_si128((const void *)(bytes += 16));
        columns[0] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(now, next));
        columns[1] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(now, next));
    }
}

AVX2 void four_across_pairs(uint8_t *out, int stride, const uint8_t *const *rows, int width,
                            int size, Work *work)
{
    const Axis *axis = &work->axis;
    const __m256i half = _mm256_set1_epi32(1 << axis->bits >> 1);
    const __m128i bits = _mm_cvtsi32_si128(axis->bits);
    side_by_side(work->bytes, rows, width);
    pair_columns((__m256i *)work->columns, work->bytes, width);
    for (int i = 0; i < size; i++, out += 3) {
        const __m256i *from = (const __m256i *)(work->columns + axis->first[i]);
        const int32_t *weights = axis->weights + (int64_t)i * axis->most;
        const int32_t *const end = weights + axis->count[i];
        __m256i low = half, high = half; /* two rows each */
        for (; weights < end; weights++, from += 4) {
            const __m256i pair = _mm256_set1_epi32(*weights);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(pair, from[0]));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(pair, from[1]));
        }
        low = _mm256_packs_epi32(_mm256_sra_epi32(low, bits), _mm256_sra_epi32(high, bits));
        low = _mm256_packus_epi16(low, low); /* rows 0 and 2, and in the upper half 1 and 3 */
        const uint64_t even = (uint64_t)_mm_cvtsi128_si64(_mm256_castsi256_si128(low));
        const uint64_t odd = (uint64_t)_mm_cvtsi128_si64(_mm256_extracti128_si256(low, 1));
        const uint32_t four[TOGETHER] = {(uint32_t)even, (uint32_t)odd, even >> 32, odd >> 32};
        for (int r = 0; r < TOGETHER; r++) /* the fourth byte is overwritten by the next pixel */
            memcpy(out + r * stride, four + r, 4);
    }
}

/* 32 bytes of a row from as many of each of `count` pairs of rows. */
AVX2 static inline __m256i weigh_rows(const uint8_t *rows, int64_t stride, const int32_t *weights,
                                      int count, __m256i half, __m128i bits)
{
    const __m256i zero = _mm256_setzero_si256();
    const int32_t *const end = weights + count;
    __m256i sum[4] = {half, half, half, half};
    for (; weights < end; weights++, rows += 2 * stride) {
        const __m256i pair = _mm256_set1_epi32(*weights);
        const __m256i a = _mm256_loadu_si256((const void *)rows);
        const __m256i b = _mm256_loadu_si256((const void *)(rows + stride));
        const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
        const __m256i pairs[4] = {
            _mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
            _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero),
        };
        for (int i = 0; i < 4; i++)
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pair, pairs[i]));
    }
    for (int i = 0; i < 4; i++)
        sum[i] = _mm256_sra_epi32(sum[i], bits);
    return _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]),
                               _mm256_packs_epi32(sum[2], sum[3]));
}

AVX2 void one_down_pairs(uint8_t *out, const uint8_t *rows, int stride, int n, int y, Work *work)
{
    const Axis *axis = &work->axis;
    const int32_t *weights = axis->weights + (int64_t)y * axis->most;
    const __m256i half = _mm256_set1_epi32(1 << axis->bits >> 1);
    const __m128i bits = _mm_cvtsi32_si128(axis->bits);
    rows += (int64_t)axis->first[y] * stride;
    for (int i = 0; i < n; i += 32) {
        const __m256i done = weigh_rows(rows + i, stride, weights, axis->count[y], half, bits);
        if (i + 32 <= n)
            _mm256_storeu_si256((void *)(out + i), done);
        else
            memcpy(out + i, &done, n - i);
    }
}

#else

int pairs_work(void) { return 0; }
void pair_weights(Axis *axis, int to) { (void)axis, (void)to; }
void four_across_pairs(uint8_t *out, int stride, const uint8_t *const *rows, int width, int size,
                       Work *work)
{
    (void)out, (void)stride, (void)rows, (void)width, (void)size, (void)work;
}
void one_down_pairs(uint8_t *out, const uint8_t *rows, int stride, int n, int y, Work *work)
{
    (void)out, (void)rows, (void)stride, (void)n, (void)y, (void)work;
}

#endif
