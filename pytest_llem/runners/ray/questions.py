"""Questions to nodes: small tasks that measure nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pytest_llem.errors import NodeLostError, RunnerError
from pytest_llem.runners.ray.cluster import Node
from pytest_llem.runners.ray.outcomes import explain

ANSWER_S = 900.0
"""A runtime environment may have much to install."""


def ask_each_kind(
    question: Callable[..., Any], nodes: Sequence[Node], *arguments: object
) -> Iterable[tuple[Node, Any]]:
    """The answer of a node of each kind, by what it has, or an `LlemError`; where one is lost, the next is asked."""
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node.kind, []).append(node)
    waiting = list(kinds.values())
    while waiting:
        again: list[list[Node]] = []
        firsts = {alike[0].id: alike for alike in waiting}
        for node, answer in ask_nodes(question, [alike[0] for alike in waiting], *arguments):
            rest = firsts[node.id][1:]
            if isinstance(answer, NodeLostError) and rest:
                again.append(rest)
            else:
                yield node, answer
        waiting = again


def ask_nodes(question: Callable[..., Any], nodes: Sequence[Node], *arguments: object) -> Iterable[tuple[Node, Any]]:
    """Each node's answer, or an `LlemError` for it; a question takes no resources, so it need not wait for any."""
    remote = ray.remote(max_retries=0, num_cpus=0)(question)
    references = [
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            name="llem question",
        ).remote(*arguments)
        for node in nodes
    ]
    for node, reference in zip(nodes, references, strict=True):
        where = f"node {node.hostname} ({node.kind})"
        try:
            yield node, ray.get(reference, timeout=ANSWER_S)
        except ray_errors.GetTimeoutError:
            ray.cancel(reference, force=True)
            yield node, RunnerError(f"{where}: no answer within {ANSWER_S:g} s", fix="look at the node and Ray's logs")
        except (ray_errors.RayError, ImportError) as error:
            yield node, explain(error, where)
