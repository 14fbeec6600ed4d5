/* How far ahead of a product its weights are prefetched. Processors differ: what is fastest on one can halve the speed of
   another. So it is measured, for each kind of numbers, while tokens are read: in some steps each product takes another
   distance, in turn, and the first thread notes how long its part took. Every distance gives the same numbers. */

enum { KINDS = 16, SAMPLES = 240, DISTANCES = sizeof distances / sizeof *distances };  /* at most; of a trial */
enum { LEAST = 1 << 18, AGAIN = 1 << 17 };  /* numbers of a matrix in a trial; products from one trial to the next */

static struct Trial {
    int running, chosen, count;              /* `chosen` is a distance's index; `count` is of samples */
    int64_t products;                        /* since the last trial */
    struct { float seconds; int distance; } samples[SAMPLES];  /* per number */
} trials[2 * KINDS];                         /* with up to FEW_TOKENS; with more */

int32_t llama_ahead[2 * KINDS];              /* the distances chosen, plus 1; 0 before the first trial has ended */
int32_t llama_forced = -1;                   /* a distance to be taken always, for tests */

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Of a distance's samples in the first or second half of a trial. */
static float median(const struct Trial *t, int distance, int half) {
    float found[SAMPLES];
    int count = 0;
    for (int at = half * SAMPLES / 2; at < (half + 1) * SAMPLES / 2; at++)
        if (t->samples[at].distance == distance) found[count++] = t->samples[at].seconds;
    qsort(found, (size_t)count, sizeof *found, ascending);
    return count ? found[count / 2] : INFINITY;
}

/* Between steps: starts trials and ends them. A busy moment may spoil one half of a trial, so a distance must have been
   faster than the first by a twentieth in both. */
static void choose_distances(void) {
    for (int kind = 0; kind < 2 * KINDS; kind++) {
        struct Trial *t = &trials[kind];
        if (t->count == SAMPLES) {
            float best = INFINITY;
            t->chosen = t->count = 0, t->products = 0;
            for (int distance = 1; distance < DISTANCES; distance++) {
                float first = median(t, distance, 0), second = median(t, distance, 1);
                if (first > 0.95f * median(t, 0, 0) || second > 0.95f * median(t, 0, 1) || first + second > best) continue;
                best = first + second, t->chosen = distance;
            }
            llama_ahead[kind] = distances[t->chosen] + 1;
        }
        t->running = DISTANCES > 1 && (t->count || !llama_ahead[kind] || t->products >= AGAIN);
    }
}

static size_t ahead_of(int kind) { return (size_t)(llama_forced < 0 ? distances[trials[kind].chosen] : llama_forced); }
