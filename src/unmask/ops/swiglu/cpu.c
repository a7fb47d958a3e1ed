/* silu(gate) * up over fused rows [gate, up] of bf16, silu rounded to bf16 first. */
#include "../native.h"

void unmask_swiglu(const uint16_t *gate_up, uint16_t *out, int64_t rows, int64_t dim) {
#pragma omp parallel for schedule(static) if (rows * dim > MANY_EXP)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *gate = gate_up + r * 2 * dim, *up = gate + dim;
        uint16_t *to = out + r * dim;
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) {
            float g = widen(gate[i]);
            to[i] = narrow(widen(narrow(g / (1.f + fast_exp(-g)))) * widen(up[i]));
        }
    }
}
