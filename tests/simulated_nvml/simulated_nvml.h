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

    /* What can be set. 0 of a lock is none; the limit that is in force is `power_limit_mw`, or less where something
     * beside the driver (a BMC, a rack) allows `outer_limit_mw` only. */
    uint32_t default_limit_mw, min_limit_mw, max_limit_mw, outer_limit_mw;
    uint32_t min_clock_mhz, max_clock_mhz, clock_step_mhz;
    uint32_t application_mhz, own_application_mhz; /* application clock: 0, or set by somebody; 0 by default: the maximum */
    uint32_t memory_clocks_mhz[4];  /* descending */
    uint32_t locked_low_mhz, locked_high_mhz, locked_memory_low_mhz, locked_memory_high_mhz;
    uint32_t profiles[8], requested_profiles[8], unheld_profiles[8];
    int32_t permission;     /* who may set: 0 anyone, 1 root, 2 who has LLEM_SIMULATED_NVML_ROOT set, 3 nobody */
    int32_t vgpu;           /* nothing can be set, as with `mig` */
    int32_t set_error;      /* returned by every set */
    int64_t set_latency_ns; /* of every set, which takes effect half-way */
    int32_t limit_ignored;  /* a limit that is set is acknowledged and forgotten */
    int32_t limit_unheld;   /* a limit is kept and read back, and the load draws what it likes */
    uint32_t slowed_to_mhz; /* 0, or what something holds the SM clock of a load below */
    uint64_t slowed_reason; /* and its event reason */
    int64_t limit_sets, clock_sets, clock_resets, memory_sets, memory_resets, profile_sets, refusals;

    /* A load of its own: simulated_load() sets it, and each setting then takes effect on power and clock. */
    double load;            /* activity from 0 to 1; 0 is idle, or a load that only `segment` knows */
    double idle_w, leakage_w, switching_w; /* at no clock, by V^2, and by V^2 f; the latter two at the maximum clock */
    double low_v, high_v;   /* at the clock `knee_mhz` and below, and at the maximum; straight in between */
    uint32_t knee_mhz;
    double compute_share;   /* of the work's time at the maximum clocks, which goes as 1/f; memory has the rest */
    int64_t capped_since_ns;

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
