/* The sums of products of llama.c in plain C, for any processor: simple loops that compilers turn into vector code. */

/* Σ w x. */
static float dot(int kind, const void *w, const float *x, int n) {
    const float *w32 = w;
    const uint16_t *w16 = w;
    float sum = 0;
    if (kind == FLOAT32) for (int at = 0; at < n; at++) sum += w32[at] * x[at];
    else if (kind == BFLOAT16) for (int at = 0; at < n; at++) sum += from_bfloat16(w16[at]) * x[at];
    else for (int at = 0; at < n; at++) sum += from_float16(w16[at]) * x[at];
    return sum;
}

/* Σ p v: rows [rows, n] in the proportions of p. */
static void mix(int kind, const void *v, const float *p, int rows, int n, float *y) {
    for (int at = 0; at < n; at++) y[at] = 0;
    for (int row = 0; row < rows; row++) {
        const float *v32 = (const float *)v + (size_t)row * (size_t)n;
        const uint16_t *v16 = (const uint16_t *)v + (size_t)row * (size_t)n;
        if (kind == FLOAT32) for (int at = 0; at < n; at++) y[at] += p[row] * v32[at];
        else if (kind == BFLOAT16) for (int at = 0; at < n; at++) y[at] += p[row] * from_bfloat16(v16[at]);
        else for (int at = 0; at < n; at++) y[at] += p[row] * from_float16(v16[at]);
    }
}

/* x ≈ scale · whole: each group of 32 has scale = max|x| / 127. */
static void round_groups(const float *x, int groups, Vector *v) {
    for (int group = 0; group < groups; group++, x += GROUP) {
        float largest = 0;
        int32_t sum = 0;
        for (int at = 0; at < GROUP; at++) largest = fabsf(x[at]) > largest ? fabsf(x[at]) : largest;
        float inverse = largest > 0 ? 127 / largest : 0;
        for (int at = 0; at < GROUP; at++) {
            float scaled = rintf(x[at] * inverse);
            int32_t whole = scaled == scaled ? (int32_t)scaled : 0;
            v->whole[group * GROUP + at] = (int8_t)whole;
            sum += whole;
        }
        v->scale[group] = largest / 127 + 0 * x[0];  /* not a number stays none: a norm makes all of them so, or none */
        v->sum[group] = sum;
    }
}

/* 16 rows at once, numbers + 128 stored as [groups][8][16 rows][4]: Σ scale · scaleₓ · (Σ (w + 128) x − 128 Σ x). */
static void tile_int8(const uint8_t *w, const uint16_t *scales, const Vector *v, int groups, float *y) {
    for (int row = 0; row < TILE; row++) y[row] = 0;
    for (int group = 0; group < groups; group++, scales += TILE) {
        int32_t sums[TILE];
        for (int row = 0; row < TILE; row++) sums[row] = -128 * v->sum[group];
        for (int quad = 0; quad < 8; quad++, w += 4 * TILE) {
            const int8_t *x = v->whole + group * GROUP + quad * 4;
            for (int row = 0; row < TILE; row++)
                for (int at = 0; at < 4; at++) sums[row] += (int32_t)w[row * 4 + at] * x[at];
        }
        for (int row = 0; row < TILE; row++) y[row] += from_float16(scales[row]) * v->scale[group] * (float)sums[row];
    }
}

/* The same of numbers + 8, two a byte: [groups][4][16 rows][4], numbers 0–15 of a group in the lower halves. */
static void tile_int4(const uint8_t *w, const uint16_t *scales, const Vector *v, int groups, float *y) {
    for (int row = 0; row < TILE; row++) y[row] = 0;
    for (int group = 0; group < groups; group++, scales += TILE) {
        int32_t sums[TILE];
        for (int row = 0; row < TILE; row++) sums[row] = -8 * v->sum[group];
        for (int quad = 0; quad < 4; quad++, w += 4 * TILE) {
            const int8_t *x = v->whole + group * GROUP + quad * 4;
            for (int row = 0; row < TILE; row++)
                for (int at = 0; at < 4; at++)
                    sums[row] += (w[row * 4 + at] & 15) * x[at] + (w[row * 4 + at] >> 4) * x[at + 16];
        }
        for (int row = 0; row < TILE; row++) y[row] += from_float16(scales[row]) * v->scale[group] * (float)sums[row];
    }
}
