"""The Ray runner: submits a cycle as a task, waits for it, and writes the node's files to the job directory.

`runners.open_runner` makes it for the session. Several threads may run cycles at a time, so what they share must be
safe for threads; a cycle whose node is lost is tried again as often as `ray.node_losses` says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors

from pytest_llem import __version__
from pytest_llem.cluster.cluster import RayCluster, ResourceRequest, connect, disconnect
from pytest_llem.cluster.node import THREADS, NodeFacts, NodeResult, Order, failure_of, write_files
from pytest_llem.cluster.tasks import (
    check_settings_on_nodes,
    demanded,
    end_task,
    measuring_task,
    preflight_nodes,
    reuse_targets_on,
    translate_ray_error,
)
from pytest_llem.containers.inputs import with_absolute_paths
from pytest_llem.engines.signatures import SignatureReport
from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError, NodeLostError, from_dict
from pytest_llem.job.config import AskedKind, ExperimentConfig
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.job.wire import decode, encode
from pytest_llem.machine.devices import devices_needed
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.announcement import progress_of
from pytest_llem.runners.breaker import LASTING
from pytest_llem.runners.protocol import OnEvent, ParallelCycles, PreflightReport, ReuseTarget, Runner, RunnerSettings
from pytest_llem.study.runner_settings import RaySettings
from pytest_llem.workload.texts import texts_of_package

POLL_S = 0.5
"""Chosen: how soon an interruption is noticed."""

CHECK_S = 5.0
"""Chosen: how often a cycle that has not begun looks whether a node is left that can run it; Ray itself needs seconds
to notice a lost node."""

MOST_IN_FLIGHT = 512
"""Chosen: each holds a thread and an open lock file here, and 1024 open files are a usual limit;
`ray.max_in_flight` sets another."""


@dataclass(frozen=True)
class Loss:
    """A node that was lost under a cycle, or that lacks what the cycle needs."""

    node: NodeFacts | None
    error: LlemError

    @property
    def hostname(self) -> str:
        """The node's name, for messages."""
        return self.node.hostname if self.node else "an unknown node"

    def facts(self) -> dict[str, JsonValue]:
        """For the result's `runner.facts`."""
        where = {"id": self.node.id, "hostname": self.node.hostname} if self.node else {"id": None, "hostname": None}
        return {**where, "error": self.error.details.get("error")}


class RayRunner(Runner):
    """Runs cycles on a cluster, several by threads; connects at the first. The section `ray` was checked at loading."""

    distributed = True

    def __init__(self, spec: RunnerSpec, settings: RunnerSettings) -> None:
        self.spec = spec
        self.settings = decode(RaySettings, settings.ray, "ray")
        self._study = settings
        self._progress = progress_of(settings.run_dir)
        self._ended = threading.Event()
        self._given_up: set[str] = set()
        self._asking = threading.Lock()
        self._reuse_targets: dict[tuple[object, ...], list[ReuseTarget]] = {}

    @property
    def cluster(self) -> RayCluster:
        """The cluster, connected to by whoever asks first. Raises `RunnerError`."""
        return connect(self.spec.address, self.settings.runtime_env.given)

    def parallel_cycles(self, configs: Sequence[ExperimentConfig]) -> ParallelCycles:
        """As many as run at a time, and one to follow each; where the cluster may grow, as many as there can be."""
        settings = self.settings
        asked = {(devices_needed(config), config.device.kind) for config in configs}
        requests = [self.cluster.request(settings, count, kind) for count, kind in asked]
        notices = self._uneven() if settings.cpus is None and any(request.gpus == 0 for request in requests) else ()
        if settings.max_in_flight is not None:
            return ParallelCycles(settings.max_in_flight, notices)
        parallel = max((self.cluster.parallel_cycles(request) for request in requests), default=1)
        if parallel > MOST_IN_FLIGHT:
            limit = (
                f"the Ray cluster can run {parallel} cycles at a time, and this process submits {MOST_IN_FLIGHT}: set "
                "ray.max_in_flight, and raise `ulimit -n` with it"
            )
            notices = (*notices, limit)
        return ParallelCycles(
            MOST_IN_FLIGHT if settings.wait_for_nodes_s else max(1, min(2 * parallel, MOST_IN_FLIGHT)), notices
        )

    def _uneven(self) -> tuple[str, ...]:
        sizes = self.cluster.cpu_sizes(self.settings)
        if len(sizes) < 2:
            return ()
        listed = ", ".join(f"{size:g}" for size in sizes)
        return (
            f"cycles on the CPU may come to nodes of {listed} CPUs and take {sizes[0]:g}: on a larger node several "
            "wait for one another; name ray.resources that only equal nodes have",
        )

    def preflight(self, engine: str, configs: Sequence[ExperimentConfig], devices: DeviceSet) -> PreflightReport:
        """Whether a node of each kind that may run these has the package and the engine."""
        least = self._feasible(1, configs[0].device.kind)
        nodes = self.cluster.able(least)
        return preflight_nodes(nodes, configs, least.gpus, self.settings, self._study.docker, self._ended)

    def check_settings(
        self, configs: Sequence[ExperimentConfig], directory: Path, devices: DeviceSet
    ) -> SignatureReport:
        """Compare settings of one engine with the signatures of the one on a node of each kind."""
        return check_settings_on_nodes(
            self.cluster.able(self._feasible(1, configs[0].device.kind)), configs, self.settings, self._ended
        )

    def reuse_targets(self, config: ExperimentConfig) -> list[ReuseTarget]:
        """The nodes that may run this experiment, each with what must be equal for an earlier result to be reused."""
        request = self._feasible(devices_needed(config), config.device.kind)
        inputs = config.workload.dataset, config.workload.revision, config.model, config.revision, config.lora
        key = (str(request), *inputs, config.workload.times_file, repr(texts_of_package(config.workload)))
        with self._asking:
            if key not in self._reuse_targets:
                nodes = self.cluster.able(request)
                image, docker = self.settings.image, self._study.docker
                self._reuse_targets[key] = reuse_targets_on(nodes, request, config, image, docker, self._ended)
            return self._reuse_targets[key]

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """Run one cycle on a node that Ray chooses; the job directory has its files afterwards, the job's devices too.

        Raises `LlemError` where there is no report: an infeasible request, a node that was lost too often, an
        interruption, or what stopped the cycle on its node. A lease is the node's to take.
        """
        order = Order(
            version=__version__,
            job=replace(job, config=with_absolute_paths(job.config)),
            source=self.spec.source,
            gpus=0,
            residual_memory_bytes=self._study.residual_memory_bytes,
            cooldown=self._study.cooldown,
            docker=self._study.docker,
            image=self.settings.image,
            threads_chosen=THREADS in (self.settings.runtime_env.env_vars or {}),
        )
        title = f"{job.study} {job.experiment_id} c{job.cycle}"
        losses: list[Loss] = []
        lacking: list[Loss] = []
        while True:
            request = self._feasible(devices_needed(job.config), job.config.device.kind)
            # A cycle whose nodes go before it begins comes round again without a loss: it waits for others or raises.
            node, result = self._attempt(replace(order, gpus=request.gpus), request, title, losses, lacking)
            if result is not None:
                break
            if len(losses) > self.settings.node_losses:
                where = "; ".join(f"{loss.hostname}: {loss.error.message}" for loss in losses)
                raise NodeLostError(
                    f"{title}: lost with its node {len(losses)} times: {where}",
                    fix="look at Ray's logs of these nodes (out of memory?); ray.node_losses sets how often a cycle is "
                    "tried again",
                    details={"losses": [loss.facts() for loss in losses]},
                )
        assert node is not None, "what was delivered comes from a node"
        write_files(result.files, job_dir)
        if result.error is not None:
            raise from_dict(result.error)
        assert result.report is not None, "without an error there is a report"
        return self._report(result.report, node, losses, lacking)

    def interrupt(self) -> None:
        """Cancel what is outstanding; cycles that wait end with an `InterruptedCycleError`, and so do later ones."""
        # Each waiting thread cancels its own task: Ray's driver aborts when one is cancelled twice.
        self._ended.set()

    def close(self) -> None:
        """Cancel what is left, and leave the cluster."""
        self.interrupt()
        self._progress.clear()
        disconnect()

    def _feasible(self, devices: int, kind: AskedKind) -> ResourceRequest:
        """The request of a cycle that needs so many devices of a kind, once the cluster has a node for it."""
        wait_s = self.settings.wait_for_nodes_s
        deadline = time.monotonic() + wait_s
        with demanded() as demand:
            while True:
                request = self.cluster.request(self.settings, devices, kind)
                if self.cluster.able(request):
                    return request
                if time.monotonic() >= deadline or str(request) in self._given_up:
                    self._given_up.add(str(request))
                    raise self.cluster.infeasible(request, wait_s)
                demand(request)
                if self._ended.wait(POLL_S):
                    raise _interrupted()

    def _attempt(
        self, order: Order, request: ResourceRequest, title: str, losses: list[Loss], lacking: list[Loss]
    ) -> tuple[NodeFacts | None, NodeResult | None]:
        """One submission: the node and what it delivered, or `None` when the node was lost, which is noted.

        Also `None` when no node that it may run on is left before it has begun, and when another node may have what the
        first one lacks, which is noted too.
        """
        node: NodeFacts | None = None
        lost = self._to_avoid(request, [*losses, *lacking])
        task = measuring_task().options(**_options(request, title, lost)).remote(encode(order))
        try:
            if not self._begins(task, request, lost):
                end_task(task)
                return None, None
            first = self._next(task, title)
            assert isinstance(first, NodeFacts), "a task reports first where it runs"
            node = first
            self._progress.running(node.hostname)
            result = self._next(task, title)
            assert isinstance(result, NodeResult), "a task ends with what it delivers"
        except NodeLostError as error:
            losses.append(Loss(node, error))
            if node is not None:
                again = len(losses) <= self.settings.node_losses
                self._progress.done(node.hostname, again=again)
            return node, None
        except BaseException:
            end_task(task)
            if node is not None:
                self._progress.done(node.hostname)
            raise
        failure = failure_of(result)
        lasting = failure is not None and failure.category in LASTING
        again = lasting and not lacking and self.cluster.can_run(request, {node.id})
        self._progress.done(node.hostname, again=again)
        if failure is not None and again:
            lacking.append(Loss(node, failure))
            return node, None
        return node, result

    def _begins(self, task: Any, request: ResourceRequest, lost: Collection[str]) -> bool:
        """Wait until a task reports; `False` when no node is left for it: Ray would let it wait for ever."""
        check = time.monotonic() + CHECK_S
        while not self._reports(task):
            if time.monotonic() >= check:
                if not self.cluster.can_run(request, lost):
                    return False
                check = time.monotonic() + CHECK_S
        return True

    def _reports(self, task: Any) -> bool:
        """Whether a task reports something within `POLL_S`."""
        if self._ended.is_set():
            raise _interrupted()
        ready, _ = ray.wait([task], timeout=POLL_S)
        return bool(ready)

    def _next(self, task: Any, title: str) -> object:
        """The next thing that a task reports, waited for as long as it takes."""
        while not self._reports(task):
            continue
        try:
            return ray.get(next(task))
        except StopIteration:
            raise NodeLostError(
                f"{title}: the Ray task ended without reporting a result", details={"error": "silent"}
            ) from None
        except (ray_errors.RayError, ImportError) as error:
            if self._ended.is_set():
                raise _interrupted() from None
            raise translate_ray_error(error, title) from None

    def _to_avoid(self, request: ResourceRequest, losses: Sequence[Loss]) -> set[str]:
        """The nodes that the cycle was lost with or that lack what it needs, where there are others."""
        lost = {loss.node.id for loss in losses if loss.node}
        return lost if self.cluster.can_run(request, lost) else set()

    def _report(self, report: RunReport, node: NodeFacts, losses: Sequence[Loss], lacking: Sequence[Loss]) -> RunReport:
        notes = report.notes
        for loss in lacking:
            text = f"tried again elsewhere after {loss.hostname}: {loss.error.message}"
            notes = (*notes, Note("node_lacking", text))
        if losses:
            names = ", ".join(loss.hostname for loss in losses)
            notes = (*notes, Note("node_lost", f"lost before, and tried again elsewhere: {names}"))
        facts: dict[str, JsonValue] = {
            "ray": ray.__version__,
            "node": {"id": node.id, "hostname": node.hostname, "address": node.address},
            "node_losses": [loss.facts() for loss in losses],
        }
        return replace(report, source=self.spec.source, notes=notes, facts={**report.facts, **facts})


def _options(request: ResourceRequest, title: str, avoided: Collection[str]) -> dict[str, Any]:
    options: dict[str, Any] = {**request.options, "name": f"llem {title}"}
    if avoided:
        options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
    return options


def _interrupted() -> InterruptedCycleError:
    return InterruptedCycleError("cancelled: the run ended before the cycle was done")
