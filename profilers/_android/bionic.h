/* Android's libc as far as dnarun uses it, so that no NDK is needed: every name is exported by bionic since API 24
 * (and by musl, which stands in for it in the tests); sizes and constants are those of 64-bit Linux on arm64.
 * build.py reads the names followed by "(" to make the stub libraries that the runner is linked against. */
#pragma once
typedef __SIZE_TYPE__ size_t;
typedef long ssize_t, off_t;
typedef signed long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef struct dna_FILE FILE;
struct timespec { long tv_sec, tv_nsec; };
struct flock { short l_type, l_whence; off_t l_start, l_len; int l_pid; };
extern FILE *stderr, *stdout;

int *__errno(void);
int open(const char *, int, ...);
ssize_t read(int, void *, size_t);
int close(int);
int fcntl(int, int, ...);
int ftruncate(int, off_t);
int kill(int, int);
int execvp(const char *, char *const *);
int getpid(void);
unsigned long getauxval(unsigned long);
long syscall(long, ...);
int clock_gettime(int, struct timespec *);
int nanosleep(const struct timespec *, struct timespec *);
FILE *fopen(const char *, const char *);
FILE *fdopen(int, const char *);
int fileno(FILE *);
int fclose(FILE *);
int fflush(FILE *);
int ferror(FILE *);
int fseeko(FILE *, off_t, int);
off_t ftello(FILE *);
size_t fread(void *, size_t, size_t, FILE *);
size_t fwrite(const void *, size_t, size_t, FILE *);
int fprintf(FILE *, const char *, ...);
int snprintf(char *, size_t, const char *, ...);
int fputc(int, FILE *);
int fputs(const char *, FILE *);
void *malloc(size_t);
void *calloc(size_t, size_t);
void free(void *);
void exit(int) __attribute__((noreturn));
int posix_memalign(void **, size_t, size_t);
long strtol(const char *, char **, int);
unsigned long strtoul(const char *, char **, int);
double strtod(const char *, char **);
char *strerror(int);
void *memset(void *, int, size_t);
void *memcpy(void *, const void *, size_t);
size_t strlen(const char *);
int strcmp(const char *, const char *);
int strncmp(const char *, const char *, size_t);
char *strchr(const char *, int);
void *dlopen(const char *, int);
void *dlsym(void *, const char *);
char *dlerror(void);
void __libc_init(void *, void (*)(void), int (*)(int, char **), const void *) __attribute__((noreturn));

#define errno (*__errno())
#define NULL ((void *)0)
#define EACCES 13
#define EAGAIN 11
#define O_RDONLY 0
#define O_RDWR 2
#define O_CREAT 0100
#define O_CLOEXEC 02000000
#define F_GETLK 5
#define F_SETLK 6
#define F_WRLCK 1
#define F_UNLCK 2
#define SEEK_SET 0
#define SEEK_END 2
#define SIGTERM 15
#define SIGKILL 9
#define RTLD_NOW 2
#define RTLD_LOCAL 0
#define CLOCK_MONOTONIC 1
#define SYS_sched_setaffinity 122
#define SYS_sched_getaffinity 123
#define SYS_prctl 167
#define SYS_getcpu 168
