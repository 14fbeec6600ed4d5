/* The decode step of llama.py once more, in C: a few tokens in, the scores of what follows some of them out.

   The same names in the same order. What PyTorch does to tensors is here done by threads that all run the same
   function: each computes its part of the rows of a product, then waits for the others:

       x = E[tokens]
       x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))       once per block
       logits = O RMSNorm(x)

   In a block they synchronise after q, k, v and the cache, after the heads, after O, after the gate, and after D.

   The tokens are a flat list, each with its sequence and its position there; a sequence is a list of pages of the
   cache, and a token attends to the slots of its own sequence up to its own position. Activations are float32; what
   multiplies whole numbers is first rounded to 8 bits. Matrices are read as they are stored (float32, bfloat16,
   float16, or groups of 32 whole numbers with a scale, see arrays/quantized.py), once for all tokens, since with few
   tokens reading takes the time. A token's scores are bit for bit those that it has when it is read alone.
   Sources as in llama.py. native/step.py checks every size and calls `llama_step`.

   native/numbers.h   numbers as they are stored
   native/memory.h    where the arrays of a step lie
   native/threads.h   threads that start together, wait for one another, and sleep between tokens
   native/plain.h     sums of products in plain C, for any processor
   native/avx512.h    the same for processors with AVX-512 and VNNI
   native/kquants.h   both for ggml's K-quants
   native/ahead.h     how far ahead weights are prefetched, by measurement */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };  /* how numbers are stored */
enum { GROUP = 32, TILE = 16 };  /* numbers that share a scale; rows at once, which lie side by side if whole */
enum { FEW_TOKENS = 8 };

#define ANY_ORDER _Pragma("omp simd reduction(+ : sum)")  /* what is added to `sum` may be so as vector code does */

typedef struct {  /* [rows, columns], applied as y = W x + bias */
    int32_t kind, rows, columns;
    const void *numbers;
    const uint16_t *scales;  /* float16, of whole numbers only */
    const float *bias;  /* [rows], or null */
} Matrix;

typedef struct {
    const float *attention_norm;
    Matrix query, key, value, output;
    const float *feed_forward_norm;
    Matrix gate, up, down;
} Block;

typedef struct {
    int32_t dim, layers, heads, kv_heads, head_dim, ffn;
    float norm_eps, rope_factor;  /* the latter multiplies turned queries and keys: 1, but for YaRN */
    const float *theta;  /* [head_dim/2]: radians per position */
    Matrix embedding;
    const Block *blocks;
    const float *norm;
    Matrix output;
} Llama;

typedef struct {  /* keys and values, each layer [kv_heads, slots, head_dim]; page n is slots n · page … */
    int32_t kind, page;
    int64_t slots;
    void *const *keys, *const *values;
} Cache;

typedef struct {  /* what a step reads */
    int32_t count, scored;             /* tokens; how many of them are scored */
    const int32_t *ids, *positions;    /* [count]: in the vocabulary; in the token's sequence */
    const int32_t *pages;              /* the pages of every sequence, one after another */
    const int32_t *first;              /* [count]: where in `pages` those of the token's sequence begin */
    const int32_t *wanted;             /* [scored]: which tokens are scored */
} Tokens;

typedef struct {  /* what a matrix is applied to, [tokens, columns]; for whole numbers rounded, group by group */
    const float *x;
    int8_t *whole;   /* x ≈ scale · whole; for each part of the tokens (`part_of`) [columns/32, tokens, 32] */
    float *scale;    /* [columns/32, tokens] */
    int32_t *sum;    /* [columns/32, tokens]: of the whole numbers of a group */
    float *half;     /* [columns/32, tokens, 2]: scale · the sum of half a group */
} Vectors;

typedef struct { int from, to; } Part;

#include "native/numbers.h"
#if defined __AVX512F__ && defined __AVX512BW__ && defined __AVX512VL__ && defined __AVX512VNNI__ && !defined PLAIN
#define AVX512
#include "native/avx512.h"
#else
#include "native/plain.h"
#endif
#include "native/kquants.h"
#include "native/threads.h"
#include "native/ahead.h"

typedef struct {  /* one step: what it is given, and what its threads share */
    const Llama *model;
    const Cache *cache;
    const Tokens *tokens;
    int count, threads, blocks;                /* tokens; threads; blocks of tokens, which attend together */
    int32_t *starts;                           /* [blocks + 1]: the first tokens of the blocks */
    float *logits;                             /* [scored, vocab] */
    float *cos, *sin;                          /* [count, head_dim/2] */
    float *x, *query, *key, *value, *mixed;    /* [count, …]: the stream; queries, keys, values; p v */
    float *gate, *up, *written;                /* of the feed-forward network; what a block adds to the stream */
    struct Own { float *normed, *asking, *scores; Vectors vectors; } *own;  /* what each thread has for itself */
} Step;

#include "native/memory.h"

static Part part(int rows, int thread, int threads, int together) {  /* a thread's share, in multiples of `together` */
    int64_t units = (rows + together - 1) / together;
    int from = (int)(units * thread / threads) * together, to = (int)(units * (thread + 1) / threads) * together;
    return (Part){from < rows ? from : rows, to < rows ? to : rows};
}

/* y = W x + bias for each x, the rows of `part` of it. */
static void product(const Matrix *w, const Vectors *v, int count, Part part, float *y, size_t ahead) {
    size_t columns = (size_t)w->columns, groups = columns / GROUP;
    for (int row = part.from; row < part.to; row += TILE) {
        int rows = part.to - row < TILE ? part.to - row : TILE;
        if (w->kind < INT8) {
            const char *numbers = (const char *)w->numbers + (size_t)row * columns * size_of(w->kind);
            dots(w->kind, numbers, ahead, rows, v->x, w->columns, count, y + row, (size_t)w->rows);
            continue;
        }
        if (w->kind > INT4) {
            const size_t per_row = columns / BLOCK_NUMBERS, before = (size_t)row / TILE * per_row;
            const uint8_t *numbers = (const uint8_t *)w->numbers + before * (size_t)WORDS(w->kind) * WORD;
            const uint16_t *scales = w->scales + before * (size_t)SCALES(w->kind) * TILE;
            blocks(w->kind, numbers, ahead, scales, v, (int)per_row, count, rows, y + row, (size_t)w->rows);
            continue;
        }
        const uint16_t *scales = w->scales + (size_t)row * groups;
        const uint8_t *numbers = (const uint8_t *)w->numbers + (size_t)row * columns / (w->kind == INT8 ? 1 : 2);
        tiles(w->kind, numbers, ahead, scales, v, (int)groups, count, rows, y + row, (size_t)w->rows);
    }
    if (!w->bias) return;
    for (int token = 0; token < count; token++, y += w->rows)
        for (int row = part.from; row < part.to; row++) y[row] += w->bias[row];
}

/* The same, as a sample of how fast it is with this distance where a trial is running. */
static void multiply(const Matrix *w, const Vectors *v, int count, int thread, Part part, float *y) {
    int kind = count > FEW_TOKENS ? KINDS + w->kind : w->kind;
    struct Trial *t = &trials[kind];
    int tried = t->running && (int64_t)w->rows * w->columns >= LEAST && llama_forced < 0;
    int64_t begun = tried ? nanoseconds() : 0, numbers = (int64_t)(part.to - part.from) * w->columns;
    unsigned distance = atomic_load(&pool.rounds) % DISTANCES;  /* the same in all threads */
    product(w, v, count, part, y, tried ? (size_t)distances[distance] : ahead_of(kind));
    if (thread) return;
    t->products++;
    if (!tried || t->count >= SAMPLES || !numbers) return;
    t->samples[t->count].distance = (int)distance;
    t->samples[t->count++].seconds = (float)(nanoseconds() - begun) / (float)numbers;
}

/* x as what `w` is applied to: rounded to whole numbers if those of the matrix are. */
static const Vectors *for_matrix(const Matrix *w, const float *x, int count, Vectors *v) {
    const size_t groups = (size_t)w->columns / GROUP;
    v->x = x;
    if (w->kind < INT8) return v;
    for (size_t first = 0, some; first < (size_t)count; first += some) {
        some = (size_t)part_of(count - (int)first);
        for (size_t group = 0; group < groups; group++)
            for (size_t i = 0; i < some; i++)
                round_group(x + ((first + i) * groups + group) * GROUP, v, first * groups + group * some + i);
    }
    return v;
}

/* Whether two matrices are applied to the same: the vectors, or what they are rounded to. */
static int alike(const Matrix *a, const Matrix *b) { return (a->kind < INT8) == (b->kind < INT8); }

/* x = E[token]: the row of a token. */
static void embed(const Matrix *e, int32_t token, Part part, float *x) {
    float (*number)(const Matrix *, size_t, size_t) = e->kind > INT4 ? number_in_block : number_at;
    for (int at = part.from; at < part.to; at++) x[at] = number(e, (size_t)token, (size_t)at);
}

/* x / √(mean(x²) + ε) ⊙ gain. Zhang & Sennrich 2019, eq. 4. Each thread does all of it for itself, which takes less
   than another wait. */
static const float *rms_norm(const Step *s, const float *x, int count, const float *gain, float *normed) {
    size_t dim = (size_t)s->model->dim;
    for (float *y = normed; count > 0; count--, x += dim, y += dim) {
        float squares;
        dots(FLOAT32, x, 0, 1, x, s->model->dim, 1, &squares, 1);
        float scale = 1 / sqrtf(squares / (float)dim + s->model->norm_eps);
        for (size_t at = 0; at < dim; at++) y[at] = x[at] * scale * gain[at];
    }
    return normed;
}

/* Where, from `at` on, either a head or a part of the columns ends. */
static int end_of_head(int at, Part part, int width) {
    int end = (at / width + 1) * width;
    return end < part.to ? end : part.to;
}

/* (a + ib) · exp(i·m·θⱼ) for each pair of neighbours. Su et al. 2021 (RoFormer), eq. 34; angles are worked out once. */
static void rotate(const Step *s, Part part, size_t columns, float *x) {
    const int width = s->model->head_dim;
    for (int token = 0; token < s->count; token++, x += columns) {
        for (int at = part.from, end; at < part.to; at = end) {
            const size_t angle = (size_t)token * (size_t)(width / 2) + (size_t)(at % width / 2);
            const float *cos = s->cos + angle, *sin = s->sin + angle;
            end = end_of_head(at, part, width);
            for (int pair = 0; pair < (end - at) / 2; pair++) {
                float *turned = x + at + 2 * pair, a = turned[0], b = turned[1];
                turned[0] = a * cos[pair] - b * sin[pair];
                turned[1] = a * sin[pair] + b * cos[pair];
            }
        }
    }
}

/* Where a slot's key or value of a head lies: of the token at `position` of a sequence that has these pages. */
static char *slot_of(const Step *s, void *layer, const int32_t *pages, int kv_head, int position) {
    const Cache *c = s->cache;
    size_t slot = (size_t)pages[position / c->page] * (size_t)c->page + (size_t)(position % c->page);
    return (char *)layer + ((size_t)kv_head * (size_t)c->slots + slot) * (size_t)s->model->head_dim * size_of(c->kind);
}

/* How many tokens from `position` to `end` lie one after another in memory: their pages do. */
static int run_length(const Step *s, const int32_t *pages, int position, int end) {
    int page = s->cache->page, at = position / page, last = at;
    while ((last + 1) * page < end && pages[last + 1] == pages[last] + 1) last++;
    return (last + 1) * page < end ? (last + 1) * page - position : end - position;
}

/* Writes a part of these tokens' keys or values into their slots. */
static void write_slots(const Step *s, Part part, size_t columns, const float *x, void *layer) {
    const int width = s->model->head_dim, kind = s->cache->kind;
    for (int token = 0; token < s->count; token++, x += columns) {
        const int32_t *pages = s->tokens->pages + s->tokens->first[token];
        for (int at = part.from, end; at < part.to; at = end) {
            end = end_of_head(at, part, width);
            char *slot = slot_of(s, layer, pages, at / width, s->tokens->positions[token]);
            store(kind, x + at, end - at, slot + (size_t)(at % width) * size_of(kind));
        }
    }
}

/* Takes consecutive tokens of a sequence together, AT_ONCE at most. */
static void find_blocks(Step *s) {
    const int32_t *first = s->tokens->first, *positions = s->tokens->positions;
    s->blocks = 0;
    for (int token = 0; token < s->count; token++) {
        int begun = s->blocks ? s->starts[s->blocks - 1] : 0;
        if (token && token - begun < AT_ONCE && first[token] == first[begun] &&
            positions[token] == positions[begun] + token - begun) continue;
        s->starts[s->blocks++] = token;
    }
    s->starts[s->blocks] = s->count;
}

/* scores = softmax(scores · scale) */
static void softmax(float *scores, int slots, float scale) {
    float largest = -INFINITY, sum = 0;
    for (int slot = 0; slot < slots; slot++) {
        scores[slot] *= scale;
        if (scores[slot] > largest) largest = scores[slot];
    }
    for (int slot = 0; slot < slots; slot++) scores[slot] = exponential(scores[slot] - largest);
    ANY_ORDER for (int slot = 0; slot < slots; slot++) sum += scores[slot];
    for (int slot = 0; slot < slots; slot++) scores[slot] /= sum;
}

/* softmax(q kᵀ / √head_dim) v of one head of the tokens of a block, each over the slots of their sequence up to its own
   position; each k and v serves heads / kv_heads heads in a row. Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 (GQA),
   §2.2. */
static void attend(const Step *s, int layer, int block, int head, const struct Own *own) {
    const Llama *m = s->model;
    const Cache *c = s->cache;
    const int token = s->starts[block], count = s->starts[block + 1] - token;
    const int32_t *pages = s->tokens->pages + s->tokens->first[token];
    const int common = s->tokens->positions[token] + 1, slots = common + count - 1;  /* all see; the last one sees */
    const int kv_head = head / (m->heads / m->kv_heads);
    const size_t width = (size_t)m->head_dim, stride = width * size_of(c->kind), columns = (size_t)m->heads * width;
    const size_t from = (size_t)token * columns + (size_t)head * width, ahead = ahead_of(m->blocks->query.kind);
    const size_t apart = (size_t)(slots + TILE - 1) / TILE * TILE;  /* all aligned: sums in one order */
    float *scores = own->scores, *y = s->mixed + from;
    for (int i = 0; i < count; i++) {
        memcpy(own->asking + (size_t)i * width, s->query + from + (size_t)i * columns, width * sizeof(float));
        memset(y + (size_t)i * columns, 0, width * sizeof(float));
    }
    for (int start = 0, run; start < slots; start += run) {
        const char *k = slot_of(s, c->keys[layer], pages, kv_head, start);
        run = run_length(s, pages, start, slots);
        for (int slot = 0; slot < run; slot += TILE) {
            int some = run - slot < TILE ? run - slot : TILE;
            dots(c->kind, k + (size_t)slot * stride, ahead, some, own->asking, m->head_dim, count,
                 scores + start + slot, apart);
        }
    }
    for (int i = 0; i < count; i++) softmax(scores + (size_t)i * apart, common + i, 1 / sqrtf((float)m->head_dim));
    for (int start = 0, run; start < slots; start += run) {
        const int hidden = start < common ? 0 : start - common + 1;  /* from so many tokens of the block */
        run = run_length(s, pages, start, hidden ? start + 1 : common);
        const float *p = scores + (size_t)hidden * apart + start;
        mix(c->kind, slot_of(s, c->values[layer], pages, kv_head, start), ahead, p, apart, run, m->head_dim,
            count - hidden, y + (size_t)hidden * columns, columns);
    }
}

/* A thread's part of the rows of a product, added to the stream. */
static void add(const Step *s, const Matrix *w, const float *x, int thread) {
    Part rows = part(w->rows, thread, s->threads, TILE);
    multiply(w, for_matrix(w, x, s->count, &s->own[thread].vectors), s->count, thread, rows, s->written);
    float *to = s->x;
    const float *from = s->written;
    for (int token = 0; token < s->count; token++, to += w->rows, from += w->rows)
        for (int at = rows.from; at < rows.to; at++) to[at] += from[at];
    wait_for_all(s->threads);
}

/* Each token asks (query) and gathers (value) from those that answer (key). Vaswani et al. 2017, §3.2.2. */
static void attention(const Step *s, const float *x, const Block *w, int layer, int thread) {
    int heads = s->model->heads, q = w->query.rows, kv = w->key.rows;
    Vectors *v = &s->own[thread].vectors;
    Part of_q = part(q, thread, s->threads, TILE), of_kv = part(kv, thread, s->threads, TILE);
    int count = s->count;
    multiply(&w->query, for_matrix(&w->query, x, count, v), count, thread, of_q, s->query);
    multiply(&w->key, alike(&w->key, &w->query) ? v : for_matrix(&w->key, x, count, v), count, thread, of_kv, s->key);
    multiply(&w->value, alike(&w->value, &w->key) ? v : for_matrix(&w->value, x, count, v), count, thread, of_kv, s->value);
    rotate(s, of_q, (size_t)q, s->query), rotate(s, of_kv, (size_t)kv, s->key);
    write_slots(s, of_kv, (size_t)kv, s->key, s->cache->keys[layer]);
    write_slots(s, of_kv, (size_t)kv, s->value, s->cache->values[layer]);
    wait_for_all(s->threads);
    Part pairs = part(s->blocks * heads, thread, s->threads, 1);  /* of a block and a head */
    for (int at = pairs.from; at < pairs.to; at++) attend(s, layer, at / heads, at % heads, &s->own[thread]);
    wait_for_all(s->threads);
    add(s, &w->output, s->mixed, thread);
}

/* (silu(x Gᵀ) ⊙ x Uᵀ) Dᵀ with silu(z) = z / (1 + e⁻ᶻ). Shazeer 2020, eq. 6. */
static void swiglu(const Step *s, const float *x, const Block *w, int thread) {
    Vectors *v = &s->own[thread].vectors;
    int ffn = w->gate.rows;
    Part rows = part(ffn, thread, s->threads, TILE);
    multiply(&w->gate, for_matrix(&w->gate, x, s->count, v), s->count, thread, rows, s->gate);
    multiply(&w->up, alike(&w->up, &w->gate) ? v : for_matrix(&w->up, x, s->count, v), s->count, thread, rows, s->up);
    float *gate = s->gate;
    const float *up = s->up;
    for (int token = 0; token < s->count; token++, gate += ffn, up += ffn)
        for (int at = rows.from; at < rows.to; at++) gate[at] *= up[at] / (1 + exponential(-gate[at]));
    wait_for_all(s->threads);
    add(s, &w->down, s->gate, thread);
}

/* x + Attention(RMSNorm(x)), then the same with SwiGLU. Touvron et al. 2023a, §2.2 (pre-normalisation). */
static void block(const Step *s, const Block *w, int layer, int thread) {
    float *normed = s->own[thread].normed;
    attention(s, rms_norm(s, s->x, s->count, w->attention_norm, normed), w, layer, thread);
    swiglu(s, rms_norm(s, s->x, s->count, w->feed_forward_norm, normed), w, thread);
}

/* What each thread does of a step; the last product scores the tokens that are wanted. A tied embedding is the output
   matrix too. */
static void llama(void *given, int thread) {
    const Step *s = given;
    const Llama *m = s->model;
    const Tokens *t = s->tokens;
    struct Own *own = &s->own[thread];
    size_t dim = (size_t)m->dim;
    for (int token = 0; token < s->count; token++)
        embed(&m->embedding, t->ids[token], part(m->dim, thread, s->threads, TILE), s->x + (size_t)token * dim);
    wait_for_all(s->threads);
    for (int layer = 0; layer < m->layers; layer++) block(s, &m->blocks[layer], layer, thread);
    for (int at = 0; at < t->scored; at++)
        rms_norm(s, s->x + (size_t)t->wanted[at] * dim, 1, m->norm, own->normed + (size_t)at * dim);
    const Vectors *v = for_matrix(&m->output, own->normed, t->scored, &own->vectors);
    multiply(&m->output, v, t->scored, thread, part(m->output.rows, thread, s->threads, TILE), s->logits);
}

/* Writes the keys and values of the tokens into their slots and the scores of what follows those that are wanted into
   logits [scored, output.rows]; 0 if memory ran out. */
int llama_step(const Llama *model, const Cache *cache, const Tokens *tokens, int threads, float *logits) {
    pthread_once(&at_fork, watch_forks);
    pthread_mutex_lock(&one_at_a_time);
    Step s = {.model = model, .cache = cache, .tokens = tokens, .count = tokens->count, .logits = logits};
    threads = at_most(threads), s.threads = fit(threads);
    choose_distances();
    int64_t begun = nanoseconds();
    int ready = lay_out(&s);
    if (ready) {
        find_blocks(&s);
        for (int token = 0, half = model->head_dim / 2; token < s.count; token++) {
            float position = (float)tokens->positions[token];
            for (int pair = 0; pair < half; pair++) {
                size_t at = (size_t)token * (size_t)half + (size_t)pair;
                s.cos[at] = model->rope_factor * cosf(position * model->theta[pair]);
                s.sin[at] = model->rope_factor * sinf(position * model->theta[pair]);
            }
        }
        together(llama, &s, s.threads);
        learn(threads, s.count > FEW_TOKENS ? s.count : FEW_TOKENS, nanoseconds() - begun);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return ready;
}

#define AT(type, field) (int32_t)offsetof(type, field)

/* Sizes and offsets of the types above, in the order of native/types.py, which compares them with its own. */
const int32_t llama_layout[] = {
    sizeof(Matrix), AT(Matrix, kind), AT(Matrix, rows), AT(Matrix, columns), AT(Matrix, numbers), AT(Matrix, scales),
    AT(Matrix, bias),
    sizeof(Block), AT(Block, attention_norm), AT(Block, query), AT(Block, key), AT(Block, value), AT(Block, output),
    AT(Block, feed_forward_norm), AT(Block, gate), AT(Block, up), AT(Block, down),
    sizeof(Llama), AT(Llama, dim), AT(Llama, layers), AT(Llama, heads), AT(Llama, kv_heads), AT(Llama, head_dim),
    AT(Llama, ffn), AT(Llama, norm_eps), AT(Llama, rope_factor), AT(Llama, theta), AT(Llama, embedding),
    AT(Llama, blocks), AT(Llama, norm),
    AT(Llama, output),
    sizeof(Cache), AT(Cache, kind), AT(Cache, page), AT(Cache, slots), AT(Cache, keys), AT(Cache, values),
    sizeof(Tokens), AT(Tokens, count), AT(Tokens, scored), AT(Tokens, ids), AT(Tokens, positions), AT(Tokens, pages),
    AT(Tokens, first), AT(Tokens, wanted),
};
