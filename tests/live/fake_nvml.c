/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests under the real pynvml.
 *
 * All it knows is in the text file $FAKE_NVML_STATE, read anew at each call:
 *
 *   driver VERSION                                      without this line: no driver is loaded
 *   gpu INDEX STATUS TOTAL USED PERCENT UUID NAME...    STATUS 0 works, 15 is lost; PERCENT -1: none;
 *                                                       TOTAL 0: memory is not told (GB10)
 *   facts INDEX MAJOR.MINOR BUS MEMORY_MHZ SM_MHZ CORES compute capability, bits of the memory bus,
 *                                                       highest clocks, CUDA cores; 0: not told
 *   proc INDEX PID BYTES KIND                           KIND c computes, g draws; BYTES -1: not told
 *   mig INDEX MOST                                      it is in MIG mode, with so many instances at most
 *   instance INDEX SLOT TOTAL USED UUID NAME...         one of its instances
 *   instanceproc INDEX SLOT PID BYTES KIND              as `proc`, in an instance
 *
 * A GPU that was seen lost stays so for a process until that shuts NVML down and starts it anew.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, LOST = 15, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7,
       NO_DRIVER = 9 };
enum { MOST = 64 };

typedef struct { int index, status, percent; unsigned long long total, used;
                 char uuid[96], name[96]; int slot, most; } Gpu;
typedef struct { int index, major, minor; unsigned bus_bits, memory_mhz, sm_mhz, cores; } Facts;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } Process;
typedef struct { int gpu, slot; char kind; Process process; } Held;

static Gpu gpus[MOST], instances[MOST];
static Held held[MOST];
static Facts facts[MOST];
static int n_gpus, n_instances, n_held, n_facts, initialized;
static int seen_lost[MOST];

static int look(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    int driver = 0;
    n_gpus = n_instances = n_held = n_facts = 0;
    if (!file) return NO_DRIVER;
    while (fgets(line, sizeof line, file)) {
        Gpu *g = &gpus[n_gpus];
        Gpu *m = &instances[n_instances];
        Held *h = &held[n_held];
        Facts *f = &facts[n_facts];
        long long bytes;
        int index, most;
        h->slot = -1;
        if (!strncmp(line, "driver ", 7)) driver = 1;
        else if (sscanf(line, "gpu %d %d %llu %llu %d %95s %95[^\n]", &g->index, &g->status,
                        &g->total, &g->used, &g->percent, g->uuid, g->name) == 7) {
            g->slot = g->most = -1;
            n_gpus++;
        } else if (sscanf(line, "mig %d %d", &index, &most) == 2) {
            for (int i = 0; i < n_gpus; i++)
                if (gpus[i].index == index) gpus[i].most = most;
        } else if (sscanf(line, "instance %d %d %llu %llu %95s %95[^\n]", &m->index, &m->slot,
                          &m->total, &m->used, m->uuid, m->name) == 6) {
            m->most = m->percent = -1;
            n_instances++;
        } else if (sscanf(line, "proc %d %u %lld %c", &h->gpu, &h->process.pid, &bytes,
                          &h->kind) == 4 ||
                   sscanf(line, "instanceproc %d %d %u %lld %c", &h->gpu, &h->slot,
                          &h->process.pid, &bytes, &h->kind) == 5) {
            h->process.bytes = (unsigned long long)bytes;
            h->process.gi = h->process.ci = 0xffffffffu;
            n_held++;
        } else if (sscanf(line, "facts %d %d.%d %u %u %u %u", &f->index, &f->major, &f->minor,
                          &f->bus_bits, &f->memory_mhz, &f->sm_mhz, &f->cores) == 7) n_facts++;
    }
    fclose(file);
    if (!driver) { initialized = 0; return NO_DRIVER; }
    return OK;
}

static int ready(void) {
    int status = look();
    if (status) return status;
    return initialized ? OK : UNINITIALIZED;
}

/* A device is index + 1; an instance is that and its slot + 1, in thousands. */
static int find(void *device, Gpu **found) {
    int status = ready(), index = (int)((size_t)device % 1000) - 1;
    int slot = (int)((size_t)device / 1000) - 1;
    if (status) return status;
    if (slot >= 0) {
        for (int i = 0; i < n_instances; i++)
            if (instances[i].index == index && instances[i].slot == slot) {
                *found = &instances[i];
                return seen_lost[index] ? LOST : OK;
            }
        return NOT_FOUND;
    }
    for (int i = 0; i < n_gpus; i++)
        if (gpus[i].index == index) {
            *found = &gpus[i];
            if (gpus[i].status == LOST) seen_lost[index] = 1;
            return seen_lost[index] ? LOST : gpus[i].status;
        }
    return INVALID;
}

int nvmlInitWithFlags(unsigned flags) { int s = look(); if (!s) initialized = 1; return s; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    initialized = 0;
    memset(seen_lost, 0, sizeof seen_lost);
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int status = ready();
    *count = (unsigned)n_gpus;
    return status;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    Gpu *g;
    *device = (void *)(size_t)(index + 1);
    return find(*device, &g);
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    Gpu *g;
    int status = find(device, &g);
    if (status) return status;
    if (g->most < 0) return NOT_SUPPORTED;
    *current = *pending = 1;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    Gpu *g;
    int status = find(device, &g);
    if (!status) *count = g->most < 0 ? 0 : (unsigned)g->most;
    return status;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned slot, void **instance) {
    Gpu *g;
    *instance = (void *)((size_t)device + 1000 * (size_t)(slot + 1));
    return find(*instance, &g);
}

static int text(void *device, char *out, unsigned length, int uuid) {
    Gpu *g;
    int status = find(device, &g);
    if (!status) snprintf(out, length, "%s", uuid ? g->uuid : g->name);
    return status;
}
int nvmlDeviceGetName(void *d, char *out, unsigned n) { return text(d, out, n, 0); }
int nvmlDeviceGetUUID(void *d, char *out, unsigned n) { return text(d, out, n, 1); }

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    Gpu *g;
    int status = find(device, &g);
    if (status) return status;
    if (!g->total) return NOT_SUPPORTED;
    memory[0] = g->total; memory[1] = g->total - g->used; memory[2] = g->used;
    return OK;
}

static int told(void *device, Facts **found) {
    Gpu *g;
    int status = find(device, &g);
    if (status) return status;
    for (int i = 0; i < n_facts; i++)
        if (facts[i].index == g->index) { *found = &facts[i]; return OK; }
    return NOT_SUPPORTED;
}

static int figure(int status, unsigned value, unsigned *out) {
    if (!status) *out = value;
    return status ? status : value ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    Facts *f;
    int status = told(device, &f);
    if (status || !f->major) return status ? status : NOT_SUPPORTED;
    *major = f->major;
    *minor = f->minor;
    return OK;
}

int nvmlDeviceGetMemoryBusWidth(void *device, unsigned *bits) {
    Facts *f = NULL;
    int status = told(device, &f);
    return figure(status, f ? f->bus_bits : 0, bits);
}

int nvmlDeviceGetNumGpuCores(void *device, unsigned *cores) {
    Facts *f = NULL;
    int status = told(device, &f);
    return figure(status, f ? f->cores : 0, cores);
}

int nvmlDeviceGetMaxClockInfo(void *device, int clock, unsigned *mhz) {
    Facts *f = NULL;
    int status = told(device, &f);
    if (clock != 1 && clock != 2) return NOT_SUPPORTED;
    return figure(status, !f ? 0 : clock == 1 ? f->sm_mhz : f->memory_mhz, mhz);
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {
    Gpu *g;
    int status = find(device, &g);
    if (status) return status;
    if (g->percent < 0) return NOT_SUPPORTED;
    rates[0] = (unsigned)g->percent;
    rates[1] = 0;
    return OK;
}

static int processes(void *device, unsigned *count, Process *out, char kind) {
    Gpu *g;
    unsigned n = 0, room = *count;
    int status = find(device, &g);
    if (status) return status;
    for (int i = 0; i < n_held; i++)
        if (held[i].gpu == g->index && held[i].slot == g->slot && held[i].kind == kind) {
            if (n < room) out[n] = held[i].process;
            n++;
        }
    *count = n;
    return n > room ? SMALL : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, Process *out) {
    return processes(d, n, out, 'c');
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, unsigned *n, Process *out) {
    return processes(d, n, out, 'g');
}
