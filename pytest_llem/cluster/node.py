"""What runs on a node: one cycle, under a lease of the devices that Ray assigned, in a fresh process or container.

The driver (`runner`, `tasks`) submits `measure_on_node` as a Ray task and writes the files of its `NodeResult`. Orders
and results may change: they travel between equal versions only, which the node checks first. Before each cycle the Ray
process must be made fit to measure from: nothing it starts outlives it, and Ray's own settings are undone.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import ray

from pytest_llem import __version__
from pytest_llem.containers import remove_orphaned_containers
from pytest_llem.errors import DeviceError, JsonValue, LlemError, RunnerError, from_dict
from pytest_llem.job.config import AskedKind
from pytest_llem.job.files import parse_object, write_bytes
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import Note, RunnerSource, RunnerSpec, RunReport
from pytest_llem.job.wire import decode
from pytest_llem.machine.cooldown import Setting as Cooldown
from pytest_llem.machine.devices import GPUS_OF, VARIABLE_OF, Demand, gpu_kind, metered_gpus
from pytest_llem.machine.environment import gather, input_facts
from pytest_llem.machine.leases import LeaseRequest
from pytest_llem.runners import open_runner
from pytest_llem.runners.measure_here import CycleRequest, HeldDevices, measure_here
from pytest_llem.runners.protocol import Runner, RunnerSettings
from pytest_llem.worker import lifeline

MARK = lifeline.MARKS[0]
KEPT_S = 7 * 24 * 3600.0
"""Chosen: longer than any run takes."""

THREADS = "OMP_NUM_THREADS"
_lifelines: list[subprocess.Popen[bytes]] = []
ERROR_FILE = JobDir(Path()).error.name


@dataclass(frozen=True)
class NodeFacts:
    """Which node a cycle runs on."""

    id: str
    hostname: str
    address: str


@dataclass(frozen=True)
class NodeResult:
    """What a node sends back: the job directory's files by name, the report, and an error that no file holds."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    report: RunReport | None = None
    error: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True)
class Order:
    """What a node is to do: the job, whose devices and meter the node completes, and the study's terms for it.

    `gpus` is how many Ray assigns, 0 for a measurement of the CPU; terms are as in `runners.protocol.RunnerSettings`.
    `threads_chosen` says that the runtime environment sets the number of threads.
    """

    version: str
    job: Job
    source: RunnerSource
    gpus: int
    residual_memory_bytes: int
    cooldown: Cooldown
    docker: Mapping[str, JsonValue] = field(default_factory=dict)
    image: str | None = None
    threads_chosen: bool = False


def measure_on_node(order: JsonValue) -> Iterator[NodeFacts | NodeResult]:
    """The Ray task: first where it runs, then its result; cancelled, `KeyboardInterrupt` ends the measured process."""
    node_id = ray.get_runtime_context().get_node_id()
    yield NodeFacts(str(node_id), platform.node(), str(ray.util.get_node_ip_address()))
    yield _measured(order)


def _measured(data: JsonValue) -> NodeResult:
    version = data.get("version") if isinstance(data, Mapping) else None
    if version != __version__:
        return NodeResult(error=other_version(platform.node(), __version__, str(version)).to_dict())
    began = time.monotonic()
    order = decode(Order, data)
    notes = undo_worker_settings(threads_chosen=order.threads_chosen)
    with tempfile.TemporaryDirectory(dir=own_directory()) as directory:
        job_dir = JobDir(Path(directory) / "job")
        try:
            job, report = _cycle(order, job_dir)
        except LlemError as error:
            return NodeResult(_files(job_dir), None, error.to_dict())
        report = replace(
            report,
            name="ray",
            notes=(*notes, *report.notes),
            environment=_environment(),
            inputs=input_facts(job.config),
            facts={**report.facts, "node_s": time.monotonic() - began},
        )
        return NodeResult(_files(job_dir), report, None)


def other_version(hostname: str, there: str | None, here: str) -> RunnerError:
    """The error for a node with another pytest-llem, or none."""
    installed = f"has pytest-llem {there}" if there else "has no pytest-llem"
    return RunnerError(
        f"node {hostname} {installed}, this machine {here}: they must be equal",
        fix=f"install pytest-llem=={here} on the node (in its image), or name it in the study's ray.runtime_env: "
        f"{{pip: ['pytest-llem=={here}']}}",
        details={"hostname": hostname, "version": there, "wanted": here},
    )


def _completed(job: Job, devices: DeviceSet) -> Job:
    """The job with what this node has: its devices and, for a meter that was named, all that it measures."""
    meter = replace(job.meter, uuids=metered_gpus(job.meter.name, job.config.device.kind))
    return replace(job, devices=devices, meter=meter)


def _devices(count: int, asked: AskedKind) -> DeviceSet:
    """The GPUs that Ray assigned to this task, by UUID. It calls AMD's as HIP does, and NVIDIA's as CUDA."""
    if not count:
        return DeviceSet("cpu")
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    kind = gpu_kind(asked)
    os.environ |= dict.fromkeys(("CUDA_VISIBLE_DEVICES", VARIABLE_OF[kind]), ",".join(assigned))
    uuids = GPUS_OF[kind]()
    if len(uuids) != count:
        raise DeviceError(
            f"node {platform.node()}: Ray assigned the GPUs {', '.join(assigned) or 'none'}, and the driver shows "
            f"{', '.join(uuids) or 'none'} of them",
            fix="start the node with as many GPUs as `llem doctor` lists there, no more",
            details={"assigned": list(assigned), "uuids": list(uuids)},
        )
    return DeviceSet(kind, uuids)


def _cycle(order: Order, job_dir: JobDir) -> tuple[Job, RunReport]:
    """Run the cycle under a lease of its devices."""
    runner = _local(order.source) if order.image is None else docker_runner(order.image, order.docker, order.source)
    job = order.job
    # A name of its own within the run, so that other cycles of the run on this node count as concurrent.
    own_run = f"{job.run_id} {job.experiment_id} c{job.cycle}.{job.attempt}"
    try:
        request = CycleRequest(
            job.config,
            Demand.exactly(_devices(order.gpus, order.job.config.device.kind)),
            LeaseRequest(f"{job.study} {job.experiment_id} c{job.cycle}", own_run),
            lambda devices: _completed(job, devices),
            run_directory(job.run_id),
            residual_bytes=order.residual_memory_bytes,
            cooldown=order.cooldown,
        )
        return measure_here(runner, HeldDevices(remove_orphaned_containers), request, job_dir)
    finally:
        if order.image is not None:
            runner.close()


def docker_runner(image: str, docker: Mapping[str, JsonValue], source: RunnerSource = "study") -> Runner:
    """A runner for cycles in an image on this node."""
    return open_runner(RunnerSpec("docker", source, image=image), RunnerSettings(own_directory(), docker=docker))


@cache
def _local(source: RunnerSource) -> Runner:
    """Kept over the tasks of one Ray worker process, and so its fork servers."""
    return open_runner(RunnerSpec("local", source), RunnerSettings(own_directory()))


@cache
def _environment() -> dict[str, JsonValue]:
    return gather()


def _files(job_dir: JobDir) -> dict[str, bytes]:
    if not job_dir.path.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(job_dir.path.iterdir()) if path.is_file()}


def failure_of(result: NodeResult) -> LlemError | None:
    """Why the cycle failed, whether the result says so itself or its `error.json`; `None` where it did not."""
    error = result.error
    if error is None and ERROR_FILE in result.files:
        try:
            error = parse_object(result.files[ERROR_FILE], ERROR_FILE)
        except ValueError as problem:
            return RunnerError(f"a node sent an error that cannot be read: {problem}")
    return from_dict(error) if error is not None else None


def write_files(files: Mapping[str, bytes], job_dir: JobDir) -> None:
    """The node's files, each atomically; those that say how the cycle ended come last."""
    last = (job_dir.measurement.name, job_dir.error.name)
    for name in sorted(files, key=lambda name: (name in last, name)):
        if Path(name).name != name:
            raise RunnerError(f"a node sent a file with the name {name!r}")
        write_bytes(job_dir.path / name, files[name])


@cache
def own_directory() -> Path:
    """A directory of this process, which is removed, and all that the process started killed, when it is gone."""
    directory = Path(tempfile.mkdtemp(prefix="llem-node-"))
    mark = f"{MARK}={secrets.token_hex(16)}"
    command = lifeline.command("sweep", mark, str(directory))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    process.wait()
    _lifelines.append(process)  # keeps the pipe open
    os.environ[MARK] = mark.partition("=")[2]
    return directory


def run_directory(run_id: str) -> Path:
    """What this node shares over one run; old runs are removed. `RunnerError` where another user has its name."""
    runs = Path(tempfile.gettempdir()) / f"llem-runs-{os.getuid()}"
    runs.mkdir(mode=0o700, exist_ok=True)
    status = runs.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise RunnerError(
            f"node {platform.node()}: {runs} is not a directory of this user (uid {os.getuid()})",
            fix=f"remove {runs} there, or start the node with a TMPDIR of its own",
        )
    directory = runs / run_id
    directory.mkdir(exist_ok=True)
    os.utime(directory)
    for other in runs.iterdir():
        # The node's other processes do the same, so that it may be gone.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
    return directory


def undo_worker_settings(*, threads_chosen: bool) -> tuple[Note, ...]:
    """Undo what Ray does to its workers and would change a measurement; a note for what cannot be undone.

    Ray sets `OMP_NUM_THREADS` to the task's CPUs where nobody did, and starts its workers at a low priority.
    `threads_chosen` says that the task's runtime environment sets the number of threads.
    """
    raylet = _environment_of(os.getppid())
    if not threads_chosen:
        os.environ.pop(THREADS, None)
        if THREADS in raylet:
            os.environ[THREADS] = raylet[THREADS]
    wanted = os.getpriority(os.PRIO_PROCESS, os.getppid())
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness <= wanted:
        return ()
    try:
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
    except PermissionError:
        text = f"measured at nice {niceness}, as Ray starts its workers: start the node with RAY_worker_niceness=0"
        return (Note("low_priority", text),)
    return ()


def _environment_of(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in raw.decode("utf-8", "replace").split("\0") if "=" in entry)
    return {name: value for name, _, value in pairs}
