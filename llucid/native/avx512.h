/* The functions of plain.h, of the same names and meanings, for x86 processors with AVX-512 and VNNI: 16 numbers
   a register. Reading memory takes most of the time, so weights are prefetched `ahead` bytes before they are needed
   (ahead.h). They bypass the caches (NTA), since none is needed again before the next step. */

#include <immintrin.h>

/* A copy of what is called for each kind and number of vectors, with every loop over them written out. */
#define INLINE static inline __attribute__((always_inline))
#define BY_COUNT(count, call)                             \
    switch (count) {                                      \
        case 1: { enum { COUNT = 1 }; call; break; }      \
        case 2: { enum { COUNT = 2 }; call; break; }      \
        case 3: { enum { COUNT = 3 }; call; break; }      \
        case 4: { enum { COUNT = 4 }; call; break; }      \
        case 5: { enum { COUNT = 5 }; call; break; }      \
        case 6: { enum { COUNT = 6 }; call; break; }      \
        case 7: { enum { COUNT = 7 }; call; break; }      \
        default: { enum { COUNT = AT_ONCE }; call; }      \
    }

enum { AT_ONCE = 8, PAIR = 2, FEW = 4096, BLOCK = 1024 };  /* vectors, rows, numbers, columns */

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

/* Adds the products of some rows of w with each of `count` vectors, while as many weights are fetched from `later` on:
   for one vector in their order in memory, else row by row. A sum is taken in one order, however many rows and vectors
   there are. */
INLINE void add_dots(int kind, const char *w, Later later, int rows, const float *x, size_t n, size_t columns,
                     int count, __m512 (*sums)[AT_ONCE]) {
    const size_t size = kind == FLOAT32 ? 4 : 2;
    __m512 sum[PAIR][AT_ONCE], numbers[PAIR];
    for (int row = 0; row < rows; row++) for (int i = 0; i < count; i++) sum[row][i] = sums[row][i];
    for (size_t at = 0; at < columns; at += 16) {
        const __mmask16 mask = at + 16 <= columns ? 0xffff : rest((int)(columns - at));
        for (int row = 0; row < rows; row++) {
            const size_t from = ((size_t)row * n + at) * size;
            fetch(later, count == 1 ? 0 : from);
            if (count == 1) later.from += later.moving & (16 * size);
            numbers[row] = load16(kind, w + from, mask);
            __asm__("" : "+v"(numbers[row]));  /* kept in a register: across two cache lines, it is dear to reload */
        }
        for (int i = 0; i < count; i++) {
            __m512 with = load16(FLOAT32, x + (size_t)i * n + at, mask);
            for (int row = 0; row < rows; row++) sum[row][i] = _mm512_fmadd_ps(numbers[row], with, sum[row][i]);
        }
    }
    for (int row = 0; row < rows; row++) for (int i = 0; i < count; i++) sums[row][i] = sum[row][i];
}

/* Up to eight rows. Memory gives most if it is read row after row: narrow numbers of two rows at a time, since each
   addition waits for the one before, which for a row alone takes longer than reading. But the numbers of many vectors
   take more room than the first cache has: they are taken block by block, each for two rows at a time. */
INLINE void dots_of(int kind, const char *w, size_t ahead, int rows, const float *x, size_t n, int count, float *y,
                    size_t stride) {
    const size_t size = kind == FLOAT32 ? 4 : 2, block = count == 1 || (size_t)count * n <= FEW ? n : BLOCK;
    const int narrow = count == 1 && kind != FLOAT32, together = block == n && !narrow ? 1 : PAIR;
    __m512 sums[ROWS][AT_ONCE];
    for (int row = 0; row < rows; row++) for (int i = 0; i < count; i++) sums[row][i] = _mm512_setzero_ps();
    for (size_t at = 0; at < n; at += block) {
        const size_t columns = n - at < block ? n - at : block;
        const size_t next = (at + block < n ? block : (size_t)rows * n - at) * size;  /* the block to come */
        const size_t distance = !ahead ? 0 : block != n ? next : narrow ? n * size + ahead / 2 : ahead;
        for (int row = 0; row < rows; row += together) {
            const char *here = w + ((size_t)row * n + at) * size;
            if (row + together <= rows && together == PAIR)
                add_dots(kind, here, later(here, distance, x), PAIR, x + at, n, columns, count, sums + row);
            else add_dots(kind, here, later(here, distance, x), 1, x + at, n, columns, count, sums + row);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < count; i++) y[(size_t)i * stride + (size_t)row] = _mm512_reduce_add_ps(sums[row][i]);
}

static void dots(int kind, const void *w, size_t ahead, int rows, const float *x, int n, int count, float *y,
                 size_t stride) {
    const size_t columns = (size_t)n;
    for (int some; count > 0; count -= some, x += (size_t)some * columns, y += (size_t)some * stride) {
        some = count < AT_ONCE ? count : AT_ONCE;
        if (kind == FLOAT32) BY_COUNT(some, dots_of(FLOAT32, w, ahead, rows, x, columns, COUNT, y, stride))
        else if (kind == BFLOAT16) BY_COUNT(some, dots_of(BFLOAT16, w, ahead, rows, x, columns, COUNT, y, stride))
        else BY_COUNT(some, dots_of(FLOAT16, w, ahead, rows, x, columns, COUNT, y, stride))
    }
}

static inline void mix_of(int kind, const void *v, size_t ahead, const float *p, int rows, int n, float *y) {
    size_t size = kind == FLOAT32 ? 4 : 2, stride = (size_t)n * size;
    for (int at = 0; at < n; at += 64) {
        __m512 sum[4];
        __mmask16 mask[4];
        for (int i = 0; i < 4; i++) {
            mask[i] = rest(n - at - 16 * i);
            sum[i] = _mm512_maskz_loadu_ps(mask[i], y + at + 16 * i);
        }
        for (int row = 0; row < rows; row++) {
            const char *numbers = (const char *)v + (size_t)row * stride;
            for (int i = 0; i < 4; i++) {
                fetch(later(numbers, ahead, p), (size_t)(at + 16 * i) * size);
                __m512 some = load16(kind, numbers + (size_t)(at + 16 * i) * size, mask[i]);
                sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(p[row]), some, sum[i]);
            }
        }
        for (int i = 0; i < 4; i++) _mm512_mask_storeu_ps(y + at + 16 * i, mask[i], sum[i]);
    }
}

static void mix(int kind, const void *v, size_t ahead, const float *p, int rows, int n, float *y) {
    if (kind == FLOAT32) mix_of(FLOAT32, v, ahead, p, rows, n, y);
    else if (kind == BFLOAT16) mix_of(BFLOAT16, v, ahead, p, rows, n, y);
    else mix_of(FLOAT16, v, ahead, p, rows, n, y);
}

static void round_groups(const float *x, size_t groups, Vectors *v) {
    for (size_t group = 0; group < groups; group++, x += GROUP) {
        __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        __mmask16 nan = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q);
        float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        float inverse = largest > TINY && largest < INFINITY && !nan ? 127 / largest : 0;
        __mmask16 kept = inverse > 0 ? 0xffff : 0;
        __m512i a = _mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(low, _mm512_set1_ps(inverse)));
        __m512i b = _mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(high, _mm512_set1_ps(inverse)));
        _mm_storeu_si128((__m128i *)(v->whole + group * GROUP), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128((__m128i *)(v->whole + group * GROUP + 16), _mm512_cvtepi32_epi8(b));
        v->scale[group] = nan ? NAN : largest > TINY ? largest / 127 : 0;
        int32_t first = _mm512_reduce_add_epi32(a), second = _mm512_reduce_add_epi32(b);
        v->sum[group] = first + second;
        v->half[group * 2] = v->scale[group] * (float)first, v->half[group * 2 + 1] = v->scale[group] * (float)second;
    }
}

static inline __m512i four(const int8_t *x) { int32_t bits; memcpy(&bits, x, 4); return _mm512_set1_epi32(bits); }

INLINE void tiles_of(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int groups,
                     int first, int count, int rows, float *y, size_t stride) {
    const __m512i lower = _mm512_set1_epi8(15);
    Later next = later(w, ahead, v->whole);
    __m512 sum[AT_ONCE];
    for (int i = 0; i < count; i++) sum[i] = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++, scales += TILE) {
        __m512i sums[AT_ONCE];
        const int at = first * groups + group;
        for (int i = 0; i < count; i++)
            sums[i] = _mm512_set1_epi32(-(kind == INT8 ? 128 : 8) * v->sum[at + i * groups]);
        for (int quad = 0; quad < (kind == INT8 ? 8 : 4); quad++, w += 4 * TILE) {
            const int8_t *x = v->whole + (size_t)at * GROUP + quad * 4;
            fetch(next, 0);
            next.from += next.moving & (4 * TILE);
            __m512i numbers = _mm512_loadu_si512(w), low = _mm512_and_si512(numbers, lower);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(numbers, 4), lower);
            for (int i = 0; i < count; i++, x += (size_t)groups * GROUP) {
                if (kind == INT8) { sums[i] = _mm512_dpbusd_epi32(sums[i], numbers, four(x)); continue; }
                sums[i] = _mm512_dpbusd_epi32(sums[i], low, four(x));
                sums[i] = _mm512_dpbusd_epi32(sums[i], high, four(x + 16));
            }
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
        for (int i = 0; i < count; i++) {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(v->scale[at + i * groups]));
            sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), both, sum[i]);
        }
    }
    for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(y + (size_t)(first + i) * stride, rest(rows), sum[i]);
}

static void tiles(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int groups,
                  int count, int rows, float *y, size_t stride) {
    for (int first = 0, some; first < count; first += some) {
        some = count - first < AT_ONCE ? count - first : AT_ONCE;
        if (kind == INT8) BY_COUNT(some, tiles_of(INT8, w, ahead, scales, v, groups, first, COUNT, rows, y, stride))
        else BY_COUNT(some, tiles_of(INT4, w, ahead, scales, v, groups, first, COUNT, rows, y, stride))
    }
}




