/* Bi-WKV on CUDA, forward and backward in log-space; one channel per thread, so that a warp's rows are coalesced.

   The sequence is cut into segments of SEGMENT positions, each one block's: `ends` sums up what a segment leaves to both
   sides, `carry` turns that into the states that enter each segment, and the last kernel walks the segment tile by tile:
   right states at the tiles' borders in shared memory, those inside a tile in registers. Sums for lam and u are kept per
   segment and added by the caller in one order. State: float32 (float64 for float64). Indices have 64 bits. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int THREADS = 128, TILE = 8, TILES = 8, SEGMENT = TILE * TILES;
constexpr float NEG = -1e30f, EMPTY = -1e29f;

__device__ inline float expo(float x) { return __expf(x); }
__device__ inline double expo(double x) { return exp(x); }
__device__ inline float loga(float x) { return logf(x); }
__device__ inline double loga(double x) { return log(x); }
__device__ inline float size(float x) { return fabsf(x); }
__device__ inline double size(double x) { return fabs(x); }

__device__ inline float wide(float x) { return x; }
__device__ inline double wide(double x) { return x; }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline void thin(float x, float *to) { *to = x; }
__device__ inline void thin(double x, double *to) { *to = x; }
__device__ inline void thin(float x, __nv_bfloat16 *to) { *to = __float2bfloat16(x); }
__device__ inline void thin(float x, __half *to) { *to = __float2half(x); }

template <typename S> __device__ inline S sigmoid(S x) {
    S e = expo(-size(x));
    return (x < 0 ? e : S(1)) / (S(1) + e);
}

/* exp(p) (a, b); a key's weight joins with one exponential, since the larger weight's factor is 1. */
template <typename S> struct State {
    S p, a, b;

    __device__ void join(S k, S x, S y) {
        S d = p - k, e = expo(-size(d)), old = d < 0 ? e : S(1), add = d < 0 ? S(1) : e;
        a = a * old + x * add;
        b = b * old + y * add;
        p = d < 0 ? k : p;
    }
    __device__ void merge(const State &other) {
        S top = p > other.p ? p : other.p, old = expo(p - top), add = expo(other.p - top);
        a = a * old + other.a * add;
        b = b * old + other.b * add;
        p = top;
    }
    __device__ void load(const S *from, int64_t plane) { p = from[0], a = from[plane], b = from[2 * plane]; }
    __device__ void store(S *to, int64_t plane) const { to[0] = p, to[plane] = a, to[2 * plane] = b; }
};

template <typename S> __device__ inline State<S> nothing() { return State<S>{S(NEG), S(0), S(0)}; }

/* Where a thread works: row b, channel c, positions [start, stop) of segment s. */
struct Place {
    int64_t b, c, s, start, stop, T, C, segments;

    __device__ Place(int64_t T, int64_t C)
        : b(blockIdx.z), c((int64_t)blockIdx.x * THREADS + threadIdx.x), s(blockIdx.y), start(s * SEGMENT),
          stop(start + SEGMENT < T ? start + SEGMENT : T), T(T), C(C), segments(gridDim.y) {}
    __device__ int64_t at(int64_t t) const { return (b * T + t) * C + c; }
    __device__ int64_t edge() const { return (b * segments + s) * C + c; }
    __device__ int64_t plane() const { return (int64_t)gridDim.z * segments * C; }
};

/* Key and value of a position; a masked one, or one past the end, weighs nothing and is worth nothing. */
template <typename I, typename S>
__device__ inline void key_value(const Place &place, const I *k, const I *v, const uint8_t *mask, int64_t t, S &key,
                                 S &value) {
    bool counts = t < place.stop && (!mask || mask[place.b * place.T + t]);
    key = counts ? wide(k[place.at(t)]) : S(NEG);
    value = counts ? wide(v[place.at(t)]) : S(0);
    key = key < S(NEG) ? S(NEG) : key;
}

/* G, H, the log-weight -Z and sigmoid(r) of a position. */
template <typename I, typename S>
__device__ inline void flow(const Place &place, const I *go, const I *r, const S *y, const S *z, int64_t t, S &g, S &h,
                            S &weight, S &gate) {
    g = h = gate = 0, weight = S(NEG);
    if (t < place.stop) {
        int64_t at = place.at(t);
        gate = sigmoid((S)wide(r[at]));
        g = wide(go[at]) * gate;
        h = g * y[at];
        weight = -z[at];
    }
}

template <typename S> struct Ends {
    State<S> right, left; /* what a segment leaves to its right and to its left */

    __device__ void add(S k, S x, S y, S lam, int64_t away) {
        right.join(k, x, y);
        right.p -= lam;
        left.join(k - lam * (S)away, x, y);
    }
    __device__ void store(const Place &place, S *ends) const {
        right.store(ends + place.edge(), place.plane());
        left.store(ends + 3 * place.plane() + place.edge(), place.plane());
    }
};

template <typename I, typename S>
__global__ void __launch_bounds__(THREADS) key_ends(const I *k, const I *v, const uint8_t *mask, const S *lams, S *ends,
                                                    int64_t T, int64_t C) {
    Place place(T, C);
    if (place.c >= C) return;
    S lam = lams[place.b * C + place.c];
    Ends<S> found{nothing<S>(), nothing<S>()};
#pragma unroll 4
    for (int64_t t = place.start; t < place.stop; t++) {
        S key, value;
        key_value(place, k, v, mask, t, key, value);
        found.add(key, value, S(1), lam, t - place.start + 1);
    }
    found.store(place, ends);
}

template <typename I, typename S>
__global__ void __launch_bounds__(THREADS) flow_ends(const I *go, const I *r, const S *y, const S *z, const S *lams,
                                                     S *ends, int64_t T, int64_t C) {
    Place place(T, C);
    if (place.c >= C) return;
    S lam = lams[place.b * C + place.c];
    Ends<S> found{nothing<S>(), nothing<S>()};
#pragma unroll 4
    for (int64_t t = place.start; t < place.stop; t++) {
        S g, h, weight, gate;
        flow(place, go, r, y, z, t, g, h, weight, gate);
        found.add(weight, g, h, lam, t - place.start + 1);
    }
    found.store(place, ends);
}

/* In place: what each segment leaves behind becomes what enters it. Block y is the side: 0 from the left, 1 the right. */
template <typename S>
__global__ void __launch_bounds__(THREADS) carry(S *ends, const S *edges, const S *lams, int64_t T, int64_t C,
                                                 int64_t segments) {
    int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x, b = blockIdx.z, side = blockIdx.y;
    if (c >= C) return;
    int64_t row = (int64_t)gridDim.z * C, plane = segments * row;
    S lam = lams[b * C + c], *mine = ends + side * 3 * plane + b * segments * C + c;
    State<S> now = nothing<S>(), end;
    if (edges) now.load(edges + side * 3 * row + b * C + c, row);
    if (!(now.b > 0)) now = nothing<S>();
    for (int64_t i = 0; i < segments; i++) {
        int64_t s = side ? segments - 1 - i : i, rest = T - s * SEGMENT;
        end.load(mine + s * C, plane);
        now.store(mine + s * C, plane);
        now.p -= lam * (S)(rest < SEGMENT ? rest : SEGMENT);
        now.merge(end);
    }
}

template <typename I, typename S>
__global__ void __launch_bounds__(THREADS)
    forward(const I *r, const I *k, const I *v, const S *lams, const S *us, const uint8_t *mask, const S *into, I *out,
            S *y, S *z, int64_t T, int64_t C) {
    __shared__ S shared[TILES][3][THREADS];
    Place place(T, C);
    if (place.c >= C) return;
    S lam = lams[place.b * C + place.c], u = us[place.b * C + place.c], key[TILE], value[TILE];
    State<S> right, left, kept[TILE];
    right.load(into + 3 * place.plane() + place.edge(), place.plane());
#pragma unroll 1
    for (int tile = TILES - 1; tile >= 0; tile--) {
        right.store(&shared[tile][0][threadIdx.x], THREADS);
        int64_t from = place.start + tile * TILE;
#pragma unroll
        for (int j = 0; j < TILE; j++) key_value(place, k, v, mask, from + j, key[j], value[j]);
#pragma unroll
        for (int j = TILE - 1; j >= 0; j--) {
            right.join(key[j], value[j], S(1));
            if (from + j < place.stop) right.p -= lam;
        }
    }
    left.load(into + place.edge(), place.plane());
#pragma unroll 1
    for (int tile = 0; tile < TILES; tile++) {
        right.load(&shared[tile][0][threadIdx.x], THREADS);
        int64_t from = place.start + tile * TILE;
        if (from >= place.stop) break;
#pragma unroll
        for (int j = 0; j < TILE; j++) key_value(place, k, v, mask, from + j, key[j], value[j]);
#pragma unroll
        for (int j = TILE - 1; j >= 0; j--) {
            kept[j] = right;
            right.join(key[j], value[j], S(1));
            if (from + j < place.stop) right.p -= lam;
        }
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            if (from + j < place.stop) {
                int64_t at = place.at(from + j);
                S own = key[j] + u, top = left.p > kept[j].p ? left.p : kept[j].p;
                top = top > own ? top : own;
                S el = expo(left.p - top), er = expo(kept[j].p - top), es = expo(own - top);
                S den = left.b * el + kept[j].b * er + es;
                S num = left.a * el + kept[j].a * er + value[j] * es;
                bool none = top < S(EMPTY);
                S mean = none ? S(0) : num / den;
                thin(sigmoid((S)wide(r[at])) * mean, out + at);
                if (y) y[at] = mean, z[at] = none ? S(0) : top + loga(den);
                left.join(key[j], value[j], S(1));
                left.p -= lam;
            }
        }
    }
}

/* What flows over one edge between two positions: the state on its one side times the gradient on the other. */
template <typename S> __device__ inline S crossing(S weight, const State<S> &near, S g, S h) {
    return expo(weight) * (near.a * g - near.b * h);
}

template <typename I, typename S>
__global__ void __launch_bounds__(THREADS)
    backward(const I *go, const I *r, const I *k, const I *v, const S *lams, const S *us, const uint8_t *mask,
             const S *y, const S *z, const S *into, const S *back, I *gr, I *gk, I *gv, S *glam, S *gu, int64_t T,
             int64_t C) {
    __shared__ S shared[TILES][6][THREADS];
    Place place(T, C);
    if (place.c >= C) return;
    S lam = lams[place.b * C + place.c], u = us[place.b * C + place.c], dlam = 0, du = 0;
    S key, value, g, h, weight, gate;
    State<S> right, left, far, near, kept[TILE], ahead[TILE];
    right.load(into + 3 * place.plane() + place.edge(), place.plane());
    far.load(back + 3 * place.plane() + place.edge(), place.plane());
#pragma unroll 1
    for (int tile = TILES - 1; tile >= 0; tile--) {
        right.store(&shared[tile][0][threadIdx.x], THREADS);
        far.store(&shared[tile][3][threadIdx.x], THREADS);
        int64_t from = place.start + tile * TILE;
#pragma unroll
        for (int j = TILE - 1; j >= 0; j--) {
            key_value(place, k, v, mask, from + j, key, value);
            flow(place, go, r, y, z, from + j, g, h, weight, gate);
            right.join(key, value, S(1));
            far.join(weight, g, h);
            if (from + j < place.stop) right.p -= lam, far.p -= lam;
        }
    }
    left.load(into + place.edge(), place.plane());
    near.load(back + place.edge(), place.plane());
#pragma unroll 1
    for (int tile = 0; tile < TILES; tile++) {
        right.load(&shared[tile][0][threadIdx.x], THREADS);
        far.load(&shared[tile][3][threadIdx.x], THREADS);
        int64_t from = place.start + tile * TILE;
        if (from >= place.stop) break;
#pragma unroll
        for (int j = TILE - 1; j >= 0; j--) {
            kept[j] = right, ahead[j] = far;
            key_value(place, k, v, mask, from + j, key, value);
            flow(place, go, r, y, z, from + j, g, h, weight, gate);
            right.join(key, value, S(1));
            far.join(weight, g, h);
            if (from + j < place.stop) right.p -= lam, far.p -= lam;
        }
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            if (from + j < place.stop) {
                int64_t at = place.at(from + j);
                key_value(place, k, v, mask, from + j, key, value);
                flow(place, go, r, y, z, from + j, g, h, weight, gate);
                S es = expo(key + u + weight), el = expo(key + near.p), er = expo(key + ahead[j].p);
                S pg = es * g + el * near.a + er * ahead[j].a, ph = es * h + el * near.b + er * ahead[j].b;
                du += es * (g * value - h);
                dlam -= crossing(left.p + weight, left, g, h) +
                        crossing(left.p + ahead[j].p, left, ahead[j].a, ahead[j].b);
                dlam -= crossing(kept[j].p + weight, kept[j], g, h) +
                        crossing(kept[j].p + near.p, kept[j], near.a, near.b);
                thin(h * (S(1) - gate), gr + at);
                thin(value * pg - ph, gk + at);
                thin(pg, gv + at);
                left.join(key, value, S(1));
                near.join(weight, g, h);
                left.p -= lam, near.p -= lam;
            }
        }
    }
    glam[place.edge()] = dlam;
    gu[place.edge()] = du;
}

struct Shape {
    int64_t B, T, C, segments;
    dim3 grid, sides;

    Shape(int64_t B, int64_t T, int64_t C) : B(B), T(T), C(C), segments((T + SEGMENT - 1) / SEGMENT) {
        unsigned blocks = (unsigned)((C + THREADS - 1) / THREADS);
        grid = dim3(blocks, (unsigned)segments, (unsigned)B), sides = dim3(blocks, 2, (unsigned)B);
    }
};

template <typename I, typename S>
int run_forward(cudaStream_t on, const void *r, const void *k, const void *v, const void *lam, const void *u,
                const void *mask, const void *edges, void *into, void *out, void *y, void *z, Shape n) {
    key_ends<I, S><<<n.grid, THREADS, 0, on>>>((const I *)k, (const I *)v, (const uint8_t *)mask, (const S *)lam,
                                               (S *)into, n.T, n.C);
    carry<S><<<n.sides, THREADS, 0, on>>>((S *)into, (const S *)edges, (const S *)lam, n.T, n.C, n.segments);
    forward<I, S><<<n.grid, THREADS, 0, on>>>((const I *)r, (const I *)k, (const I *)v, (const S *)lam, (const S *)u,
                                              (const uint8_t *)mask, (const S *)into, (I *)out, (S *)y, (S *)z, n.T,
                                              n.C);
    return (int)cudaGetLastError();
}

template <typename I, typename S>
int run_backward(cudaStream_t on, const void *go, const void *r, const void *k, const void *v, const void *lam,
                 const void *u, const void *mask, const void *y, const void *z, void *into, void *back, void *gr,
                 void *gk, void *gv, void *glam, void *gu, Shape n) {
    key_ends<I, S><<<n.grid, THREADS, 0, on>>>((const I *)k, (const I *)v, (const uint8_t *)mask, (const S *)lam,
                                               (S *)into, n.T, n.C);
    carry<S><<<n.sides, THREADS, 0, on>>>((S *)into, (const S *)nullptr, (const S *)lam, n.T, n.C, n.segments);
    flow_ends<I, S><<<n.grid, THREADS, 0, on>>>((const I *)go, (const I *)r, (const S *)y, (const S *)z,
                                                (const S *)lam, (S *)back, n.T, n.C);
    carry<S><<<n.sides, THREADS, 0, on>>>((S *)back, (const S *)nullptr, (const S *)lam, n.T, n.C, n.segments);
    backward<I, S><<<n.grid, THREADS, 0, on>>>((const I *)go, (const I *)r, (const I *)k, (const I *)v, (const S *)lam,
                                               (const S *)u, (const uint8_t *)mask, (const S *)y, (const S *)z,
                                               (const S *)into, (const S *)back, (I *)gr, (I *)gk, (I *)gv, (S *)glam,
                                               (S *)gu, n.T, n.C);
    return (int)cudaGetLastError();
}

#define BY_DTYPE(RUN, ...)                                                                                             \
    (dtype == 0   ? RUN<float, float>(__VA_ARGS__)                                                                     \
     : dtype == 1 ? RUN<double, double>(__VA_ARGS__)                                                                   \
     : dtype == 2 ? RUN<__nv_bfloat16, float>(__VA_ARGS__)                                                             \
                  : RUN<__half, float>(__VA_ARGS__))

} // namespace

/* Positions per segment: `into` and `back` are [2, 3, B, segments, C], glam and gu [B, segments, C]. */
extern "C" int unmask_biwkv_cuda_segment(void) { return SEGMENT; }

extern "C" const char *unmask_biwkv_cuda_error(int code) { return cudaGetErrorString((cudaError_t)code); }

/* dtype: 0 float32, 1 float64, 2 bfloat16, 3 float16. Tensors are contiguous and on `device`; work is queued on `stream`
   of that device. A cudaError_t is returned, 0 if the launches were accepted. */
extern "C" int unmask_biwkv_cuda_forward(int64_t device, void *stream, int64_t dtype, const void *r, const void *k,
                                         const void *v, const void *lam, const void *u, const void *mask,
                                         const void *edges, void *into, void *out, void *y, void *z, int64_t B,
                                         int64_t T, int64_t C) {
    int error = (int)cudaSetDevice((int)device);
    if (error) return error;
    Shape shape(B, T, C);
    return BY_DTYPE(run_forward, (cudaStream_t)stream, r, k, v, lam, u, mask, edges, into, out, y, z, shape);
}

extern "C" int unmask_biwkv_cuda_backward(int64_t device, void *stream, int64_t dtype, const void *go, const void *r,
                                          const void *k, const void *v, const void *lam, const void *u,
                                          const void *mask, const void *y, const void *z, void *into, void *back,
                                          void *gr, void *gk, void *gv, void *glam, void *gu, int64_t B, int64_t T,
                                          int64_t C) {
    int error = (int)cudaSetDevice((int)device);
    if (error) return error;
    Shape shape(B, T, C);
    return BY_DTYPE(run_backward, (cudaStream_t)stream, go, r, k, v, lam, u, mask, y, z, into, back, gr, gk, gv, glam,
                    gu, shape);
}
