"""A libamd_smi.so with GPUs of steady power, for the real `amdsmi` package.

The package looks up every function of the library when it is imported: those not written here answer "not supported".
Formats are those of `amdsmi.h` of ROCm 7.0. As on real machines, the library's order is not HIP's: here it is the
reverse. What it shows is told by environment variables:

LLEM_AMD_GPUS       how many GPUs there are; without it there is no driver
LLEM_AMD_PROCESSES  a directory of files `GPU-PID`, GPU by HIP's index, with the bytes that the process holds there; one
                    that has ended is no longer listed
LLEM_AMD_HIP        `none`: a library that does not tell HIP's index
LLEM_AMD_PARTITION  the compute partition mode of each, for boards that have modes
LLEM_AMD_NAME       what each is sold as
LLEM_AMD_STATUS     what initialising answers (34: driver not loaded)
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import pytest

from pytest_llem.machine.amd_devices import gpus

POWER_W = 300.0
"""Of the GPU that HIP calls 0; each next one draws `STEP_W` more."""
STEP_W = 50.0
CAP_W = 750.0
DRIVER_BYTES = 283 << 20
"""What the driver holds of each GPU's memory without any process, as on an idle MI300X."""
TOTAL_BYTES = 192 << 30
LAYOUT = {"process_bytes": 704, "pid_at": 256, "vram_at": 352, "asic_bytes": 896}
"""`amdsmi_proc_info_t` with its `memory_usage.vram_mem`, and `amdsmi_asic_info_t`."""


def uuid(hip_index: int) -> str:
    """The UUID of the GPU that HIP calls by this number."""
    return f"a5ff74a1-0000-1000-80aa-{hip_index + 1:012x}"


def hip_uuid(hip_index: int) -> str:
    """What HIP and ROCr call it."""
    return f"GPU-{0xA5000000 + hip_index:016x}"


UUID = uuid(0)

_SOURCE = """
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
enum { OK = 0, NOT_SUPPORTED = 2, NO_DATA = 40, MOST = 16 };
static int boards[MOST];
static int count(void) { const char *n = getenv("LLEM_AMD_GPUS"); return n ? atoi(n) : 0; }
static int hip(void *d) { return count() - 1 - (int)((int *)d - boards); }
static int power(void *d) { return %(power)d + %(step)d * hip(d); }
int amdsmi_init(uint64_t flags) {
    (void)flags;
    const char *status = getenv("LLEM_AMD_STATUS");
    return status ? atoi(status) : count() ? OK : 34;
}
int amdsmi_shut_down(void) { return OK; }
/* Each board has a socket of its own. */
int amdsmi_get_socket_handles(uint32_t *n, void **out) {
    *n = (uint32_t)count();
    for (uint32_t i = 0; out && i < *n; i++) out[i] = &boards[i];
    return OK;
}
int amdsmi_get_processor_handles(void *s, uint32_t *n, void **out) {
    if (out) out[0] = s;
    *n = 1;
    return OK;
}
static int holders(void *d, uint32_t most, char *out, uint64_t *held) {
    const char *path = getenv("LLEM_AMD_PROCESSES");
    DIR *all = path ? opendir(path) : NULL;
    struct dirent *entry;
    uint32_t found = 0;
    while (all && (entry = readdir(all))) {
        int gpu, pid;
        if (sscanf(entry->d_name, "%%d-%%d", &gpu, &pid) != 2 || gpu != hip(d) || kill(pid, 0) != 0) continue;
        char name[4096];
        unsigned long long bytes = 0;
        snprintf(name, sizeof name, "%%s/%%s", path, entry->d_name);
        FILE *file = fopen(name, "r");
        if (file) { if (fscanf(file, "%%llu", &bytes) != 1) bytes = 0; fclose(file); }
        if (out && found < most) {
            char *record = out + found * %(process_bytes)d;
            uint32_t id = (uint32_t)pid;
            uint64_t held_there = bytes;
            memset(record, 0, %(process_bytes)d);
            memcpy(record + %(pid_at)d, &id, 4);
            memcpy(record + %(vram_at)d, &held_there, 8);
        }
        found++;
        *held += bytes;
    }
    if (all) closedir(all);
    return (int)found;
}
int amdsmi_get_gpu_process_list(void *d, uint32_t *n, char *out) {
    uint64_t held = 0;
    *n = (uint32_t)holders(d, *n, out, &held);
    return OK;
}
int amdsmi_get_gpu_memory_usage(void *d, int kind, uint64_t *out) {
    uint64_t held = 0;
    (void)kind;
    holders(d, 0, NULL, &held);
    *out = %(driver_bytes)dULL + held;
    return OK;
}
int amdsmi_get_gpu_memory_total(void *d, int kind, uint64_t *out) {
    (void)d; (void)kind;
    *out = %(total_bytes)dULL;
    return OK;
}
int amdsmi_get_gpu_device_uuid(void *d, uint32_t *n, char *out) {
    sprintf(out, "a5ff74a1-0000-1000-80aa-%%012x", hip(d) + 1);
    *n = 37;
    return OK;
}
int amdsmi_get_gpu_enumeration_info(void *d, char *out) {
    const char *told = getenv("LLEM_AMD_HIP");
    uint32_t render = 128 + hip(d), card = hip(d), hsa = 1 + hip(d), index = hip(d);
    if (told && !strcmp(told, "none")) index = 0xFFFFFFFF;
    memcpy(out, &render, 4);
    memcpy(out + 4, &card, 4);
    memcpy(out + 8, &hsa, 4);
    memcpy(out + 12, &index, 4);
    sprintf(out + 16, "GPU-%%016x", 0xA5000000u + (uint32_t)hip(d));
    return OK;
}
int amdsmi_get_gpu_compute_partition(void *d, char *out, uint32_t n) {
    (void)d; (void)n;
    const char *mode = getenv("LLEM_AMD_PARTITION");
    if (!mode) return NOT_SUPPORTED;
    strcpy(out, mode);
    return OK;
}
int amdsmi_get_gpu_asic_info(void *d, char *out) {
    (void)d;
    memset(out, 0, %(asic_bytes)d);
    const char *name = getenv("LLEM_AMD_NAME");
    strcpy(out, name ? name : "AMD Instinct MI300X");
    return OK;
}
int amdsmi_get_gpu_driver_info(void *d, char *out) {
    (void)d;
    memset(out, 0, 768);
    strcpy(out, "6.14.14");
    return OK;
}
int amdsmi_get_power_cap_info(void *d, uint32_t sensor, uint64_t *out) {
    (void)d; (void)sensor;
    out[0] = out[1] = out[4] = %(cap)dULL * 1000000;
    out[2] = out[3] = 0;
    return OK;
}
int amdsmi_get_temp_metric(void *d, int t, int m, int64_t *out) { (void)d; (void)t; (void)m; *out = 51; return OK; }
int amdsmi_get_power_info(void *d, char *out) { /* current is 0xFFFF where a generation has none */
    uint32_t average = power(d), none = 0xFFFF;
    memcpy(out + 8, &none, 4);
    memcpy(out + 12, &average, 4);
    return OK;
}
int amdsmi_get_clock_info(void *d, int kind, uint32_t *out) { (void)d; (void)kind; out[0] = 2100; return OK; }
int amdsmi_get_energy_count(void *d, uint64_t *energy, float *resolution, uint64_t *stamp) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t ms = t.tv_sec * 1000ULL + t.tv_nsec / 1000000;
    *resolution = 15.259f;
    *energy = (uint64_t)(ms * 1e3 * power(d) / 15.259f);
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
    layout = {
        "power": int(POWER_W),
        "step": int(STEP_W),
        "cap": int(CAP_W),
        "driver_bytes": DRIVER_BYTES,
        "total_bytes": TOTAL_BYTES,
        **LAYOUT,
    }
    code.write_text(_SOURCE % layout + rest)
    subprocess.run(
        [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", str(library), str(code)],
        check=True,
        capture_output=True,
    )
    return library


def environment(library: Path, gpus: int, processes: Path) -> dict[str, str]:
    """What makes `amdsmi` find a library that was built there, with so many GPUs, and the processes of a directory."""
    return {
        "ROCM_PATH": str(library),
        "ROCM_HOME": str(library),
        "LLEM_AMD_GPUS": str(gpus),
        "LLEM_AMD_PROCESSES": str(processes),
    }


class Amd:
    """AMD GPUs of this test, seen by `amdsmi` in its own process as well."""

    def __init__(self, processes: Path) -> None:
        self._processes = processes

    def occupy(self, hip_index: int, used_bytes: int, pid: int | None = None) -> None:
        """Let a process hold memory of a GPU; this one if none is named."""
        (self._processes / f"{hip_index}-{pid or os.getpid()}").write_text(str(used_bytes))

    def free(self) -> None:
        """Let no process hold any."""
        for entry in self._processes.iterdir():
            entry.unlink()


@pytest.fixture(scope="session")
def amd_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built; `amdsmi` loads it when it is first imported, and keeps it."""
    library = tmp_path_factory.mktemp("rocm")
    build_amd_library(library)
    return library


@pytest.fixture
def four_amd(amd_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Amd]:
    """A machine with four AMD GPUs, and no variable that hides one."""
    processes = tmp_path / "processes"
    processes.mkdir()
    for name, value in environment(amd_library, 4, processes).items():
        monkeypatch.setenv(name, value)
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    gpus.cache_clear()
    yield Amd(processes)
    gpus.cache_clear()
