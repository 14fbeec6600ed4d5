/* The decode step of llama.py once more, in C: a few tokens in, the scores of what follows each of them out.

   The same names in the same order. What PyTorch does to tensors is here done by threads that all run the same
   function: each computes its part of the rows of a product, then waits for the others:

       x = E[tokens]
       x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))       once per block
       logits = O RMSNorm(x)

   In a block they wait after q, k, v and the cache, after the heads, after O, after the gate, and after D.

   Activations are float32; what whole numbers are multiplied with is first rounded to 8 bits. Matrices are read as they
   are stored (float32, bfloat16, float16, or groups of 32 whole numbers with a scale, see quantize.py), once for all
   tokens, since with few of them reading takes the time; and each token comes out as if it were alone, to the bit.
   Sources as in llama.py. llama_c.py builds this file, checks every size, and calls `llama_step`.

   native/numbers.h    numbers as they are stored
   native/memory.h     where the arrays of a step lie
   native/threads.h    threads that start together, wait for one another, and sleep between tokens
   native/plain.h      sums of products in plain C, for any processor
   native/avx512.h     the same for processors with AVX-512 and VNNI */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4 };  /* how numbers are stored */
enum { GROUP = 32, TILE = 16, ROWS = 8 };  /* numbers that share a scale; rows that lie side by side; rows at once */

#define ANY_ORDER _Pragma("omp simd reduction(+ : sum)")  /* what is added to `sum` may be so as vector code does */

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

typedef struct {  /* each layer [batch, kv_heads, capacity, head_dim] */
    int32_t kind, batch, capacity, length;  /* length: slots that are filled before this step */
    const int64_t *positions;               /* [batch, capacity]: of the tokens in the slots, those of this step too */
    void *const *keys, *const *values;
} Cache;

typedef struct {  /* what a matrix is applied to, [tokens, columns]; for INT8 and INT4 rounded, group by group */
    const float *x;
    int8_t *whole;   /* x ≈ scale · whole */
    float *scale;    /* [tokens, columns/32] */
    int32_t *sum;    /* [tokens, columns/32]: of the whole numbers of a group */
} Vectors;

typedef struct { int from, to; } Part;

#include "native/numbers.h"
#if defined __AVX512F__ && defined __AVX512BW__ && defined __AVX512VL__ && defined __AVX512VNNI__ && !defined PLAIN
#include "native/avx512.h"
#else
#include "native/plain.h"
#endif
#include "native/threads.h"

typedef struct {  /* one step: what it is given, and what its threads share */
    const Llama *model;
    const Cache *cache;
    const int64_t *tokens;
    int count, seq, threads;                   /* tokens, batch · seq of them: those of one sequence in a row */
    float *logits;
    float *cos, *sin;                          /* [count, head_dim/2] */
    float *x, *query, *key, *value, *mixed;    /* [count, …]: the stream; queries, keys, values; what was gathered */
    float *gate, *up, *written;                /* of the feed-forward network; what a block adds to the stream */
    struct Own { float *normed, *scores; Vectors vectors; } *own;  /* what each thread has for itself */
} Step;

#include "native/memory.h"

static Part part(int rows, int thread, int threads, int together) {  /* a thread's share, in multiples of `together` */
    int64_t units = (rows + together - 1) / together;
    int from = (int)(units * thread / threads) * together, to = (int)(units * (thread + 1) / threads) * together;
    return (Part){from < rows ? from : rows, to < rows ? to : rows};
}

/* y = W x for each x, the rows of `part` of it. */
static void multiply(const Matrix *w, const Vectors *v, int count, Part part, float *y) {
    size_t columns = (size_t)w->columns, groups = columns / GROUP;
    const int together = w->kind < INT8 ? ROWS : TILE;
    for (int row = part.from; row < part.to; row += together) {
        int rows = part.to - row < together ? part.to - row : together;
        if (w->kind < INT8) {
            const char *numbers = (const char *)w->numbers + (size_t)row * columns * size_of(w->kind);
            dots(w->kind, numbers, rows, v->x, w->columns, count, y + row, (size_t)w->rows);
            continue;
        }
        const uint16_t *scales = w->scales + (size_t)row * groups;
        const uint8_t *numbers = (const uint8_t *)w->numbers + (size_t)row * columns / (w->kind == INT8 ? 1 : 2);
        tiles(w->kind, numbers, scales, v, (int)groups, count, rows, y + row, (size_t)w->rows);
    }
}

/* x as what `w` is applied to: rounded to whole numbers if those of the matrix are. */
static const Vectors *for_matrix(const Matrix *w, const float *x, int count, Vectors *v) {
    v->x = x;
    if (w->kind >= INT8) round_groups(x, count * (w->columns / GROUP), v);
    return v;
}

/* x = E[token]: the row of a token. */
static void embed(const Matrix *e, int64_t token, Part part, float *x) {
    for (int at = part.from; at < part.to; at++) x[at] = number_at(e, (size_t)token, (size_t)at);
}

/* x / √(mean(x²) + ε) ⊙ gain. Zhang & Sennrich 2019, eq. 4. Each thread does all of it for itself, which takes less
   than another wait. */
static const float *rms_norm(const Step *s, const float *x, const float *gain, float *normed) {
    int dim = s->model->dim;
    for (int token = 0; token < s->count; token++, x += dim) {
        float squares;
        dots(FLOAT32, x, 1, x, dim, 1, &squares, 1);
        float scale = 1 / sqrtf(squares / (float)dim + s->model->norm_eps);
        for (int at = 0; at < dim; at++) normed[token * dim + at] = x[at] * scale * gain[at];
    }
    return normed;
}

/* (a + ib) · exp(i·m·θⱼ) for each pair of neighbours. Su et al. 2021 (RoFormer), eq. 34; angles are worked out once. */
static void rotate(const Step *s, Part part, int columns, float *x) {
    for (int token = 0, half = s->model->head_dim / 2; token < s->count; token++, x += columns) {
        for (int at = part.from; at < part.to; at += 2) {
            float cos = s->cos[token * half + at / 2 % half], sin = s->sin[token * half + at / 2 % half];
            float a = x[at], b = x[at + 1];
            x[at] = a * cos - b * sin;
            x[at + 1] = a * sin + b * cos;
        }
    }
}

static char *slot_of(const Step *s, void *layer, int sequence, int kv_head, int slot) {
    size_t head = (size_t)sequence * (size_t)s->model->kv_heads + (size_t)kv_head;
    size_t at = head * (size_t)s->cache->capacity + (size_t)slot;
    return (char *)layer + at * (size_t)s->model->head_dim * size_of(s->cache->kind);
}

/* The cache, longer by a part of these tokens' keys or values. */
static void write_slots(const Step *s, Part part, int columns, const float *x, void *layer) {
    for (int token = 0, width = s->model->head_dim; token < s->count; token++, x += columns) {
        for (int at = part.from; at < part.to; at++) {
            void *slot = slot_of(s, layer, token / s->seq, at / width, s->cache->length + token % s->seq);
            if (s->cache->kind == FLOAT32) ((float *)slot)[at % width] = x[at];
            else ((uint16_t *)slot)[at % width] = s->cache->kind == BFLOAT16 ? to_bfloat16(x[at]) : to_float16(x[at]);
        }
    }
}

/* softmax(q kᵀ / √head_dim + M) v of one head of one token; each k and v serves heads / kv_heads heads in a row. M is
   −∞ where a slot holds a later position than the token's own, else 0. Vaswani et al. 2017, eq. 1; Ainslie et al. 2023
   (GQA), §2.2. */
static void attend(const Step *s, int layer, int token, int head, float *scores) {
    const Llama *m = s->model;
    const Cache *c = s->cache;
    int slots = c->length + s->seq, kv_head = head / (m->heads / m->kv_heads), sequence = token / s->seq;
    const int64_t *positions = c->positions + (size_t)sequence * (size_t)c->capacity;
    int64_t own = positions[c->length + token % s->seq];
    size_t width = (size_t)m->head_dim, stride = width * size_of(c->kind);
    size_t at = (size_t)(token * m->heads + head) * width;
    const char *k = slot_of(s, c->keys[layer], sequence, kv_head, 0);
    const char *v = slot_of(s, c->values[layer], sequence, kv_head, 0);
    float scale = 1 / sqrtf((float)m->head_dim), largest = -INFINITY, sum = 0;
    while (positions[slots - 1] > own) slots--;  /* tokens read together: each sums over what it would see alone */
    for (int slot = 0; slot < slots; slot += ROWS) {
        int some = slots - slot < ROWS ? slots - slot : ROWS;
        dots(c->kind, k + (size_t)slot * stride, some, s->query + at, m->head_dim, 1, scores + slot, 1);
    }
    for (int slot = 0; slot < slots; slot++) {
        scores[slot] = positions[slot] <= own ? scores[slot] * scale : -INFINITY;
        if (scores[slot] > largest) largest = scores[slot];
    }
    for (int slot = 0; slot < slots; slot++)
        scores[slot] = scores[slot] == -INFINITY ? 0 : exponential(scores[slot] - largest);
    ANY_ORDER for (int slot = 0; slot < slots; slot++) sum += scores[slot];
    for (int slot = 0; slot < slots; slot++) scores[slot] /= sum;
    mix(c->kind, v, scores, slots, m->head_dim, s->mixed + at);
}

/* A thread's part of the rows of a product, added to the stream. */
static void add(const Step *s, const Matrix *w, const float *x, int thread) {
    Part rows = part(w->rows, thread, s->threads, TILE);
    multiply(w, for_matrix(w, x, s->count, &s->own[thread].vectors), s->count, rows, s->written);
    for (int token = 0; token < s->count; token++)
        for (int at = token * w->rows + rows.from; at < token * w->rows + rows.to; at++) s->x[at] += s->written[at];
    wait_for_all(s->threads);
}

/* Each token asks (query) and gathers (value) from those that answer (key). Vaswani et al. 2017, §3.2.2. */
static void attention(const Step *s, const float *x, const Block *w, int layer, int thread) {
    int heads = s->model->heads, q = w->query.rows, kv = w->key.rows;
    Vectors *v = &s->own[thread].vectors;
    Part of_q = part(q, thread, s->threads, TILE), of_kv = part(kv, thread, s->threads, TILE);
    multiply(&w->query, for_matrix(&w->query, x, s->count, v), s->count, of_q, s->query);
    multiply(&w->key, w->key.kind == w->query.kind ? v : for_matrix(&w->key, x, s->count, v), s->count, of_kv, s->key);
    multiply(&w->value, w->value.kind == w->key.kind ? v : for_matrix(&w->value, x, s->count, v), s->count, of_kv,
             s->value);
    rotate(s, of_q, q, s->query), rotate(s, of_kv, kv, s->key);
    write_slots(s, of_kv, kv, s->key, s->cache->keys[layer]);
    write_slots(s, of_kv, kv, s->value, s->cache->values[layer]);
    wait_for_all(s->threads);
    Part pairs = part(s->count * heads, thread, s->threads, 1);
    for (int at = pairs.from; at < pairs.to; at++) attend(s, layer, at / heads, at % heads, s->own[thread].scores);
    wait_for_all(s->threads);
    add(s, &w->output, s->mixed, thread);
}

/* (silu(x Gᵀ) ⊙ x Uᵀ) Dᵀ with silu(z) = z / (1 + e⁻ᶻ). Shazeer 2020, eq. 6. */
static void swiglu(const Step *s, const float *x, const Block *w, int thread) {
    Vectors *v = &s->own[thread].vectors;
    int ffn = w->gate.rows;
    Part rows = part(ffn, thread, s->threads, TILE);
    multiply(&w->gate, for_matrix(&w->gate, x, s->count, v), s->count, rows, s->gate);
    multiply(&w->up, w->up.kind == w->gate.kind ? v : for_matrix(&w->up, x, s->count, v), s->count, rows, s->up);
    for (int token = 0; token < s->count; token++)
        for (int at = token * ffn + rows.from; at < token * ffn + rows.to; at++)
            s->gate[at] *= s->up[at] / (1 + exponential(-s->gate[at]));
    wait_for_all(s->threads);
    add(s, &w->down, s->gate, thread);
}

/* x + Attention(RMSNorm(x)), then the same with SwiGLU. Touvron et al. 2023a, §2.2 (pre-normalisation). */
static void block(const Step *s, const Block *w, int layer, int thread) {
    float *normed = s->own[thread].normed;
    attention(s, rms_norm(s, s->x, w->attention_norm, normed), w, layer, thread);
    swiglu(s, rms_norm(s, s->x, w->feed_forward_norm, normed), w, thread);
}

/* What each thread does of a step; the last product scores every token, if that is asked for. A tied embedding is the
   output matrix too. */
static void llama(void *given, int thread) {
    const Step *s = given;
    const Llama *m = s->model;
    struct Own *own = &s->own[thread];
    for (int token = 0; token < s->count; token++)
        embed(&m->embedding, s->tokens[token], part(m->dim, thread, s->threads, TILE), s->x + token * m->dim);
    wait_for_all(s->threads);
    for (int layer = 0; layer < m->layers; layer++) block(s, &m->blocks[layer], layer, thread);
    if (!s->logits) return;
    const Vectors *v = for_matrix(&m->output, rms_norm(s, s->x, m->norm, own->normed), s->count, &own->vectors);
    multiply(&m->output, v, s->count, part(m->output.rows, thread, s->threads, TILE), s->logits);
}

/* The scores of what follows each of the tokens [batch, seq], as [batch, seq, output.rows] unless NULL, and the cache
   longer by them; 0 if memory ran out. Their positions are in the cache already. */
int llama_step(const Llama *model, const Cache *cache, const int64_t *tokens, int seq, int threads, float *logits) {
    pthread_mutex_lock(&one_at_a_time);
    Step s = {.model = model, .cache = cache, .tokens = tokens, .seq = seq, .logits = logits};
    s.count = cache->batch * seq, s.threads = at_most(threads);
    int ready = lay_out(&s);
    if (ready) {
        for (int token = 0, half = model->head_dim / 2; token < s.count; token++) {
            float position = (float)cache->positions[token / seq * cache->capacity + cache->length + token % seq];
            for (int pair = 0; pair < half; pair++) {
                s.cos[token * half + pair] = cosf(position * model->theta[pair]);
                s.sin[token * half + pair] = sinf(position * model->theta[pair]);
            }
        }
        together(llama, &s, s.threads);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return ready;
}




