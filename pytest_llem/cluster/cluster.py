"""The Ray cluster: connects to it, and says which of its nodes can run what a cycle asks for.

`runner` and `tasks` use it. There must be one connection per process; tasks are submitted elsewhere, in those two.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from pytest_llem.errors import InfeasibleError, JsonValue, LlemError, RunnerError
from pytest_llem.job.config import AskedKind
from pytest_llem.study.runner_settings import RaySettings

CLIENT_PREFIX = "ray://"
NODES_FOR_S = 1.0
"""Chosen: how long a list of nodes is used; Ray itself notices a lost node only after seconds."""

CONNECT_S = 10.0
"""Chosen: a TCP connection takes milliseconds; Ray itself would try for a quarter of an hour."""

TYPE_PREFIX = "accelerator_type:"
TYPE_SHARE = 0.001
"""How much of a node's accelerator type Ray takes for a task that names it."""
LOCAL_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
_NOT_SHOWN = ("node:", "memory", "object_store_memory", TYPE_PREFIX)


@dataclass(frozen=True)
class Node:
    """A living node: its resources in total, by Ray's names."""

    id: str
    hostname: str
    resources: Mapping[str, float]

    def has(self, amounts: Mapping[str, float]) -> bool:
        """Whether the node has at least these amounts when it is empty."""
        return all(self.resources.get(name, 0.0) >= amount for name, amount in amounts.items())

    def parallel_tasks(self, amounts: Mapping[str, float]) -> int:
        """How many tasks of these amounts the empty node runs at a time."""
        counts = [int(self.resources.get(name, 0.0) / amount + 1e-9) for name, amount in amounts.items() if amount]
        return min(counts, default=1)

    @cached_property
    def kind(self) -> str:
        """What it has, as text: equal for nodes of one kind."""
        shown = [(name, amount) for name, amount in sorted(self.resources.items()) if not name.startswith(_NOT_SHOWN)]
        amounts = [f"{amount:g} {name}" for name, amount in shown]
        types = sorted(name.removeprefix(TYPE_PREFIX) for name in self.resources if name.startswith(TYPE_PREFIX))
        return ", ".join([*amounts, *types]) or "nothing to run on"


@dataclass(frozen=True)
class ResourceRequest:
    """What a cycle asks of its node; `gpus` of 0 is a measurement of the CPU."""

    gpus: int
    cpus: float
    accelerator_type: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def amounts(self) -> dict[str, float]:
        """By Ray's names."""
        amounts = {"CPU": self.cpus, "GPU": float(self.gpus), **self.resources}
        if self.accelerator_type is not None:
            amounts[f"{TYPE_PREFIX}{self.accelerator_type}"] = TYPE_SHARE
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def options(self) -> dict[str, Any]:
        """For a remote function's `options`."""
        return {
            "num_gpus": self.gpus,
            "num_cpus": self.cpus,
            "resources": dict(self.resources),
            "accelerator_type": self.accelerator_type,
        }

    def __str__(self) -> str:
        named = [self.accelerator_type] if self.accelerator_type else []
        plain = {name: amount for name, amount in self.amounts.items() if not name.startswith(TYPE_PREFIX)}
        return ", ".join([*(f"{amount:g} {name}" for name, amount in plain.items()), *named])


class RayCluster:
    """A connection to a cluster, the only one of this process; see `connect`."""

    def __init__(self, address: str | None, runtime_env: Mapping[str, JsonValue], *, own: bool) -> None:
        self.address = address
        self.runtime_env = runtime_env
        self._own = own
        self._nodes: tuple[float, list[Node]] | None = None
        self._on_gpus: set[frozenset[tuple[str, float]]] = set()

    def nodes(self, *, fresh: bool = False) -> list[Node]:
        """The living nodes, as of a moment ago."""
        now = time.monotonic()
        if fresh or self._nodes is None or now - self._nodes[0] > NODES_FOR_S:
            self._nodes = now, [_node(facts) for facts in ray.nodes() if facts["Alive"]]
        return self._nodes[1]

    def request(self, settings: RaySettings, devices: int = 1, kind: AskedKind = "auto") -> ResourceRequest:
        """What a cycle asks for: so many GPUs, or a node's CPUs; `auto` is GPUs where nodes it may run on have any.

        What was for GPUs once stays so when the nodes with GPUs are gone, as does what names an accelerator: no study
        is measured on two kinds of devices unasked. Cycles on the CPU disturb each other, so one takes all CPUs of the
        smallest such node.
        """
        given = ResourceRequest(0, 0.0, settings.accelerator_type, settings.resources)
        asked = frozenset(given.amounts.items())
        if settings.accelerator_type is not None or any(node.resources.get("GPU") for node in self._named(settings)):
            self._on_gpus.add(asked)
        if kind != "cpu" and (asked in self._on_gpus or kind != "auto"):
            return replace(given, gpus=devices, cpus=settings.cpus or 1.0)
        cpus = settings.cpus or min(self.cpu_sizes(settings), default=1.0)
        return replace(given, cpus=cpus)

    def cpu_sizes(self, settings: RaySettings) -> list[float]:
        """How many CPUs the nodes have that a measurement of the CPU may come to, each number once, least first."""
        return sorted({cpus for node in self._named(settings) if (cpus := node.resources.get("CPU", 0.0)) >= 1})

    def _named(self, settings: RaySettings) -> list[Node]:
        """The nodes that have what the settings name, whatever else a cycle needs."""
        given = ResourceRequest(0, 0.0, settings.accelerator_type, settings.resources)
        return [node for node in self.nodes() if node.has(given.amounts)]

    def able(self, request: ResourceRequest) -> list[Node]:
        """The nodes that can run it when they are empty."""
        return [node for node in self.nodes() if node.has(request.amounts)]

    def can_run(self, request: ResourceRequest, without: Collection[str] = ()) -> bool:
        """Whether one of them lives whose id is not in `without`."""
        return any(node.has(request.amounts) for node in self.nodes() if node.id not in without)

    def parallel_cycles(self, request: ResourceRequest) -> int:
        """How many such cycles the empty cluster runs at a time."""
        return sum(node.parallel_tasks(request.amounts) for node in self.able(request))

    def infeasible(self, request: ResourceRequest, waited_s: float = 0.0) -> InfeasibleError:
        """The error for a request that no node can run: Ray itself would let it wait without a word."""
        nodes = self.nodes(fresh=True)
        kinds = Counter(node.kind for node in nodes)
        present = "; ".join(f"{count} x ({kind})" for kind, count in kinds.items()) or "no node is alive"
        waited = f" (waited {waited_s:g} s for more nodes)" if waited_s else ""
        return InfeasibleError(
            f"no node of the Ray cluster can run this: it asks for {request}; there are: {present}{waited}",
            fix="ask for less in the study's `ray` section or its parallel sizes, add such a node, or set "
            "ray.wait_for_nodes_s where the cluster grows by itself",
            details={"asked": dict(request.amounts), "nodes": list(kinds)},
        )

    def close(self) -> None:
        """Hang up, and stop the cluster where this process started it."""
        if self._own and ray.is_initialized():
            ray.shutdown()


_lock = threading.Lock()
_current: list[RayCluster | LlemError] = []


def connect(address: str | None, runtime_env: Mapping[str, JsonValue] | None = None) -> RayCluster:
    """The cluster at `address`, else `RAY_ADDRESS`, else this machine's, else a new local one. Raises `RunnerError`.

    Later calls get the same cluster or error. Ray uploads what `runtime_env`, for all tasks, names only on connecting.
    """
    environment = dict(runtime_env or {})
    with _lock:
        if not _current:
            try:
                _current.append(_connected(address, environment))
            except LlemError as error:
                _current.append(error)
        cluster = _current[0]
    if isinstance(cluster, LlemError):
        raise cluster
    if address is not None and cluster.address is not None and address != cluster.address:
        raise RunnerError(
            f"ray:{address}: this process is connected to the Ray cluster {cluster.address}",
            fix="give all engines of a run the same cluster",
        )
    if environment != cluster.runtime_env:
        raise RunnerError(
            f"ray.runtime_env: {environment or 'none'}, and this process is connected with "
            f"{dict(cluster.runtime_env) or 'none'}",
            fix="give all studies of a run the same ray.runtime_env, or run them one after the other",
        )
    return cluster


def disconnect() -> None:
    """Hang up; a later `connect` starts anew."""
    with _lock:
        while _current:
            cluster = _current.pop()
            if isinstance(cluster, RayCluster):
                cluster.close()


def _connected(address: str | None, runtime_env: Mapping[str, JsonValue]) -> RayCluster:
    if ray.is_initialized():
        # Somebody else connected this process, and with what they chose.
        return RayCluster(address, runtime_env, own=False)
    address = address or os.environ.get("RAY_ADDRESS") or _running_here() or "local"
    if address.startswith(CLIENT_PREFIX):
        raise RunnerError(
            f"ray:{address}: pytest cannot run as a Ray client",
            fix="run pytest on a node of the cluster, or let this machine join it without giving it work: ray start "
            "--address=HEAD:6379 --num-cpus=0 --num-gpus=0",
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": dict(runtime_env) or None}
    try:
        with _own_signal_handlers():
            if address == "local":
                _start_local(quiet)
            else:
                # Ray itself would try for a quarter of an hour.
                _require_answer(address)
                ray.init(address=address, **quiet)
    except (RuntimeError, ValueError, OSError) as problem:
        first_line = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise RunnerError(
            f"no Ray cluster can be used at {address}: {first_line}",
            fix="start one with `ray start --head` and the same versions of Ray and Python, name it with "
            "--llem-runner=ray:HOST:PORT or RAY_ADDRESS, or use --llem-runner=ray:local for one of this machine alone",
        ) from None
    return RayCluster(address, runtime_env, own=True)


def _running_here() -> str | None:
    """The cluster that this machine last joined, as `ray start` notes it down, when that still answers."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        address = note.read_text(encoding="utf-8").strip()
        _require_answer(address)
    except (OSError, ValueError):
        return None
    return address


def _require_answer(address: str) -> None:
    """Raise `OSError` where nothing listens at `HOST:PORT`, `ValueError` where that is no such address."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{address!r} is not HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
        return


def _start_local(options: Mapping[str, Any]) -> None:
    before = {name: os.environ.get(name) for name in LOCAL_ENVIRONMENT}
    os.environ.update({name: value for name, value in LOCAL_ENVIRONMENT.items() if before[name] is None})
    try:
        ray.init(address="local", include_dashboard=False, **options)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """`ray.init` makes SIGTERM end the process at once; here it ends the run as Ctrl-C does."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _node(facts: Mapping[str, Any]) -> Node:
    resources = {str(name): float(amount) for name, amount in facts["Resources"].items()}
    return Node(str(facts["NodeID"]), str(facts["NodeManagerHostname"]), resources)
