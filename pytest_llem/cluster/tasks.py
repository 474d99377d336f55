"""Tasks of Ray: the one that measures and how it ends, what nodes are asked before cycles run, and Ray's errors.

`runner` calls it. Ray itself must not retry a task: whether a cycle is tried again is the runner's decision. What runs
on a node must take and return plain JSON, because a node may have another version of this package, or none.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pytest_llem import __version__
from pytest_llem.cluster.cluster import Node, ResourceRequest
from pytest_llem.cluster.node import docker_runner, measure_on_node, other_version
from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import SettingProblem, SignatureReport
from pytest_llem.errors import (
    EngineNotInstalledError,
    InterruptedCycleError,
    JsonValue,
    LlemError,
    NodeLostError,
    OutOfMemoryError,
    RunnerError,
    from_dict,
)
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.wire import decode, encode
from pytest_llem.machine.devices import gpu_uuids
from pytest_llem.machine.environment import gather, input_facts
from pytest_llem.runners.protocol import PreflightReport, ReuseTarget
from pytest_llem.runners.settings_check import check_here
from pytest_llem.study.runner_settings import RaySettings

CANCEL_S = 10.0
"""Chosen: a cancelled worker has this long to end the measured process and to give its devices back."""

KILL_S = 5.0
"""Chosen: Ray kills a worker process within a second."""

ANSWER_S = 900.0
"""Chosen: a runtime environment may have much to install."""

POLL_S = 0.5
"""Chosen: how soon an interruption is noticed."""

LOST = (
    ray_errors.NodeDiedError,
    ray_errors.WorkerCrashedError,
    ray_errors.ObjectLostError,
    ray_errors.LocalRayletDiedError,
    ray_errors.TaskUnschedulableError,
)
"""The node, Ray's process on it, or what it sent is gone: the cycle may be tried on another."""


@cache
def measuring_task() -> Any:
    """The remote function: no retries of Ray's own; a process serves many cycles, each measured in one of its own."""
    options = {"max_retries": 0, "max_calls": 0, "num_returns": "streaming", "scheduling_strategy": "SPREAD"}
    return ray.remote(**options)(measure_on_node)


@contextlib.contextmanager
def demanded() -> Iterator[Callable[[ResourceRequest], None]]:
    """Lets a cluster that grows by itself know what is asked for, until the block ends."""
    waiting: list[Any] = []

    def demand(request: ResourceRequest) -> None:
        if not waiting:
            nothing = ray.remote(max_retries=0)(_nothing)
            waiting.append(nothing.options(**request.options).remote())

    try:
        yield demand
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _nothing() -> None:
    """Waits for a node, for the autoscaler to see."""


def end_task(task: Any) -> None:
    """Cancel a task and wait until its node has ended the measured process; by force where that takes long."""
    with contextlib.suppress(ray_errors.RayError, ValueError, TypeError):
        ray.cancel(task)
        if not _ends(task, CANCEL_S):
            ray.cancel(task, force=True)
            _ends(task, KILL_S)


def _ends(task: Any, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while (left := deadline - time.monotonic()) > 0:
        ready, _ = ray.wait([task], timeout=left)
        if not ready:
            return False
        try:
            ray.get(next(task))
        except (StopIteration, ray_errors.RayError):
            return True
    return False


def ask_each_kind(
    question: Callable[..., Any], nodes: Sequence[Node], *arguments: object, ended: threading.Event
) -> Iterable[tuple[Node, Any]]:
    """The answer of a node of each kind, by what it has, or an `LlemError`; where one is lost, the next is asked."""
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.kind, []).append(node)
    waiting = list(kinds.values())
    while waiting:
        again: list[list[Node]] = []
        firsts = {alike[0].id: alike for alike in waiting}
        for node, answer in ask_nodes(question, [alike[0] for alike in waiting], *arguments, ended=ended):
            rest = firsts[node.id][1:]
            if isinstance(answer, NodeLostError) and rest:
                again.append(rest)
            else:
                yield node, answer
        waiting = again


def ask_nodes(
    question: Callable[..., Any], nodes: Sequence[Node], *arguments: object, ended: threading.Event
) -> Iterable[tuple[Node, Any]]:
    """Each node's answer, or an `LlemError` for it; a question takes no resources, so it need not wait for any.

    Raises `InterruptedCycleError` once `ended` is set, with what is not answered cancelled.
    """
    remote = ray.remote(max_retries=0, num_cpus=0)(question)
    references = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*arguments)
        for node in nodes
    ]
    deadline = time.monotonic() + ANSWER_S
    for index, (node, reference) in enumerate(zip(nodes, references, strict=True)):
        where = f"node {node.hostname} ({node.kind})"
        while not ended.is_set() and time.monotonic() < deadline and not _answered(reference):
            continue
        if ended.is_set():
            for unanswered in references[index:]:
                ray.cancel(unanswered, force=True)
            raise InterruptedCycleError(f"{where}: the run ended before it answered")
        if not _answered(reference, 0.0):
            ray.cancel(reference, force=True)
            yield node, RunnerError(f"{where}: no answer within {ANSWER_S:g} s", fix="look at the node and Ray's logs")
            continue
        try:
            yield node, ray.get(reference)
        except (ray_errors.RayError, ImportError) as error:
            yield node, translate_ray_error(error, where)


def _answered(reference: Any, within_s: float = POLL_S) -> bool:
    ready, _ = ray.wait([reference], timeout=within_s)
    return bool(ready)


def preflight_nodes(
    nodes: Sequence[Node],
    configs: Sequence[ExperimentConfig],
    gpus: int,
    settings: RaySettings,
    docker: Mapping[str, JsonValue],
    ended: threading.Event,
) -> PreflightReport:
    """Ask each kind of node for its packages, or its Docker about the image. `InterruptedCycleError` once `ended`."""
    engine = configs[0].engine
    modules = () if settings.image is not None else engine_info(engine).modules
    problems: list[LlemError] = []
    facts: dict[str, JsonValue] = {}
    lost: list[LlemError] = []
    for node, answer in ask_each_kind(_probe(), nodes, modules, ended=ended):
        if isinstance(answer, LlemError):
            (lost if isinstance(answer, NodeLostError) else problems).append(answer)
            continue
        facts[node.hostname] = {"kind": node.kind, **answer}
        if answer["version"] != __version__:
            problems.append(other_version(node.hostname, answer["version"], __version__))
        elif answer["missing"]:
            missing = ", ".join(answer["missing"])
            problems.append(
                EngineNotInstalledError(
                    f"node {node.hostname} ({node.kind}): {answer['executable']} lacks {missing}, which the engine "
                    f"{engine} needs",
                    fix=f"install {missing} on the nodes (in their image), or name it in the study's ray.runtime_env: "
                    f"{{pip: [{missing}]}}",
                    details={"hostname": node.hostname, "missing": answer["missing"]},
                )
            )
    if settings.image is not None and not problems:
        arguments = encode(configs), settings.image, gpus, encode(docker)
        for node, answer in ask_each_kind(look_at_docker, nodes, *arguments, ended=ended):
            node_problems = [answer] if isinstance(answer, LlemError) else [from_dict(problem) for problem in answer]
            problems += [_on(node, problem) for problem in node_problems]
    # A node that is lost is no problem of the others: cycles are tried on those.
    return PreflightReport(tuple(problems if facts or problems else lost), facts=facts)


def look_at_docker(
    configs: Sequence[JsonValue], image: str, gpus: int, docker: Mapping[str, JsonValue]
) -> list[JsonValue]:
    """What would make cycles in the image fail, on a node."""
    decoded = [decode(ExperimentConfig, config) for config in configs]
    devices = DeviceSet("cuda", gpu_uuids()[:gpus]) if gpus else DeviceSet("cpu")
    runner = docker_runner(image, docker)
    try:
        report = runner.preflight(decoded[0].engine, decoded, devices)
    finally:
        runner.close()
    return [] if report is None else [problem.to_dict() for problem in report.problems]


def _on(node: Node, problem: LlemError) -> LlemError:
    return problem.restated(f"node {node.hostname} ({node.kind}): {problem.message}")


def check_settings_on_nodes(
    nodes: Sequence[Node], configs: Sequence[ExperimentConfig], settings: RaySettings, ended: threading.Event
) -> SignatureReport:
    """All that a node of any kind refuses of one engine's settings. `InterruptedCycleError` once `ended` is set."""
    if settings.image is not None:
        return SignatureReport(unchecked="the engine is in an image on the nodes")
    problems: dict[str, SettingProblem] = {}
    unchecked = None
    for _, answer in ask_each_kind(check_settings_on_node, nodes, encode(configs), ended=ended):
        if isinstance(answer, LlemError):
            unchecked = answer.message
            continue
        report = decode(SignatureReport, answer)
        problems.update({f"{problem.path}={json.dumps(problem.value)}": problem for problem in report.problems})
        unchecked = report.unchecked or unchecked
    return SignatureReport(tuple(problems.values()), unchecked)


def check_settings_on_node(configs: Sequence[JsonValue]) -> JsonValue:
    """The comparison, on a node."""
    with tempfile.TemporaryDirectory() as directory:
        return encode(check_here([decode(ExperimentConfig, config) for config in configs], Path(directory)))


def _probe() -> Callable[..., dict[str, Any]]:
    """The question to a node as a closure, which travels whole: a node may lack this package."""

    def probe(modules: Sequence[str]) -> dict[str, Any]:
        import platform
        import sys
        from contextlib import suppress
        from importlib.util import find_spec

        version: str | None = None
        with suppress(ImportError):
            import pytest_llem

            version = pytest_llem.__version__
        return {
            "python": platform.python_version(),
            "executable": sys.executable,
            "version": version,
            "missing": [name for name in modules if find_spec(name) is None],
        }

    return probe


def reuse_targets_on(
    nodes: Sequence[Node],
    request: ResourceRequest,
    config: ExperimentConfig,
    image: str | None,
    docker: Mapping[str, JsonValue],
    ended: threading.Event,
) -> list[ReuseTarget]:
    """A target per node that answers; an `LlemError` when none does, `InterruptedCycleError` once `ended` is set."""
    targets: list[ReuseTarget] = []
    problem: LlemError | None = None
    of_gpus = "rocm" if config.device.kind == "rocm" else "cuda"
    kind = of_gpus if request.gpus else "cpu"
    for _, answer in ask_nodes(reuse_facts, nodes, encode(config), image, encode(docker), ended=ended):
        if isinstance(answer, LlemError):
            problem = answer
        else:
            targets.append(decode(ReuseTarget, {**answer, "device_kind": kind, "device_count": request.gpus}))
    if problem is not None and not targets:
        raise problem
    return targets


def reuse_facts(config: JsonValue, image: str | None, docker: Mapping[str, JsonValue]) -> JsonValue:
    """The answer of a node: its environment, its inputs of this experiment, and the image as it is present there."""
    wanted = decode(ExperimentConfig, config)
    present: str | None = None
    if image is not None:
        runner = docker_runner(image, docker)
        present = runner.known_image(wanted.engine) or image
        runner.close()
    return {"environment": gather(), "inputs": input_facts(wanted), "image": present}


def translate_ray_error(error: BaseException, title: str) -> LlemError:
    """The error of a cycle whose Ray task ended with this exception; a `NodeLostError` is worth another try."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray_errors.TaskCancelledError) or isinstance(cause, ray_errors.TaskCancelledError):
        return InterruptedCycleError(f"{title}: its Ray task was cancelled")
    if isinstance(error, LOST):
        return NodeLostError(f"{title}: {_sentence(error)}", details={"error": type(error).__name__})
    if isinstance(error, ray_errors.OutOfMemoryError):
        return OutOfMemoryError(
            f"{title}: Ray ended it because the node was running out of memory: {_sentence(error)}",
            fix="use a smaller model, batch or dtype, or a node with more memory",
        )
    if isinstance(error, ray_errors.RuntimeEnvSetupError):
        return RunnerError(
            f"{title}: the runtime environment cannot be set up on the node: {_cause(error)}",
            fix="correct the study's ray.runtime_env, or install what it names in the nodes' image; pip and uv need "
            "ray[default] on the nodes",
        )
    missing = next((problem for problem in (cause, error) if isinstance(problem, ImportError)), None)
    if missing is not None:
        return RunnerError(
            f"{title}: the node cannot import what it needs: {missing}",
            fix="install the same version of pytest-llem, with the engine, on every node (in its image), or name them "
            "in the study's ray.runtime_env: {pip: [...]}",
        )
    return RunnerError(f"{title}: the task failed on its node: {_sentence(cause or error)}")


def _cause(error: BaseException) -> str:
    """What a long report with tracebacks says went wrong: its last errors."""
    lines = [line.strip() for line in str(error).splitlines()]
    errors = [
        line for line in lines if line.startswith("ERROR") or line.partition(":")[0].endswith(("Error", "Exception"))
    ]
    return "; ".join(dict.fromkeys(errors[-2:])) or _sentence(error)


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if isinstance(error, ray_errors.RayTaskError) and lines else " ".join(lines)
    return text[:400] or type(error).__name__
