/* Allocates the arrays of a step, one after another in a block that is kept for the next step. */

static void *cut(uintptr_t *memory, size_t bytes) {  /* the next `bytes`, aligned to a cache line */
    uintptr_t begin = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return (void *)begin;
}

/* Sets every array's address, unless memory is 0; returns how many bytes they take. */
static size_t cut_all(Step *s, uintptr_t memory) {
    const Llama *m = s->model;
    uintptr_t start = memory;
    size_t count = (size_t)s->count, dim = (size_t)m->dim, ffn = (size_t)m->ffn;
    size_t q = (size_t)(m->heads * m->head_dim), kv = (size_t)(m->kv_heads * m->head_dim);
    size_t half = (size_t)m->head_dim / 2, slots = 0, longest = dim > q ? dim : q;
    longest = longest > ffn ? longest : ffn;
    for (size_t token = 0; token < count; token++) {
        size_t seen = (size_t)s->tokens->positions[token] + 1;
        slots = slots > seen ? slots : seen;
    }
    struct { float **array; size_t length; } shared[] = {
        {&s->cos, half}, {&s->sin, half}, {&s->x, dim}, {&s->query, q}, {&s->key, kv}, {&s->value, kv}, {&s->mixed, q},
        {&s->gate, ffn}, {&s->up, ffn}, {&s->written, dim},
    };
    s->own = cut(&memory, sizeof(struct Own) * (size_t)s->threads);
    s->starts = cut(&memory, 4 * (count + 1));
    for (int at = 0; at < 10; at++) *shared[at].array = cut(&memory, 4 * count * shared[at].length);
    for (int thread = 0; thread < s->threads; thread++) {
        struct Own own = {.normed = cut(&memory, 4 * count * dim), .scores = cut(&memory, 4 * (slots + TILE) * AT_ONCE)};
        own.asking = cut(&memory, 4 * (size_t)m->head_dim * AT_ONCE);
        own.vectors.whole = cut(&memory, count * longest);
        own.vectors.scale = cut(&memory, count * (longest / GROUP) * 4);
        own.vectors.sum = cut(&memory, count * (longest / GROUP) * 4);
        own.vectors.half = cut(&memory, count * (longest / GROUP) * 8);
        if (start) s->own[thread] = own;
    }
    return memory - start;
}

/* The same in allocated memory; returns 0 if there is none left. */
static int lay_out(Step *s) {
    static char *memory;
    static size_t have;
    size_t bytes = cut_all(s, 0);
    if (bytes > have) {
        free(memory);
        memory = malloc(bytes + bytes / 2 + 64);
        have = memory ? bytes + bytes / 2 : 0;
    }
    if (memory) cut_all(s, ((uintptr_t)memory + 63) & ~(uintptr_t)63);
    return memory != NULL;
}




