/* Bi-WKV on the CPU, forward and backward in log-space: one thread takes a block of channels of one row of the batch.

   A state (p, a, b) stands for exp(p) (a, b). Right states of a segment are kept in scratch, then one walk from the left
   combines and writes; longer rows keep the right state at each segment's border first. float32 state for float32 and
   bfloat16, float64 for float64. A masked key is one of log-weight NEG and value 0. */
#include "../native.h"

namespace {

constexpr int64_t SEGMENT = 256; /* positions whose right states are kept at once */
constexpr int64_t W = 256;       /* channels of a block at most: rows lie pages apart, so each visit should bring much */
constexpr float NEG = -1e30f, EMPTY = -1e29f;

struct bf16 {
    uint16_t bits;
};

template <typename S, typename I> inline S wide(I x) { return (S)x; }
template <> inline float wide<float, bf16>(bf16 x) { return widen(x.bits); }
template <typename I, typename S> inline I thin(S x) { return (I)x; }
template <> inline bf16 thin<bf16, float>(float x) { return bf16{narrow(x)}; }

/* e^x for x below 88; exactly 0 below -87, so that what is masked weighs nothing. */
inline float expo(float x) {
    float e = fast_exp(x);
    return x < -87.f ? 0.f : e;
}
inline double expo(double x) { return exp(x); }

/* ln x for x >= 1 (a sum of weights whose largest is 1), about 1 unit in the last place. */
inline float loga(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    int32_t n = (int32_t)(bits - 0x3f3504f3u) >> 23;
    bits -= (uint32_t)n << 23; /* now in [sqrt(1/2), sqrt(2)) */
    float m;
    memcpy(&m, &bits, 4);
    float f = m - 1.f, s = f / (2.f + f), w = s * s;
    float odd = w * fmaf(w, fmaf(w, fmaf(w, 0.22222222f, 0.28571429f), 0.4f), 0.66666667f);
    return fmaf((float)n, 0.69314718f, fmaf(s, odd, 2.f * s));
}
inline double loga(double x) { return log(x); }

template <typename S> inline S size(S x) { return x < 0 ? -x : x; }

template <typename S> inline S sigmoid(S x) {
    S e = expo(-size(x));
    return (x < 0 ? e : S(1)) / (S(1) + e);
}

template <typename S> struct Row {
    alignas(64) S at[W];

    void fill(S x) {
        for (int64_t c = 0; c < W; c++) at[c] = x;
    }
};

template <typename I, typename S> inline void take(const I *from, int64_t n, Row<S> &to) {
    for (int64_t c = 0; c < n; c++) to.at[c] = wide<S, I>(from[c]);
}
template <typename I, typename S> inline void give(const Row<S> &from, int64_t n, I *to) {
    for (int64_t c = 0; c < n; c++) to[c] = thin<I, S>(from.at[c]);
}

/* Two sums under one log-weight. */
template <typename S> struct State {
    Row<S> p, a, b;
};

/* A state on its walk. `low` is what rounding took from p: the decays of thousands of positions add up as their product
   would. */
template <typename S> struct Walk {
    State<S> now;
    Row<S> low;

    void clear() {
        now.p.fill(NEG), now.a.fill(0), now.b.fill(0), low.fill(0);
    }

    /* The key's weight joins, then everything decays by one position; `before` gets the state until then, if wanted. */
    template <bool keep> void step(const Row<S> &k, const Row<S> &x, const Row<S> &y, const Row<S> &lam, int64_t width,
                                   State<S> *before) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            S p = now.p.at[c], rest = low.at[c], a = now.a.at[c], b = now.b.at[c], l = lam.at[c];
            if (keep) before->p.at[c] = p + rest, before->a.at[c] = a, before->b.at[c] = b;
            S d = (p - k.at[c]) + rest, e = expo(-size(d));
            S old = d < 0 ? e : S(1), add = d < 0 ? S(1) : e, top = d < 0 ? k.at[c] : p;
            S next = top - l;
            now.a.at[c] = a * old + x.at[c] * add;
            now.b.at[c] = b * old + y.at[c] * add;
            now.p.at[c] = next;
            low.at[c] = (d < 0 ? S(0) : rest) + ((top - next) - l);
        }
    }
};

/* A block of channels of one row of the batch. */
struct Place {
    int64_t b, start, n, width, stride, origin;

    Place(int64_t job, int64_t block, int64_t T, int64_t C) {
        int64_t blocks = (C + block - 1) / block;
        b = job / blocks, start = job % blocks * block;
        n = C - start < block ? C - start : block;
        width = (n + 15) / 16 * 16;
        stride = C, origin = b * T * C + start;
    }
};

/* Its keys and values. */
template <typename I, typename S> struct Lane {
    const Place &place;
    const I *k, *v;
    const uint8_t *mask;
    Row<S> lam, u, one;

    Lane(const Place &place, const I *k, const I *v, const uint8_t *mask, const S *lam_, const S *u_, int64_t T)
        : place(place), k(k + place.origin), v(v + place.origin), mask(mask ? mask + place.b * T : nullptr) {
        lam.fill(1), u.fill(0), one.fill(1);
        take(lam_ + place.b * place.stride + place.start, place.n, lam);
        take(u_ + place.b * place.stride + place.start, place.n, u);
    }

    void read(int64_t t, Row<S> &key, Row<S> &value) const {
        if (mask && !mask[t]) {
            key.fill(NEG), value.fill(0);
            return;
        }
        take(k + t * place.stride, place.n, key);
        take(v + t * place.stride, place.n, value);
        for (int64_t c = 0; c < place.n; c++) key.at[c] = key.at[c] < NEG ? S(NEG) : key.at[c];
    }
};

/* An incoming state [3, B, C]; of nothing where there is none. */
template <typename S> void enter(Walk<S> &walk, const Place &place, const S *edge, int64_t plane) {
    walk.clear();
    int64_t at = place.b * place.stride + place.start;
    for (int64_t c = 0; edge && c < place.n; c++) {
        if (edge[2 * plane + at + c] > 0) {
            walk.now.p.at[c] = edge[at + c];
            walk.now.a.at[c] = edge[plane + at + c];
            walk.now.b.at[c] = edge[2 * plane + at + c];
        }
    }
}

/* Aligned memory, as much as one thread needs. */
template <typename T> T *scratch(int64_t count) { return (T *)aligned_alloc(64, (size_t)count * sizeof(T)); }

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* From position `to` down to `from`; the state before each position is kept where wanted. */
template <bool keep, typename I, typename S>
void walk_left(const Lane<I, S> &lane, int64_t from, int64_t to, Walk<S> &right, State<S> *kept, Row<S> *rows) {
    for (int64_t t = to - 1; t >= from; t--) {
        lane.read(t, rows[0], rows[1]);
        right.template step<keep>(rows[0], rows[1], lane.one, lane.lam, lane.place.width,
                                  keep ? kept + (t - from) : nullptr);
    }
}

/* One position's output from its two states, key, value and receptance; leaves y in `mean`, Z in `norm`. */
template <typename S>
void combine(const Walk<S> &left, const State<S> &right, const Row<S> &key, const Row<S> &value, const Row<S> &u,
             Row<S> &gate, Row<S> &mean, Row<S> &norm, bool save, int64_t width) {
#pragma omp simd
    for (int64_t c = 0; c < width; c++) {
        S own = key.at[c] + u.at[c], pl = left.now.p.at[c] + left.low.at[c], pr = right.p.at[c];
        S q = pl > pr ? pl : pr;
        q = q > own ? q : own;
        S el = expo(pl - q), er = expo(pr - q), es = expo(own - q);
        S den = left.now.b.at[c] * el + right.b.at[c] * er + es;
        S num = left.now.a.at[c] * el + right.a.at[c] * er + value.at[c] * es;
        S y = q < EMPTY ? S(0) : num / den;
        mean.at[c] = y;
        gate.at[c] = sigmoid(gate.at[c]) * y;
        norm.at[c] = q < EMPTY ? S(0) : q + (save ? loga(den) : S(0));
    }
}

template <typename I, typename S>
void forward_block(const Lane<I, S> &lane, const I *r, const S *edges, I *out, S *y, S *z, int64_t plane, int64_t T,
                   Walk<S> *walks, State<S> *kept, Row<S> *rows) {
    const Place &place = lane.place;
    Walk<S> &left = walks[0], &right = walks[1], *borders = walks + 2;
    int64_t segments = (T + SEGMENT - 1) / SEGMENT;
    enter(left, place, edges, plane);
    enter(right, place, edges ? edges + 3 * plane : nullptr, plane);
    for (int64_t s = segments - 1; s >= 0; s--) {
        borders[s] = right;
        if (s) walk_left<false>(lane, s * SEGMENT, least(s * SEGMENT + SEGMENT, T), right, kept, rows);
    }
    for (int64_t s = 0; s < segments; s++) {
        int64_t from = s * SEGMENT, to = least(from + SEGMENT, T);
        walk_left<true>(lane, from, to, borders[s], kept, rows);
        for (int64_t t = from; t < to; t++) {
            int64_t at = place.origin + t * place.stride;
            lane.read(t, rows[0], rows[1]);
            take(r + at, place.n, rows[2]);
            combine(left, kept[t - from], rows[0], rows[1], lane.u, rows[2], rows[3], rows[4], y != nullptr,
                    place.width);
            give(rows[2], place.n, out + at);
            if (y) give(rows[3], place.n, y + at), give(rows[4], place.n, z + at);
            left.template step<false>(rows[0], rows[1], lane.one, lane.lam, place.width, nullptr);
        }
    }
}

template <typename I, typename S>
int forward(const I *r, const I *k, const I *v, const S *lam, const S *u, const uint8_t *mask, const S *edges, I *out,
            S *y, S *z, int64_t B, int64_t T, int64_t C, int64_t block) {
    int64_t jobs = B * ((C + block - 1) / block), segments = (T + SEGMENT - 1) / SEGMENT;
    int failed = 0;
#pragma omp parallel if (jobs > 1 && B * T * C > MANY_EXP) reduction(| : failed)
    {
        Walk<S> *walks = scratch<Walk<S>>(segments + 2);
        State<S> *kept = scratch<State<S>>(least(T, SEGMENT));
        Row<S> *rows = scratch<Row<S>>(5);
        bool ready = walks && kept && rows;
        failed |= !ready;
        if (ready) memset(rows, 0, 5 * sizeof(Row<S>));
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; job++) {
            Place place(job, block, T, C);
            Lane<I, S> lane(place, k, v, mask, lam, u, T);
            if (ready) forward_block(lane, r, edges, out, y, z, B * C, T, walks, kept, rows);
        }
        free(walks), free(kept), free(rows);
    }
    return failed;
}

/* What the walk from the right leaves for the walk from the left, per position. */
template <typename S> struct Kept {
    State<S> state, back;
    Row<S> g, h;
};

/* The gradient's side of a block: its log-weights are -Z, its values G = go sigmoid(r) and H = G y. */
template <typename I, typename S> struct Adjoint {
    const I *go, *r;
    const S *y, *z;

    void read(const Place &place, int64_t t, Row<S> &g, Row<S> &h, Row<S> &weight, Row<S> &gate) const {
        int64_t at = place.origin + t * place.stride;
        take(go + at, place.n, g);
        take(r + at, place.n, gate);
        take(y + at, place.n, h);
        take(z + at, place.n, weight);
#pragma omp simd
        for (int64_t c = 0; c < place.width; c++) {
            g.at[c] *= sigmoid(gate.at[c]);
            h.at[c] *= g.at[c];
            weight.at[c] = -weight.at[c];
        }
    }
};

template <bool keep, typename I, typename S>
void walk_left_both(const Lane<I, S> &lane, const Adjoint<I, S> &adjoint, int64_t from, int64_t to, Walk<S> *rights,
                    Kept<S> *kept, Row<S> *rows) {
    for (int64_t t = to - 1; t >= from; t--) {
        Kept<S> *here = keep ? kept + (t - from) : nullptr;
        Row<S> &g = keep ? here->g : rows[2], &h = keep ? here->h : rows[3];
        lane.read(t, rows[0], rows[1]);
        adjoint.read(lane.place, t, g, h, rows[4], rows[5]);
        rights[0].template step<keep>(rows[0], rows[1], lane.one, lane.lam, lane.place.width,
                                      keep ? &here->state : nullptr);
        rights[1].template step<keep>(rows[4], g, h, lane.lam, lane.place.width, keep ? &here->back : nullptr);
    }
}

/* What flows over one edge between two positions: the state on its one side times the gradient on the other. */
template <typename S> inline S crossing(S weight, S a, S b, S g, S h) { return expo(weight) * (a * g - b * h); }

/* The gradients of one position; key, value, receptance and Z become those of key, value, receptance, and -Z. */
template <typename S>
void differentiate(const Walk<S> *lefts, const Kept<S> &far, const Row<S> &u, const Row<S> &key, const Row<S> &value,
                   Row<S> &norm, Row<S> &gate, Row<S> &dk, Row<S> &dv, Row<S> &dlam, Row<S> &du, int64_t width) {
    const State<S> &near = lefts[0].now, &back = lefts[1].now, &other = far.state, &ahead = far.back;
#pragma omp simd
    for (int64_t c = 0; c < width; c++) {
        S g = far.g.at[c], h = far.h.at[c], w = -norm.at[c], x = key.at[c];
        S pl = near.p.at[c] + lefts[0].low.at[c], ql = back.p.at[c] + lefts[1].low.at[c];
        S pr = other.p.at[c], qr = ahead.p.at[c];
        S al = near.a.at[c], bl = near.b.at[c], ar = other.a.at[c], br = other.b.at[c];
        S gl = back.a.at[c], hl = back.b.at[c], gr = ahead.a.at[c], hr = ahead.b.at[c];
        S es = expo(x + u.at[c] + w), cl = expo(x + ql), cr = expo(x + qr);
        S pg = es * g + cl * gl + cr * gr, ph = es * h + cl * hl + cr * hr;
        dv.at[c] = pg;
        dk.at[c] = value.at[c] * pg - ph;
        du.at[c] += es * (g * value.at[c] - h);
        dlam.at[c] += (crossing(pl + w, al, bl, g, h) + crossing(pl + qr, al, bl, gr, hr)) +
                      (crossing(pr + w, ar, br, g, h) + crossing(pr + ql, ar, br, gl, hl));
        gate.at[c] = h * (S(1) - sigmoid(gate.at[c]));
        norm.at[c] = w;
    }
}

template <typename I, typename S>
void backward_block(const Lane<I, S> &lane, const Adjoint<I, S> &adjoint, I *gr, I *gk, I *gv, S *glam, S *gu,
                    int64_t T, Walk<S> *walks, Kept<S> *kept, Row<S> *rows) {
    const Place &place = lane.place;
    Walk<S> *lefts = walks, *rights = walks + 2, *borders = walks + 4;
    int64_t segments = (T + SEGMENT - 1) / SEGMENT;
    double lams[W] = {0}, us[W] = {0}; /* float within a segment, double beyond */
    for (int i = 0; i < 4; i++) walks[i].clear();
    for (int64_t s = segments - 1; s >= 0; s--) {
        borders[2 * s] = rights[0], borders[2 * s + 1] = rights[1];
        if (s) walk_left_both<false>(lane, adjoint, s * SEGMENT, least(s * SEGMENT + SEGMENT, T), rights, kept, rows);
    }
    for (int64_t s = 0; s < segments; s++) {
        int64_t from = s * SEGMENT, to = least(from + SEGMENT, T);
        walk_left_both<true>(lane, adjoint, from, to, borders + 2 * s, kept, rows);
        Row<S> &dlam = rows[6], &du = rows[7];
        dlam.fill(0), du.fill(0);
        for (int64_t t = from; t < to; t++) {
            const Kept<S> &far = kept[t - from];
            int64_t at = place.origin + t * place.stride;
            lane.read(t, rows[0], rows[1]);
            take(adjoint.z + at, place.n, rows[4]);
            take(adjoint.r + at, place.n, rows[5]);
            differentiate(lefts, far, lane.u, rows[0], rows[1], rows[4], rows[5], rows[2], rows[3], dlam, du,
                          place.width);
            give(rows[5], place.n, gr + at);
            give(rows[2], place.n, gk + at);
            give(rows[3], place.n, gv + at);
            lefts[0].template step<false>(rows[0], rows[1], lane.one, lane.lam, place.width, nullptr);
            lefts[1].template step<false>(rows[4], far.g, far.h, lane.lam, place.width, nullptr);
        }
        for (int64_t c = 0; c < place.n; c++) lams[c] += dlam.at[c], us[c] += du.at[c];
    }
    for (int64_t c = 0; c < place.n; c++) {
        glam[place.b * place.stride + place.start + c] = (S)-lams[c];
        gu[place.b * place.stride + place.start + c] = (S)us[c];
    }
}

template <typename I, typename S>
int backward(const I *go, const I *r, const I *k, const I *v, const S *lam, const S *u, const uint8_t *mask,
             const S *y, const S *z, I *gr, I *gk, I *gv, S *glam, S *gu, int64_t B, int64_t T, int64_t C,
             int64_t block) {
    int64_t jobs = B * ((C + block - 1) / block), segments = (T + SEGMENT - 1) / SEGMENT;
    int failed = 0;
#pragma omp parallel if (jobs > 1 && B * T * C > MANY_EXP) reduction(| : failed)
    {
        Walk<S> *walks = scratch<Walk<S>>(2 * segments + 4);
        Kept<S> *kept = scratch<Kept<S>>(least(T, SEGMENT));
        Row<S> *rows = scratch<Row<S>>(8);
        bool ready = walks && kept && rows;
        failed |= !ready;
        if (ready) memset(rows, 0, 8 * sizeof(Row<S>)), memset(kept, 0, least(T, SEGMENT) * sizeof(Kept<S>));
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; job++) {
            Place place(job, block, T, C);
            Lane<I, S> lane(place, k, v, mask, lam, u, T);
            Adjoint<I, S> adjoint{go, r, y, z};
            if (ready) backward_block(lane, adjoint, gr, gk, gv, glam, gu, T, walks, kept, rows);
        }
        free(walks), free(kept), free(rows);
    }
    return failed;
}

} // namespace

/* dtype: 0 float32, 1 float64, 2 bfloat16. block: channels per job, a multiple of 16 up to 256. Tensors are contiguous.
   0 is returned, or 1 when memory ran out. */
extern "C" int unmask_biwkv_forward(int64_t dtype, const void *r, const void *k, const void *v, const void *lam,
                                    const void *u, const void *mask, const void *edges, void *out, void *y, void *z,
                                    int64_t B, int64_t T, int64_t C, int64_t block) {
#define RUN(I, S)                                                                                                      \
    forward<I, S>((const I *)r, (const I *)k, (const I *)v, (const S *)lam, (const S *)u, (const uint8_t *)mask,       \
                  (const S *)edges, (I *)out, (S *)y, (S *)z, B, T, C, block)
    return dtype == 0 ? RUN(float, float) : dtype == 1 ? RUN(double, double) : RUN(bf16, float);
#undef RUN
}

extern "C" int unmask_biwkv_backward(int64_t dtype, const void *go, const void *r, const void *k, const void *v,
                                     const void *lam, const void *u, const void *mask, const void *y, const void *z,
                                     void *gr, void *gk, void *gv, void *glam, void *gu, int64_t B, int64_t T,
                                     int64_t C, int64_t block) {
#define RUN(I, S)                                                                                                      \
    backward<I, S>((const I *)go, (const I *)r, (const I *)k, (const I *)v, (const S *)lam, (const S *)u,              \
                   (const uint8_t *)mask, (const S *)y, (const S *)z, (I *)gr, (I *)gk, (I *)gv, (S *)glam, (S *)gu,   \
                   B, T, C, block)
    return dtype == 0 ? RUN(float, float) : dtype == 1 ? RUN(double, double) : RUN(bf16, float);
#undef RUN
}
