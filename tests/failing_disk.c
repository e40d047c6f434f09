/* Fails chosen calls on chosen files, as a dying disk does, and keeps a log of what the disk answered.
 *
 * Loaded in front of the C library (LD_PRELOAD) by tests/failing_disk.py, which says what the environment means.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static int failed;

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* The path of the descriptor, if it is one that is watched. */
static int watched(int descriptor, char *path, size_t size) {
    char link[64];
    const char *part = setting("FAILING_DISK_PATH");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    if (length <= 0 || !*part) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

static void note(const char *call, int error, int descriptor, const char *path) {
    static ssize_t (*put)(int, const void *, size_t);
    char line[8192];
    struct timespec now;
    struct stat known;
    if (!put) put = dlsym(RTLD_NEXT, "write");
    clock_gettime(CLOCK_REALTIME, &now);
    if (fstat(descriptor, &known)) known.st_size = -1;
    int length = snprintf(line, sizeof line, "%lld.%06ld %s %d %lld %s\n", (long long)now.tv_sec, now.tv_nsec / 1000, call,
                          error, (long long)known.st_size, path);
    int log = open(setting("FAILING_DISK_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log < 0) return;
    if (put(log, line, length) != length) abort();
    close(log);
}

/* Shall this call fail? Once the switch exists, and as often as it is told to. */
static int fails(const char *call) {
    if (!strstr(setting("FAILING_DISK_CALLS"), call) || access(setting("FAILING_DISK_SWITCH"), F_OK)) return 0;
    int times = atoi(setting("FAILING_DISK_TIMES"));
    pthread_mutex_lock(&one_at_a_time);
    int now = !times || failed < times;
    failed += now;
    pthread_mutex_unlock(&one_at_a_time);
    return now;
}

#define AROUND(name, descriptor, spelled, call)                        \
    char path[4096];                                                   \
    int before = errno, seen = watched(descriptor, path, sizeof path); \
    int injected = seen && fails(spelled);                             \
    if (injected) errno = atoi(setting("FAILING_DISK_ERRNO"));         \
    else errno = before;                                               \
    __typeof__(call) answer = injected ? -1 : call;                    \
    int error = errno;                                                 \
    if (seen) note(spelled, answer < 0 ? error : 0, descriptor, path); \
    errno = error;                                                     \
    return answer;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { AROUND(fsync, fd, ":sync:", REAL(fsync)(fd)) }
int fdatasync(int fd) { AROUND(fdatasync, fd, ":sync:", REAL(fdatasync)(fd)) }
ssize_t write(int fd, const void *data, size_t size) { AROUND(write, fd, ":write:", REAL(write)(fd, data, size)) }
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    AROUND(pwrite, fd, ":write:", REAL(pwrite)(fd, data, size, place))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    AROUND(pwrite64, fd, ":write:", REAL(pwrite64)(fd, data, size, place))
}
ssize_t read(int fd, void *data, size_t size) { AROUND(read, fd, ":read:", REAL(read)(fd, data, size)) }
ssize_t pread(int fd, void *data, size_t size, off_t place) {
    AROUND(pread, fd, ":read:", REAL(pread)(fd, data, size, place))
}
ssize_t pread64(int fd, void *data, size_t size, off64_t place) {
    AROUND(pread64, fd, ":read:", REAL(pread64)(fd, data, size, place))
}
int rename(const char *from, const char *to) {
    const char *part = setting("FAILING_DISK_PATH");
    int seen = *part && strstr(to, part) != NULL, injected = seen && fails(":rename:");
    if (injected) errno = atoi(setting("FAILING_DISK_ERRNO"));
    int answer = injected ? -1 : REAL(rename)(from, to), error = errno;
    if (seen) note(":rename:", answer < 0 ? error : 0, -1, to);
    errno = error;
    return answer;
}
