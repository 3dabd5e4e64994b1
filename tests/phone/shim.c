/* Test only: the few names that programs for Android expect of their libc and liblog and musl does not have, so that
 * the very bytes a phone gets (runner and libonnxruntime.so) run over musl under qemu. musl's loader takes the names
 * libc.so, libm.so and libdl.so for itself; this file is liblog.so and libandroid.so. It proves the artefacts and the
 * way they work together, not Android's libc. Own prototypes: the cross compiler's headers are those of another libc. */
typedef __SIZE_TYPE__ size_t;
typedef __builtin_va_list va_list;
typedef struct FILE FILE;
typedef struct { unsigned long bits[16]; } fd_set;

extern FILE *const stderr;
int *__errno_location(void);
void abort(void) __attribute__((noreturn));
void exit(int) __attribute__((noreturn));
int open(const char *, int, ...);
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
char *strchr(const char *, int);
size_t strlen(const char *);
char *strerror(int);
int vfprintf(FILE *, const char *, va_list);
int vsnprintf(char *, size_t, const char *, va_list);
int fprintf(FILE *, const char *, ...);
int snprintf(char *, size_t, const char *, ...);
long long strtoll(const char *, char **, int);
unsigned long long strtoull(const char *, char **, int);

char __sF[3 * 152]; /* the three standard streams of old programs; only their address is taken */

int *__errno(void) { return __errno_location(); }

void __libc_init(void *block, void (*unused)(void), int (*start)(int, char **, char **), const void *arrays) {
  long count = *(long *)block;
  char **arguments = (char **)block + 1;
  (void)unused, (void)arrays;
  exit(start((int)count, arguments, arguments + count + 1));
}

/* the checked forms that Android's headers turn ordinary calls into */
void __FD_SET_chk(int fd, fd_set *set, size_t size) { (void)size, set->bits[fd / 64] |= 1ul << fd % 64; }
int __FD_ISSET_chk(int fd, const fd_set *set, size_t size) { return (void)size, (int)(set->bits[fd / 64] >> fd % 64 & 1); }
void *__memcpy_chk(void *to, const void *from, size_t count, size_t room) {
  if (count > room) abort();
  return memcpy(to, from, count);
}
void *__memset_chk(void *to, int value, size_t count, size_t room) {
  if (count > room) abort();
  return memset(to, value, count);
}
char *__strchr_chk(const char *text, int c, size_t room) { return (void)room, strchr(text, c); }
size_t __strlen_chk(const char *text, size_t room) { return (void)room, strlen(text); }
int __vsnprintf_chk(char *to, size_t count, int flag, size_t room, const char *format, va_list values) {
  return (void)flag, (void)room, vsnprintf(to, count, format, values);
}
int __vsprintf_chk(char *to, int flag, size_t room, const char *format, va_list values) {
  return (void)flag, vsnprintf(to, room, format, values);
}
int __open_2(const char *path, int flags) { return open(path, flags); }
char *__gnu_strerror_r(int number, char *text, size_t room) { return snprintf(text, room, "%s", strerror(number)), text; }

int __register_atfork(void (*a)(void), void (*b)(void), void (*c)(void), void *d) { return (void)a, (void)b, (void)c, (void)d, 0; }
int __cxa_thread_atexit_impl(void (*f)(void *), void *object, void *library) { return (void)f, (void)object, (void)library, 0; }
int __system_property_get(const char *name, char *value) { return (void)name, *value = 0, 0; }

void android_set_abort_message(const char *message) { fprintf(stderr, "abort: %s\n", message); }
int __android_log_vprint(int level, const char *tag, const char *format, va_list values) {
  fprintf(stderr, "%d/%s: ", level, tag ? tag : "");
  vfprintf(stderr, format, values);
  return fprintf(stderr, "\n");
}
int __android_log_print(int level, const char *tag, const char *format, ...) {
  va_list values;
  __builtin_va_start(values, format);
  int written = __android_log_vprint(level, tag, format, values);
  __builtin_va_end(values);
  return written;
}
int __android_log_write(int level, const char *tag, const char *text) { return __android_log_print(level, tag, "%s", text); }

long long strtoll_l(const char *text, char **end, int base, void *locale) { return (void)locale, strtoll(text, end, base); }
unsigned long long strtoull_l(const char *text, char **end, int base, void *locale) {
  return (void)locale, strtoull(text, end, base);
}
