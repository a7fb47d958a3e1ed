/* Per row of bf16 logits: the largest value, its lowest index, and the sum of exp(x - largest). */
#include "../native.h"

#define LANES 16

static int64_t lowest_index(const uint16_t *row, int64_t vocab, float best) {
    int64_t i = 0;
    for (; i + 64 <= vocab; i += 64) {
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int j = 0; j < 64; j++) found |= widen(row[i + j]) == best;
        if (found) break;
    }
    while (i < vocab - 1 && widen(row[i]) != best) i++;
    return i;
}

static float sum_of_exp(const uint16_t *row, int64_t vocab, float best) {
    float part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= vocab; i += LANES) {
#pragma omp simd
        for (int j = 0; j < LANES; j++) part[j] += fast_exp(widen(row[i + j]) - best);
    }
    for (; i < vocab; i++) part[0] += fast_exp(widen(row[i]) - best);
    double total = 0;
    for (int j = 0; j < LANES; j++) total += part[j];
    return (float)total;
}

/* A row that holds a NaN has the largest value NaN and the sum NaN; its index is that of the first NaN. */
void unmask_score(const uint16_t *logits, int64_t stride, int64_t *index, float *largest, float *sum, int64_t rows,
                  int64_t vocab) {
#pragma omp parallel for schedule(static) if (rows * vocab > MANY_EXP)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *row = logits + r * stride;
        float best = -INFINITY;
        int broken = 0;
#pragma omp simd reduction(max : best) reduction(| : broken)
        for (int64_t i = 0; i < vocab; i++) {
            float v = widen(row[i]);
            broken |= v != v;
            best = v > best ? v : best;
        }
        if (broken) {
            int64_t at = 0;
            while (widen(row[at]) == widen(row[at])) at++;
            index[r] = at;
            largest[r] = sum[r] = NAN;
            continue;
        }
        index[r] = lowest_index(row, vocab, best);
        largest[r] = best;
        sum[r] = best == -INFINITY ? 0.f : sum_of_exp(row, vocab, best);
    }
}
