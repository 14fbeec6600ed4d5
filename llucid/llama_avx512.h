/* The functions of llama_plain.h, of the same names and meanings, for x86 processors with AVX-512 and VNNI: 16 numbers
   a register. Reading is what takes time, so weights are fetched ahead of where they are needed, since a processor by
   itself does so only to the end of a page, and past the caches (NTA), since none is needed again before the next token. */

#include <immintrin.h>

enum { AHEAD = 4096 };  /* bytes: as far as fetching was fastest */

static inline void fetch_ahead(const void *w) { _mm_prefetch((const char *)w + AHEAD, _MM_HINT_NTA); }

static inline __m512 load16(int kind, const void *w, int at, __mmask16 mask) {
    if (kind == FLOAT32) return _mm512_maskz_loadu_ps(mask, (const float *)w + at);
    __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)w + at);
    return kind == FLOAT16 ? _mm512_cvtph_ps(half)
                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline __mmask16 rest(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1 << n) - 1); }

static inline float dot_of(int kind, const void *w, const float *x, int n) {
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int at = 0;
    for (; at + 64 <= n; at += 64) {
        size_t size = kind == FLOAT32 ? 4 : 2;
        for (size_t line = 0; line < size; line++) fetch_ahead((const char *)w + (size_t)at * size + 64 * line);
        for (int i = 0; i < 4; i++)
            sum[i] = _mm512_fmadd_ps(load16(kind, w, at + 16 * i, 0xffff), _mm512_loadu_ps(x + at + 16 * i), sum[i]);
    }
    for (; at < n; at += 16) {
        __mmask16 mask = rest(n - at);
        sum[0] = _mm512_fmadd_ps(load16(kind, w, at, mask), _mm512_maskz_loadu_ps(mask, x + at), sum[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

static float dot(int kind, const void *w, const float *x, int n) {
    if (kind == FLOAT32) return dot_of(FLOAT32, w, x, n);
    return kind == BFLOAT16 ? dot_of(BFLOAT16, w, x, n) : dot_of(FLOAT16, w, x, n);
}

static inline void mix_of(int kind, const void *v, const float *p, int rows, int n, float *y) {
    size_t stride = (size_t)n * (kind == FLOAT32 ? 4 : 2);
    for (int at = 0; at < n; at += 64) {
        __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        __mmask16 mask[4];
        for (int i = 0; i < 4; i++) mask[i] = rest(n - at - 16 * i);
        for (int row = 0; row < rows; row++) {
            const char *numbers = (const char *)v + (size_t)row * stride;
            for (int i = 0; i < 4; i++)
                sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(p[row]), load16(kind, numbers, at + 16 * i, mask[i]), sum[i]);
        }
        for (int i = 0; i < 4; i++) _mm512_mask_storeu_ps(y + at + 16 * i, mask[i], sum[i]);
    }
}

static void mix(int kind, const void *v, const float *p, int rows, int n, float *y) {
    if (kind == FLOAT32) mix_of(FLOAT32, v, p, rows, n, y);
    else if (kind == BFLOAT16) mix_of(BFLOAT16, v, p, rows, n, y);
    else mix_of(FLOAT16, v, p, rows, n, y);
}

static void round_groups(const float *x, int groups, Vector *v) {
    for (int group = 0; group < groups; group++, x += GROUP) {
        __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
        __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
        __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        _mm_storeu_si128((__m128i *)(v->whole + group * GROUP), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128((__m128i *)(v->whole + group * GROUP + 16), _mm512_cvtepi32_epi8(b));
        v->scale[group] = largest / 127 + 0 * x[0];
        v->sum[group] = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
    }
}

static inline __m512i four(const int8_t *x) { int32_t bits; memcpy(&bits, x, 4); return _mm512_set1_epi32(bits); }

static inline __m512 scaled(__m512i sums, const uint16_t *scales, float scale, __m512 y) {
    __m512 both = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales)), _mm512_set1_ps(scale));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), both, y);
}

static void tile_int8(const uint8_t *w, const uint16_t *scales, const Vector *v, int groups, float *y) {
    __m512 sum = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++, w += TILE * GROUP, scales += TILE) {
        const int8_t *x = v->whole + group * GROUP;
        __m512i sums = _mm512_set1_epi32(-128 * v->sum[group]);
        for (int quad = 0; quad < 8; quad++) {
            fetch_ahead(w + quad * 64);
            sums = _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(w + quad * 64), four(x + quad * 4));
        }
        sum = scaled(sums, scales, v->scale[group], sum);
    }
    _mm512_storeu_ps(y, sum);
}

static void tile_int4(const uint8_t *w, const uint16_t *scales, const Vector *v, int groups, float *y) {
    const __m512i lower = _mm512_set1_epi8(15);
    __m512 sum = _mm512_setzero_ps();
    for (int group = 0; group < groups; group++, w += TILE * GROUP / 2, scales += TILE) {
        const int8_t *x = v->whole + group * GROUP;
        __m512i sums = _mm512_set1_epi32(-8 * v->sum[group]);
        for (int quad = 0; quad < 4; quad++) {
            fetch_ahead(w + quad * 64);
            __m512i both = _mm512_loadu_si512(w + quad * 64);
            sums = _mm512_dpbusd_epi32(sums, _mm512_and_si512(both, lower), four(x + quad * 4));
            both = _mm512_srli_epi16(both, 4);
            sums = _mm512_dpbusd_epi32(sums, _mm512_and_si512(both, lower), four(x + 16 + quad * 4));
        }
        sum = scaled(sums, scales, v->scale[group], sum);
    }
    _mm512_storeu_ps(y, sum);
}
