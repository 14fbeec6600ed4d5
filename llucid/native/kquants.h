/* Products with ggml's K-quants, bit for bit as GGUF stores them (ggml-quants.c): blocks of 256 numbers of a row,
   w = scale · q − less, where q has 2 to 6 bits, and 16 or 32 numbers share a scale: that of the block times a small
   whole number. Of a block of 16 rows, words of 4 bytes lie side by side: word 0 of each row, then word 1 and so on;
   where in them the bits of a q are, `planes_of` tells. The float16 scales of blocks lie apart. */

enum { BLOCK_GROUPS = 8, BLOCK_NUMBERS = 256, WORD = 4 * TILE };  /* of a block; bytes of a word of 16 rows */

/* Words of a block; its float16 scales; how many numbers share a whole one; the lower bits of a q, its upper bit or
   bits. */
#define WORDS(kind) ((kind) == Q4_K ? 35 : (kind) == Q5_K ? 43 : 52)
#define SCALES(kind) ((kind) == Q6_K ? 1 : 2)
#define SHARE(kind) ((kind) == Q6_K ? 16 : 32)
#define LOWER(kind) 0x0f0f0f0f
#define UPPER(kind) ((kind) == Q4_K ? 0 : (kind) == Q5_K ? 0x10101010 : 0x30303030)

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
    } else {
        lower = (kind == Q4_K ? 3 : 11) + group / 2 * 8, shift = group % 2 * 4;
        upper = 3, turn = group - 4;
    }
    return (Planes){w + (size_t)lower * WORD, w + (size_t)upper * WORD, shift, turn < 0 ? -turn : 0, turn < 0 ? 0 : turn};
}

/* The whole number that scales the `at`-th 16 or 32 numbers of a row, or (`min`) that is taken off. */
static inline int32_t whole_scale(int kind, const uint8_t *w, int at, int row, int min) {
    const int shift = at % 4 * 8;
    if (kind == Q6_K) return (int8_t)(word_at(w, 48 + at / 4, row) >> shift);
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
            less[at][row] = SCALES(kind) == 2 ? min[row] * (float)whole_scale(kind, w, at, row, 1) : 32 * scale[at][row];
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
    if (SCALES(kind) == 1) return scale * (q - 32);
    float product = scale * q, less = from_float16(scales[TILE + r]) * (float)whole_scale(kind, w, at, r, 1);
    return product - less;
}

#ifdef AVX512

INLINE void blocks_of(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int blocks,
                      int first, int count, int rows, float *y, size_t stride) {
    const size_t groups = (size_t)blocks * BLOCK_GROUPS;
    const __m512i of_lower = _mm512_set1_epi32(LOWER(kind)), of_upper = _mm512_set1_epi32(UPPER(kind));
    __m512 sum[AT_ONCE];
    for (int i = 0; i < count; i++) sum[i] = _mm512_setzero_ps();
    for (int block = 0; block < blocks; block++, w += WORDS(kind) * WORD, scales += SCALES(kind) * TILE) {
        float scale[BLOCK_NUMBERS / 16][TILE], less[BLOCK_NUMBERS / 16][TILE];
        scales_of(kind, w, scales, scale, less);
        for (int group = 0; group < BLOCK_GROUPS; group++) {
            const size_t at = (size_t)first * groups + (size_t)(block * BLOCK_GROUPS + group);
            const Planes p = planes_of(kind, w, group);
            const __m512i shift = _mm512_set1_epi32(p.shift), turn = _mm512_set1_epi32(p.right - p.left);
            __m512i sums[2][AT_ONCE];
            for (int i = 0; i < count; i++) sums[0][i] = sums[1][i] = _mm512_setzero_si512();
            for (int word = 0; word < WORDS(kind); word += BLOCK_GROUPS)
                fetch(later(w, ahead, v->whole), (size_t)((word + group) * WORD));
            for (int quad = 0; quad < 8; quad++) {
                const int8_t *x = v->whole + at * GROUP + quad * 4;
                __m512i q = _mm512_srlv_epi32(_mm512_loadu_si512(p.lower + quad * WORD), shift);
                q = _mm512_and_si512(q, of_lower);
                if (UPPER(kind)) {
                    __m512i upper = _mm512_rorv_epi32(_mm512_loadu_si512(p.upper + quad * WORD), turn);
                    q = _mm512_or_si512(q, _mm512_and_si512(upper, of_upper));
                }
                for (int i = 0; i < count; i++, x += groups * GROUP) {
                    __m512i *to = &sums[SHARE(kind) == 16 && quad >= 4][i];
                    *to = _mm512_dpbusd_epi32(*to, q, four(x));
                }
            }
            const int low = SHARE(kind) == 16 ? group * 2 : group, high = SHARE(kind) == 16 ? low + 1 : low;
            const __m512 scale_low = _mm512_loadu_ps(scale[low]), less_low = _mm512_loadu_ps(less[low]);
            const __m512 scale_high = _mm512_loadu_ps(scale[high]), less_high = _mm512_loadu_ps(less[high]);
            for (int i = 0; i < count; i++) {
                const size_t of = at + (size_t)i * groups;
                __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[0][i]), scale_low);
                if (SHARE(kind) == 16) product = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[1][i]), scale_high, product);
                sum[i] = _mm512_fmadd_ps(product, _mm512_set1_ps(v->scale[of]), sum[i]);
                sum[i] = _mm512_fnmadd_ps(less_low, _mm512_set1_ps(v->half[of * 2]), sum[i]);
                sum[i] = _mm512_fnmadd_ps(less_high, _mm512_set1_ps(v->half[of * 2 + 1]), sum[i]);
            }
        }
    }
    for (int i = 0; i < count; i++) _mm512_mask_storeu_ps(y + (size_t)(first + i) * stride, rest(rows), sum[i]);
}

/* For so many vectors there is a copy: the lengths of parts into which any number is taken apart. */
#define BY_PART(call)                                  \
    switch (some) {                                    \
        case 1: { enum { COUNT = 1 }; call; break; }   \
        case 2: { enum { COUNT = 2 }; call; break; }   \
        case 4: { enum { COUNT = 4 }; call; break; }   \
        default: { enum { COUNT = AT_ONCE }; call; }   \
    }

static void blocks(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int blocks,
                   int count, int rows, float *y, size_t stride) {
    for (int first = 0, some; first < count; first += some) {
        some = count - first;
        some = some >= AT_ONCE ? AT_ONCE : some >= 4 ? 4 : some >= 2 ? 2 : 1;
        if (kind == Q4_K) BY_PART(blocks_of(Q4_K, w, ahead, scales, v, blocks, first, COUNT, rows, y, stride))
        else if (kind == Q5_K) BY_PART(blocks_of(Q5_K, w, ahead, scales, v, blocks, first, COUNT, rows, y, stride))
        else BY_PART(blocks_of(Q6_K, w, ahead, scales, v, blocks, first, COUNT, rows, y, stride))
    }
}

#else

typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

/* 16 rows at once, as `tiles` in plain.h: y[i · stride + row] = Σ scaleₓ (scale · Σ q x − less · Σ x). */
static void blocks(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int blocks,
                   int count, int rows, float *y, size_t stride) {
    (void)ahead;
    const size_t groups = (size_t)blocks * BLOCK_GROUPS;
    const int fine = SHARE(kind) == 16;
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
            for (int i = 0; i < count; i++) {
                const size_t at = (size_t)i * groups + (size_t)(block * BLOCK_GROUPS + group);
                const int8_t *x = v->whole + at * GROUP;
                Lanes lanes[2][TILE / LANES] = {0};
                int32_t sums[2][TILE];
                for (int quad = 0; quad < 8; quad++)
                    for (int part = 0; part < TILE / LANES; part++) {
                        Words four = q[quad][part];
                        for (int byte = 0; byte < 4; byte++, four >>= 8)
                            lanes[fine && quad >= 4][part] += (Lanes)(four & 255) * x[quad * 4 + byte];
                    }
                memcpy(sums, lanes, sizeof sums);
                const int low = fine ? group * 2 : group, high = fine ? low + 1 : low;
                for (int row = 0; row < rows; row++) {
                    float product = scale[low][row] * (float)sums[0][row] + scale[high][row] * (float)sums[1][row];
                    float taken = less[low][row] * v->half[at * 2] + less[high][row] * v->half[at * 2 + 1];
                    y[(size_t)i * stride + (size_t)row] += product * v->scale[at] - taken;
                }
            }
        }
    }
}

#endif
