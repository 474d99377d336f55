"""Tasks of Ray: the one that measures, how it is ended, questions to nodes, and demand that a growing cluster sees.

The runner `ray` and its preflight call it. Tasks must not be retried by Ray itself: whether a cycle is tried again is
the runner's decision.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pytest_llem.cluster.cluster import Node, ResourceRequest
from pytest_llem.cluster.errors import translate_ray_error
from pytest_llem.cluster.node import measure_on_node
from pytest_llem.errors import InterruptedCycleError, NodeLostError, RunnerError

CANCEL_S = 10.0
"""Chosen: a cancelled worker has this long to end the measured process and to give its devices back."""

KILL_S = 5.0
"""Chosen: Ray kills a worker process within a second."""

ANSWER_S = 900.0
"""Chosen: a runtime environment may have much to install."""

POLL_S = 0.5
"""Chosen: how soon an interruption is noticed."""


@cache
def measuring_task() -> Any:
    """The remote function: no retries of Ray's own, and worker processes that serve many cycles, each measured in a
    process of its own."""
    return ray.remote(max_retries=0, max_calls=0, num_returns="streaming", scheduling_strategy="SPREAD")(
        measure_on_node
    )


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
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            name="llem question",
        ).remote(*arguments)
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
