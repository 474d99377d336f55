"""What nodes are asked before cycles run: package and engine, the study's settings, and what allows reuse.

The runner `ray` calls it. The functions that run on a node take and return plain JSON, because a node may have another
version of this package, or none.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llem import __version__
from pytest_llem.cluster.cluster import Node, ResourceRequest
from pytest_llem.cluster.node import NodeTerms, docker_runner, other_version
from pytest_llem.cluster.tasks import ask_each_kind, ask_nodes
from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import SettingProblem, SignatureReport
from pytest_llem.errors import EngineNotInstalledError, JsonValue, LlemError, NodeLostError, from_dict
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.wire import decode, encode
from pytest_llem.machine.devices import gpu_uuids
from pytest_llem.machine.environment import gather
from pytest_llem.machine.inputs import input_facts
from pytest_llem.runners.protocol import PreflightReport, ReuseTarget
from pytest_llem.runners.settings_check import check_here
from pytest_llem.study.runner_settings import RaySettings


def preflight_nodes(
    nodes: Sequence[Node],
    configs: Sequence[ExperimentConfig],
    gpus: int,
    settings: RaySettings,
    terms: NodeTerms,
    ended: threading.Event,
) -> PreflightReport:
    """Ask a node of each kind for its Python, its pytest-llem and the engine's packages.

    Where an image brings the engine, the node's Docker is asked instead whether cycles can run in it. Raises
    `InterruptedCycleError` once `ended` is set.
    """
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
        arguments = encode(configs), settings.image, gpus, encode(terms.docker)
        for node, answer in ask_each_kind(look_at_docker, nodes, *arguments, ended=ended):
            node_problems = [answer] if isinstance(answer, LlemError) else [from_dict(problem) for problem in answer]
            problems += [_on(node, problem) for problem in node_problems]
    # A node that is lost is no problem of the others: cycles are tried on those.
    return PreflightReport(tuple(problems if facts or problems else lost), facts=facts)


def look_at_docker(configs: JsonValue, image: str, gpus: int, docker: JsonValue) -> list[JsonValue]:
    """What would make cycles in the image fail, on a node."""
    assert isinstance(configs, list), "configurations are sent as a list"
    decoded = [decode(ExperimentConfig, config) for config in configs]
    runner = docker_runner(image, docker if isinstance(docker, Mapping) else {})
    devices = DeviceSet("cuda", gpu_uuids()[:gpus]) if gpus else DeviceSet("cpu")
    try:
        report = runner.preflight(decoded[0].engine, decoded, devices)
    finally:
        runner.close()
    return [] if report is None else [problem.to_dict() for problem in report.problems]


def _on(node: Node, problem: LlemError) -> LlemError:
    return from_dict({**problem.to_dict(), "message": f"node {node.hostname} ({node.kind}): {problem.message}"})


def check_settings_on_nodes(
    nodes: Sequence[Node], configs: Sequence[ExperimentConfig], settings: RaySettings, ended: threading.Event
) -> SignatureReport:
    """Compare settings of one engine with its signatures on a node of each kind; all that any node refuses.

    Raises `InterruptedCycleError` once `ended` is set.
    """
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


def check_settings_on_node(configs: JsonValue) -> JsonValue:
    """The comparison, on a node."""
    assert isinstance(configs, list), "configurations are sent as a list"
    with tempfile.TemporaryDirectory() as directory:
        decoded = [decode(ExperimentConfig, config) for config in configs]
        return encode(check_here(decoded, Path(directory), DeviceSet("cpu")))


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
    """A target per node that may run this experiment and answers; an `LlemError` when none does.

    Raises `InterruptedCycleError` once `ended` is set.
    """
    targets: list[ReuseTarget] = []
    problem: LlemError | None = None
    kind = "cuda" if request.gpus else "cpu"
    for _, answer in ask_nodes(reuse_facts, nodes, encode(config), image, encode(docker), ended=ended):
        if isinstance(answer, LlemError):
            problem = answer
        else:
            targets.append(decode(ReuseTarget, {**answer, "device_kind": kind, "device_count": request.gpus}))
    if problem is not None and not targets:
        raise problem
    return targets


def reuse_facts(config: JsonValue, image: str | None, docker: JsonValue) -> JsonValue:
    """The answer of a node: its environment, its inputs of this experiment, and the image as it is present there."""
    wanted = decode(ExperimentConfig, config)
    present: str | None = None
    if image is not None:
        runner = docker_runner(image, docker if isinstance(docker, Mapping) else {})
        present = runner.known_image(wanted.engine) or image
        runner.close()
    return {"environment": gather(), "inputs": input_facts(wanted), "image": present}
