/* The functions of plain.h, of the same names and meanings, for x86 processors with AVX-512 and VNNI: 16 numbers
   a register. Reading memory takes much of the time, so weights are prefetched: whole numbers `ahead` bytes before they
   are needed (ahead.h), plain ones some rows before. They bypass the caches (NTA), unless they are needed again before
   the next step. */

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { QUAD = 4, AT_ONCE = 6, PART = 8, MANY = 24, BLOCK = 2048 };  /* rows; vectors three times; bytes of a row */

/* A copy of what is called for each number of vectors, with every loop over them written out. */
#define BY_COUNT(count, call)                             \
    switch (count) {                                      \
        case 1: { enum { COUNT = 1 }; call; break; }      \
        case 2: { enum { COUNT = 2 }; call; break; }      \
        case 3: { enum { COUNT = 3 }; call; break; }      \
        case 4: { enum { COUNT = 4 }; call; break; }      \
        case 5: { enum { COUNT = 5 }; call; break; }      \
        default: { enum { COUNT = AT_ONCE }; call; }      \
    }

/* The same for vectors of whole numbers. */
#define BY_PART(part, call)                               \
    switch (part) {                                       \
        case 1: { enum { COUNT = 1 }; call; break; }      \
        case 2: { enum { COUNT = 2 }; call; break; }      \
        case 4: { enum { COUNT = 4 }; call; break; }      \
        default: { enum { COUNT = PART }; call; }         \
    }

static inline int part_of(int count) { return count >= PART ? PART : count >= 4 ? 4 : count >= 2 ? 2 : 1; }

static const int32_t distances[] = {4096, 8192, 1024, 0};  /* bytes: the first, unless another is clearly faster */

/* What is fetched while numbers are read: `from`, moving on with them; or, to fetch nothing, only what is `cached`.
   (A condition in the loops keeps compilers from holding sums in registers.) */
typedef struct { const char *from; size_t moving; } Later;
INLINE Later later(const void *w, size_t ahead, const void *cached) {
    return ahead ? (Later){(const char *)w + ahead, SIZE_MAX} : (Later){cached, 0};
}

/* Always inlined, since compilers drop a call of what they take to do nothing. */
INLINE void fetch(Later later, size_t offset) { _mm_prefetch(later.from + (offset & later.moving), _MM_HINT_NTA); }

static inline __m512 load16(int kind, const void *w, __mmask16 mask) {
    if (kind == FLOAT32) return _mm512_maskz_loadu_ps(mask, w);
    __m256i half = _mm256_maskz_loadu_epi16(mask, w);
    return kind == FLOAT16 ? _mm512_cvtph_ps(half)
                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline __mmask16 rest(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1 << n) - 1); }

/* The totals of 16 registers: halves are added until one number is left. */
INLINE __m512 totals(const __m512 *of) {
#define ADDED(shuffle, a, b, first, second) _mm512_add_ps(shuffle(a, b, first), shuffle(a, b, second))
    __m512 part[4];  /* four numbers each of registers i, i + 4, i + 8 and i + 12 */
    for (int i = 0; i < 4; i++) {
        __m512 low = ADDED(_mm512_shuffle_f32x4, of[i], of[i + 4], 0x44, 0xee);
        __m512 high = ADDED(_mm512_shuffle_f32x4, of[i + 8], of[i + 12], 0x44, 0xee);
        part[i] = ADDED(_mm512_shuffle_f32x4, low, high, 0x88, 0xdd);
    }
    __m512 low = ADDED(_mm512_shuffle_ps, part[0], part[1], 0x44, 0xee);
    __m512 high = ADDED(_mm512_shuffle_ps, part[2], part[3], 0x44, 0xee);
    return ADDED(_mm512_shuffle_ps, low, high, 0x88, 0xdd);
}

/* Adds the products of four rows of w with each of `count` vectors to their sums, or to 0 unless they are `kept`, while
   `step` bytes from `next` on are fetched for each 16 columns. A sum is taken in one order, however many rows and
   vectors there are. */
INLINE void add_dots(int kind, const char *const *w, const float *x, size_t n, size_t columns, int count,
                     const char *next, size_t step, __mmask16 kept, __m512 *sums) {
    const size_t size = kind == FLOAT32 ? 4 : 2;
    const char *until = next;
    __m512 sum[QUAD][AT_ONCE], numbers[QUAD];
    for (int row = 0; row < QUAD; row++)
        for (int i = 0; i < count; i++) sum[row][i] = _mm512_maskz_load_ps(kept, sums + i * TILE + row);
    for (size_t at = 0; at < columns; at += 16) {
        const __mmask16 mask = at + 16 <= columns ? 0xffff : rest((int)(columns - at));
        for (until += step; next < until; next += 64) {
            if (count == 1) _mm_prefetch(next, _MM_HINT_NTA);
            else _mm_prefetch(next, _MM_HINT_T0);  /* read once more for each part of the vectors */
        }
        for (int row = 0; row < QUAD; row++) numbers[row] = load16(kind, w[row] + at * size, mask);
        for (int i = 0; i < count; i++) {
            __m512 with = load16(FLOAT32, x + (size_t)i * n + at, mask);
            for (int row = 0; row < QUAD; row++) sum[row][i] = _mm512_fmadd_ps(numbers[row], with, sum[row][i]);
        }
    }
    for (int row = 0; row < QUAD; row++) for (int i = 0; i < count; i++) sums[i * TILE + row] = sum[row][i];
}

/* Up to 16 rows and MANY vectors: blocks of columns that fit into the first cache, each for four rows and AT_ONCE
   vectors at a time, whose sums fill the registers. Memory gives most if it is read in order and without a pause: that
   is how the next rows are fetched meanwhile, unless `ahead` is 0. */
INLINE void dots_of(int kind, const char *w, size_t ahead, int rows, const float *x, size_t n, int count, float *y,
                    size_t stride) {
    const size_t size = kind == FLOAT32 ? 4 : 2, block = count == 1 ? n : BLOCK / size;
    const size_t parts = ((size_t)count + AT_ONCE - 1) / AT_ONCE, step = ahead ? QUAD * 16 * size / parts : 0;
    const char *next = w + (size_t)(count == 1 ? QUAD : rows) * n * size + ahead;
    __m512 sums[MANY * TILE];
    if (rows < TILE) for (int i = 0; i < count * TILE; i++) sums[i] = _mm512_setzero_ps();  /* else all are written */
    for (size_t at = 0; at < n; at += block) {
        const size_t columns = n - at < block ? n - at : block;
        for (size_t part = 0, first, some; part < parts; part++) {
            first = part * (size_t)count / parts, some = (part + 1) * (size_t)count / parts - first;
            for (int row = 0; row < rows; row += QUAD, next += columns / 16 * step) {
                const char *four[QUAD];  /* the last again where there are no more */
                for (int i = 0; i < QUAD; i++)
                    four[i] = w + ((size_t)(row + i < rows ? row + i : rows - 1) * n + at) * size;
                const float *with = x + first * n + at;
                __m512 *to = sums + first * TILE + (size_t)row;
                BY_COUNT(some, add_dots(kind, four, with, n, columns, COUNT, next, step, at ? 0xffff : 0, to))
            }
        }
    }
    for (int i = 0; i < count; i++, y += stride) _mm512_mask_storeu_ps(y, rest(rows), totals(sums + i * TILE));
}

static void dots(int kind, const void *w, size_t ahead, int rows, const float *x, int n, int count, float *y,
                 size_t stride) {
    const size_t columns = (size_t)n;
    for (int some; count > 0; count -= some, x += (size_t)some * columns, y += (size_t)some * stride) {
        some = count < MANY ? count : MANY;
        if (kind == FLOAT32) dots_of(FLOAT32, w, ahead, rows, x, columns, some, y, stride);
        else if (kind == BFLOAT16) dots_of(BFLOAT16, w, ahead, rows, x, columns, some, y, stride);
        else dots_of(FLOAT16, w, ahead, rows, x, columns, some, y, stride);
    }
}

INLINE void mix_of(int kind, const char *v, size_t ahead, const float *p, size_t stride, int rows, size_t n, int count,
                   float *y, size_t columns) {
    const size_t size = kind == FLOAT32 ? 4 : 2;
    for (size_t at = 0; at < n; at += 16 * QUAD) {
        __m512 sum[QUAD][AT_ONCE];
        __mmask16 mask[QUAD];
        for (int part = 0; part < QUAD; part++) {
            mask[part] = rest((int)(n - at) - 16 * part);
            for (int i = 0; i < count; i++)
                sum[part][i] = _mm512_maskz_loadu_ps(mask[part], y + (size_t)i * columns + at + (size_t)part * 16);
        }
        for (int row = 0; row < rows; row++) {
            const char *numbers = v + ((size_t)row * n + at) * size;
            __m512 some[QUAD];
            for (int part = 0; part < QUAD; part++) {
                fetch(later(numbers, ahead, p), (size_t)part * 16 * size);
                some[part] = load16(kind, numbers + (size_t)part * 16 * size, mask[part]);
            }
            for (int i = 0; i < count; i++) {
                __m512 by = _mm512_set1_ps(p[(size_t)i * stride + (size_t)row]);
                for (int part = 0; part < QUAD; part++) sum[part][i] = _mm512_fmadd_ps(by, some[part], sum[part][i]);
            }
        }
        for (int part = 0; part < QUAD; part++)
            for (int i = 0; i < count; i++)
                _mm512_mask_storeu_ps(y + (size_t)i * columns + at + (size_t)part * 16, mask[part], sum[part][i]);
    }
}

static void mix(int kind, const void *v, size_t ahead, const float *p, size_t stride, int rows, int n, int count,
                float *y, size_t columns) {
    const size_t width = (size_t)n;
    if (kind == FLOAT32) BY_COUNT(count, mix_of(FLOAT32, v, ahead, p, stride, rows, width, COUNT, y, columns))
    else if (kind == BFLOAT16) BY_COUNT(count, mix_of(BFLOAT16, v, ahead, p, stride, rows, width, COUNT, y, columns))
    else BY_COUNT(count, mix_of(FLOAT16, v, ahead, p, stride, rows, width, COUNT, y, columns))
}

static void round_group(const float *x, const Vectors *v, size_t at) {
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    __mmask16 nan = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    float inverse = largest > TINY && largest < INFINITY && !nan ? 127 / largest : 0;
    __mmask16 kept = inverse > 0 ? 0xffff : 0;
    __m512i a = _mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(low, _mm512_set1_ps(inverse)));
    __m512i b = _mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(high, _mm512_set1_ps(inverse)));
    _mm_storeu_si128((__m128i *)(v->whole + at * GROUP), _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(v->whole + at * GROUP + 16), _mm512_cvtepi32_epi8(b));
    v->scale[at] = nan ? NAN : largest > TINY ? largest / 127 : 0;
    int32_t first = _mm512_reduce_add_epi32(a), second = _mm512_reduce_add_epi32(b);
    v->sum[at] = first + second;
    v->half[at * 2] = v->scale[at] * (float)first, v->half[at * 2 + 1] = v->scale[at] * (float)second;
}

static inline __m512i four(const int8_t *x) { int32_t bits; memcpy(&bits, x, 4); return _mm512_set1_epi32(bits); }

INLINE void tiles_of(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int groups,
                     int first, int count, int rows, float *y, size_t stride) {
    const __m512i lower = _mm512_set1_epi8(15);
    Later next = later(w, ahead, v->whole);
    size_t at = (size_t)first * (size_t)groups;
    __m512 sum[PART];
    for (int i = 0; i < count; i++) sum[i] = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++, scales += TILE, at += (size_t)count) {
        __m512i sums[PART];
        for (int i = 0; i < count; i++) sums[i] = _mm512_set1_epi32(-(kind == INT8 ? 128 : 8) * v->sum[at + (size_t)i]);
        for (int quad = 0; quad < (kind == INT8 ? 8 : 4); quad++, w += 4 * TILE) {
            const int8_t *x = v->whole + at * GROUP + quad * 4;
            fetch(next, 0);
            next.from += next.moving & (4 * TILE);
            __m512i numbers = _mm512_loadu_si512(w), low = _mm512_and_si512(numbers, lower);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), lower);
            for (int i = 0; i < count; i++, x += GROUP) {
                if (kind == INT8) { sums[i] = _mm512_dpbusd_epi32(sums[i], numbers, four(x)); continue; }
                sums[i] = _mm512_dpbusd_epi32(sums[i], low, four(x));
                sums[i] = _mm512_dpbusd_epi32(sums[i], high, four(x + 16));
            }
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
        for (int i = 0; i < count; i++) {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(v->scale[at + (size_t)i]));
            sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), both, sum[i]);
        }
    }
    for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(y + (size_t)(first + i) * stride, rest(rows), sum[i]);
}

static void tiles(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int groups,
                  int count, int rows, float *y, size_t stride) {
    for (int first = 0, some; first < count; first += some) {
        some = part_of(count - first);
        if (kind == INT8) BY_PART(some, tiles_of(INT8, w, ahead, scales, v, groups, first, COUNT, rows, y, stride))
        else BY_PART(some, tiles_of(INT4, w, ahead, scales, v, groups, first, COUNT, rows, y, stride))
    }
}
