"""From the texts of daemons, drivers and engines to one error each."""

from __future__ import annotations

import pytest

from pytest_llem.containers.errors import (
    DockerError,
    HostOutOfMemoryError,
    NetworkError,
    error_classes,
    translate_docker_error,
)
from pytest_llem.errors import EngineError, LlemError, OutOfMemoryError, WorkerTimeoutError, from_dict

IMAGE = "registry.example/vllm:1"

DAEMON_SAYS = [
    (
        "image_not_found",
        "docker: Error response from daemon: pull access denied for vllm, repository does not exist or may require "
        "'docker login': denied: requested access to the resource is denied.",
    ),
    (
        "image_not_found",
        "docker: Error response from daemon: manifest for x:v99 not found: manifest unknown: manifest unknown.",
    ),
    ("image_not_found", "Error: No such image: nope:latest"),
    (
        "registry_auth",
        "Error response from daemon: Head https://r/v2/x/manifests/1: unauthorized: authentication required",
    ),
    (
        "rate_limit",
        "Error response from daemon: toomanyrequests: You have reached your pull rate limit. See https://docs",
    ),
    ("network", "Error response from daemon: Get https://r/v2/: dial tcp: lookup r on 10.0.0.2:53: no such host"),
    (
        "network",
        "Unable to find image 'x:v1' locally\ndocker: Error response from daemon: failed to resolve reference "
        '"docker.io/library/x:v1": dial tcp: lookup registry-1.docker.io: no such host.\n'
        "See 'docker run --help'.",
    ),
    (
        "disk_full",
        "Unable to find image 'x:v1' locally\nv1: Pulling from library/x\n2d429b9e73a6: Pulling fs layer\n"
        "docker: failed to register layer: write /opt/big: no space left on device",
    ),
    (
        "registry_auth",
        "dial tcp: i/o timeout, trying again\nUnable to find image 'r.example/x:v1' locally\n"
        'docker: Error response from daemon: Head "https://r.example/v2/x/manifests/v1": no basic auth credentials',
    ),
    ("network", "Error response from daemon: Get https://r/v2/: net/http: TLS handshake timeout"),
    ("disk_full", "failed to register layer: write /usr/lib/libcudnn.so: no space left on device"),
    ("arch_mismatch", "no matching manifest for linux/arm64/v8 in the manifest list entries"),
    ("arch_mismatch", "exec /usr/bin/python3: exec format error"),
    ("arch_mismatch", "[FATAL tini (7)] exec python3 failed: Exec format error"),
    ("gpu_runtime_missing", 'could not select device driver "" with capabilities: [[gpu]].'),
    ("gpu_runtime_missing", "Error response from daemon: unknown or invalid runtime name: nvidia"),
    ("gpu_runtime_missing", "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all"),
    (
        "gpu_driver_missing",
        "OCI runtime create failed: nvidia-container-cli: initialization error: load library failed: "
        "libnvidia-ml.so.1: cannot open shared object file: no such file or directory: unknown.",
    ),
    (
        "driver_mismatch",
        "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown.",
    ),
    ("driver_too_old", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, please update"),
    ("gpu_not_visible", "nvidia-container-cli: device error: GPU-1f3c: unknown device: unknown."),
    (
        "daemon_permission",
        "Got permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get",
    ),
    ("daemon_down", "docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?"),
    ("daemon_down", "failed to connect to the docker API at unix:///run/docker.sock; check if the path is correct"),
    ("daemon_down", "error during connect: Get http://gpu1/v1.41/info: dial tcp: lookup gpu1: no such host"),
    ("port_in_use", "driver failed programming: Bind for 0.0.0.0:8000 failed: port is already allocated."),
    ("port_in_use", "listen tcp4 0.0.0.0:8000: bind: address already in use"),
    (
        "name_conflict",
        'Conflict. The container name "/llem" is already in use by container "3f2a". You have to remove it',
    ),
    ("mount_missing", 'invalid mount config for type "bind": bind source path does not exist: /data/models'),
    ("command_missing", 'OCI runtime create failed: exec: "python3": executable file not found in $PATH: unknown.'),
    ("docker", "Error response from daemon: something nobody has seen yet"),
]

PROGRAM_SAYS = [
    ("gpu_oom", 1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("gpu_oom", 1, "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
    ("driver_too_old", 1, "RuntimeError: CUDA driver version is insufficient for CUDA runtime version"),
    (
        "driver_mismatch",
        1,
        "pynvml.NVMLError_LibRmVersionMismatch: RM has detected an NVML: Driver/library version mismatch",
    ),
    ("gpu_not_visible", 1, "RuntimeError: No CUDA GPUs are available"),
    ("gpu_arch", 1, "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    ("shm", 135, "Bus error (core dumped)"),
    ("shm", 1, "RuntimeError: DataLoader worker is killed: workers are out of shared memory"),
    ("disk_full", 1, "OSError: [Errno 28] No space left on device: '/llem/cache/x'"),
    ("hf_gated", 1, "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url x"),
    (
        "hf_not_found",
        1,
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url",
    ),
    ("hf_not_found", 1, "OSError: gpt3 is not a local folder and is not a valid model identifier"),
    ("image_contents", 1, "ModuleNotFoundError: No module named 'vllm'"),
    ("image_contents", 1, "/usr/bin/python3: No module named pytest_llem"),
    ("arch_mismatch", 1, "exec /usr/bin/python3: exec format error"),
    ("network", 1, "OSError: We couldn't connect to 'https://hub.example' to load the files"),
    ("host_oom", 1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    ("interrupted", 130, ""),
    ("terminated", 143, ""),
    ("killed", 137, ""),
    ("segfault", 139, ""),
    ("app_error", 1, "ValueError: prompts is empty"),
    ("app_error", 3, ""),
]

TRACEBACK = """WARNING 11-22 12:00:00 tokenizer class not found: falling back to the slow one
Loading bloom-560m in the room
Traceback (most recent call last):
  File "/llem/run.py", line 3, in <module>
    raise ValueError("no such image: bloom-560m wants oom")
ValueError: bloom-560m: head_dim 7 not found in the table of kernels
"""


@pytest.mark.parametrize(("category", "stderr"), DAEMON_SAYS)
def test_what_the_daemon_says_is_understood(category: str, stderr: str) -> None:
    error = translate_docker_error(125, stderr, IMAGE)

    assert error.category == category
    assert error.fix
    assert error.stderr_snippet == stderr


@pytest.mark.parametrize(("category", "returncode", "stderr"), PROGRAM_SAYS)
def test_what_the_program_says_is_understood(category: str, returncode: int, stderr: str) -> None:
    error = translate_docker_error(returncode, stderr, IMAGE)

    assert error.category == category
    assert error.fix or category == "interrupted"
    assert IMAGE in error.message or category.startswith("driver_mismatch")


def test_an_application_failure_is_not_taken_for_oom_or_a_missing_image() -> None:
    """Guards against "oom" inside bloom and room, and against "not found" anywhere meaning the image."""
    error = translate_docker_error(1, TRACEBACK, IMAGE)

    assert error.category == "app_error"
    assert "head_dim 7" in error.message


@pytest.mark.parametrize(
    "warning",
    [
        "WARNING: lower gpu_memory_utilization if you see CUDA out of memory",
        "[W 12:00] Warning: No module named 'flash_attn', using eager",
        "UserWarning: tokenizer class not found",
        "INFO 11-22 server: no such image: x",
    ],
)
def test_a_warning_is_no_cause(warning: str) -> None:
    error = translate_docker_error(1, f"{warning}\nprogram ended: assertion failed", IMAGE)

    assert error.category == "app_error"


@pytest.mark.parametrize(
    "text", [text for category, text in DAEMON_SAYS if category in ("image_not_found", "registry_auth")]
)
def test_daemon_words_quoted_by_a_program_are_not_the_daemon(text: str) -> None:
    error = translate_docker_error(2, f"RuntimeError: upstream said: {text}", IMAGE)

    assert error.category == "app_error"


def test_the_root_cause_is_found_before_the_last_exception() -> None:
    """vLLM ends with "Engine core initialization failed. See root cause above."."""
    stderr = (
        "(EngineCore pid=12) ERROR 11-22 Traceback (most recent call last):\n"
        "(EngineCore pid=12) ERROR 11-22 torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB\n"
        "Traceback (most recent call last):\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )

    assert translate_docker_error(1, stderr, IMAGE).category == "gpu_oom"


@pytest.mark.parametrize("returncode", [137, 1])
def test_an_oom_kill_is_known_from_the_state_whatever_the_exit_code(returncode: int) -> None:
    """A child that is killed leaves the program's own exit code and OOMKilled."""
    error = translate_docker_error(returncode, "", IMAGE, oom_killed=True)

    assert isinstance(error, HostOutOfMemoryError)
    assert error.stderr_snippet is None


def test_the_workers_own_error_goes_first() -> None:
    own = {"category": "engine_setting", "message": "attn_implementation: flash not found"}

    error = translate_docker_error(1, "CUDA out of memory", IMAGE, worker_error=own)

    assert error.category == "app_error"
    assert "flash not found" in error.message


@pytest.mark.parametrize(
    ("category", "own"),
    [
        ("gpu_oom", OutOfMemoryError("CUDA out of memory")),
        ("host_oom", OutOfMemoryError("DefaultCPUAllocator: can't allocate memory: 9 bytes")),
        ("image_contents", {"category": "engine_not_installed", "message": "vllm is not installed"}),
        ("hf_not_found", {"category": "model_not_found", "message": "no model 'x'"}),
        ("hf_gated", {"category": "model_not_found", "message": "x", "traceback": "GatedRepoError: 401 Client Error"}),
        ("gpu_not_visible", {"type": "RuntimeError", "message": "No CUDA GPUs are available"}),
        ("interrupted", {"category": "interrupted", "message": "stopped"}),
        ("app_error", "a plain sentence"),
        ("app_error", EngineError("bloom has no room")),
    ],
)
def test_the_workers_error_is_classified(category: str, own: LlemError) -> None:
    assert translate_docker_error(1, "", IMAGE, worker_error=own).category == category


def test_a_vague_worker_error_beside_an_oom_kill_is_the_kill() -> None:
    own = {"category": "engine", "message": "the engine's process died"}

    assert translate_docker_error(1, "", IMAGE, oom_killed=True, worker_error=own).category == "host_oom"


def test_secrets_do_not_reach_message_or_snippet() -> None:
    stderr = (
        "RuntimeError: GET https://me:pa55word@hub.example failed with token hf_abcdefghijkl and Bearer abcdefgh1234"
    )

    error = translate_docker_error(1, stderr, IMAGE)

    for secret in ("pa55word", "hf_abcdefghijkl", "abcdefgh1234"):
        assert secret not in str(error)
        assert secret not in str(error.to_dict())


def test_the_snippet_holds_the_last_lines_only() -> None:
    error = translate_docker_error(1, "\n".join(f"line {n}" for n in range(100)), IMAGE)

    assert error.stderr_snippet is not None
    assert error.stderr_snippet.splitlines()[-1] == "line 99"
    assert len(error.stderr_snippet.splitlines()) == 15


def test_bytes_and_nothing_are_accepted() -> None:
    assert translate_docker_error(1, b"ValueError: \xff", IMAGE).category == "app_error"
    assert translate_docker_error(None, None, IMAGE).category == "docker"


def test_every_class_has_its_own_category_and_formats() -> None:
    classes = error_classes()

    assert classes["network"] is NetworkError
    assert len(classes) == len({cls.__name__ for cls in classes.values()})
    for cls in classes.values():
        assert issubclass(cls, DockerError)
        assert cls.headline.format(image=IMAGE)
        assert cls.advice is None or "{image" not in cls.advice.format(image=IMAGE)


def test_errors_of_containers_are_rebuilt_and_take_no_category_from_workers() -> None:
    """A worker's timeout on this machine is not one of Docker."""
    error = translate_docker_error(137, "", IMAGE, oom_killed=True)

    assert isinstance(from_dict(error.to_dict()), HostOutOfMemoryError)
    assert type(from_dict(WorkerTimeoutError("too long").to_dict())) is WorkerTimeoutError
