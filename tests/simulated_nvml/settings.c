/* What can be set, and what can be asked of that; simulated_nvml.c includes it. */

/* A set: whether it may be made, and half of the time it takes. */
static Return settable(Device d) {
    Return r = ready(d);
    if (r) return r;
    if (d->mig || d->vgpu) return UNSUPPORTED;
    int root = d->permission == 1 ? geteuid() == 0 : d->permission == 2 ? getenv("LLEM_SIMULATED_NVML_ROOT") != NULL : 0;
    if (d->permission && !root) { __atomic_add_fetch(&d->refusals, 1, __ATOMIC_RELAXED); return NO_PERMISSION; }
    if (d->set_error) return d->set_error;
    wait_ns(d->set_latency_ns / 2);
    return OK;
}

/* It was made: counts it, lets the load follow, and takes the rest of the time. */
static Return made(Device d, int64_t *count) {
    __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    Point p;
    if (d->load > 0) simulated_load(d, d->load, &p);
    wait_ns(d->set_latency_ns - d->set_latency_ns / 2);
    return OK;
}

Return nvmlDeviceSetPowerManagementLimit(Device d, unsigned limit) {
    Return r = settable(d);
    if (r) return r;
    if (limit < d->min_limit_mw || limit > d->max_limit_mw) return INVALID;
    if (!d->limit_ignored) d->power_limit_mw = limit;
    return made(d, &d->limit_sets);
}

static Return lock(Device d, unsigned low, unsigned high, unsigned least, unsigned most, uint32_t *at, int64_t *count) {
    Return r = settable(d);
    if (r) return r;
    if (low > high || low < least || high > most) return INVALID;
    at[0] = low;
    at[1] = high;
    return made(d, count);
}
Return nvmlDeviceSetGpuLockedClocks(Device d, unsigned low, unsigned high) {
    return lock(d, low, high, d->min_clock_mhz, d->max_clock_mhz, &d->locked_low_mhz, &d->clock_sets);
}
Return nvmlDeviceResetGpuLockedClocks(Device d) { return lock(d, 0, 0, 0, 0, &d->locked_low_mhz, &d->clock_resets); }
Return nvmlDeviceSetMemoryLockedClocks(Device d, unsigned low, unsigned high) {
    unsigned least = d->memory_clocks_mhz[0];
    for (int i = 0; i < 4 && d->memory_clocks_mhz[i]; i++) least = d->memory_clocks_mhz[i];
    return lock(d, low, high, least, d->memory_clocks_mhz[0], &d->locked_memory_low_mhz, &d->memory_sets);
}
Return nvmlDeviceResetMemoryLockedClocks(Device d) {
    return lock(d, 0, 0, 0, 0, &d->locked_memory_low_mhz, &d->memory_resets);
}

static Return listed(unsigned count, unsigned *room, const unsigned *values, unsigned *out) {
    unsigned space = *room;
    *room = count;
    if (!out || space < count) return TOO_SMALL;
    memcpy(out, values, count * sizeof *values);
    return OK;
}
Return nvmlDeviceGetSupportedMemoryClocks(Device d, unsigned *room, unsigned *out) {
    Return r = ready(d);
    unsigned count = 0;
    while (!r && count < 4 && d->memory_clocks_mhz[count]) count++;
    return r ? r : listed(count, room, d->memory_clocks_mhz, out);
}
Return nvmlDeviceGetSupportedGraphicsClocks(Device d, unsigned memory, unsigned *room, unsigned *out) {
    Return r = ready(d);
    if (r) return r;
    unsigned known = 0, count = 0, clocks[1024];
    for (int i = 0; i < 4; i++) known |= memory && d->memory_clocks_mhz[i] == memory;
    if (!known) return NOT_FOUND;
    for (unsigned mhz = d->max_clock_mhz; mhz >= d->min_clock_mhz; mhz -= d->clock_step_mhz) clocks[count++] = mhz;
    return listed(count, room, clocks, out);
}

typedef struct { unsigned version, profile, priority, conflicts[8]; } ProfileInfo;
typedef struct { unsigned version, known[8]; ProfileInfo profile[255]; } ProfilesInfo;
typedef struct { unsigned version, known[8], requested[8], enforced[8]; } CurrentProfiles;
typedef struct { unsigned version_or_operation, mask[8]; } Profiles;

static Return has_profiles(Device d) {
    Return r = ready(d);
    for (int i = 0; !r && i < 8; i++) if (d->profiles[i]) return OK;
    return r ? r : UNSUPPORTED;
}
Return nvmlDeviceWorkloadPowerProfileGetProfilesInfo(Device d, ProfilesInfo *out) {
    Return r = has_profiles(d);
    if (r) return r;
    memcpy(out->known, d->profiles, sizeof out->known);
    for (unsigned i = 0; i < 255; i++)
        out->profile[i] = (ProfileInfo){out->version, i, i, {0}};
    return OK;
}
Return nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(Device d, CurrentProfiles *out) {
    Return r = has_profiles(d);
    for (int i = 0; !r && i < 8; i++) {
        out->known[i] = d->profiles[i];
        out->requested[i] = d->requested_profiles[i];
        out->enforced[i] = d->requested_profiles[i] & ~d->unheld_profiles[i];
    }
    return r;
}
static Return request(Device d, const unsigned *mask, int set, int clear) {
    Return r = has_profiles(d);
    if (!r) r = settable(d);
    for (int i = 0; !r && i < 8; i++) if (set && mask[i] & ~d->profiles[i]) r = INVALID;
    if (r) return r;
    for (int i = 0; i < 8; i++) {
        if (clear) d->requested_profiles[i] = set ? 0 : d->requested_profiles[i] & ~mask[i];
        if (set) d->requested_profiles[i] |= mask[i];
    }
    return made(d, &d->profile_sets);
}
Return nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(Device d, Profiles *p) { return request(d, p->mask, 1, 0); }
Return nvmlDeviceWorkloadPowerProfileClearRequestedProfiles(Device d, Profiles *p) { return request(d, p->mask, 0, 1); }
Return nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1(Device d, Profiles *p) {
    unsigned operation = p->version_or_operation;
    return operation > 2 ? INVALID : request(d, p->mask, operation != 0, operation != 1);
}
