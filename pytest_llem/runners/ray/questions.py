"""Questions to nodes: small tasks that measure nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pytest_llem.errors import RunnerError
from pytest_llem.runners.ray.cluster import Node
from pytest_llem.runners.ray.outcomes import explain

ANSWER_S = 900.0
"""A runtime environment may have much to install."""


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
