/* Threads that run one function together. Within it they wait for one another by spinning, since a stage takes only
   microseconds; between two calls they spin for a moment and then sleep. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

enum { MOST_THREADS = 256, SPINS = 4000 };

typedef void Work(void *given, int thread);

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;  /* held during a step; guards all state below */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t called;
    pid_t process;            /* that has these threads: a forked child does not inherit them */
    int started;              /* threads besides the caller's */
    Work *work;
    void *given;
    int wanted;               /* threads that take part, including the caller's */
    atomic_uint calls, rounds, arrived;
    unsigned joined[MOST_THREADS];  /* the value of `calls` when a thread was started: earlier calls are not for it */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .called = PTHREAD_COND_INITIALIZER};

static pthread_once_t at_fork = PTHREAD_ONCE_INIT;
static void forget_turn(void) { pthread_mutex_init(&one_at_a_time, NULL); }  /* its holder is not in the child */
static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_turn); }

static void pause_briefly(int spins) {
    if (spins >= SPINS) sched_yield();  /* more threads than processors: let the others run */
#if defined __x86_64__ || defined __i386__
    else __builtin_ia32_pause();
#endif
}

/* A barrier: returns when all threads have called it. */
static void wait_for_all(int threads) {
    unsigned round = atomic_load(&pool.rounds);
    if (atomic_fetch_add(&pool.arrived, 1) == (unsigned)threads - 1) {
        atomic_store(&pool.arrived, 0);
        atomic_store(&pool.rounds, round + 1);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&pool.rounds, memory_order_acquire) == round; spins += spins < SPINS)
        pause_briefly(spins);
}

static void *serve(void *number) {
    int thread = (int)(intptr_t)number;
    unsigned seen = pool.joined[thread];
    for (;;) {
        for (int spins = 0; atomic_load(&pool.calls) == seen && spins < SPINS; spins++) pause_briefly(spins);
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.calls) == seen) pthread_cond_wait(&pool.called, &pool.lock);
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
        pthread_mutex_init(&pool.lock, NULL), pthread_cond_init(&pool.called, NULL);
        pool.process = getpid(), pool.started = 0;
        atomic_store(&pool.calls, 0), atomic_store(&pool.arrived, 0);
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

/* Runs work(given, 0…threads−1) in parallel; returns when all are done. */
static void together(Work *work, void *given, int threads) {
    pthread_mutex_lock(&pool.lock);
    pool.work = work, pool.given = given, pool.wanted = threads;
    atomic_fetch_add(&pool.calls, 1);
    pthread_cond_broadcast(&pool.called);
    pthread_mutex_unlock(&pool.lock);
    work(given, 0), wait_for_all(threads);
}




