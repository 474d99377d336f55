/* A libnvidia-ml.so.1 whose GPUs exist in a file: LLEM_SIMULATED_NVML names it, simulation.py writes it.
 * Counter and power follow analytically from the true power's segments and the time of the call. */
#define _GNU_SOURCE
#include "simulated_nvml.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9
};
enum { IDLE = 0x1, POWER_CAP = 0x4 }; /* event reasons */

typedef Gpu *Device;
typedef int Return;

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    int type, result;
    union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;

static Machine *machine;
static int initialized;
static struct { int64_t tick; double energy_j; } part_time[MAX_GPUS];
static int64_t previous_read_ns[MAX_GPUS];

static int64_t now_ns(void) {
    if (machine && machine->virtual_ns) return machine->virtual_ns;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void wait_ns(int64_t length) {
    if (machine->virtual_ns) { machine->virtual_ns += length; return; }
    int64_t end = now_ns() + length;
    if (length > 150000) {
        struct timespec t = {(length - 100000) / 1000000000LL, (length - 100000) % 1000000000LL};
        nanosleep(&t, NULL);
    }
    while (now_ns() < end) {}
}

static int64_t call_latency(Gpu *gpu) {
    int64_t count = __atomic_add_fetch(&gpu->counter_reads, 1, __ATOMIC_RELAXED);
    return gpu->late_every && count % gpu->late_every == 0 ? gpu->late_ns : gpu->latency_ns;
}

/* True energy up to a time. */
static double energy_j(const Gpu *gpu, int64_t t) {
    int64_t low = 0, high = __atomic_load_n(&gpu->segments, __ATOMIC_ACQUIRE) - 1;
    if (high < 0 || t <= gpu->segment[0].start_ns) return 0;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (gpu->segment[middle].start_ns <= t) low = middle; else high = middle - 1;
    }
    const Segment *s = &gpu->segment[low];
    int64_t ramp_ns = gpu->fall_ns && s->target_w < s->from_w ? gpu->fall_ns : gpu->ramp_ns;
    double dt = (t - s->start_ns) / 1e9, ramp = ramp_ns / 1e9, total = s->energy_j + s->target_w * dt;
    if (ramp > 0) total += (s->from_w - s->target_w) * ramp * (1 - exp(-dt / ramp));
    if (s->extra_ns) total += s->extra_w * (s->extra_ns / 1e9) * (1 - exp(-dt / (s->extra_ns / 1e9)));
    if (s->ripple_ns) {
        double omega = 2 * M_PI / (s->ripple_ns / 1e9);
        total += s->ripple_w / omega * (1 - cos(omega * dt));
    }
    return total;
}

/* What has passed the sensor up to a time. The low-pass is a mixture of delays, exponentially distributed. */
static double sensed_j(const Gpu *gpu, int64_t t) {
    enum { DELAYS = 32 };
    t -= gpu->delay_ns;
    double total = 0;
    if (!gpu->filter_ns) total = energy_j(gpu, t);
    else
        for (int i = 0; i < DELAYS; i++)
            total += energy_j(gpu, t + (int64_t)(gpu->filter_ns * log((i + 0.5) / DELAYS))) / DELAYS;
    if (!gpu->blind_ns) return total;
    for (int64_t i = 1; i < gpu->segments && gpu->segment[i].start_ns < t; i++) {
        const Segment *s = &gpu->segment[i];
        int64_t end = i + 1 < gpu->segments && gpu->segment[i + 1].start_ns < t ? gpu->segment[i + 1].start_ns : t;
        int64_t unseen = end - s->start_ns < gpu->blind_ns ? end - s->start_ns : gpu->blind_ns;
        if (s->target_w > s->from_w) total -= (s->target_w - s->from_w) * (unseen / 1e9);
    }
    return total;
}

static double mean_w(const Gpu *gpu, int64_t end, int64_t length) {
    int64_t start = end - length < gpu->epoch_ns ? gpu->epoch_ns : end - length;
    return end > start ? (energy_j(gpu, end) - energy_j(gpu, start)) / ((end - start) / 1e9) : 0;
}

/* The same number from 0 to 1 for the same step. */
static double chance(int64_t k, uint64_t salt) {
    uint64_t x = (uint64_t)k * 0x9E3779B97F4A7C15ULL + salt;
    x ^= x >> 31; x *= 0xBF58476D1CE4E5B9ULL; x ^= x >> 27;
    return (x >> 11) / (double)(1ULL << 53);
}

static int64_t tick_ns(const Gpu *gpu, int64_t k) {
    double early_or_late = (chance(k, 0x1234567) * 2 - 1) * gpu->jitter_ns;
    return gpu->epoch_ns + k * gpu->period_ns + (int64_t)early_or_late;
}

static int64_t last_tick(const Gpu *gpu, int64_t t) {
    int64_t k = (t - gpu->epoch_ns) / gpu->period_ns + 1;
    while (k > 0 && tick_ns(gpu, k) > t) k--;
    return k;
}

static double counter_j(Gpu *gpu, int64_t t) {
    int i = gpu - machine->gpu;
    if (gpu->frozen_at_ns && t > gpu->frozen_at_ns) t = gpu->frozen_at_ns;
    int64_t k = last_tick(gpu, t);
    if (gpu->duty >= 1 && !(gpu->lost_share > 0)) return sensed_j(gpu, tick_ns(gpu, k));
    if (k < part_time[i].tick) part_time[i].tick = part_time[i].energy_j = 0;
    while (part_time[i].tick < k) {
        int64_t from = tick_ns(gpu, part_time[i].tick), to = tick_ns(gpu, ++part_time[i].tick);
        if (chance(part_time[i].tick, 0x89ABCDEF) < gpu->lost_share) continue;
        int64_t seen = gpu->duty < 1 ? (int64_t)(gpu->duty * gpu->period_ns) : to - from;
        int64_t since = to - seen < gpu->epoch_ns ? gpu->epoch_ns : to - seen;
        if (to > since)
            part_time[i].energy_j +=
                (sensed_j(gpu, to) - sensed_j(gpu, since)) / (to - since) * (double)(to - from);
    }
    return part_time[i].energy_j;
}

static unsigned long long counter_mj(Gpu *gpu) {
    int i = gpu - machine->gpu;
    int64_t latency = call_latency(gpu);
    wait_ns(latency / 2);
    int64_t t = now_ns();
    if (gpu->disturb_below_ns && t - previous_read_ns[i] < gpu->disturb_below_ns) gpu->disturbed_j += gpu->disturb_j;
    previous_read_ns[i] = t;
    double value = (counter_j(gpu, t) - gpu->disturbed_j) * gpu->counter_gain * 1e3 + gpu->counter_offset_mj;
    wait_ns(latency - latency / 2);
    unsigned long long whole = value > 0 ? (unsigned long long)value : 0;
    return gpu->wraps ? whole & 0xFFFFFFFFULL : whole;
}

static double power_w(Gpu *gpu, int64_t length) {
    int64_t t = now_ns();
    return mean_w(gpu, t - (t - gpu->epoch_ns) % gpu->power_period_ns, length);
}

/* Where a load of this activity runs under the present settings. */
typedef struct { unsigned clock_mhz, memory_mhz; double power_w, speed; uint64_t reasons; } Point;

static unsigned within(unsigned value, unsigned low, unsigned high) {
    if (high && value > high) value = high;
    return value < low ? low : value;
}

static unsigned limit_mw(const Gpu *gpu) {
    return gpu->outer_limit_mw && gpu->outer_limit_mw < gpu->power_limit_mw ? gpu->outer_limit_mw : gpu->power_limit_mw;
}

/* Without a lock `free_mhz`; with one, the step at or below its upper end. */
static unsigned locked_mhz(const Gpu *gpu, unsigned free_mhz) {
    if (!gpu->locked_high_mhz) return free_mhz;
    unsigned clock = within(free_mhz, gpu->locked_low_mhz, gpu->locked_high_mhz);
    return clock - (clock - gpu->min_clock_mhz) % gpu->clock_step_mhz;
}

static unsigned memory_mhz(const Gpu *gpu) {
    unsigned wanted = within(gpu->memory_clocks_mhz[0], gpu->locked_memory_low_mhz, gpu->locked_memory_high_mhz), clock = 0;
    for (int i = 0; i < 4; i++)
        if (gpu->memory_clocks_mhz[i] && (!clock || gpu->memory_clocks_mhz[i] >= wanted)) clock = gpu->memory_clocks_mhz[i];
    return clock;
}

static double load_w(const Gpu *gpu, double load, unsigned mhz) {
    double above = mhz > gpu->knee_mhz ? (double)(mhz - gpu->knee_mhz) / (gpu->max_clock_mhz - gpu->knee_mhz) : 0;
    double v = (gpu->low_v + (gpu->high_v - gpu->low_v) * above) / gpu->high_v;
    return gpu->idle_w + gpu->leakage_w * v * v + load * gpu->switching_w * v * v * mhz / gpu->max_clock_mhz;
}

static Point point(const Gpu *gpu, double load) {
    Point p = {locked_mhz(gpu, gpu->max_clock_mhz), memory_mhz(gpu), 0, 0, 0};
    if (gpu->slowed_to_mhz && gpu->slowed_to_mhz < p.clock_mhz) {
        p.clock_mhz = gpu->slowed_to_mhz;
        p.reasons |= gpu->slowed_reason;
    }
    while ((p.power_w = load_w(gpu, load, p.clock_mhz)) * 1e3 > limit_mw(gpu) && !gpu->limit_unheld) {
        if (p.clock_mhz < gpu->min_clock_mhz + gpu->clock_step_mhz) break;
        p.clock_mhz -= gpu->clock_step_mhz;
        p.reasons |= POWER_CAP;
    }
    double compute = gpu->compute_share * gpu->max_clock_mhz / p.clock_mhz;
    p.speed = 1 / (compute + (1 - gpu->compute_share) * gpu->memory_clocks_mhz[0] / p.memory_mhz);
    return p;
}

/* Power of the GPU from a time on. */
static void step_power(Gpu *gpu, int64_t t, double watts) {
    int64_t count = gpu->segments;
    if (count == MAX_SEGMENTS) abort();
    double before_w = count ? (energy_j(gpu, t) - energy_j(gpu, t - 1000)) / 1e-6 : watts;
    gpu->segment[count] = (Segment){t, before_w, watts, 0, 0, 0, 0, energy_j(gpu, t)};
    __atomic_store_n(&gpu->segments, count + 1, __ATOMIC_RELEASE);
}

static uint64_t power_capped_ns(const Gpu *gpu) {
    return gpu->throttle_power_ns + (gpu->capped_since_ns ? now_ns() - gpu->capped_since_ns : 0);
}

/* Let the load be `load` from now on, and the present settings have effect on it. For tests: not of NVML. */
void simulated_load(Gpu *gpu, double load, Point *out) {
    int64_t t = now_ns();
    *out = point(gpu, load);
    gpu->throttle_power_ns = power_capped_ns(gpu);
    gpu->capped_since_ns = load > 0 && out->reasons & POWER_CAP ? t : 0;
    gpu->load = load;
    step_power(gpu, t, load > 0 ? out->power_w : gpu->idle_w + gpu->leakage_w);
}

/* And what it would be, without letting it. */
void simulated_point(Gpu *gpu, double load, Point *out) { *out = point(gpu, load); }

static Return ready(Device gpu) { return !initialized ? UNINITIALIZED : gpu ? gpu->error : INVALID; }
static Return readable(Device gpu) { Return r = ready(gpu); return r ? r : gpu->error_reads; }

static Return text(const char *value, char *out, unsigned length) {
    if (strlen(value) >= length) return TOO_SMALL;
    strcpy(out, value);
    return OK;
}

Return nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("LLEM_SIMULATED_NVML");
    if (!path || !*path) return NO_DRIVER;
    static char mapped[4096];
    /* Again before the shutdown: handles stay valid, as the real library counts its users. */
    if (machine && initialized && !strcmp(mapped, path) && !machine->init_error) { initialized++; return OK; }
    snprintf(mapped, sizeof mapped, "%s", path);
    int fd = open(path, O_RDWR);
    if (fd < 0) return NO_DRIVER;
    if (machine) munmap(machine, sizeof(Machine));
    machine = mmap(NULL, sizeof(Machine), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (machine == MAP_FAILED) { machine = NULL; return NO_DRIVER; }
    memset(part_time, 0, sizeof part_time);
    if (machine->init_error) return machine->init_error;
    initialized++;
    return OK;
}
Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Return nvmlShutdown(void) { if (initialized) initialized--; return OK; }

const char *nvmlErrorString(Return code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case UNSUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case NO_DRIVER: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
    }
}

Return nvmlSystemGetDriverVersion(char *out, unsigned n) { return initialized ? text(machine->driver, out, n) : UNINITIALIZED; }
Return nvmlSystemGetNVMLVersion(char *out, unsigned n) { return initialized ? text("13.simulated", out, n) : UNINITIALIZED; }
Return nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13000; return OK; }
Return nvmlDeviceGetCount_v2(unsigned *out) { if (!initialized) return UNINITIALIZED; *out = machine->gpus; return OK; }

Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *out) {
    if (!initialized) return UNINITIALIZED;
    if (index >= (unsigned)machine->gpus) return INVALID;
    *out = &machine->gpu[index];
    return (*out)->error;
}

Return nvmlDeviceGetHandleByUUID(const char *uuid, Device *out) {
    if (!initialized) return UNINITIALIZED;
    for (int i = 0; i < machine->gpus; i++)
        if (!strcmp(machine->gpu[i].uuid, uuid) || !strcmp(machine->gpu[i].mig_uuid, uuid)) {
            *out = &machine->gpu[i];
            return (*out)->error;
        }
    return NOT_FOUND;
}

Return nvmlDeviceGetUUID(Device d, char *out, unsigned n) { Return r = ready(d); return r ? r : text(d->uuid, out, n); }
Return nvmlDeviceGetName(Device d, char *out, unsigned n) { Return r = ready(d); return r ? r : text(d->name, out, n); }

#define GET(function, type, check, expression) \
    Return function(Device d, type *out) { Return r = check(d); if (!r) *out = (expression); return r; }
GET(nvmlDeviceGetIndex, unsigned, ready, d - machine->gpu)
GET(nvmlDeviceGetMinorNumber, unsigned, ready, d - machine->gpu)
GET(nvmlDeviceIsMigDeviceHandle, unsigned, ready, 0)
GET(nvmlDeviceGetArchitecture, unsigned, ready, 9)
GET(nvmlDeviceGetNumGpuCores, unsigned, ready, 16896)
GET(nvmlDeviceGetComputeMode, unsigned, ready, 0)
GET(nvmlDeviceGetPersistenceMode, unsigned, ready, d->persistence)
GET(nvmlDeviceGetPowerManagementLimit, unsigned, ready, d->power_limit_mw)
GET(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, ready, d->default_limit_mw)
GET(nvmlDeviceGetEnforcedPowerLimit, unsigned, ready, limit_mw(d))
GET(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, readable, d->load > 0 ? point(d, d->load).reasons : IDLE)
GET(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, readable, d->load > 0 ? point(d, d->load).reasons : IDLE)

Return nvmlDeviceGetPowerManagementLimitConstraints(Device d, unsigned *low, unsigned *high) {
    Return r = ready(d);
    if (!r) { *low = d->min_limit_mw; *high = d->max_limit_mw; }
    return r;
}

#include "settings.c"

Return nvmlDeviceGetMigMode(Device d, unsigned *current, unsigned *pending) {
    Return r = ready(d);
    if (!r) *current = *pending = d->mig;
    return r;
}

Return nvmlDeviceGetEccMode(Device d, unsigned *current, unsigned *pending) {
    Return r = ready(d);
    if (!r) *current = *pending = d->ecc;
    return r;
}

Return nvmlDeviceGetTotalEnergyConsumption(Device d, unsigned long long *out) {
    Return r = readable(d);
    if (r) return r;
    if (!d->has_counter) return UNSUPPORTED;
    *out = counter_mj(d);
    return OK;
}

Return nvmlDeviceGetPowerUsage(Device d, unsigned *out) {
    Return r = readable(d);
    if (!r) { wait_ns(d->latency_ns); *out = (unsigned)(power_w(d, d->average_ns) * 1e3); }
    return r;
}

static Return field(Gpu *d, FieldValue *v) {
    v->type = 3;
    switch (v->field) {
    case 74: v->value.ull = power_capped_ns(d); return OK;
    case 75: v->value.ull = d->throttle_thermal_ns; return OK;
    case 83:
        if (!d->has_counter) return UNSUPPORTED;
        v->value.ull = counter_mj(d);
        return OK;
    case 185: case 186:
        if (v->field == 186 && !d->has_instant) return UNSUPPORTED;
        v->type = 1;
        v->value.ui = (unsigned)(power_w(d, v->field == 186 ? d->instant_ns : d->average_ns) * 1e3);
        return OK;
    default: return UNSUPPORTED;
    }
}

Return nvmlDeviceGetFieldValues(Device d, int count, FieldValue *values) {
    Return r = readable(d);
    if (r) return r;
    wait_ns(d->latency_ns);
    for (int i = 0; i < count; i++) values[i].result = field(d, &values[i]);
    return OK;
}

Return nvmlDeviceGetTemperature(Device d, int sensor, unsigned *out) {
    (void)sensor;
    Return r = readable(d);
    if (!r) *out = d->temperature_c;
    return r;
}

typedef struct { unsigned version, sensor; int celsius; } Temperature;
Return nvmlDeviceGetTemperatureV(Device d, Temperature *out) {
    Return r = readable(d);
    if (!r) out->celsius = d->temperature_c;
    return r;
}

Return nvmlDeviceGetClockInfo(Device d, int clock, unsigned *out) {
    Return r = readable(d);
    if (!r) *out = clock == 2 ? memory_mhz(d) : d->load > 0 ? point(d, d->load).clock_mhz : locked_mhz(d, d->sm_clock_mhz);
    return r;
}

Return nvmlDeviceGetDefaultApplicationsClock(Device d, int clock, unsigned *out) {
    Return r = ready(d);
    unsigned sm = d->own_application_mhz ? d->own_application_mhz : d->max_clock_mhz;
    if (!r) *out = clock == 2 ? d->memory_clocks_mhz[0] : sm;
    return r;
}
Return nvmlDeviceGetApplicationsClock(Device d, int clock, unsigned *out) {
    Return r = nvmlDeviceGetDefaultApplicationsClock(d, clock, out);
    if (!r && clock != 2 && d->application_mhz) *out = d->application_mhz;
    return r;
}

Return nvmlDeviceGetMaxClockInfo(Device d, int clock, unsigned *out) {
    Return r = ready(d);
    if (!r) *out = clock == 2 ? d->memory_clocks_mhz[0] : d->max_clock_mhz;
    return r;
}

Return nvmlDeviceGetUtilizationRates(Device d, unsigned out[2]) {
    Return r = readable(d);
    if (!r) { out[0] = d->utilisation_percent; out[1] = d->utilisation_percent / 2; }
    return r;
}

Return nvmlDeviceGetMemoryInfo(Device d, unsigned long long out[3]) {
    Return r = ready(d);
    if (!r) { out[0] = d->memory_total; out[1] = d->memory_total - d->memory_used; out[2] = d->memory_used; }
    return r;
}

/* Version 2 tells what the driver reserves from what is in use. */
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
Return nvmlDeviceGetMemoryInfo_v2(Device d, MemoryV2 *out) {
    Return r = ready(d);
    if (r) return r;
    out->total = d->memory_total;
    out->reserved = 512ULL << 20;
    out->used = d->memory_used;
    out->free = out->total - out->reserved - out->used;
    return OK;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

Return nvmlDeviceGetComputeRunningProcesses_v3(Device d, unsigned *count, Process *out) {
    Return r = ready(d);
    if (r) return r;
    unsigned room = *count;
    *count = d->processes;
    if (d->processes == 0) return OK;
    if (!out || room < d->processes) return TOO_SMALL;
    for (unsigned i = 0; i < d->processes; i++) out[i] = (Process){d->pids[i], 1 << 30, 0, 0};
    return OK;
}
Return nvmlDeviceGetGraphicsRunningProcesses_v3(Device d, unsigned *count, Process *out) { (void)out; *count = 0; return ready(d); }
