"""What the nodes have that decides whether an earlier result may be reused."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from pytest_llem.cluster.cluster import Node, Request
from pytest_llem.cluster.tasks import ask_nodes
from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.report import RunnerSpec
from pytest_llem.job.wire import decode, encode
from pytest_llem.runners.protocol import ReuseTarget
from pytest_llem.study.runner_settings import DockerSettings


def reuse_targets_on(
    nodes: Sequence[Node],
    request: Request,
    config: ExperimentConfig,
    image: str | None,
    docker: Mapping[str, JsonValue],
    ended: threading.Event,
) -> list[ReuseTarget]:
    """A target per node that may run this experiment and answers; an `LlemError` when none does.

    Raises `InterruptedCycleError` once `ended` is set.
    """
    found: list[ReuseTarget] = []
    problem: LlemError | None = None
    kind = "cuda" if request.gpus else "cpu"
    for _, answer in ask_nodes(reuse_facts, nodes, encode(config), image, encode(docker), ended=ended):
        if isinstance(answer, LlemError):
            problem = answer
        else:
            found.append(decode(ReuseTarget, {**answer, "device_kind": kind, "device_count": request.gpus}))
    if problem is not None and not found:
        raise problem
    return found


def reuse_facts(config: JsonValue, image: str | None, docker: JsonValue) -> JsonValue:
    """The answer of a node: its environment, its inputs of this experiment, and the image as it lies there."""
    from pytest_llem.machine.environment import gather
    from pytest_llem.machine.inputs import input_facts

    wanted = decode(ExperimentConfig, config)
    known: str | None = None
    if image is not None:
        from pytest_llem.containers.runner import DockerRunner

        settings = DockerSettings.from_mapping(docker if isinstance(docker, Mapping) else {})
        runner = DockerRunner(RunnerSpec("docker", "study", image=image), settings)
        known = runner.known_image(wanted.engine) or image
        runner.close()
    return {"environment": gather(), "inputs": input_facts(wanted), "image": known}
