/* System calls that change files, seen before they happen: listed, cut off by SIGKILL, or made to fail.

   It is loaded with LD_PRELOAD, so that it meets Python, torch (C++), safetensors and tokenizers (Rust) alike; a Python
   function in place of `open` would not see how the last three write weights. It is for Linux with glibc. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, RENAME, FSYNC, DELETE, KINDS };
static const char *names[KINDS] = {"open", "write", "rename", "fsync", "delete"};

static char root[PATH_MAX];     /* only what lies below it counts */
static int listing = -1;        /* a file descriptor; -1: nothing is watched */
static int chosen = -1, at, failure, lasting;
static int share;               /* percent of a write that is done before it is cut off */
static int seen[KINDS], broken; /* broken: the disk has begun to fail and goes on so */

/* Watch changes below `folder`, and let call number `number` (from 1) of kind `kind` be the last (`error` 0) or fail.
   With `on` it is not the only one: all writes, flushes and new files fail from then on, as on a full disk. */
void watch(const char *folder, int file, const char *kind, int number, int error, int on, int percent) {
    snprintf(root, sizeof root, "%s/", folder);
    for (int each = 0; each < KINDS; each++)
        if (!strcmp(names[each], kind)) chosen = each;
    at = number, failure = error, lasting = on, share = percent, listing = file;
}

static void absolute(int folder, const char *path, char *found) {
    char base[PATH_MAX] = "", link[64];
    if (path[0] != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 2);
        base[length < 0 ? 0 : length] = 0;
        strcat(base, "/");
    }
    snprintf(found, PATH_MAX, "%.*s%.*s", PATH_MAX / 2, base, PATH_MAX / 2 - 1, path);
}

static void of_descriptor(int file, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, found, PATH_MAX - 1);
    found[length < 0 ? 0 : length] = 0;
}

/* What becomes of a call: 0 it happens, -1 the process is to die in it, else the error that it returns. */
static int fate(int kind, const char *path) {
    if (listing < 0 || strncmp(path, root, strlen(root))) return 0;
    char line[PATH_MAX + 16];
    int length = snprintf(line, sizeof line, "%s %s\n", names[kind], path + strlen(root));
    syscall(SYS_write, listing, line, length);
    int number = __atomic_add_fetch(&seen[kind], 1, __ATOMIC_SEQ_CST);
    if (broken && (kind == OPEN || kind == WRITE || kind == FSYNC)) return failure;
    if (kind != chosen || number != at) return 0;
    broken = lasting;
    return failure ? failure : -1;
}

static int before(int kind, const char *path) {
    int answer = fate(kind, path);
    if (answer < 0) kill(getpid(), SIGKILL), pause();
    if (answer) errno = answer;
    return answer;
}

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)

typedef ssize_t (*writer)(int, const void *, size_t);
ssize_t write(int file, const void *content, size_t size) {
    REAL("write", writer);
    char path[PATH_MAX];
    if (listing < 0 || file == listing) return real(file, content, size);
    of_descriptor(file, path);
    int answer = fate(WRITE, path);
    if (!answer) return real(file, content, size);
    if (!broken && size) real(file, content, size * share / 100);
    if (answer < 0) kill(getpid(), SIGKILL), pause();
    errno = answer;
    return -1;
}

typedef ssize_t (*vector_writer)(int, const struct iovec *, int);
ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL("writev", vector_writer);
    char path[PATH_MAX];
    of_descriptor(file, path);
    return before(WRITE, path) ? -1 : real(file, parts, count);
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY; }

typedef int (*opener)(int, const char *, int, ...);
static int open_at(int folder, const char *path, int flags, int mode) {
    REAL("openat", opener);
    char whole[PATH_MAX];
    if (listing >= 0 && writes(flags)) {
        absolute(folder, path, whole);
        if (before(OPEN, whole)) return -1;
    }
    return real(folder, path, flags, mode);
}
#define MODE(last) va_list rest; va_start(rest, last); int mode = va_arg(rest, int); va_end(rest)
int open(const char *path, int flags, ...) { MODE(flags); return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); return open_at(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags); return open_at(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags); return open_at(folder, path, flags, mode); }

typedef FILE *(*stream_opener)(const char *, const char *);
static FILE *stream(stream_opener real, const char *path, const char *mode) {
    char whole[PATH_MAX];
    if (listing >= 0 && mode[0] != 'r') {
        absolute(AT_FDCWD, path, whole);
        if (before(OPEN, whole)) return NULL;
    }
    return real(path, mode);
}
FILE *fopen(const char *path, const char *mode) { REAL("fopen", stream_opener); return stream(real, path, mode); }
FILE *fopen64(const char *path, const char *mode) { REAL("fopen64", stream_opener); return stream(real, path, mode); }

typedef int (*renamer)(const char *, const char *);
int rename(const char *from, const char *to) {
    REAL("rename", renamer);
    char whole[PATH_MAX];
    absolute(AT_FDCWD, to, whole);
    return before(RENAME, whole) ? -1 : real(from, to);
}

typedef int (*flusher)(int);
int fsync(int file) {
    REAL("fsync", flusher);
    char path[PATH_MAX];
    of_descriptor(file, path);
    return before(FSYNC, path) ? -1 : real(file);
}

typedef int (*remover)(const char *);
typedef int (*remover_at)(int, const char *, int);
static int remove_at(int folder, const char *path, int flags) {
    REAL("unlinkat", remover_at);
    char whole[PATH_MAX];
    absolute(folder, path, whole);
    return before(DELETE, whole) ? -1 : real(folder, path, flags);
}
int unlink(const char *path) { return remove_at(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return remove_at(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return remove_at(folder, path, flags); }
