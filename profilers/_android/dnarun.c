/* dnarun: measures ONNX models with ONNX Runtime, on a phone or any other Linux machine.
 *
 *   dnarun --lib SO --plan FILE --out FILE [--from N] [--cpus HEX] [--threads N] [--provider NAME]
 *          [--runs N] [--visit-ms MS] [--max-runs N] [--keep-mb MB]
 *              measure: every visit of the plan from N on; without --from it continues where the output ends
 *   dnarun --lib SO --eval MODEL --in FILE --out FILE [--dims 1x3x8x8,...] [--cpus] [--threads] [--provider]
 *              compute: inputs and outputs are the raw tensors of a batch one after another, batch after batch
 *   dnarun --lib SO --profile MODEL --out PREFIX [--runs N] ...
 *              the time of each node, in ONNX Runtime's own format
 *   dnarun --lock FILE --out FILE --hold COMMAND...
 *              become the command, which measures into that file; until it ends nobody else may
 *   dnarun --lock FILE --holder | --stop
 *              who measures here now ("PID OUT", exit 1 if nobody); end it, and return when it has ended
 *   dnarun --lib SO --version
 *
 * A plan is text: "m<TAB>PATH<TAB>KEY" names a model (KEY is a JSON string, quotes included, copied into the output),
 * "v<TAB>ROUND<TAB>MODEL" asks for a visit of the model with that number, "end" closes it. Visits count from 0.
 * The output is JSON Lines: a line for each start of the runner, a line a visit, a last line at the end. Each is flushed
 * as it is written, so whatever kills the phone, the cable or this process costs at most the visit it was at.
 *
 * No ONNX Runtime header is needed: OrtApi is a table of functions that only ever grows at its end, so the few used
 * are named here by their place in it, and one source serves every version since 1.16. The library is opened at run
 * time, which lets the same file build for Android, for Linux on arm64 and for the machine the tests run on.
 *
 * Exit: 0 done, 1 --holder: nobody, 2 wrong call, 3 model or data refused, 4 no runtime, 5 file trouble (a full disk),
 * 6 somebody else measures here, 7 the cores asked for are not given.
 */
#ifdef DNA_BIONIC
#include "bionic.h"
#else
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

enum { DONE = 0, NOBODY = 1, WRONG_CALL = 2, REFUSED = 3, NO_RUNTIME = 4, NO_FILE = 5, BUSY = 6, NO_CORES = 7 };
enum { MAX_TENSORS = 32, MAX_RANK = 8, MAX_SAMPLES = 4096 };

/* Places in OrtApi. */
enum {
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, DISABLE_TELEMETRY = 6, CREATE_SESSION = 7, RUN = 9, CREATE_OPTIONS = 10,
  ENABLE_PROFILING = 14, SET_OPTIMIZATION = 23, SET_INTRA_THREADS = 24, SET_INTER_THREADS = 25, INPUT_COUNT = 30,
  OUTPUT_COUNT = 31, INPUT_TYPE = 33, INPUT_NAME = 36, OUTPUT_NAME = 37, CREATE_TENSOR = 49, TENSOR_DATA = 51,
  CAST_TENSOR_INFO = 55, ELEMENT_TYPE = 60, RANK = 61, DIMENSIONS = 62, ELEMENT_COUNT = 64, TENSOR_INFO = 65,
  CPU_MEMORY = 69, DEFAULT_ALLOCATOR = 78, RELEASE_STATUS = 93, RELEASE_SESSION = 95, RELEASE_VALUE = 96,
  RELEASE_TYPE = 98, RELEASE_TENSOR_INFO = 99, RELEASE_OPTIONS = 100, END_PROFILING = 110, ADD_CONFIG = 130,
  REGISTER_ALLOCATOR = 144, APPEND_PROVIDER = 216
};
typedef void *Ref; /* any object of ONNX Runtime */
typedef struct { const Ref *(*api)(uint32_t); const char *(*version)(void); } ApiBase;

static const Ref *ort;
static const char *ort_version = "";
static Ref library, env, allocator, cpu_memory;
static char problem[1024]; /* what the last failed call said */

#define ORT(place, ...) ((Ref(*)(__VA_ARGS__))ort[place])
#define RELEASE(place, object) ((void (*)(Ref))ort[place])(object)

static struct {
  const char *lib, *plan, *out, *lock, *provider, *eval, *in, *dims, *profile, *cpus;
  char **hold;
  int threads, runs, max_runs, from, holder, stop, version;
  double visit_ms;
  long keep_mb;
} opt = {.provider = "cpu", .threads = 1, .runs = 4, .max_runs = 20, .visit_ms = 4, .keep_mb = 512, .from = -1};

__attribute__((noreturn)) static void die(int code, const char *what, const char *why) {
  fprintf(stderr, "dnarun: %s: %s\n", what, why);
  exit(code);
}

/* ---- small services ---- */

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The first numbers in a file of the kernel; how many were read. */
static int read_numbers(const char *path, long *numbers, int most) {
  char text[256], *at = text, *end;
  int fd = open(path, O_RDONLY | O_CLOEXEC), count = 0;
  if (fd < 0) return 0;
  ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  if (length <= 0) return 0;
  text[length] = 0;
  for (; count < most; at = end, count++) {
    numbers[count] = strtol(at, &end, 10);
    if (end == at) break;
  }
  return count;
}

static int this_cpu(void) {
  unsigned cpu = 0;
  return syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 ? (int)cpu : -1;
}

static long cpu_khz(int cpu) {
  char path[96];
  long khz = -1;
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", cpu);
  return read_numbers(path, &khz, 1) == 1 ? khz : -1;
}

/* Not sysconf(): C libraries number its questions differently, the kernel's own vector they share. */
static long page_size(void) {
  return (long)getauxval(6 /* AT_PAGESZ */);
}

static long resident_mb(void) {
  long pages[2];
  return read_numbers("/proc/self/statm", pages, 2) == 2 ? pages[1] * (page_size() / 1024) / 1024 : 0;
}

static void write_json_string(FILE *file, const char *text) {
  fputc('"', file);
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '"' || c == '\\') fprintf(file, "\\%c", c);
    else if (c < 32) fprintf(file, "\\u%04x", c);
    else fputc(c, file);
  }
  fputc('"', file);
}

static char *read_whole(const char *path, size_t *length) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  fseeko(file, 0, SEEK_END);
  size_t size = (size_t)ftello(file);
  fseeko(file, 0, SEEK_SET);
  char *text = malloc(size + 1);
  if (text) {
    *length = fread(text, 1, size, file);
    text[*length] = 0;
  }
  fclose(file);
  return text;
}

/* Flushed or not written at all: a full disk must not look like a finished run. */
static void flush(FILE *file) {
  if (fflush(file) || ferror(file)) die(NO_FILE, opt.out, strerror(errno));
}

/* ---- one run a machine ----
 * Two at once would spoil each other's times. A POSIX lock ends with its process however that ends (kill -9, reboot),
 * and the kernel tells who holds it, so no file with a process number can go stale. It outlives exec: the holder is run.sh,
 * from before it changes the phone's settings until it has put them back. */

static int lock_holder(void) {
  struct flock ask = {.l_type = F_WRLCK};
  int fd = open(opt.lock, O_RDWR | O_CLOEXEC);
  if (fd < 0) return 0;
  int failed = fcntl(fd, F_GETLK, &ask);
  close(fd);
  return failed || ask.l_type == F_UNLCK ? 0 : ask.l_pid;
}

static void take_lock(void) {
  struct flock whole = {.l_type = F_WRLCK};
  int fd = open(opt.lock, O_RDWR | O_CREAT, 0644);
  if (fd < 0) die(NO_FILE, opt.lock, strerror(errno));
  if (fcntl(fd, F_SETLK, &whole)) {
    if (errno != EACCES && errno != EAGAIN) die(NO_FILE, opt.lock, strerror(errno));
    die(BUSY, opt.lock, "somebody else measures here");
  }
  FILE *file = fdopen(fd, "r+"); /* left open: closing it would give the lock back */
  if (!file || ftruncate(fd, 0)) die(NO_FILE, opt.lock, strerror(errno));
  fprintf(file, "%s\n", opt.out);
  fflush(file);
}

static int hold(void) {
  take_lock();
  execvp(opt.hold[0], opt.hold);
  die(WRONG_CALL, opt.hold[0], strerror(errno));
}

static int show_holder(void) {
  size_t length = 0;
  int pid = lock_holder();
  if (!pid) return NOBODY;
  char *out = read_whole(opt.lock, &length);
  fprintf(stdout, "%d %s", pid, out && length ? out : "\n");
  return DONE;
}

static int stop_holder(void) {
  struct timespec pause = {0, 50000000};
  for (int tries = 0; tries < 400; tries++) { /* 10 s to put the settings back: a slow phone takes one for each of them */
    int pid = lock_holder();
    if (!pid) return DONE;
    if (tries % 20 == 0) kill(pid, tries < 200 ? SIGTERM : SIGKILL);
    nanosleep(&pause, NULL);
  }
  return BUSY;
}

/* ---- ONNX Runtime ---- */

static int failed(Ref status) {
  if (!status) return 0;
  const char *message = ((const char *(*)(Ref))ort[GET_ERROR_MESSAGE])(status);
  snprintf(problem, sizeof problem, "%s", message ? message : "no reason given");
  RELEASE(RELEASE_STATUS, status);
  return 1;
}

static int refuse(const char *why) {
  snprintf(problem, sizeof problem, "%s", why);
  return 1;
}

static void open_runtime(void) {
  library = dlopen(opt.lib, RTLD_NOW | RTLD_LOCAL);
  if (!library) die(NO_RUNTIME, opt.lib, dlerror());
  const ApiBase *(*base)(void) = (const ApiBase *(*)(void))dlsym(library, "OrtGetApiBase");
  if (!base) die(NO_RUNTIME, opt.lib, "no ONNX Runtime in it (OrtGetApiBase)");
  ort = base()->api(16); /* the lowest version that has all the places above; every later runtime answers to it */
  ort_version = base()->version();
  if (!ort) die(NO_RUNTIME, ort_version, "older than ONNX Runtime 1.16");
  if (failed(ORT(CREATE_ENV, int, const char *, Ref *)(3, "dnarun", &env)) ||
      failed(ORT(DEFAULT_ALLOCATOR, Ref *)(&allocator)) || failed(ORT(CPU_MEMORY, int, int, Ref *)(0, 0, &cpu_memory)))
    die(NO_RUNTIME, opt.lib, problem);
  failed(ORT(DISABLE_TELEMETRY, Ref)(env));
  /* One arena for all sessions: with one each, a model's first run is mostly page faults (see session.use_env_allocators). */
  Ref arena = NULL;
  if (!failed(ORT(CPU_MEMORY, int, int, Ref *)(1, 0, &arena))) failed(ORT(REGISTER_ALLOCATOR, Ref, Ref, Ref)(env, arena, NULL));
}

/* Bytes an element of ONNXTensorElementDataType; 0: not supported (strings, packed and complex numbers). */
static size_t element_size(int type) {
  switch (type) {
    case 2: case 3: case 9: return 1;           /* uint8 int8 bool */
    case 4: case 5: case 10: case 16: return 2; /* uint16 int16 float16 bfloat16 */
    case 1: case 6: case 12: return 4;          /* float int32 uint32 */
    case 7: case 11: case 13: return 8;         /* int64 double uint64 */
  }
  return 0;
}

/* Ordinary values: zeros or denormals would time another path of the processor than real activations do. */
static void fill(void *data, size_t count, int type) {
  uint32_t state = 2463534242u;
  for (size_t i = 0; i < count; i++) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    switch (type) {
      case 1: ((float *)data)[i] = (float)(state >> 8) / 8388608.0f - 1.0f; break;
      case 11: ((double *)data)[i] = (double)(state >> 8) / 8388608.0 - 1.0; break;
      case 10: ((uint16_t *)data)[i] = (uint16_t)(0x3000 | (state & 0x83ff)); break; /* magnitude 1/8 to 1/4 */
      case 16: ((uint16_t *)data)[i] = (uint16_t)(0x3e00 | (state & 0x807f)); break;
      case 2: case 3: ((uint8_t *)data)[i] = (uint8_t)state; break;
      default: memset((char *)data + i * element_size(type), 0, element_size(type)); /* indices: 0 is always one */
    }
  }
}

/* A filled buffer for input number `place` of any model: filling one for each would take longer than loading the model.
 * Two inputs of one model never share theirs, which would halve the memory they touch. */
static void *filled(size_t place, size_t bytes, int type) {
  typedef struct Pool { struct Pool *next; size_t place, bytes; int type; void *data; } Pool;
  static Pool *pools;
  size_t room = 4096;
  for (Pool *pool = pools; pool; pool = pool->next)
    if (pool->place == place && pool->type == type && pool->bytes >= bytes) return pool->data;
  while (room < bytes) room *= 2;
  Pool *pool = malloc(sizeof *pool);
  if (!pool || posix_memalign(&pool->data, 64, room + 64)) return NULL;
  pool->next = pools, pool->place = place, pool->bytes = room, pool->type = type, pools = pool;
  fill(pool->data, room / element_size(type), type);
  return pool->data;
}

typedef struct {
  Ref session, input[MAX_TENSORS], output[MAX_TENSORS];
  char *input_name[MAX_TENSORS], *output_name[MAX_TENSORS];
  void *data[MAX_TENSORS]; /* of the inputs */
  size_t bytes[MAX_TENSORS], inputs, outputs;
} Model;

static int append_provider(Ref options) {
  char threads[16];
  const char *key = "intra_op_num_threads", *value = threads;
  snprintf(threads, sizeof threads, "%d", opt.threads);
  if (!strcmp(opt.provider, "cpu")) return 0;
  if (!strcmp(opt.provider, "nnapi")) { /* has its own door, in Android builds only */
    Ref (*append)(Ref, uint32_t) = (Ref(*)(Ref, uint32_t))dlsym(library, "OrtSessionOptionsAppendExecutionProvider_Nnapi");
    return append ? failed(append(options, 0)) : refuse("this runtime has no NNAPI");
  }
  int xnnpack = !strcmp(opt.provider, "xnnpack");
  return failed(ORT(APPEND_PROVIDER, Ref, const char *, const char *const *, const char *const *, size_t)(
      options, xnnpack ? "XNNPACK" : opt.provider, &key, &value, xnnpack ? 1 : 0));
}

/* Threads are always said: left to itself the runtime pins its own, and fails where only some cores are allowed. */
static int open_session(Model *model, const char *path) {
  Ref options = NULL;
  if (failed(ORT(CREATE_OPTIONS, Ref *)(&options))) return 1;
  int bad = failed(ORT(SET_INTRA_THREADS, Ref, int)(options, opt.threads)) ||
            failed(ORT(SET_INTER_THREADS, Ref, int)(options, 1)) || failed(ORT(SET_OPTIMIZATION, Ref, int)(options, 99)) ||
            failed(ORT(ADD_CONFIG, Ref, const char *, const char *)(options, "session.intra_op.allow_spinning", "0")) ||
            failed(ORT(ADD_CONFIG, Ref, const char *, const char *)(options, "session.use_env_allocators", "1")) ||
            append_provider(options) ||
            (opt.profile && failed(ORT(ENABLE_PROFILING, Ref, const char *)(options, opt.out))) ||
            failed(ORT(CREATE_SESSION, Ref, const char *, Ref, Ref *)(env, path, options, &model->session));
  RELEASE(RELEASE_OPTIONS, options);
  return bad;
}

/* The dimensions of the next input in "1x3x8x8,1x10"; moves on behind them. */
static size_t parse_dims(const char **text, int64_t *dims) {
  size_t rank = 0;
  char *end = (char *)*text;
  while (rank < MAX_RANK && **text && **text != ',') {
    dims[rank++] = strtol(*text, &end, 10);
    if (end == *text) break;
    *text = *end == 'x' ? end + 1 : end;
  }
  if (**text == ',') ++*text;
  return rank;
}

static int open_input(Model *model, size_t i, const char **dims_asked) {
  Ref type_info = NULL, tensor_info = NULL;
  int64_t dims[MAX_RANK], asked[MAX_RANK];
  size_t rank = 0, count = 1;
  int type = 0;
  if (failed(ORT(INPUT_NAME, Ref, size_t, Ref, char **)(model->session, i, allocator, &model->input_name[i])) ||
      failed(ORT(INPUT_TYPE, Ref, size_t, Ref *)(model->session, i, &type_info)))
    return 1;
  int bad = failed(ORT(CAST_TENSOR_INFO, Ref, Ref *)(type_info, &tensor_info));
  if (!bad && !tensor_info) bad = refuse("an input is no tensor");
  bad = bad || failed(ORT(ELEMENT_TYPE, Ref, int *)(tensor_info, &type)) ||
        failed(ORT(RANK, Ref, size_t *)(tensor_info, &rank)) || (rank > MAX_RANK && refuse("an input has over 8 dimensions")) ||
        failed(ORT(DIMENSIONS, Ref, int64_t *, size_t)(tensor_info, dims, rank));
  RELEASE(RELEASE_TYPE, type_info);
  if (bad) return 1;
  if (dims_asked) {
    if (parse_dims(dims_asked, asked) != rank) return refuse("--dims does not have the rank of the model's input");
    memcpy(dims, asked, sizeof dims);
  }
  for (size_t k = 0; k < rank; k++) {
    if (dims[k] < 1) return refuse("an input has a dimension that is not fixed");
    count *= (size_t)dims[k];
  }
  if (!element_size(type)) return refuse("an input has an element type that cannot be filled");
  model->bytes[i] = count * element_size(type);
  if (!(model->data[i] = filled(i, model->bytes[i], type))) return refuse("out of memory");
  return failed(ORT(CREATE_TENSOR, Ref, void *, size_t, const int64_t *, size_t, int, Ref *)(
      cpu_memory, model->data[i], model->bytes[i], dims, rank, type, &model->input[i]));
}

static void release_values(Ref *values) {
  for (size_t i = 0; i < MAX_TENSORS; values[i++] = NULL)
    if (values[i]) RELEASE(RELEASE_VALUE, values[i]);
}

/* Names stay with the allocator: a few bytes a model. */
static void close_model(Model *model) {
  release_values(model->input);
  release_values(model->output);
  if (model->session) RELEASE(RELEASE_SESSION, model->session);
  memset(model, 0, sizeof *model);
}

static int open_model(Model *model, const char *path) {
  const char *dims = opt.dims;
  memset(model, 0, sizeof *model);
  if (open_session(model, path) || failed(ORT(INPUT_COUNT, Ref, size_t *)(model->session, &model->inputs)) ||
      failed(ORT(OUTPUT_COUNT, Ref, size_t *)(model->session, &model->outputs)))
    return 1;
  if (model->inputs > MAX_TENSORS || model->outputs > MAX_TENSORS) return refuse("over 32 inputs or outputs");
  for (size_t i = 0; i < model->outputs; i++)
    if (failed(ORT(OUTPUT_NAME, Ref, size_t, Ref, char **)(model->session, i, allocator, &model->output_name[i]))) return 1;
  for (size_t i = 0; i < model->inputs; i++)
    if (open_input(model, i, dims ? &dims : NULL)) return 1;
  return 0;
}

/* The first run makes the outputs, later ones write into them: no allocation is timed. */
static int run_model(Model *model) {
  return failed(ORT(RUN, Ref, Ref, char **, Ref *, size_t, char **, size_t, Ref *)(
      model->session, NULL, model->input_name, model->input, model->inputs, model->output_name, model->outputs, model->output));
}

/* ---- measuring ---- */

typedef struct { const char *path, *key; Model model; int open; } Entry;
typedef struct { int round, entry; } Step;
typedef struct { Entry *entries; Step *steps; int entry_count, step_count; } Plan;

static Plan read_plan(void) {
  Plan plan = {0};
  size_t length = 0, lines = 0;
  int whole = 0;
  char *text = read_whole(opt.plan, &length);
  if (!text) die(NO_FILE, opt.plan, strerror(errno));
  for (char *at = text; *at; at++) lines += *at == '\n';
  plan.entries = calloc(lines + 1, sizeof *plan.entries);
  plan.steps = calloc(lines + 1, sizeof *plan.steps);
  if (!plan.entries || !plan.steps) die(NO_FILE, opt.plan, "out of memory");
  for (char *line = text, *next; *line; line = next) {
    char *end = strchr(line, '\n'), *second;
    if (!end) break;
    *end = 0, next = end + 1;
    whole = !strcmp(line, "end");
    if (whole) break;
    second = line[0] && line[1] == '\t' ? strchr(line + 2, '\t') : NULL;
    if (!second) die(WRONG_CALL, opt.plan, "a line is neither model nor visit nor end");
    if (line[0] == 'm') {
      *second = 0;
      plan.entries[plan.entry_count++] = (Entry){.path = line + 2, .key = second + 1};
    } else {
      Step step = {(int)strtol(line + 2, NULL, 10), (int)strtol(second + 1, NULL, 10)};
      if (step.entry < 0 || step.entry >= plan.entry_count) die(WRONG_CALL, opt.plan, "a visit of an unknown model");
      plan.steps[plan.step_count++] = step;
    }
  }
  if (!whole) die(WRONG_CALL, opt.plan, "it has no end: not wholly copied");
  return plan; /* its strings live as long as the process */
}

/* Cuts off a half-written last line; the visit that comes after the last whole one. */
static int resume_point(FILE *out) {
  size_t length = 0;
  int point = 0;
  char *text = read_whole(opt.out, &length), *line = text;
  if (!text) die(NO_FILE, opt.out, strerror(errno));
  for (char *end; (end = strchr(line, '\n')); line = end + 1) {
    if (!strncmp(line, "{\"start\":", 9)) point = (int)strtol(line + 9, NULL, 10);
    if (!strncmp(line, "{\"visit\":", 9)) point = (int)strtol(line + 9, NULL, 10) + 1;
  }
  if (ftruncate(fileno(out), line - text)) die(NO_FILE, opt.out, strerror(errno));
  free(text);
  return point;
}

/* One run that is not timed (the first of a session allocates, later ones warm the caches), then at least --runs timed
 * ones, and more while --visit-ms and --max-runs allow. */
static int sample(Model *model, int64_t *ns) {
  int count = 0;
  int64_t began, ended, limit;
  if (run_model(model)) return -1;
  limit = now_ns() + (int64_t)(opt.visit_ms * 1e6);
  do {
    began = now_ns();
    if (run_model(model)) return -1;
    ended = now_ns();
    ns[count++] = ended - began;
  } while (count < MAX_SAMPLES && (count < opt.runs || (ended < limit && count < opt.max_runs)));
  return count;
}

static void visit(FILE *out, int number, Step step, Entry *entry, int64_t *ns) {
  int64_t asked = now_ns(), opened;
  int bad = 0, count = 0, cpu_before, cpu_after;
  long khz_before, khz_after;
  if (!entry->open) {
    bad = open_model(&entry->model, entry->path);
    entry->open = 1;
  }
  opened = now_ns();
  cpu_before = this_cpu(), khz_before = cpu_khz(cpu_before);
  if (!bad) count = sample(&entry->model, ns);
  cpu_after = this_cpu(), khz_after = cpu_khz(cpu_after);
  fprintf(out, "{\"visit\":%d,\"key\":%s,\"round\":%d,\"open_us\":%ld,\"cpu\":[%d,%d],\"khz\":[%ld,%ld],", number, entry->key,
          step.round, (long)((opened - asked) / 1000), cpu_before, cpu_after, khz_before, khz_after);
  if (bad || count < 0) {
    fputs("\"error\":", out);
    write_json_string(out, problem);
    fputs("}\n", out);
  } else {
    fputs("\"ns\":[", out);
    for (int i = 0; i < count; i++) fprintf(out, i ? ",%ld" : "%ld", (long)ns[i]);
    fputs("]}\n", out);
  }
  flush(out);
  release_values(entry->model.output); /* the next model uses their memory again */
  if (bad || count < 0 || resident_mb() > opt.keep_mb) { /* sessions stay open between rounds while memory lasts */
    close_model(&entry->model);
    entry->open = 0;
  }
}

static int measure(void) {
  static int64_t ns[MAX_SAMPLES];
  syscall(SYS_prctl, 1 /* PR_SET_PDEATHSIG */, SIGKILL, 0, 0, 0); /* whoever holds the lock for us is gone: so is the lock */
  Plan plan = read_plan();
  FILE *out = fopen(opt.out, "ab");
  if (!out) die(NO_FILE, opt.out, strerror(errno));
  int resumed = resume_point(out), from = opt.from >= 0 ? opt.from : resumed;
  open_runtime();
  fprintf(out, "{\"start\":%d,\"visits\":%d,\"pid\":%d,\"runtime\":\"%s\",\"provider\":", from, plan.step_count, getpid(), ort_version);
  write_json_string(out, opt.provider);
  fprintf(out, ",\"threads\":%d,\"cpus\":\"%s\",\"page_size\":%ld}\n", opt.threads, opt.cpus ? opt.cpus : "", page_size());
  flush(out);
  for (int i = from; i < plan.step_count; i++) visit(out, i, plan.steps[i], &plan.entries[plan.steps[i].entry], ns);
  fputs("{\"end\":true}\n", out);
  flush(out);
  return DONE;
}

/* ---- computing ---- */

static void write_outputs(Model *model, FILE *out) {
  for (size_t i = 0; i < model->outputs; i++) {
    Ref info = NULL;
    size_t count = 0;
    int type = 0;
    void *data = NULL;
    if (failed(ORT(TENSOR_INFO, Ref, Ref *)(model->output[i], &info)) || failed(ORT(ELEMENT_COUNT, Ref, size_t *)(info, &count)) ||
        failed(ORT(ELEMENT_TYPE, Ref, int *)(info, &type)) || failed(ORT(TENSOR_DATA, Ref, void **)(model->output[i], &data)))
      die(REFUSED, opt.eval, problem);
    RELEASE(RELEASE_TENSOR_INFO, info);
    if (!element_size(type)) die(REFUSED, opt.eval, "an output has an element type that cannot be written");
    if (fwrite(data, element_size(type), count, out) != count) die(NO_FILE, opt.out, strerror(errno));
  }
}

/* Type and shape of each output, for whoever reads the raw bytes. */
static void describe_outputs(Model *model, long batches) {
  fprintf(stdout, "{\"runtime\":\"%s\",\"batches\":%ld,\"outputs\":[", ort_version, batches);
  for (size_t i = 0; i < model->outputs; i++) {
    Ref info = NULL;
    int64_t dims[MAX_RANK];
    size_t rank = 0;
    int type = 0;
    if (failed(ORT(TENSOR_INFO, Ref, Ref *)(model->output[i], &info)) || failed(ORT(ELEMENT_TYPE, Ref, int *)(info, &type)) ||
        failed(ORT(RANK, Ref, size_t *)(info, &rank)) || rank > MAX_RANK ||
        failed(ORT(DIMENSIONS, Ref, int64_t *, size_t)(info, dims, rank)))
      die(REFUSED, opt.eval, "an output cannot be described");
    RELEASE(RELEASE_TENSOR_INFO, info);
    fprintf(stdout, "%s{\"type\":%d,\"shape\":[", i ? "," : "", type);
    for (size_t k = 0; k < rank; k++) fprintf(stdout, k ? ",%ld" : "%ld", (long)dims[k]);
    fputs("]}", stdout);
  }
  fputs("]}\n", stdout);
}

static int evaluate(void) {
  Model model;
  long batches = 0;
  open_runtime();
  if (open_model(&model, opt.eval)) die(REFUSED, opt.eval, problem);
  FILE *in = fopen(opt.in, "rb"), *out = fopen(opt.out, "wb");
  if (!in || !out) die(NO_FILE, in ? opt.out : opt.in, strerror(errno));
  for (;; batches++) {
    size_t got = 0, wanted = 0;
    for (size_t i = 0; i < model.inputs; i++) {
      got += fread(model.data[i], 1, model.bytes[i], in);
      wanted += model.bytes[i];
    }
    if (!got) break;
    if (got < wanted) die(REFUSED, opt.in, "the last batch is not whole");
    if (run_model(&model)) die(REFUSED, opt.eval, problem);
    write_outputs(&model, out);
  }
  flush(out);
  if (!batches) die(REFUSED, opt.in, "no batch in it");
  describe_outputs(&model, batches);
  return DONE;
}

static int profile(void) {
  Model model;
  char *name = NULL;
  open_runtime();
  if (open_model(&model, opt.profile)) die(REFUSED, opt.profile, problem);
  for (int i = 0; i < opt.runs; i++)
    if (run_model(&model)) die(REFUSED, opt.profile, problem);
  if (failed(ORT(END_PROFILING, Ref, Ref, char **)(model.session, allocator, &name))) die(REFUSED, opt.profile, problem);
  fprintf(stdout, "%s\n", name);
  return DONE;
}

/* ---- the call ---- */

/* Everything started later inherits this, so the runtime's threads stay there too. One word holds 64 cores.
 * The kernel silently narrows a mask to what the process may use, hence the second look. */
static void pin(void) {
  unsigned long mask = strtoul(opt.cpus, NULL, 16), given[16] = {0};
  if (!mask) die(WRONG_CALL, opt.cpus, "--cpus is a mask in hexadecimal, for example f0");
  if (syscall(SYS_sched_setaffinity, 0, sizeof mask, &mask)) die(NO_CORES, opt.cpus, strerror(errno));
  if (syscall(SYS_sched_getaffinity, 0, sizeof given, given) < 0 || given[0] != mask)
    die(NO_CORES, opt.cpus, "the system gives only some of these cores");
}

static int number(const char *name, const char *text, int least) {
  char *end;
  long value = strtol(text, &end, 10);
  if (end == text || *end || value < least || value > 1000000000) die(WRONG_CALL, name, "not a number that makes sense here");
  return (int)value;
}

static void read_call(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!strcmp(name, "--holder")) { opt.holder = 1; continue; }
    if (!strcmp(name, "--stop")) { opt.stop = 1; continue; }
    if (!strcmp(name, "--version")) { opt.version = 1; continue; }
    if (!value) die(WRONG_CALL, name, "unknown, or its value is missing");
    if (!strcmp(name, "--hold")) { opt.hold = argv + i + 1; return; }
    i++;
    if (!strcmp(name, "--lib")) opt.lib = value;
    else if (!strcmp(name, "--plan")) opt.plan = value;
    else if (!strcmp(name, "--out")) opt.out = value;
    else if (!strcmp(name, "--lock")) opt.lock = value;
    else if (!strcmp(name, "--provider")) opt.provider = value;
    else if (!strcmp(name, "--eval")) opt.eval = value;
    else if (!strcmp(name, "--in")) opt.in = value;
    else if (!strcmp(name, "--dims")) opt.dims = value;
    else if (!strcmp(name, "--profile")) opt.profile = value;
    else if (!strcmp(name, "--cpus")) opt.cpus = value;
    else if (!strcmp(name, "--from")) opt.from = number(name, value, 0);
    else if (!strcmp(name, "--threads")) opt.threads = number(name, value, 1);
    else if (!strcmp(name, "--runs")) opt.runs = number(name, value, 1);
    else if (!strcmp(name, "--max-runs")) opt.max_runs = number(name, value, 1);
    else if (!strcmp(name, "--keep-mb")) opt.keep_mb = number(name, value, 0);
    else if (!strcmp(name, "--visit-ms")) opt.visit_ms = strtod(value, NULL);
    else die(WRONG_CALL, name, "unknown option");
  }
}

int main(int argc, char **argv) {
  read_call(argc, argv);
  if (opt.lock && opt.holder) return show_holder();
  if (opt.lock && opt.stop) return stop_holder();
  if (opt.lock && opt.out && opt.hold) return hold();
  if (!opt.lib) die(WRONG_CALL, "--lib", "missing: the libonnxruntime.so to use");
  if (opt.cpus) pin();
  if (opt.version) {
    open_runtime();
    fprintf(stdout, "%s\n", ort_version);
    return DONE;
  }
  if (opt.eval && opt.in && opt.out) return evaluate();
  if (opt.profile && opt.out) return profile();
  if (opt.plan && opt.out) return measure();
  die(WRONG_CALL, "what to do", "give --plan --out, or --eval --in --out, or --profile --out, or --version");
}
