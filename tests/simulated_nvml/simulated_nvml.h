/* The memory that a test and the simulated library share: the test writes it, the library reads it.
 * Times are CLOCK_MONOTONIC nanoseconds. simulation.py mirrors these structures field by field. */
#ifndef SIMULATED_NVML_H
#define SIMULATED_NVML_H

#include <stdint.h>

#define MAX_GPUS 4
#define MAX_SEGMENTS 20000
#define MAX_PROCESSES 16

/* From start_ns on, power goes from from_w to target_w with the GPU's ramp, under a sinusoidal ripple.
 * energy_j is what was drawn before start_ns. */
typedef struct {
    int64_t start_ns;
    double from_w, target_w, ripple_w;
    int64_t ripple_ns;
    double extra_w;         /* on top at first, and decaying: leakage of a chip that cools, clocks that step down */
    int64_t extra_ns;
    double energy_j;
} Segment;

typedef struct {
    char uuid[96], mig_uuid[96], name[96];
    int64_t epoch_ns;

    int64_t period_ns;      /* of the counter's steps */
    int64_t jitter_ns;      /* each step comes up to so much early or late */
    int64_t latency_ns;     /* of every call */
    int64_t late_ns;        /* of every late_every-th call */
    int64_t late_every;
    int64_t ramp_ns, fall_ns; /* of the true power; fall_ns 0: as ramp_ns */
    int64_t delay_ns;       /* the counter's value is so old when it is published */
    int64_t filter_ns;      /* time constant of the low-pass before the counter */
    int64_t blind_ns;       /* the counter misses what a rise of power adds for so long */
    double lost_share;      /* of its steps, which the counter loses */
    double duty;            /* below 1 the counter looks at the last part of each period only */
    int64_t power_period_ns, average_ns, instant_ns;

    int32_t has_counter, has_instant, wraps; /* wraps: the counter has 32 bits */
    int32_t error;          /* returned by every call on this device */
    int32_t error_reads;    /* returned by sensor reads only */
    int32_t mig;
    int64_t frozen_at_ns;   /* 0, or when the counter stopped */
    int64_t counter_offset_mj;
    double counter_gain;    /* of the counter alone: 0.57 where it states 57 % of what the power readings do */
    int64_t disturb_below_ns; /* a counter read so soon after the one before loses disturb_j */
    double disturb_j, disturbed_j;

    uint64_t throttle_power_ns, throttle_thermal_ns;
    uint64_t memory_total, memory_used;
    uint32_t temperature_c, sm_clock_mhz, utilisation_percent, power_limit_mw;
    uint32_t persistence, ecc, processes;
    uint32_t pids[MAX_PROCESSES];
    int64_t counter_reads;

    int64_t segments;
    Segment segment[MAX_SEGMENTS];
} Gpu;

typedef struct {
    char driver[80];
    int32_t init_error;
    int32_t gpus;
    int64_t virtual_ns;     /* 0, or the time: then a call's latency moves it on, and nothing waits */
    Gpu gpu[MAX_GPUS];
} Machine;

#endif
