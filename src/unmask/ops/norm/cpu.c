/* RMSNorm of bf16 rows in the published order: float32 statistics, round to bf16, times the weight, round again. */
#include "../native.h"

void unmask_rms_norm(const uint16_t *x, int64_t stride, const uint16_t *weight, uint16_t *out, int64_t rows, int64_t dim,
                     float eps) {
#pragma omp parallel for schedule(static) if (rows * dim > MANY)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *in = x + r * stride;
        uint16_t *to = out + r * dim;
        float sum = 0.f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < dim; i++) {
            float v = widen(in[i]);
            sum += v * v;
        }
        float scale = 1.f / sqrtf(sum / (float)dim + eps);
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) to[i] = narrow(widen(narrow(widen(in[i]) * scale)) * widen(weight[i]));
    }
}
