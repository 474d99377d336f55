"""A libamd_smi.so with one GPU of steady power, for the real `amdsmi` package.

The package looks up every function of the library when it is imported: those not written here answer "not supported".
"""

from __future__ import annotations

import os
import re
import subprocess
from importlib.metadata import files
from pathlib import Path

POWER_W = 300.0
UUID = "a5ff74a1-0000-1000-80aa-000000000001"

_SOURCE = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
enum { OK = 0, NOT_SUPPORTED = 2 };
static int gpu;
int amdsmi_init(uint64_t flags) { (void)flags; return OK; }
int amdsmi_shut_down(void) { return OK; }
int amdsmi_get_socket_handles(uint32_t *n, void **out) { if (out) out[0] = &gpu; *n = 1; return OK; }
int amdsmi_get_processor_handles(void *s, uint32_t *n, void **out) {
    (void)s;
    if (out) out[0] = &gpu;
    *n = 1;
    return OK;
}
/* One process, whose id LLEM_AMD_PID names. */
int amdsmi_get_gpu_process_list(void *d, uint32_t *n, char *out) {
    (void)d;
    const char *pid = getenv("LLEM_AMD_PID");
    *n = pid ? 1 : 0;
    if (pid) { uint32_t id = (uint32_t)atoi(pid); memset(out, 0, %(process_bytes)d); memcpy(out + 256, &id, 4); }
    return OK;
}
int amdsmi_get_gpu_device_uuid(void *d, uint32_t *n, char *out) {
    (void)d;
    strcpy(out, "%(uuid)s");
    *n = 37;
    return OK;
}
int amdsmi_get_temp_metric(void *d, int t, int m, int64_t *out) { (void)d; (void)t; (void)m; *out = 51; return OK; }
int amdsmi_get_power_info(void *d, char *out) { /* current is 0xFFFFFFFF where a generation has none */
    (void)d;
    uint32_t average = %(power)d, none = 0xFFFF;
    memcpy(out + 8, &none, 4);
    memcpy(out + 12, &average, 4);
    return OK;
}
int amdsmi_get_clock_info(void *d, int kind, uint32_t *out) { (void)d; (void)kind; out[0] = 2100; return OK; }
int amdsmi_get_energy_count(void *d, uint64_t *count, float *resolution, uint64_t *stamp) {
    (void)d;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t ms = t.tv_sec * 1000ULL + t.tv_nsec / 1000000;
    *resolution = 15.259f;
    *count = (uint64_t)(ms * 1e3 * %(power)d / 15.259f);
    *stamp = ms * 1000000ULL;
    return OK;
}
"""


def build_amd_library(directory: Path) -> Path:
    """Compile it into a directory: `lib/libamd_smi.so`, where ROCM_PATH of this directory makes `amdsmi` find it."""
    wrapper = next(file for file in files("amdsmi") or () if file.name == "amdsmi_wrapper.py")
    known = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", Path(str(wrapper.locate())).read_text()))
    written = set(re.findall(r"^int (amdsmi_\w+)\(", _SOURCE, re.MULTILINE))
    rest = "\n".join(f"int {name}(void) {{ return NOT_SUPPORTED; }}" for name in sorted(known - written))
    library = directory / "lib" / "libamd_smi.so"
    library.parent.mkdir(parents=True)
    code = library.with_suffix(".c")
    code.write_text(_SOURCE % {"uuid": UUID, "power": int(POWER_W), "process_bytes": 256} + rest)
    subprocess.run(
        [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", str(library), str(code)],
        check=True,
        capture_output=True,
    )
    return library
