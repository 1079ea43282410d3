/* What the CPU can do at most: int8 multiply-adds with operands in registers, and reading memory.
   Prints two numbers: 1e9 int8 operations per second (a multiply-add is two; 0 without VNNI) and 1e9 bytes per second.
   Usage: cpu_limits THREADS */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_THREADS 256
#define BUFFER_BYTES (256UL << 20)
#define ROUNDS 7
#define LOOPS 40000000L

static int threads;
static uint64_t *buffer;
static volatile int64_t sink[MAX_THREADS];

/* A thread's own CPU time: what other processes take meanwhile is no limit of the machine. */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

struct job {
    void *(*work)(void *);
    long id;
    double seconds;
};

static void *timed(void *argument) {
    struct job *job = argument;
    double start = now();
    job->work((void *)job->id);
    job->seconds = now() - start;
    return NULL;
}

/* Ten sums in registers of their own: in an array they would be stored and loaded each time. */
#define SUMS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9)

#if defined(__AVX512VNNI__)
#define LANES 64
#define BEGIN(i) __m512i s##i = _mm512_set1_epi32((int)id + i);
#define STEP(i) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(s##i) : "v"(a));
#define END(i) sink[id] += _mm512_reduce_add_epi32(s##i);
#elif defined(__AVXVNNI__)
#define LANES 32
#define BEGIN(i) __m256i s##i = _mm256_set1_epi32((int)id + i);
#define STEP(i) __asm__ volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(s##i) : "x"(a));
#define END(i) sink[id] += _mm256_extract_epi32(s##i, 0);
#endif

#ifdef STEP
static void *multiply(void *argument) {
    long id = (long)argument;
#if LANES == 64
    __m512i a = _mm512_set1_epi8(1);
#else
    __m256i a = _mm256_set1_epi8(1);
#endif
    SUMS(BEGIN)
    for (long n = 0; n < LOOPS / 10; n++) {
        SUMS(STEP)
    }
    SUMS(END)
    return NULL;
}
#else
#define LANES 0
static void *multiply(void *argument) { return argument; }
#endif

static void *read_memory(void *argument) {
    long id = (long)argument;
    size_t words = BUFFER_BYTES / 8 / threads;
    const uint64_t *p = buffer + id * words;
    uint64_t s[8] = {0};
    for (size_t i = 0; i + 8 <= words; i += 8)
        for (int j = 0; j < 8; j++) s[j] += p[i + j];
    for (int j = 0; j < 8; j++) sink[id] += (int64_t)s[j];
    return NULL;
}

static double best_seconds(void *(*work)(void *)) {
    double best = 1e30;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t handles[MAX_THREADS];
        struct job jobs[MAX_THREADS];
        double took = 0;
        for (long i = 0; i < threads; i++) {
            jobs[i] = (struct job){work, i, 0};
            pthread_create(&handles[i], NULL, timed, &jobs[i]);
        }
        for (int i = 0; i < threads; i++) {
            pthread_join(handles[i], NULL);
            if (jobs[i].seconds > took) took = jobs[i].seconds;
        }
        if (took < best) best = took;
    }
    return best;
}

int main(int count, char **arguments) {
    threads = count > 1 ? atoi(arguments[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS) return 2;
    buffer = aligned_alloc(64, BUFFER_BYTES);
    if (!buffer) return 1;
    memset(buffer, 1, BUFFER_BYTES);
    double int8_gops = LANES ? 2.0 * LANES * LOOPS * threads / best_seconds(multiply) / 1e9 : 0.0;
    printf("%.1f %.1f\n", int8_gops, BUFFER_BYTES / best_seconds(read_memory) / 1e9);
    return 0;
}
