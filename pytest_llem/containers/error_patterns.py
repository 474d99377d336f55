"""Patterns that map messages of Docker, NVIDIA's container tools and inference engines to error categories.

`errors.translate_docker_error` reads them. The first match of a table wins (of a daemon's message that of its last
telling line), so the specific stands before the general; a new pattern needs an example in test_errors.py.
"""

from __future__ import annotations

import re

Pattern = tuple[str, "re.Pattern[str]"]


def _table(*rows: tuple[str, str]) -> tuple[Pattern, ...]:
    return tuple((category, re.compile(pattern)) for category, pattern in rows)


CLIENT = _table(
    (
        "daemon_permission",
        r"permission denied while trying to connect to the [Dd]ocker"
        r"|dial unix \S+: connect: permission denied|Connection aborted\.', PermissionError",
    ),
    (
        "daemon_down",
        r"Cannot connect to the Docker daemon|failed to connect to the docker API|error during connect:"
        r"|Error while fetching server API version|Is the docker daemon running",
    ),
)
"""Messages of the client about the daemon: unmistakable, whatever the exit code."""

DAEMON = _table(
    ("rate_limit", r"toomanyrequests|pull rate limit|429 Too Many Requests"),
    (
        "arch_mismatch",
        r"no matching manifest for |[Ee]xec format error|does not match the (?:specified|detected) .*platform",
    ),
    (
        "image_not_found",
        r"pull access denied for |manifest unknown|manifest for \S+ not found|No such image"
        r"|name unknown|repository \S+ not found|Unable to find image|invalid reference format",
    ),
    (
        "registry_auth",
        r"unauthorized|authentication required|no basic auth credentials|denied: |error getting credentials"
        r"|403 Forbidden|incorrect username or password",
    ),
    ("disk_full", r"no space left on device|disk quota exceeded"),
    (
        "network",
        r"dial tcp|no such host|TLS handshake timeout|i/o timeout|connection reset by peer|connection refused"
        r"|Client\.Timeout|request canceled while waiting|proxyconnect|x509: |unexpected EOF|net/http: "
        r"|server misbehaving|unexpected HTTP status: 5\d\d|unexpected status .*: 5\d\d|network is unreachable"
        r"|: EOF\s*$",
    ),
    ("driver_mismatch", r"driver/library version mismatch"),
    ("driver_too_old", r"unsatisfied condition: |driver version is insufficient"),
    ("gpu_driver_missing", r"load library failed: libnvidia|driver not loaded|libnvidia-ml\.so\S*: cannot open"),
    (
        "gpu_runtime_missing",
        r"could not select device driver|[Uu]nknown (?:or invalid )?runtime (?:name|specified)"
        r"|unresolvable CDI devices|CDI device injection failed"
        r"|nvidia-container-runtime\S*\": executable file not found|no such runtime"
        r"|nvidia-container-(?:cli|runtime)\S* (?:did not terminate|not found)",
    ),
    ("gpu_not_visible", r"nvidia-container-cli: .*(?:unknown device|no devices? (?:found|matched))"),
    ("gpu_driver_missing", r"nvidia-container-cli: initialization error"),
    ("port_in_use", r"port is already allocated|address already in use|ports are not available"),
    ("name_conflict", r"container name \S+ is already in use|is already in use by container|is already in use"),
    (
        "mount_missing",
        r"bind source path does not exist|invalid mount config|error while creating mount source path"
        r"|[Mm]ounts denied|not a directory.*mount|invalid volume specification",
    ),
    (
        "command_missing",
        r"executable file not found in \$PATH|exec: \".*\": (?:permission denied|stat |is a directory)"
        r"|no such file or directory: unknown|[Nn]o command specified|: (?:command )?not found\s*$",
    ),
    ("daemon_permission", r"permission denied.*docker\.sock"),
)
"""Refusals of the daemon: read only where the daemon itself ended the run."""

CONTAINER = _table(
    ("hf_gated", r"GatedRepoError|gated repo|Access to model \S+ is restricted|Invalid user token"),
    (
        "hf_not_found",
        r"RepositoryNotFoundError|RevisionNotFoundError|EntryNotFoundError|is not a valid model identifier"
        r"|not a local folder and is not a valid|404 Client Error.*huggingface",
    ),
    (
        "gpu_oom",
        r"CUDA out of memory|CUDA error: out of memory|HIP out of memory|CUBLAS_STATUS_ALLOC_FAILED"
        r"|No available memory for the cache blocks|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
        r"|Free memory on device \S+ .*less than desired GPU memory",
    ),
    ("driver_mismatch", r"[Dd]river/library version mismatch"),
    (
        "driver_too_old",
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old|unsatisfied condition: cuda"
        r"|forward compatibility was attempted on non supported|PTX was compiled with an unsupported toolchain",
    ),
    ("gpu_arch", r"no kernel image is available for execution|is not compatible with the current PyTorch installation"),
    (
        "gpu_not_visible",
        r"No CUDA GPUs are available|no CUDA-capable device is detected|CUDA_ERROR_NO_DEVICE"
        r"|Found no NVIDIA driver on your system|Failed to infer device type|NVML Shared Library Not Found"
        r"|Torch not compiled with CUDA enabled",
    ),
    ("shm", r"Bus error|out of shared memory|Error while creating shared memory|[Nn]o space left on device.*/dev/shm"),
    ("disk_full", r"[Nn]o space left on device|[Dd]isk quota exceeded"),
    (
        "host_oom",
        r"^MemoryError\b|: MemoryError\b|[Cc]annot allocate memory|DefaultCPUAllocator: .*allocate memory"
        r"|std::bad_alloc|Out of memory: Killed process",
    ),
    ("port_in_use", r"[Aa]ddress already in use"),
    (
        "network",
        r"dial tcp: lookup|TLS handshake timeout|Temporary failure in name resolution|Name or service not known"
        r"|couldn't connect to 'https?://|LocalEntryNotFoundError|Network is unreachable|Failed to resolve '",
    ),
    (
        "image_contents",
        r"(?:^|: |\s)No module named |cannot import name |GLIBC\S* not found|cannot open shared object file"
        r"|Error while finding module specification",
    ),
    ("arch_mismatch", r"\bexec format error\s*$"),
    ("command_missing", r"exec: .*executable file not found in \$PATH"),
)
"""The end of the output of the program inside."""

TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
EXCEPTION_LINE = re.compile(
    r"(?:^|[\s)|])(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Failure)\b(?::|$)"
)
NOT_AN_ERROR = re.compile(
    r"(?i)\b(?:warn(?:ing)?|info|debug|notice)\b\s*[:\]|]|\w*Warning:|^\s*(?:warn|info|debug|hint|tip)\b"
)
NATIVE_CRASH = re.compile(r"Bus error|Segmentation fault|Out of memory: Killed process|std::bad_alloc")


def first_match(table: tuple[Pattern, ...], lines: list[str]) -> tuple[str, str] | None:
    """Category and line of the first pattern of `table` that matches a line; the latest such line."""
    for category, pattern in table:
        for line in reversed(lines):
            if pattern.search(line):
                return category, line.strip()
    return None


def last_match(table: tuple[Pattern, ...], lines: list[str]) -> tuple[str, str] | None:
    """Category and text of the last line that any pattern matches: what a client said before is history."""
    return next((match for line in reversed(lines) if (match := first_match(table, [line]))), None)


def telling_lines(stderr: str) -> list[str]:
    """The lines of a program's output that tell why it ended.

    With a traceback those are its exception lines (of every traceback: the root cause often stands in an earlier
    one) and native crash messages; without, all lines but those of a lower log level.
    """
    lines = [line for line in stderr.splitlines() if line.strip()]
    if TRACEBACK.search(stderr):
        return [line for line in lines if EXCEPTION_LINE.search(line) or NATIVE_CRASH.search(line)]
    return [line for line in lines if not NOT_AN_ERROR.search(line)]
