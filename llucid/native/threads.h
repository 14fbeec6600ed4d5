/* Threads that run one function together. They wait for one another by spinning, since a stage takes only microseconds,
   and sleep when that takes longer: between two calls, and where another program has taken a thread's processor. */

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 256, REST = 16 };
enum { SPIN = 200000, CROWDED_SPIN = 5000, CROWDED = 20000000, PERIOD = 30000000 };  /* nanoseconds */

typedef void Work(void *given, int thread);

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;  /* held during a step; guards all state below */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pid_t process;            /* that has these threads: a forked child does not inherit them */
    int started;              /* threads besides the caller's */
    Work *work;
    void *given;
    int wanted;               /* threads that take part, including the caller's */
    atomic_uint calls, rounds, arrived, asleep;  /* the first two only grow; threads wait for them to change */
    atomic_llong crowded, stalled;  /* until when; how long threads have waited for one without a processor */
    unsigned joined[MOST_THREADS];  /* the value of `calls` when a thread was started: earlier calls are not for it */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static pthread_once_t at_fork = PTHREAD_ONCE_INIT;
static void forget_turn(void) { pthread_mutex_init(&one_at_a_time, NULL); }  /* its holder is not in the child */
static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_turn); }

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Waits while *what is `value`. A thread that has lost its processor may be away for milliseconds: then the others leave
   theirs to it soon, for a while. */
static void wait_while(atomic_uint *what, unsigned value, int in_step) {
    if (atomic_load_explicit(what, memory_order_acquire) != value) return;
    int64_t begun = nanoseconds(), limit = begun < atomic_load(&pool.crowded) ? CROWDED_SPIN : SPIN;
    for (int spins = 1; spins % 16 || nanoseconds() - begun < limit; spins++) {
        if (atomic_load_explicit(what, memory_order_acquire) != value) return;
#if defined __x86_64__ || defined __i386__
        __builtin_ia32_pause();
#endif
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.asleep, 1);
    while (atomic_load(what) == value) pthread_cond_wait(&pool.changed, &pool.lock);
    atomic_fetch_sub(&pool.asleep, 1);
    pthread_mutex_unlock(&pool.lock);
    int64_t ended = nanoseconds();
    if (!in_step || ended - begun < SPIN) return;
    atomic_store(&pool.crowded, ended + CROWDED);
    atomic_fetch_add(&pool.stalled, ended - begun);
}

/* After a change of what threads wait for. */
static void wake(void) {
    if (!atomic_load(&pool.asleep)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.changed);
    pthread_mutex_unlock(&pool.lock);
}

/* A barrier: returns when all threads have called it. */
static void wait_for_all(int threads) {
    unsigned round = atomic_load(&pool.rounds);
    if (atomic_fetch_add(&pool.arrived, 1) == (unsigned)threads - 1) {
        atomic_store(&pool.arrived, 0);
        atomic_store(&pool.rounds, round + 1);
        wake();
    } else wait_while(&pool.rounds, round, 1);
}

static void *serve(void *number) {
    int thread = (int)(intptr_t)number;
    unsigned seen = pool.joined[thread];
    for (;;) {
        wait_while(&pool.calls, seen, 0);
        pthread_mutex_lock(&pool.lock);
        seen = atomic_load(&pool.calls);
        Work *work = thread < pool.wanted ? pool.work : NULL;
        void *given = pool.given;
        int threads = pool.wanted;
        pthread_mutex_unlock(&pool.lock);
        if (work) work(given, thread), wait_for_all(threads);
    }
    return NULL;
}

/* Starts up to so many threads; returns how many there are, including the caller's. */
static int at_most(int threads) {
    if (pool.process != getpid()) {
        pthread_mutex_init(&pool.lock, NULL), pthread_cond_init(&pool.changed, NULL);
        pool.process = getpid(), pool.started = 0;
        atomic_store(&pool.calls, 0), atomic_store(&pool.arrived, 0), atomic_store(&pool.asleep, 0);
    }
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    pthread_attr_t detached;
    pthread_attr_init(&detached), pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; pool.started < threads - 1; pool.started++) {
        pool.joined[pool.started + 1] = atomic_load(&pool.calls);
        if (pthread_create(&thread, &detached, serve, (void *)(intptr_t)(pool.started + 1))) break;
    }
    pthread_attr_destroy(&detached);
    return threads < pool.started + 1 ? threads : pool.started + 1;
}

/* Beside other programs fewer threads may be faster, since each waits for those that have lost their processor. After a
   period with such waits one less is tried, and after some periods without a change one more; what is faster stays. */
static struct { int left_out, change, rest; int64_t spent, work; double pace; } crowd;  /* nanoseconds per unit of work */

static int fit(int threads) {
    int some = threads - crowd.left_out - crowd.change;
    return some > threads ? threads : some < 1 ? 1 : some;
}

static void learn(int threads, int work, int64_t spent) {
    crowd.spent += spent, crowd.work += work;
    if (crowd.spent < PERIOD) return;
    double pace = (double)crowd.spent / (double)crowd.work;
    int stalled = atomic_exchange(&pool.stalled, 0) > crowd.spent / 4;
    if (crowd.left_out >= threads) crowd.left_out = threads - 1;
    if (crowd.change) {
        if (pace < (crowd.change > 0 ? 0.9 : 1) * crowd.pace) crowd.left_out += crowd.change;
        crowd.change = 0, crowd.rest = REST;
    } else if (crowd.rest) crowd.rest--;
    else if (stalled && crowd.left_out < threads - 1) crowd.change = 1;
    else if (crowd.left_out) crowd.change = -1;
    crowd.spent = crowd.work = 0, crowd.pace = pace;
}

/* Runs work(given, 0…threads−1) in parallel; returns when all are done. */
static void together(Work *work, void *given, int threads) {
    if (threads > 1) {
        pthread_mutex_lock(&pool.lock);
        pool.work = work, pool.given = given, pool.wanted = threads;
        atomic_fetch_add(&pool.calls, 1);
        pthread_mutex_unlock(&pool.lock);
        wake();
    }
    work(given, 0), wait_for_all(threads);
}
