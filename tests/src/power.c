/* Preloaded into a program under test: what the disk would hold if the power failed now.
 *
 * The directory that MILLPOND_TEST_POWER names, on the same file system as the program's files, holds
 *     synced/INODE   a file's bytes as of its last sync
 *     names/INODE    a directory's names as of its last sync, a line each: kind (f, d, l), inode, name
 *     pin/INODE      a link to each file of these: so no other file gets its number, and what was removed can be read
 *     lock           held while one of these is written
 *     left           how many syncs are carried out until the power fails, as eight bytes; 0: it does not
 *
 * Everything is copied before the sync is issued. What was written before it is in the copy, as the sync promises. What others
 * write meanwhile may be in it too or not, as on a disk, which may take it at any time. Copied afterwards, it would hold what was
 * written after the sync, which nobody promised. A copy that is cut off in the middle is a sync that was: each byte is the one
 * before or the one after.
 *
 * Other ways to a disk (O_SYNC, sync_file_range, syncfs, msync) count for nothing here: who relied on them would lose. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NAMES_MAX = 1 << 20, BLOCK = 1 << 16 };

static const char *mirror;
/* Some file systems say another device of files than of directories. */
static dev_t files, directories;
static long long *left;

/* The test must not go on with half a mirror. */
static void die(const char *what) {
    fprintf(stderr, "power.c: %s: %s\n", what, strerror(errno));
    abort();
}

static const char *in_mirror(char *path, const char *what) {
    if (snprintf(path, PATH_MAX, "%s/%s", mirror, what) >= PATH_MAX) die("a path is too long");
    return path;
}

static const char *numbered(char *path, const char *kind, ino_t inode) {
    char what[64];
    snprintf(what, sizeof what, "%s/%llu", kind, (unsigned long long)inode);
    return in_mirror(path, what);
}

static const char *opened(char *path, int fd) {
    snprintf(path, PATH_MAX, "/proc/self/fd/%d", fd);
    return path;
}

__attribute__((constructor)) static void begin(void) {
    char path[PATH_MAX];
    struct stat at;
    const char *named = getenv("MILLPOND_TEST_POWER");
    if (!named) return;
    mirror = named;
    if (stat(mirror, &at)) die("no mirror");
    directories = at.st_dev;
    int fd = open(in_mirror(path, "left"), O_RDWR | O_CLOEXEC);
    left = fd < 0 ? MAP_FAILED : mmap(0, sizeof *left, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (left == MAP_FAILED || fstat(fd, &at)) die("left");
    files = at.st_dev;
    close(fd);
}

static int is_pinned(ino_t inode) {
    char path[PATH_MAX];
    return access(numbered(path, "pin", inode), F_OK) == 0;
}

/* Links what is there under a name into `pin`, and says what it is; 0 if there is nothing any more. */
static int pin(int directory, const char *name, int flags, struct stat *at) {
    char new[PATH_MAX], place[PATH_MAX];
    in_mirror(new, "pin/new");
    unlink(new);
    if (linkat(directory, name, AT_FDCWD, new, flags)) {
        if (errno != ENOENT) die("pin");
        return 0;
    }
    /* Where it is pinned already, rename does nothing. */
    if (lstat(new, at) || rename(new, numbered(place, "pin", at->st_ino))) die("pin");
    unlink(new);
    return 1;
}

static void copy_file(int fd, ino_t inode) {
    char path[PATH_MAX], now[BLOCK], before[BLOCK];
    struct stat at;
    opened(path, fd);
    /* One that is removed already has no name to come back under. */
    if (!is_pinned(inode) && !pin(AT_FDCWD, path, AT_SYMLINK_FOLLOW, &at)) return;
    /* Only what cannot be read is opened anew: to close a file of SQLite would end its locks. */
    int own = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY;
    int from = own ? open(path, O_RDONLY | O_CLOEXEC) : fd;
    int to = open(numbered(path, "synced", inode), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (from < 0 || to < 0) die("copy");
    off_t done = 0;
    for (ssize_t n; (n = pread(from, now, BLOCK, done)) != 0; done += n) {
        if (n < 0) die("read");
        if (pread(to, before, n, done) != n || memcmp(now, before, n))
            if (pwrite(to, now, n, done) != n) die("write");
    }
    if (ftruncate(to, done)) die("truncate");
    close(to);
    if (own) close(from);
}

static size_t list(int fd, char *text) {
    char path[PATH_MAX];
    size_t used = 0;
    int own = open(opened(path, fd), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = own < 0 ? 0 : fdopendir(own);
    if (!directory) die("directory");
    for (struct dirent *entry; (entry = readdir(directory));) {
        struct stat at;
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || fstatat(fd, name, &at, AT_SYMLINK_NOFOLLOW)) continue;
        if (!S_ISDIR(at.st_mode) && !is_pinned(at.st_ino) && !pin(fd, name, 0, &at)) continue;
        char kind = S_ISDIR(at.st_mode) ? 'd' : S_ISLNK(at.st_mode) ? 'l' : 'f';
        used += snprintf(text + used, NAMES_MAX - used, "%c %llu %s\n", kind, (unsigned long long)at.st_ino, name);
        if (used >= NAMES_MAX) die("too many names");
    }
    closedir(directory);
    return used;
}

static void copy_directory(int fd, ino_t inode) {
    /* Under the lock. */
    static char once[NAMES_MAX], again[NAMES_MAX];
    char new[PATH_MAX], place[PATH_MAX];
    size_t used = list(fd, once);
    /* While names change, a list may have neither the old name of a file nor the new one. */
    for (int tries = 0; list(fd, again) != used || memcmp(once, again, used); tries++) {
        if (tries == 1000) die("names change all the time");
        used = list(fd, once);
    }
    int to = open(in_mirror(new, "names/new"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0 || write(to, once, used) != (ssize_t)used) die("names");
    close(to);
    if (rename(new, numbered(place, "names", inode))) die("names");
}

/* A sync of this file or directory comes next. */
void before_sync(int fd) {
    char path[PATH_MAX];
    struct stat at;
    int error = errno;
    if (!mirror) return;
    if (__atomic_fetch_sub(left, 1, __ATOMIC_RELAXED) == 1) kill(getpid(), SIGKILL);
    if (fstat(fd, &at) == 0 && at.st_dev == (S_ISDIR(at.st_mode) ? directories : files)) {
        int lock = open(in_mirror(path, "lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (lock < 0 || flock(lock, LOCK_EX)) die("lock");
        if (S_ISREG(at.st_mode)) copy_file(fd, at.st_ino);
        if (S_ISDIR(at.st_mode)) copy_directory(fd, at.st_ino);
        close(lock);
    }
    errno = error;
}

/* A new directory may have the number of one that was removed, and none of its names. */
int mkdir(const char *name, mode_t mode) {
    char path[PATH_MAX];
    struct stat at;
    int done = (int)syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    if (done == 0 && mirror && stat(name, &at) == 0) unlink(numbered(path, "names", at.st_ino));
    return done;
}
