/* The decode step of llama.py once more, in C: one token in, the scores of the next one out.

   The same names in the same order. What PyTorch does to tensors is here done by threads that all run the same
   function: each computes its part of the rows of a product, then waits for the others. Stages between two waits:

       x = E[token]
       x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))       once per block
       logits = O RMSNorm(x)

   Activations are float32 throughout; matrices are read as they are stored (float32, bfloat16, float16, or groups of 32
   whole numbers with a scale, see quantize.py), since at one token a time reading them is all that takes time. Sources
   as in llama.py. llama_c.py builds this file, checks every size, and calls `llama_step`.

   llama_threads.h    threads that start together, wait for one another, and sleep between tokens
   llama_plain.h      sums of products in plain C, for any processor
   llama_avx512.h     the same for processors with AVX-512 and VNNI */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4 };  /* how numbers are stored */
enum { GROUP = 32, TILE = 16 };                   /* numbers that share a scale; rows that lie side by side */

typedef struct {  /* [rows, columns], applied as y = W x */
    int32_t kind, rows, columns;
    const void *numbers;
    const uint16_t *scales;  /* float16, of INT8 and INT4 only */
} Matrix;

typedef struct {
    const float *attention_norm;
    Matrix query, key, value, output;
    const float *feed_forward_norm;
    Matrix gate, up, down;
} Block;

typedef struct {
    int32_t dim, layers, heads, kv_heads, head_dim, ffn;
    float norm_eps;
    const float *theta;  /* [head_dim/2]: radians per position */
    Matrix embedding;
    const Block *blocks;
    const float *norm;
    Matrix output;
} Llama;

typedef struct {  /* of one sequence; each layer [kv_heads, capacity, head_dim] */
    int32_t kind, capacity, length;  /* length: slots that are filled before this step */
    void *const *keys, *const *values;
} Cache;

typedef struct {  /* what a matrix is applied to; for INT8 and INT4 rounded to whole numbers, group by group */
    const float *x;
    int8_t *whole;   /* x ≈ scale · whole */
    float *scale;    /* [columns/32] */
    int32_t *sum;    /* [columns/32]: of the whole numbers of a group */
} Vector;

typedef struct { int from, to; } Part;

static float wide(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static float from_bfloat16(uint16_t b) { return wide((uint32_t)b << 16); }

static float from_float16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    float x = rest >= 0x0f800000 ? wide(rest | 0x7f800000) : wide(rest) * 0x1p112f;  /* infinite or none; a number */
    return wide(bits_of(x) | sign);
}

static uint16_t to_bfloat16(float x) {  /* to the nearest, a tie to the even one */
    uint32_t bits = bits_of(x);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t to_float16(float x) {
    uint32_t sign = bits_of(x) >> 16 & 0x8000, bits = bits_of(x) & 0x7fffffff;
    if (bits >= 0x47800000) return (uint16_t)(sign | (x != x ? 0x7e00 : 0x7c00));
    if (bits < 0x38800000) return (uint16_t)(sign | (bits_of(wide(bits) + 0.5f) - 0x3f000000));  /* in steps of 2⁻²⁴ */
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
}

static float exponential(float x) {  /* eˣ = 2ⁿ eᶠ, |f| ≤ ln 2 / 2, to 2·10⁻⁷ of it, as vector code where in a loop */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = x == x ? rintf(x * 1.44269504f) : 0, f = x - n * 0.693359375f + n * 2.12194440e-4f;  /* ln 2 in two */
    float e = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f * (1 / 720.f))))));
    return e * wide((uint32_t)((int32_t)n + 127) << 23);
}

#if defined __AVX512F__ && defined __AVX512BW__ && defined __AVX512VL__ && defined __AVX512VNNI__ && !defined PLAIN
#include "llama_avx512.h"
#else
#include "llama_plain.h"
#endif
#include "llama_threads.h"

typedef struct {  /* one step: what it is given, and what its threads share */
    const Llama *model;
    const Cache *cache;
    int token, threads;
    float *logits;
    float *cos, *sin;                               /* [head_dim/2] */
    float *x, *query, *key, *value, *mixed;         /* the stream; queries, keys, values; what attention gathered */
    float *gate, *up, *written;                     /* of the feed-forward network; what a block adds to the stream */
    struct Own { float *normed, *scores; Vector vector; } *own;  /* what each thread has for itself */
} Step;

static size_t size_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

static Part part(int rows, int thread, int threads, int together) {  /* a thread's share, in multiples of `together` */
    int64_t units = (rows + together - 1) / together;
    int from = (int)(units * thread / threads) * together, to = (int)(units * (thread + 1) / threads) * together;
    return (Part){from < rows ? from : rows, to < rows ? to : rows};
}

/* y = W x, the rows of `part` of it. */
static void multiply(const Matrix *w, const Vector *v, Part part, float *y) {
    size_t columns = (size_t)w->columns, groups = columns / GROUP;
    for (int row = part.from; row < part.to; row += w->kind < INT8 ? 1 : TILE) {
        if (w->kind < INT8) {
            y[row] = dot(w->kind, (const char *)w->numbers + row * columns * size_of(w->kind), v->x, w->columns);
            continue;
        }
        float tile[TILE];
        const uint16_t *scales = w->scales + row * groups;
        if (w->kind == INT8) tile_int8((const uint8_t *)w->numbers + row * columns, scales, v, (int)groups, tile);
        else tile_int4((const uint8_t *)w->numbers + row * columns / 2, scales, v, (int)groups, tile);
        memcpy(y + row, tile, sizeof(float) * (size_t)(part.to - row < TILE ? part.to - row : TILE));
    }
}

/* x as the vector that `w` is applied to: rounded to whole numbers if those of the matrix are. */
static const Vector *for_matrix(const Matrix *w, const float *x, Vector *v) {
    v->x = x;
    if (w->kind >= INT8) round_groups(x, w->columns / GROUP, v);
    return v;
}

/* x += E[token]: the row of a token. */
static void embed(const Matrix *e, int token, Part part, float *x) {
    size_t columns = (size_t)e->columns, row = (size_t)token, tile = row / TILE * TILE * columns, r = row % TILE;
    for (int at = part.from; at < part.to; at++) {
        if (e->kind < INT8) {
            const char *numbers = (const char *)e->numbers + row * columns * size_of(e->kind);
            x[at] = e->kind == FLOAT32 ? ((const float *)numbers)[at]
                  : e->kind == BFLOAT16 ? from_bfloat16(((const uint16_t *)numbers)[at])
                                        : from_float16(((const uint16_t *)numbers)[at]);
            continue;
        }
        size_t group = (size_t)at / GROUP, k = (size_t)at % GROUP;
        float scale = from_float16(e->scales[tile / GROUP + group * TILE + r]);
        const uint8_t *numbers = e->numbers;
        if (e->kind == INT8) {
            uint8_t number = numbers[tile + (group * GROUP + k / 4 * 4) * TILE + r * 4 + k % 4];
            x[at] = scale * (number - 128);
        } else {
            size_t byte = k % 16;  /* its lower half is number `byte` of the group, its upper half number `byte` + 16 */
            uint8_t both = numbers[tile / 2 + (group * GROUP / 2 + byte / 4 * 4) * TILE + r * 4 + byte % 4];
            x[at] = scale * ((k < 16 ? both & 15 : both >> 4) - 8);
        }
    }
}

/* x / √(mean(x²) + ε) ⊙ gain. Zhang & Sennrich 2019, eq. 4. */
static const float *rms_norm(const float *x, const float *gain, int dim, float eps, float *normed) {
    float scale = 1 / sqrtf(dot(FLOAT32, x, x, dim) / (float)dim + eps);
    for (int at = 0; at < dim; at++) normed[at] = x[at] * scale * gain[at];
    return normed;
}

/* (a + ib) · exp(i·m·θⱼ) for each pair of neighbours. Su et al. 2021 (RoFormer), eq. 34; angles are worked out once. */
static void rotate(const Step *s, Part part, float *x) {
    for (int at = part.from; at < part.to; at += 2) {
        int pair = at % s->model->head_dim / 2;
        float a = x[at], b = x[at + 1];
        x[at] = a * s->cos[pair] - b * s->sin[pair];
        x[at + 1] = a * s->sin[pair] + b * s->cos[pair];
    }
}

static char *slot_of(const Step *s, void *layer, int kv_head, int slot) {
    size_t at = (size_t)kv_head * (size_t)s->cache->capacity + (size_t)slot;
    return (char *)layer + at * (size_t)s->model->head_dim * size_of(s->cache->kind);
}

/* The cache, longer by a part of this token's keys or values. */
static void write_slot(const Step *s, Part part, const float *x, void *layer) {
    for (int at = part.from; at < part.to; at++) {
        char *slot = slot_of(s, layer, at / s->model->head_dim, s->cache->length);
        int within = at % s->model->head_dim;
        if (s->cache->kind == FLOAT32) ((float *)slot)[within] = x[at];
        else ((uint16_t *)slot)[within] = s->cache->kind == BFLOAT16 ? to_bfloat16(x[at]) : to_float16(x[at]);
    }
}

/* softmax(q kᵀ / √head_dim) v of one head; heads in order share k and v. Vaswani et al. 2017, eq. 1; Ainslie et al.
   2023 (GQA), §2.2. The newest token sees all before it and itself, so there is no mask. */
static void attend(const Step *s, int layer, int head, float *scores) {
    const Llama *m = s->model;
    int slots = s->cache->length + 1, kind = s->cache->kind, kv_head = head / (m->heads / m->kv_heads);
    const float *q = s->query + head * m->head_dim;
    const char *k = slot_of(s, s->cache->keys[layer], kv_head, 0), *v = slot_of(s, s->cache->values[layer], kv_head, 0);
    size_t stride = (size_t)m->head_dim * size_of(kind);
    float scale = 1 / sqrtf((float)m->head_dim), largest = -INFINITY, sum = 0;
    for (int slot = 0; slot < slots; slot++) {
        scores[slot] = dot(kind, k + (size_t)slot * stride, q, m->head_dim) * scale;
        if (scores[slot] > largest) largest = scores[slot];
    }
    for (int slot = 0; slot < slots; slot++) scores[slot] = exponential(scores[slot] - largest);
    for (int slot = 0; slot < slots; slot++) sum += scores[slot];
    for (int slot = 0; slot < slots; slot++) scores[slot] /= sum;
    mix(kind, v, scores, slots, m->head_dim, s->mixed + head * m->head_dim);
}

/* A thread's part of the rows of a product, added to the stream. */
static void add(const Step *s, const Matrix *w, const float *x, int thread) {
    Part rows = part(w->rows, thread, s->threads, TILE);
    multiply(w, for_matrix(w, x, &s->own[thread].vector), rows, s->written);
    for (int at = rows.from; at < rows.to; at++) s->x[at] += s->written[at];
    wait_for_all(s->threads);
}

/* Each token asks (query) and gathers (value) from those that answer (key). Vaswani et al. 2017, §3.2.2. */
static void attention(const Step *s, const float *x, const Block *w, int layer, int thread) {
    const Llama *m = s->model;
    Vector *v = &s->own[thread].vector;
    Part q = part(w->query.rows, thread, s->threads, TILE), kv = part(w->key.rows, thread, s->threads, TILE);
    multiply(&w->query, for_matrix(&w->query, x, v), q, s->query);
    multiply(&w->key, w->key.kind == w->query.kind ? v : for_matrix(&w->key, x, v), kv, s->key);
    multiply(&w->value, w->value.kind == w->key.kind ? v : for_matrix(&w->value, x, v), kv, s->value);
    rotate(s, q, s->query), rotate(s, kv, s->key);
    write_slot(s, kv, s->key, s->cache->keys[layer]), write_slot(s, kv, s->value, s->cache->values[layer]);
    wait_for_all(s->threads);
    Part heads = part(m->heads, thread, s->threads, 1);
    for (int head = heads.from; head < heads.to; head++) attend(s, layer, head, s->own[thread].scores);
    wait_for_all(s->threads);
    add(s, &w->output, s->mixed, thread);
}

/* (silu(x Gᵀ) ⊙ x Uᵀ) Dᵀ with silu(z) = z / (1 + e⁻ᶻ). Shazeer 2020, eq. 6. */
static void swiglu(const Step *s, const float *x, const Block *w, int thread) {
    Vector *v = &s->own[thread].vector;
    Part ffn = part(w->gate.rows, thread, s->threads, TILE);
    multiply(&w->gate, for_matrix(&w->gate, x, v), ffn, s->gate);
    multiply(&w->up, w->up.kind == w->gate.kind ? v : for_matrix(&w->up, x, v), ffn, s->up);
    for (int at = ffn.from; at < ffn.to; at++) s->gate[at] *= s->up[at] / (1 + exponential(-s->gate[at]));
    wait_for_all(s->threads);
    add(s, &w->down, s->gate, thread);
}

/* x + Attention(RMSNorm(x)), then the same with SwiGLU. Touvron et al. 2023a, §2.2 (pre-normalisation). */
static void block(const Step *s, const Block *w, int layer, int thread) {
    float *normed = s->own[thread].normed;
    attention(s, rms_norm(s->x, w->attention_norm, s->model->dim, s->model->norm_eps, normed), w, layer, thread);
    swiglu(s, rms_norm(s->x, w->feed_forward_norm, s->model->dim, s->model->norm_eps, normed), w, thread);
}

/* What each thread does of a step; the last product scores every token. A tied embedding is the output matrix too. */
static void llama(void *given, int thread) {
    const Step *s = given;
    const Llama *m = s->model;
    struct Own *own = &s->own[thread];
    embed(&m->embedding, s->token, part(m->dim, thread, s->threads, TILE), s->x);
    wait_for_all(s->threads);
    for (int layer = 0; layer < m->layers; layer++) block(s, &m->blocks[layer], layer, thread);
    const float *normed = rms_norm(s->x, m->norm, m->dim, m->norm_eps, own->normed);
    const Vector *v = for_matrix(&m->output, normed, &own->vector);
    multiply(&m->output, v, part(m->output.rows, thread, s->threads, TILE), s->logits);
}

static char *cut(char **memory, size_t bytes) {  /* the next `bytes` of it, beginning a cache line */
    char *begin = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return begin;
}

static size_t lay_out(Step *s, char *memory) {  /* gives every array its place; returns the bytes that they take */
    const Llama *m = s->model;
    char *start = memory;
    size_t dim = (size_t)m->dim, q = (size_t)(m->heads * m->head_dim), kv = (size_t)(m->kv_heads * m->head_dim);
    size_t ffn = (size_t)m->ffn, slots = (size_t)s->cache->length + 1, longest = dim > q ? dim : q;
    longest = longest > ffn ? longest : ffn;
    struct { float **array; size_t length; } shared[] = {
        {&s->cos, q}, {&s->sin, q}, {&s->x, dim}, {&s->query, q}, {&s->key, kv}, {&s->value, kv}, {&s->mixed, q},
        {&s->gate, ffn}, {&s->up, ffn}, {&s->written, dim},
    };
    s->own = (struct Own *)cut(&memory, sizeof(struct Own) * (size_t)s->threads);
    for (int at = 0; at < 10; at++) *shared[at].array = (float *)cut(&memory, 4 * shared[at].length);
    for (int thread = 0; thread < s->threads; thread++) {
        struct Own own = {.normed = (float *)cut(&memory, 4 * dim), .scores = (float *)cut(&memory, 4 * slots)};
        own.vector.whole = (int8_t *)cut(&memory, longest);
        own.vector.scale = (float *)cut(&memory, longest / GROUP * 4);
        own.vector.sum = (int32_t *)cut(&memory, longest / GROUP * 4);
        if (start) s->own[thread] = own;
    }
    return (size_t)(memory - start);
}

/* Scores of every next token, [output.rows], and the cache longer by `token` at `position`; 0 if memory ran out. */
int llama_step(const Llama *model, const Cache *cache, int token, int position, int threads, float *logits) {
    pthread_mutex_lock(&one_at_a_time);
    Step s = {.model = model, .cache = cache, .token = token, .threads = at_most(threads), .logits = logits};
    char *memory = workspace(lay_out(&s, NULL));
    if (memory) {
        lay_out(&s, memory);
        for (int pair = 0; pair < model->head_dim / 2; pair++) {
            s.cos[pair] = cosf((float)position * model->theta[pair]);
            s.sin[pair] = sinf((float)position * model->theta[pair]);
        }
        together(llama, &s, s.threads);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return memory != NULL;
}
