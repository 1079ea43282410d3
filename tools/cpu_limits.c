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

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__AVX512VNNI__)
#define LANES 64
static void *multiply(void *argument) {
    long id = (long)argument;
    __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1), s[10];
    for (int i = 0; i < 10; i++) s[i] = _mm512_set1_epi32((int)id + i);
    for (long n = 0; n < LOOPS / 10; n++)
        for (int i = 0; i < 10; i++) {
            s[i] = _mm512_dpbusd_epi32(s[i], a, b);
            __asm__ volatile("" : "+v"(s[i]));
        }
    for (int i = 0; i < 10; i++) sink[id] += _mm512_reduce_add_epi32(s[i]);
    return NULL;
}
#elif defined(__AVXVNNI__)
#define LANES 32
static void *multiply(void *argument) {
    long id = (long)argument;
    __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(1), s[10];
    for (int i = 0; i < 10; i++) s[i] = _mm256_set1_epi32((int)id + i);
    for (long n = 0; n < LOOPS / 10; n++)
        for (int i = 0; i < 10; i++) {
            s[i] = _mm256_dpbusd_avx_epi32(s[i], a, b);
            __asm__ volatile("" : "+x"(s[i]));
        }
    for (int i = 0; i < 10; i++) sink[id] += _mm256_extract_epi32(s[i], 0);
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
        double start = now();
        for (long i = 0; i < threads; i++) pthread_create(&handles[i], NULL, work, (void *)i);
        for (int i = 0; i < threads; i++) pthread_join(handles[i], NULL);
        double took = now() - start;
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
