/* A libcuda.so.1 that stands in for NVIDIA's driver in tests, so that the true pycuda can be loaded and called where
 * there is no GPU. It has the documented driver API, as far as deploykit uses it through pycuda and on its own: device
 * memory is host memory, and work is done when it is put on a stream. It checks what the true one checks of the order of
 * calls - is a context current, is a handle alive - and counts what lives, which deploykit_live() tells.
 *
 * Everything else that pycuda is linked with answers CUDA_ERROR_NOT_SUPPORTED: see others.h, which the test makes from
 * the names that pycuda's module asks for.
 */

#define _POSIX_C_SOURCE 200809L

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct context *CUcontext;
typedef struct stream *CUstream;
typedef struct event *CUevent;
typedef struct graph *CUgraph;
typedef struct graph *CUgraphExec;

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  NOT_SUPPORTED = 801,
};

enum { CONTEXTS, STREAMS, EVENTS, MEMORY, PINNED, GRAPHS, EXECUTABLES, KINDS };
static int live[KINDS];

/* What lives, by kind, in the order of the enum: for the test. */
int deploykit_live(int kind) { return live[kind]; }

/* Contexts: one primary context, and a stack of those that are current in each thread. */

struct context { int retained; };
static struct context primary;
static int initialized;
static __thread CUcontext stack[64];
static __thread int depth;

int deploykit_depth(void) { return depth; }

#define NEED_CONTEXT if (!initialized) return NOT_INITIALIZED; if (!depth) return INVALID_CONTEXT

CUresult cuInit(unsigned flags) {
  const char *failing = getenv("DEPLOYKIT_TEST_CUINIT");
  if (failing) return atoi(failing);
  if (flags) return INVALID_VALUE;
  initialized = 1;
  return SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  switch (error) {
    case SUCCESS: *text = "no error"; return SUCCESS;
    case INVALID_VALUE: *text = "invalid argument"; return SUCCESS;
    case OUT_OF_MEMORY: *text = "out of memory"; return SUCCESS;
    case NOT_INITIALIZED: *text = "initialization error"; return SUCCESS;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; return SUCCESS;
    case INVALID_DEVICE: *text = "invalid device ordinal"; return SUCCESS;
    case INVALID_CONTEXT: *text = "invalid device context"; return SUCCESS;
    case INVALID_HANDLE: *text = "invalid resource handle"; return SUCCESS;
    case NOT_SUPPORTED: *text = "operation not supported"; return SUCCESS;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; return SUCCESS;
    case CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; return SUCCESS;
    case 803: *text = "system has unsupported display driver / cuda driver combination"; return SUCCESS;
    default: *text = "unknown error"; return SUCCESS;
  }
}

CUresult cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return initialized ? SUCCESS : NOT_INITIALIZED; }

CUresult cuDeviceGet(CUdevice *device, int number) {
  if (!initialized) return NOT_INITIALIZED;
  if (number != 0) return INVALID_DEVICE;
  *device = 0;
  return SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
  if (device != 0) return INVALID_DEVICE;
  snprintf(name, (size_t)size, "Stand-in GPU");
  return SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
  if (device != 0) return INVALID_DEVICE;
  *major = 9;
  *minor = 0;
  return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  if (device != 0) return INVALID_DEVICE;
  primary.retained++;
  live[CONTEXTS]++;
  *context = &primary;
  return SUCCESS;
}

/* As documented, it does not take the context from any stack. */
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  if (device != 0) return INVALID_DEVICE;
  if (!primary.retained) return INVALID_CONTEXT;
  primary.retained--;
  live[CONTEXTS]--;
  return SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
  if (!context || !context->retained || depth == 64) return INVALID_CONTEXT;
  stack[depth++] = context;
  return SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
  if (!depth) return INVALID_CONTEXT;
  CUcontext top = stack[--depth];
  if (context) *context = top;
  return SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) { NEED_CONTEXT; *device = 0; return SUCCESS; }
CUresult cuCtxSynchronize(void) { NEED_CONTEXT; return SUCCESS; }

/* Memory: a list of what was handed out, so that a copy beyond it is refused. */

struct block { char *start; size_t size; struct block *next; };
static struct block *memory, *pinned;

static char *take(struct block **list, size_t size) {
  struct block *made = malloc(sizeof *made);
  made->start = NULL;
  if (posix_memalign((void **)&made->start, 256, size)) { free(made); return NULL; }
  memset(made->start, 0xcd, size);
  made->size = size;
  made->next = *list;
  *list = made;
  return made->start;
}

static int give(struct block **list, char *start) {
  for (; *list; list = &(*list)->next)
    if ((*list)->start == start) {
      struct block *gone = *list;
      *list = gone->next;
      free(gone->start);
      free(gone);
      return 1;
    }
  return 0;
}

static int within(CUdeviceptr start, size_t size) {
  for (struct block *one = memory; one; one = one->next)
    if ((char *)start >= one->start && (char *)start + size <= one->start + one->size) return 1;
  return 0;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
  NEED_CONTEXT;
  if (!size) return INVALID_VALUE;
  const char *most = getenv("DEPLOYKIT_TEST_CUDA_MEMORY");
  if (most && size > (size_t)atoll(most)) return OUT_OF_MEMORY;
  char *start = take(&memory, size);
  if (!start) return OUT_OF_MEMORY;
  live[MEMORY]++;
  *address = (CUdeviceptr)start;
  return SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  NEED_CONTEXT;
  if (!give(&memory, (char *)address)) return INVALID_VALUE;
  live[MEMORY]--;
  return SUCCESS;
}

CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) {
  NEED_CONTEXT;
  if (!size || flags) return INVALID_VALUE;
  *address = take(&pinned, size);
  if (!*address) return OUT_OF_MEMORY;
  live[PINNED]++;
  return SUCCESS;
}

CUresult cuMemFreeHost(void *address) {
  NEED_CONTEXT;
  if (!give(&pinned, address)) return INVALID_VALUE;
  live[PINNED]--;
  return SUCCESS;
}

/* Streams: work is done at once, or kept while the stream is captured. */

struct work { char *to; const char *from; size_t size; struct work *next; };
struct graph { struct work *first; };
struct stream { int alive, capturing, invalid; struct work *first, **last; };
struct event { int alive, recorded; struct timespec at; };

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
  NEED_CONTEXT;
  if (flags > 1) return INVALID_VALUE;
  *stream = calloc(1, sizeof **stream);
  (*stream)->alive = 1;
  live[STREAMS]++;
  return SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
  NEED_CONTEXT;
  if (!stream || !stream->alive) return INVALID_HANDLE;
  stream->alive = 0; /* kept, so that a later use of it is seen */
  live[STREAMS]--;
  return SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  NEED_CONTEXT;
  if (!stream || !stream->alive) return INVALID_HANDLE;
  if (stream->capturing) {
    stream->invalid = 1;
    return CAPTURE_UNSUPPORTED;
  }
  return SUCCESS;
}

CUresult cuStreamQuery(CUstream stream) { return cuStreamSynchronize(stream); }

static CUresult copy(char *to, const char *from, size_t size, CUstream stream) {
  if (!stream || !stream->alive) return INVALID_HANDLE;
  if (!stream->capturing) {
    memcpy(to, from, size);
    return SUCCESS;
  }
  struct work *made = malloc(sizeof *made);
  *made = (struct work){to, from, size, NULL};
  *stream->last = made;
  stream->last = &made->next;
  return SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
  NEED_CONTEXT;
  return within(to, size) ? copy((char *)to, from, size, stream) : INVALID_VALUE;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
  NEED_CONTEXT;
  return within(from, size) ? copy(to, (const char *)from, size, stream) : INVALID_VALUE;
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  NEED_CONTEXT;
  return within(to, size) && within(from, size) ? copy((char *)to, (const char *)from, size, stream) : INVALID_VALUE;
}

/* Events. */

CUresult cuEventCreate(CUevent *event, unsigned flags) {
  NEED_CONTEXT;
  if (flags > 7) return INVALID_VALUE;
  *event = calloc(1, sizeof **event);
  (*event)->alive = 1;
  live[EVENTS]++;
  return SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event) {
  NEED_CONTEXT;
  if (!event || !event->alive) return INVALID_HANDLE;
  free(event);
  live[EVENTS]--;
  return SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  NEED_CONTEXT;
  if (!event || !event->alive || !stream || !stream->alive) return INVALID_HANDLE;
  clock_gettime(CLOCK_MONOTONIC, &event->at);
  event->recorded = 1;
  return SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) { NEED_CONTEXT; return event && event->alive ? SUCCESS : INVALID_HANDLE; }
CUresult cuEventQuery(CUevent event) { return cuEventSynchronize(event); }

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent begin, CUevent end) {
  NEED_CONTEXT;
  if (!begin || !end || !begin->recorded || !end->recorded) return INVALID_HANDLE;
  *milliseconds = (float)((end->at.tv_sec - begin->at.tv_sec) * 1e3 + (end->at.tv_nsec - begin->at.tv_nsec) / 1e6);
  return SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent begin, CUevent end) {
  return cuEventElapsedTime_v2(milliseconds, begin, end);
}

/* Graphs. */

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
  NEED_CONTEXT;
  if (!stream || !stream->alive) return INVALID_HANDLE;
  if (mode < 0 || mode > 2 || stream->capturing) return INVALID_VALUE;
  stream->capturing = 1;
  stream->invalid = 0;
  stream->first = NULL;
  stream->last = &stream->first;
  return SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  NEED_CONTEXT;
  *graph = NULL;
  if (!stream || !stream->alive) return INVALID_HANDLE;
  if (!stream->capturing) return INVALID_VALUE;
  stream->capturing = 0;
  if (stream->invalid) return CAPTURE_INVALIDATED;
  *graph = malloc(sizeof **graph);
  (*graph)->first = stream->first;
  live[GRAPHS]++;
  return SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
  NEED_CONTEXT;
  if (!graph || flags) return INVALID_VALUE;
  *executable = malloc(sizeof **executable);
  **executable = *graph; /* the work is shared: a test leaks a few bytes of it */
  live[EXECUTABLES]++;
  return SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  NEED_CONTEXT;
  if (!executable || !stream || !stream->alive) return INVALID_HANDLE;
  for (struct work *one = executable->first; one; one = one->next) memcpy(one->to, one->from, one->size);
  return SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
  if (!executable) return INVALID_VALUE;
  free(executable);
  live[EXECUTABLES]--;
  return SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
  if (!graph) return INVALID_VALUE;
  free(graph);
  live[GRAPHS]--;
  return SUCCESS;
}

#define OTHER(name) CUresult name(void) { return NOT_SUPPORTED; }
#include "others.h"
