/* Rotates the first `heads` heads of every row in place; half-split layout. cos, sin [rows, dim]. */
#include "../native.h"

/* Tables in float32: one rounding at the end (LLaDA). */
void unmask_rope_float(uint16_t *x, int64_t stride, const float *cosine, const float *sine, int64_t rows, int64_t heads,
                       int64_t dim) {
    int64_t half = dim / 2;
#pragma omp parallel for schedule(static) if (rows * heads * dim > MANY)
    for (int64_t r = 0; r < rows; r++) {
        const float *c = cosine + r * dim, *s = sine + r * dim;
        for (int64_t h = 0; h < heads; h++) {
            uint16_t *a = x + r * stride + h * dim, *b = a + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float p = widen(a[i]), q = widen(b[i]);
                float pc = p * c[i], qs = -q * s[i], qc = q * c[half + i], ps = p * s[half + i];
                a[i] = narrow(pc + qs);
                b[i] = narrow(qc + ps);
            }
        }
    }
}

/* Tables in bf16: every product and the sum are rounded, as bf16 tensors would be (Dream, Qwen2). */
void unmask_rope_bf16(uint16_t *x, int64_t stride, const uint16_t *cosine, const uint16_t *sine, int64_t rows,
                      int64_t heads, int64_t dim) {
    int64_t half = dim / 2;
#pragma omp parallel for schedule(static) if (rows * heads * dim > MANY)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *c = cosine + r * dim, *s = sine + r * dim;
        for (int64_t h = 0; h < heads; h++) {
            uint16_t *a = x + r * stride + h * dim, *b = a + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float p = widen(a[i]), q = widen(b[i]);
                float pc = widen(narrow(p * widen(c[i]))), qs = widen(narrow(-q * widen(s[i])));
                float qc = widen(narrow(q * widen(c[half + i]))), ps = widen(narrow(p * widen(s[half + i])));
                a[i] = narrow(pc + qs);
                b[i] = narrow(qc + ps);
            }
        }
    }
}
