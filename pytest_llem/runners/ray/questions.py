"""Questions to nodes: small tasks that measure nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pytest_llem.errors import InterruptedCycleError, NodeLostError, RunnerError
from pytest_llem.runners.ray.cluster import Node
from pytest_llem.runners.ray.outcomes import explain

ANSWER_S = 900.0
"""A runtime environment may have much to install."""
POLL_S = 0.5


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
            yield node, explain(error, where)


def _answered(reference: Any, within_s: float = POLL_S) -> bool:
    ready, _ = ray.wait([reference], timeout=within_s)
    return bool(ready)
