/* The sums of products of llama.c in plain C, for any processor: simple loops that compilers turn into vector code,
   those of one sum where they are told that its order is free. */

static const int32_t distances[] = {0};  /* `ahead`: processors prefetch by themselves */

/* y[i · stride + row] = Σ w x, for each row of w [rows, n] and row i of x [count, n]. */
static void dots(int kind, const void *w, size_t ahead, int rows, const float *x, int n, int count, float *y,
                 size_t stride) {
    (void)ahead;
    for (int i = 0; i < count; i++) {
        for (int row = 0; row < rows; row++) {
            const float *w32 = (const float *)w + (size_t)row * (size_t)n, *with = x + (size_t)i * (size_t)n;
            const uint16_t *w16 = (const uint16_t *)w + (size_t)row * (size_t)n;
            float sum = 0;
            if (kind == FLOAT32)
                ANY_ORDER for (int at = 0; at < n; at++) sum += w32[at] * with[at];
            else if (kind == BFLOAT16)
                ANY_ORDER for (int at = 0; at < n; at++) sum += from_bfloat16(w16[at]) * with[at];
            else
                ANY_ORDER for (int at = 0; at < n; at++) sum += from_float16(w16[at]) * with[at];
            y[(size_t)i * stride + (size_t)row] = sum;
        }
    }
}

enum { AT_ONCE = 4 };  /* tokens that attend together */

/* y += Σ p v: rows [rows, n] in the proportions of each p [count, rows], which are `stride` apart, as are the y. */
static void mix(int kind, const void *v, size_t ahead, const float *p, size_t stride, int rows, int n, int count,
                float *y, size_t columns) {
    (void)ahead;
    for (int i = 0; i < count; i++, p += stride, y += columns) {
        for (int row = 0; row < rows; row++) {
            const float *v32 = (const float *)v + (size_t)row * (size_t)n;
            const uint16_t *v16 = (const uint16_t *)v + (size_t)row * (size_t)n;
            if (kind == FLOAT32) for (int at = 0; at < n; at++) y[at] += p[row] * v32[at];
            else if (kind == BFLOAT16) for (int at = 0; at < n; at++) y[at] += p[row] * from_bfloat16(v16[at]);
            else for (int at = 0; at < n; at++) y[at] += p[row] * from_float16(v16[at]);
        }
    }
}

/* How many of so many vectors lie side by side, group by group. */
static int part_of(int count) { (void)count; return 1; }

/* 32 numbers as x ≈ scale · whole, where scale = max|x| / 127. */
static void round_group(const float *x, const Vectors *v, size_t at) {
    float largest = 0;
    int32_t sums[2] = {0}, nan = 0;
    for (int i = 0; i < GROUP; i++) nan |= x[i] != x[i];
    for (int i = 0; i < GROUP; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float inverse = largest > TINY ? 127 / largest : 0;
    for (int i = 0; i < GROUP; i++) {
        float scaled = rintf(x[i] * inverse);
        int32_t whole = scaled == scaled ? (int32_t)scaled : 0;
        v->whole[at * GROUP + (size_t)i] = (int8_t)whole;
        sums[i / 16] += whole;
    }
    v->scale[at] = nan ? NAN : largest > TINY ? largest / 127 : 0;  /* NaN stays NaN */
    v->sum[at] = sums[0] + sums[1];
    for (size_t half = 0; half < 2; half++) v->half[at * 2 + half] = v->scale[at] * (float)sums[half];
}

/* As many numbers as a register of the processor holds: compilers take wider ones apart, number by number. */
#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX2__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));

/* A group's quad, 16 rows of four numbers, with x: INT8 are stored plus 128, INT4 plus 8 and two a byte. */
static void add_quad(int kind, const uint8_t *w, const int8_t *x, Lanes *sums) {
    for (int part = 0; part < TILE / LANES; part++) {
        Lanes four;  /* bytes of a row */
        memcpy(&four, w + sizeof four * (size_t)part, sizeof four);
        for (int at = 0; at < 4; at++, four >>= 8) {
            if (kind == INT8) sums[part] += (four & 255) * x[at];
            else sums[part] += (four & 15) * x[at] + (four >> 4 & 15) * x[at + 16];
        }
    }
}

/* 16 rows at once, of which `rows` are kept, for each of `count` vectors:
   y[i · stride + row] = Σ scale · scaleₓ · (Σ (w + 128) x − 128 Σ x). Numbers are stored as [groups][8][16 rows][4]; of
   INT4 as [groups][4][16 rows][4], with numbers 0–15 of a group in the lower halves. */
static void tiles(int kind, const uint8_t *w, size_t ahead, const uint16_t *scales, const Vectors *v, int groups,
                  int count, int rows, float *y, size_t stride) {
    (void)ahead;
    const int quads = kind == INT8 ? 8 : 4, more = kind == INT8 ? 128 : 8;
    for (int i = 0; i < count; i++) {
        float sum[TILE] = {0};
        for (int group = 0; group < groups; group++) {
            const size_t at = (size_t)i * (size_t)groups + (size_t)group;
            Lanes lanes[TILE / LANES] = {0};
            int32_t sums[TILE], less = more * v->sum[at];
            for (int quad = 0; quad < quads; quad++)
                add_quad(kind, w + (size_t)(group * quads + quad) * 4 * TILE, v->whole + at * GROUP + quad * 4, lanes);
            memcpy(sums, lanes, sizeof sums);
            for (int row = 0; row < TILE; row++)
                sum[row] += from_float16(scales[group * TILE + row]) * v->scale[at] * (float)(sums[row] - less);
        }
        memcpy(y + (size_t)i * stride, sum, sizeof(float) * (size_t)rows);
    }
}




