"""Tasks of Ray: the one that measures, how it is ended, and how a cluster that grows learns what is asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import ray
from ray import exceptions as ray_errors

from pytest_llem.runners.ray.cluster import Request
from pytest_llem.runners.ray.node import measure_on_node

CANCEL_S = 10.0
KILL_S = 5.0


@cache
def measuring_task() -> Any:
    """The remote function: no retries of Ray's own, and worker processes that serve many cycles, each measured in a
    process of its own."""
    return ray.remote(max_retries=0, max_calls=0, num_returns="streaming", scheduling_strategy="SPREAD")(
        measure_on_node
    )


@contextlib.contextmanager
def demanded() -> Iterator[Callable[[Request], None]]:
    """Lets a cluster that grows by itself know what is asked for, until the block ends."""
    waiting: list[Any] = []

    def demand(request: Request) -> None:
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
