/* Loads a disk and says what it gave: for guests that have no fio, which drags half of Ceph along.
 *
 *   block_load read|write seq|rand BYTES THREADS SECONDS DISK
 *
 * Every thread has one request of BYTES on its way, around the page cache; a line with requests and bytes per second. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int disk, writes, random_places;
static size_t bytes;
static long blocks;
static double seconds;
static atomic_long done, next_place;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *worker(void *seed) {
    void *buffer;
    unsigned long state = 88172645463325252UL + 7919 * (unsigned long)seed;
    if (posix_memalign(&buffer, 4096, bytes)) exit(1);
    memset(buffer, (int)(long)seed + 1, bytes);
    for (double end = now() + seconds; now() < end; done++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        long place = random_places ? (long)(state % blocks) : next_place++ % blocks;
        off_t at = (off_t)place * bytes;
        ssize_t moved = writes ? pwrite(disk, buffer, bytes, at) : pread(disk, buffer, bytes, at);
        if (moved != (ssize_t)bytes) {
            perror("block_load");
            exit(1);
        }
    }
    return NULL;
}

int main(int count, char **words) {
    if (count != 7) return 2;
    writes = !strcmp(words[1], "write"), random_places = !strcmp(words[2], "rand");
    bytes = atol(words[3]), seconds = atof(words[5]);
    int threads = atoi(words[4]);
    disk = open(words[6], O_RDWR | O_DIRECT);
    if (disk < 0 || threads < 1 || threads > 64) return perror("block_load"), 1;
    blocks = lseek(disk, 0, SEEK_END) / bytes;
    pthread_t all[64];
    double begun = now();
    for (long n = 0; n < threads; n++) pthread_create(&all[n], NULL, worker, (void *)n);
    for (long n = 0; n < threads; n++) pthread_join(all[n], NULL);
    double took = now() - begun;
    printf("%.1f %.0f\n", done / took, done * bytes / took);
    return 0;
}
