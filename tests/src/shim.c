/* Preloaded into a program under test: a wall clock that the test moves, and syncs that take longer or are left out; power.c is
 * the rest. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *ahead; /* milliseconds */
static unsigned sync_us;
/* A pattern of paths whose syncs are not carried out, 0: all are; and of how many bytes on files have to be for that. */
static const char *unsynced;
static off_t unsynced_from;

void before_sync(int fd);

__attribute__((constructor)) static void begin(void) {
    const char *us = getenv("MILLPOND_TEST_SYNC_US"), *clock = getenv("MILLPOND_TEST_CLOCK");
    const char *from = getenv("MILLPOND_TEST_UNSYNCED_FROM");
    unsynced = getenv("MILLPOND_TEST_UNSYNCED");
    unsynced_from = from ? atoll(from) : 0;
    sync_us = us ? (unsigned)atoi(us) : 0;
    int fd = clock ? open(clock, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *at = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
        ahead = at == MAP_FAILED ? 0 : at;
        close(fd);
    }
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int done = (int)syscall(SYS_clock_gettime, id, at);
    if (done == 0 && ahead && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        long long ms = *ahead;
        at->tv_sec += ms / 1000;
        at->tv_nsec += ms % 1000 * 1000000;
        if (at->tv_nsec >= 1000000000) at->tv_sec++, at->tv_nsec -= 1000000000;
        if (at->tv_nsec < 0) at->tv_sec--, at->tv_nsec += 1000000000;
    }
    return done;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int done = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return done;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

static int is_left_out(int fd) {
    char link[32], path[PATH_MAX];
    struct stat at;
    if (!unsynced || fstat(fd, &at) || at.st_size < unsynced_from) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fnmatch(unsynced, path, 0) == 0;
}

int fsync(int fd) {
    if (is_left_out(fd)) return 0;
    if (sync_us) usleep(sync_us);
    before_sync(fd);
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    if (is_left_out(fd)) return 0;
    if (sync_us) usleep(sync_us);
    before_sync(fd);
    return (int)syscall(SYS_fdatasync, fd);
}
