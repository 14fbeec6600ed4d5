/* Products with ggml's K-quants, bit for bit as GGUF stores them (ggml-quants.c): blocks of 256 numbers of a row,
   w = scale · q − less, where q has 2 to 6 bits, and 16 or 32 numbers share a scale: that of the block times a small
   whole number. Of a block of 16 rows, words of 4 bytes lie side by side: word 0 of each row, then word 1 and so on;
   where in them the bits of a q are, `planes_of` tells. The float16 scales of blocks lie apart. */

enum { BLOCK_GROUPS = 8, BLOCK_NUMBERS = 256, WORD = 4 * TILE };  /* of a block; bytes of a word of 16 rows */

/* Words of a block; its float16 scales; how many numbers share a whole one; the lower bits of a q, its upper bit or
   bits. */
#define WORDS(kind) ((kind) == Q2_K ? 20 : (kind) == Q3_K ? 27 : (kind) == Q4_K ? 35 : (kind) == Q5_K ? 43 : 52)
#define SCALES(kind) ((kind) == Q3_K || (kind) == Q6_K ? 1 : 2)
#define SHARE(kind) ((kind) == Q4_K || (kind) == Q5_K ? 32 : 16)
#define LOWER(kind) ((kind) == Q2_K || (kind) == Q3_K ? 0x03030303 : 0x0f0f0f0f)
#define UPPER(kind) ((kind) == Q3_K ? 0x04040404 : (kind) == Q5_K ? 0x10101010 : (kind) == Q6_K ? 0x30303030 : 0)
#define MIDDLE(kind) ((kind) == Q3_K ? 4 : 32)  /* what is taken off a q, where there is one float16 */

typedef struct {  /* four numbers of each row: (lower >> shift & LOWER) | (upper << left >> right & UPPER) */
    const uint8_t *lower, *upper;  /* [8 words]: for each four numbers of a group of 32 */
    int shift, left, right;
} Planes;

static inline uint32_t word_at(const uint8_t *w, int word, int row) {
    uint32_t bits;
    memcpy(&bits, w + (size_t)word * WORD + (size_t)row * 4, 4);
    return bits;
}

static inline Planes planes_of(int kind, const uint8_t *w, int group) {
    int lower, upper, shift, turn;  /* the first words; how far to the right the bits are from where they belong */
    if (kind == Q6_K) {
        lower = group / 4 * 16 + group % 2 * 8, shift = group / 2 % 2 * 4;
        upper = 32 + group / 4 * 8, turn = group % 4 * 2 - 4;
    } else if (kind == Q2_K || kind == Q3_K) {
        lower = (kind == Q2_K ? 4 : 8) + group / 4 * 8, shift = group % 4 * 2;
        upper = 0, turn = group - 2;
    } else {
        lower = (kind == Q4_K ? 3 : 11) + group / 2 * 8, shift = group % 2 * 4;
        upper = 3, turn = group - 4;
    }
    return (Planes){w + (size_t)lower * WORD, w + (size_t)upper * WORD, shift, turn < 0 ? -turn : 0, turn < 0 ? 0 : turn};
}

/* The whole number that scales the `at`-th 16 or 32 numbers of a row, or (`min`) that is taken off. */
static inline int32_t whole_scale(int kind, const uint8_t *w, int at, int row, int min) {
    const int shift = at % 4 * 8;
    if (kind == Q6_K) return (int32_t)(word_at(w, 48 + at / 4, row) << (24 - shift)) >> 24;  /* signed */
    if (kind == Q3_K) {  /* four bits and two, less 32 */
        uint32_t low = word_at(w, 24 + at / 4 % 2, row) >> shift >> at / 8 * 4, high = word_at(w, 26, row) >> shift;
        return (int32_t)((low & 15) | (high >> at / 4 * 2 & 3) << 4) - 32;
    }
    if (kind == Q2_K) return (int32_t)(word_at(w, at / 4, row) >> shift >> 4 * min & 15);
    uint32_t first = word_at(w, min, row) >> shift, rest = word_at(w, 2, row) >> shift;  /* 6 bits of either of them */
    return (int32_t)(at < 4 ? first & 63 : (rest >> 4 * min & 15) | (first >> 6 & 3) << 4);
}

/* scale and less of 16 rows, for each 16 or 32 numbers. */
static inline void scales_of(int kind, const uint8_t *w, const uint16_t *scales, float (*scale)[TILE], float (*less)[TILE]) {
    float d[TILE], min[TILE];
    for (int row = 0; row < TILE; row++) {
        d[row] = from_float16(scales[row]);
        min[row] = SCALES(kind) == 2 ? from_float16(scales[TILE + row]) : 0;
    }
    for (int at = 0; at < BLOCK_NUMBERS / SHARE(kind); at++)
        for (int row = 0; row < TILE; row++) {
            scale[at][row] = d[row] * (float)whole_scale(kind, w, at, row, 0);
            less[at][row] = SCALES(kind) == 2 ? min[row] * (float)whole_scale(kind, w, at, row, 1) : MIDDLE(kind) * scale[at][row];
        }
}

/* One number of a matrix. */
static float number_in_block(const Matrix *m, size_t row, size_t column) {
    const int kind = m->kind, words = WORDS(kind), r = (int)(row % TILE), k = (int)(column % BLOCK_NUMBERS);
    const size_t block = row / TILE * ((size_t)m->columns / BLOCK_NUMBERS) + column / BLOCK_NUMBERS;
    const uint8_t *w = (const uint8_t *)m->numbers + block * (size_t)words * WORD;
    const uint16_t *scales = m->scales + block * (size_t)SCALES(kind) * TILE;
    const Planes p = planes_of(kind, w, k / GROUP);
    const int quad = k % GROUP / 4, byte = k % 4 * 8, at = k / SHARE(kind);
    uint32_t lower = word_at(p.lower, quad, r) >> p.shift & LOWER(kind);
    uint32_t upper = UPPER(kind) ? word_at(p.upper, quad, r) << p.left >> p.right & (uint32_t)UPPER(kind) : 0;
    float q = (float)((lower | upper) >> byte & 255), scale = from_float16(scales[r]) * (float)whole_scale(kind, w, at, r, 0);
    if (SCALES(kind) == 1) return scale * (q - MIDDLE(kind));
    float product = scale * q, less = from_float16(scales[TILE + r]) * (float)whole_scale(kind, w, at, r, 1);
    return product - less;
}

#ifdef AVX512

/* Adds the products of a block of 16 rows with each of `count` vectors to their totals; `at` is its first group there. */
INLINE void add_block(int kind, const uint8_t *w, size_t ahead, float (*scale)[TILE], float (*less)[TILE],
                      const Vectors *v, size_t at, int count, __m512 *totals) {
    const int shares = GROUP / SHARE(kind), quads = 8 / shares;  /* of a group; fours of numbers in a share */
    const __m512i of_lower = _mm512_set1_epi32(LOWER(kind)), of_upper = _mm512_set1_epi32(UPPER(kind));
    __m512 sum[PART];
    for (int i = 0; i < count; i++) sum[i] = totals[i];
    for (int group = 0; group < BLOCK_GROUPS; group++, at += (size_t)count) {
        const Planes p = planes_of(kind, w, group);
        const __m512i shift = _mm512_set1_epi32(p.shift), turn = _mm512_set1_epi32(p.right - p.left);
        for (int word = 0; word < WORDS(kind); word += BLOCK_GROUPS)
            fetch(later(w, ahead, v->whole), (size_t)((word + group) * WORD));
        for (int share = 0; share < shares; share++) {
            __m512i sums[PART];
            for (int i = 0; i < count; i++) sums[i] = _mm512_setzero_si512();
            _Pragma("GCC unroll 8") for (int next = 0; next < quads; next++) {
                const int quad = share * quads + next;
                const int8_t *x = v->whole + at * GROUP + quad * 4;
                __m512i q = _mm512_srlv_epi32(_mm512_loadu_si512(p.lower + quad * WORD), shift);
                q = _mm512_and_si512(q, of_lower);
                if (UPPER(kind)) {
                    __m512i upper = _mm512_rorv_epi32(_mm512_loadu_si512(p.upper + quad * WORD), turn);
                    q = _mm512_or_si512(q, _mm512_and_si512(upper, of_upper));
                }
                for (int i = 0; i < count; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], q, four(x + i * GROUP));
            }
            const __m512 by = _mm512_loadu_ps(scale[group * shares + share]);
            const __m512 off = _mm512_loadu_ps(less[group * shares + share]);
            for (int i = 0; i < count; i++) {
                const size_t of = at + (size_t)i;
                __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), by);
                sum[i] = _mm512_fmadd_ps(product, _mm512_set1_ps(v->scale[of]), sum[i]);
                for (int half = share; half <= share + 2 - shares; half++)
                    sum[i] = _mm512_fnmadd_ps(off, _mm512_set1_ps(v->half[of * 2 + (size_t)half]), sum[i]);
            }
        }
    }
    for (int i = 0; i < count; i++) totals[i] = sum[i];
}

/* 16 rows and MANY vectors: block by block, whose scales are worked out once. */
INLINE void blocks_of(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int blocks,
                      int first, int count, int rows, float *y, size_t stride) {
    __m512 sums[MANY];
    for (int i = 0; i < count; i++) sums[i] = _mm512_setzero_ps();
    for (int block = 0; block < blocks; block++, w += WORDS(kind) * WORD, scales += SCALES(kind) * TILE) {
        float scale[BLOCK_NUMBERS / 16][TILE], less[BLOCK_NUMBERS / 16][TILE];
        scales_of(kind, w, scales, scale, less);
        for (int i = 0, some; i < count; i += some) {
            some = part_of(count - i);
            const size_t at = ((size_t)(first + i) * (size_t)blocks + (size_t)(block * some)) * BLOCK_GROUPS;
            BY_PART(some, add_block(kind, w, i ? 0 : ahead, scale, less, v, at, COUNT, sums + i))
        }
    }
    for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(y + (size_t)(first + i) * stride, rest(rows), sums[i]);
}

static void blocks(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int blocks,
                   int count, int rows, float *y, size_t stride) {
    for (int first = 0, some; first < count; first += some) {
        some = count - first < MANY ? count - first : MANY;  /* a multiple of PART, or all that are left */
        if (kind == Q2_K) blocks_of(Q2_K, w, ahead, scales, v, blocks, first, some, rows, y, stride);
        else if (kind == Q3_K) blocks_of(Q3_K, w, ahead, scales, v, blocks, first, some, rows, y, stride);
        else if (kind == Q4_K) blocks_of(Q4_K, w, ahead, scales, v, blocks, first, some, rows, y, stride);
        else if (kind == Q5_K) blocks_of(Q5_K, w, ahead, scales, v, blocks, first, some, rows, y, stride);
        else blocks_of(Q6_K, w, ahead, scales, v, blocks, first, some, rows, y, stride);
    }
}

#else

typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

/* 16 rows at once, as `tiles` in plain.h: y[i · stride + row] = Σ scaleₓ (scale · Σ q x − less · Σ x). */
static void blocks(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int blocks,
                   int count, int rows, float *y, size_t stride) {
    (void)ahead;
    const size_t groups = (size_t)blocks * BLOCK_GROUPS;
    const int shares = GROUP / SHARE(kind), quads = 8 / shares;  /* of a group; fours of numbers in a share */
    float scale[BLOCK_NUMBERS / 16][TILE], less[BLOCK_NUMBERS / 16][TILE];
    for (int i = 0; i < count; i++)
        for (int row = 0; row < rows; row++) y[(size_t)i * stride + (size_t)row] = 0;
    for (int block = 0; block < blocks; block++, w += WORDS(kind) * WORD, scales += SCALES(kind) * TILE) {
        scales_of(kind, w, scales, scale, less);
        for (int group = 0; group < BLOCK_GROUPS; group++) {
            const Planes p = planes_of(kind, w, group);
            Words q[8][TILE / LANES], upper;
            for (int quad = 0; quad < 8; quad++)
                for (int part = 0; part < TILE / LANES; part++) {
                    const size_t from = (size_t)(quad * WORD) + sizeof upper * (size_t)part;
                    memcpy(&q[quad][part], p.lower + from, sizeof upper), memcpy(&upper, p.upper + from, sizeof upper);
                    q[quad][part] = (q[quad][part] >> p.shift & LOWER(kind)) | (upper << p.left >> p.right & UPPER(kind));
                }
            for (int i = 0; i < count; i++)
                for (int share = 0; share < shares; share++) {
                    const size_t at = (size_t)i * groups + (size_t)(block * BLOCK_GROUPS + group);
                    const int8_t *x = v->whole + at * GROUP;
                    const float *by = scale[group * shares + share], *off = less[group * shares + share];
                    const float *half = v->half + at * 2, of_x = shares == 2 ? half[share] : half[0] + half[1];
                    Lanes lanes[TILE / LANES] = {0};
                    int32_t sums[TILE];
                    for (int quad = share * quads; quad < (share + 1) * quads; quad++)
                        for (int part = 0; part < TILE / LANES; part++) {
                            Words four = q[quad][part];
                            for (int byte = 0; byte < 4; byte++, four >>= 8)
                                lanes[part] += (Lanes)(four & 255) * x[quad * 4 + byte];
                        }
                    memcpy(sums, lanes, sizeof sums);
                    for (int row = 0; row < rows; row++)
                        y[(size_t)i * stride + (size_t)row] +=
                            by[row] * (float)sums[row] * v->scale[at] - off[row] * of_x;
                }
        }
    }
}

#endif
