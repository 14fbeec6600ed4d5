/* How numbers are stored, and their conversion from and to float32. */

#define TINY 0x1p-100f  /* smaller activations count as 0, since 127 divided by them may be infinite */

static size_t size_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

static float wide(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static float from_bfloat16(uint16_t b) { return wide((uint32_t)b << 16); }

static float from_float16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    float x = rest >= 0x0f800000 ? wide(rest | 0x7f800000) : wide(rest) * 0x1p112f;  /* infinity or NaN; a number */
    return wide(bits_of(x) | sign);
}

/* One number of a matrix. INT8 and INT4 are stored as `tiles` in plain.h has them. */
static float number_at(const Matrix *w, size_t row, size_t column) {
    size_t columns = (size_t)w->columns, at = row * columns + column;
    if (w->kind == FLOAT32) return ((const float *)w->numbers)[at];
    if (w->kind == BFLOAT16) return from_bfloat16(((const uint16_t *)w->numbers)[at]);
    if (w->kind == FLOAT16) return from_float16(((const uint16_t *)w->numbers)[at]);
    size_t tile = row / TILE * columns / GROUP, r = row % TILE, group = tile + column / GROUP, k = column % GROUP;
    const uint8_t *numbers = w->numbers;
    float scale = from_float16(w->scales[group * TILE + r]);
    if (w->kind == INT8) return scale * (numbers[(group * 8 + k / 4) * 4 * TILE + r * 4 + k % 4] - 128);
    uint8_t both = numbers[(group * 4 + k % 16 / 4) * 4 * TILE + r * 4 + k % 4];
    return scale * (float)((k < 16 ? both & 15 : both >> 4) - 8);
}

static uint16_t to_bfloat16(float x) {  /* to the nearest, a tie to the even one */
    uint32_t bits = bits_of(x);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t to_float16(float x) {  /* the same; small ones in steps of 2⁻²⁴ */
    uint32_t sign = bits_of(x) >> 16 & 0x8000, bits = bits_of(x) & 0x7fffffff;
    uint32_t small = bits_of(wide(bits) + 0.5f) - 0x3f000000;
    uint32_t usual = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13, large = x != x ? 0x7e00 : 0x7c00;
    return (uint16_t)(sign | (bits >= 0x47800000 ? large : bits < 0x38800000 ? small : usual));
}

static void store(int kind, const float *x, int n, void *to) {  /* loops that compilers turn into vector code */
    uint16_t *narrow = to;
    if (kind == FLOAT32) memcpy(to, x, sizeof *x * (size_t)n);
    else if (kind == BFLOAT16) for (int at = 0; at < n; at++) narrow[at] = to_bfloat16(x[at]);
    else for (int at = 0; at < n; at++) narrow[at] = to_float16(x[at]);
}

static float exponential(float x) {  /* eˣ = 2ⁿ eᶠ, |f| ≤ ln 2 / 2, to 3·10⁻⁷ of it, as vector code where in a loop */
    x = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : x;  /* 2¹²⁸ is infinite */
    float n = x == x ? rintf(x * 1.44269504f) : 0, f = x - n * 0.693359375f + n * 2.12194440e-4f;  /* ln 2 in two */
    float e = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f * (1 / 720.f))))));
    return e * wide((uint32_t)((int32_t)n + 127) << 23);
}




