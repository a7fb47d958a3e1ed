/* Attention of bf16 query rows against stored keys and values with AVX512-BF16: float32 scores and sums, weights in bf16.
 *
 * Per head, keys are packed once so that one instruction multiplies a pair of dimensions for 16 keys, and values so that one
 * instruction adds a pair of keys for 16 dimensions. Heads are shared between the threads.
 */
#include "../native.h"
#ifdef __AVX512BF16__
#include <immintrin.h>

#define BLOCK 8 /* query rows that share a pass over the packed keys */

static inline __m512 exp16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.f)));
    return _mm512_scalef_ps(p, n);
}

/* keys [m, dim] -> [m / 16][dim / 2][16 keys][2 dimensions]; keys beyond m are zero. */
static void pack_keys(const uint16_t *keys, int64_t m, int64_t padded, int64_t dim, uint16_t *to) {
    const __m512i step = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32((int)(dim / 2)));
    for (int64_t k = 0; k < padded; k += 16) {
        __mmask16 real = m - k >= 16 ? 0xffff : (__mmask16)((1u << (m - k)) - 1u);
        for (int64_t d = 0; d < dim / 2; d++) {
            const int *base = (const int *)(keys + k * dim) + d;
            __m512i pair = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), real, step, base, 4);
            _mm512_store_si512((void *)(to + (k * dim / 2 + d * 16) * 2), pair);
        }
    }
}

/* values [m, dim] -> [m / 2][dim][2 keys]; keys beyond m are zero. */
static void pack_values(const uint16_t *values, int64_t m, int64_t padded, int64_t dim, uint16_t *to) {
    for (int64_t k = 0; k < padded; k += 2) {
        for (int64_t d = 0; d < dim; d += 16) {
            __m512i low = _mm512_setzero_si512(), high = low;
            if (k < m) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(values + k * dim + d)));
            if (k + 1 < m) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(values + (k + 1) * dim + d)));
            _mm512_store_si512((void *)(to + (k * dim + d * 2)), _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

static inline __m512bh pair_of(const uint16_t *two) {
    int both;
    memcpy(&both, two, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* scores [BLOCK, padded] = q . k, and the largest of each row times nothing: scaling waits for the exponential. */
static void scores_of(const uint16_t *const *q, const uint16_t *keys, int64_t m, int64_t padded, int64_t dim, float *scores,
                      float *largest) {
    __m512 top[BLOCK];
    for (int r = 0; r < BLOCK; r++) top[r] = _mm512_set1_ps(-INFINITY);
    for (int64_t k = 0; k < padded; k += 32) {
        __m512 a[BLOCK], b[BLOCK];
        for (int r = 0; r < BLOCK; r++) a[r] = b[r] = _mm512_setzero_ps();
        const uint16_t *first = keys + k * dim, *second = first + 16 * dim;
        for (int64_t d = 0; d < dim / 2; d++) {
            __m512bh x = (__m512bh)_mm512_load_si512((const void *)(first + d * 32));
            __m512bh y = (__m512bh)_mm512_load_si512((const void *)(second + d * 32));
            for (int r = 0; r < BLOCK; r++) {
                __m512bh two = pair_of(q[r] + d * 2);
                a[r] = _mm512_dpbf16_ps(a[r], two, x);
                b[r] = _mm512_dpbf16_ps(b[r], two, y);
            }
        }
        int64_t left = m - k;
        __mmask16 in = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1u);
        __mmask16 ib = left >= 32 ? 0xffff : left > 16 ? (__mmask16)((1u << (left - 16)) - 1u) : 0;
        const __m512 none = _mm512_set1_ps(-INFINITY);
        for (int r = 0; r < BLOCK; r++) {
            a[r] = _mm512_mask_blend_ps(in, none, a[r]);
            b[r] = _mm512_mask_blend_ps(ib, none, b[r]);
            _mm512_store_ps(scores + r * padded + k, a[r]);
            _mm512_store_ps(scores + r * padded + k + 16, b[r]);
            top[r] = _mm512_max_ps(top[r], _mm512_max_ps(a[r], b[r]));
        }
    }
    for (int r = 0; r < BLOCK; r++) largest[r] = _mm512_reduce_max_ps(top[r]);
}

/* scores -> bf16 weights exp((s - largest) * scale) in place of nothing else; returns 1 / sum per row. */
static void weights_of(const float *scores, const float *largest, int64_t padded, float scale, uint16_t *weights,
                       float *inverse) {
    for (int r = 0; r < BLOCK; r++) {
        __m512 sum = _mm512_setzero_ps(), top = _mm512_set1_ps(largest[r]), by = _mm512_set1_ps(scale);
        for (int64_t k = 0; k < padded; k += 16) {
            __m512 s = _mm512_load_ps(scores + r * padded + k);
            __mmask16 real = _mm512_cmp_ps_mask(s, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
            __m512 e = _mm512_maskz_mov_ps(real, exp16(_mm512_mul_ps(_mm512_sub_ps(s, top), by)));
            sum = _mm512_add_ps(sum, e);
            _mm256_store_si256((void *)(weights + r * padded + k), (__m256i)_mm512_cvtneps_pbh(e));
        }
        inverse[r] = 1.f / _mm512_reduce_add_ps(sum);
    }
}

/* out[r] += weights . values over 64 or 32 dimensions from `d`, for 4 rows. */
static inline void mix(const uint16_t *weights, const uint16_t *values, int64_t padded, int64_t dim, int64_t d, int wide,
                       const float *inverse, uint16_t *const *out) {
    __m512 acc[4][4];
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < wide; j++) acc[r][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < padded; k += 2) {
        __m512bh v[4];
        for (int j = 0; j < wide; j++) v[j] = (__m512bh)_mm512_load_si512((const void *)(values + k * dim + (d + j * 16) * 2));
        for (int r = 0; r < 4; r++) {
            __m512bh w = pair_of(weights + r * padded + k);
            for (int j = 0; j < wide; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], w, v[j]);
        }
    }
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < wide && out[r]; j++) {
            __m512 o = _mm512_mul_ps(acc[r][j], _mm512_set1_ps(inverse[r]));
            _mm256_storeu_si256((void *)(out[r] + d + j * 16), (__m256i)_mm512_cvtneps_pbh(o));
        }
}

/* One key/value head: its `count` query rows start at q + row(i), where row i is (i / group, head * group + i % group). */
static void one_head(const uint16_t *q, int64_t q_stride, const uint16_t *keys, const uint16_t *values, uint16_t *out,
                     int64_t first, int64_t last, int64_t head, int64_t heads, int64_t group, int64_t dim, int64_t m,
                     float scale, char *work) {
    int64_t padded = (m + 31) / 32 * 32;
    uint16_t *packed_k = (uint16_t *)work, *packed_v = packed_k + padded * dim, *weights = packed_v + padded * dim;
    float *scores = (float *)(weights + BLOCK * padded);
    /* The weights of the layers have driven the store out of the caches: ask for all of it before the gathers wait. */
    for (int64_t i = 0; i < m * dim; i += 32) {
        _mm_prefetch((const char *)(keys + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(values + i), _MM_HINT_T1);
    }
    pack_keys(keys, m, padded, dim, packed_k);
    pack_values(values, m, padded, dim, packed_v);
    for (int64_t i = first; i < last; i += BLOCK) {
        const uint16_t *from[BLOCK];
        uint16_t *to[BLOCK];
        float largest[BLOCK], inverse[BLOCK];
        for (int r = 0; r < BLOCK; r++) {
            int64_t row = i + r < last ? i + r : last - 1, h = head * group + row % group;
            from[r] = q + row / group * q_stride + h * dim;
            to[r] = i + r < last ? out + (row / group * heads + h) * dim : 0;
        }
        scores_of(from, packed_k, m, padded, dim, scores, largest);
        weights_of(scores, largest, padded, scale, weights, inverse);
        for (int half = 0; half < BLOCK; half += 4) {
            int64_t d = 0;
            for (; d + 64 <= dim; d += 64) mix(weights + half * padded, packed_v, padded, dim, d, 4, inverse + half, to + half);
            if (d < dim) mix(weights + half * padded, packed_v, padded, dim, d, 2, inverse + half, to + half);
        }
    }
}

/* q [n, heads, dim] (rows q_stride apart), keys and values [kv_heads, m, dim] (heads kv_stride apart) -> out [n, heads, dim].
 * Returns 0, or 1 when memory ran out. */
int unmask_attention(const uint16_t *q, int64_t q_stride, const uint16_t *keys, const uint16_t *values, int64_t kv_stride,
                     uint16_t *out, int64_t n, int64_t heads, int64_t kv_heads, int64_t dim, int64_t m, float scale,
                     int64_t splits) {
    int64_t padded = (m + 31) / 32 * 32, group = heads / kv_heads, rows = n * group;
    int64_t share = ((rows + splits - 1) / splits + BLOCK - 1) / BLOCK * BLOCK;
    size_t size = (size_t)(2 * 2 * padded * dim + (2 + 4) * BLOCK * padded);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        char *work = aligned_alloc(64, size);
        failed = work == 0;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < kv_heads * splits; task++) {
            int64_t head = task / splits, first = task % splits * share, last = first + share < rows ? first + share : rows;
            if (work && first < last)
                one_head(q, q_stride, keys + head * kv_stride, values + head * kv_stride, out, first, last, head, heads, group,
                         dim, m, scale, work);
        }
        free(work);
    }
    return failed;
}
#endif
