"""A real Ray cluster on this machine: several nodes, each with GPUs of its own that are declared and simulated."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.simulated_nvml.simulation import Simulation

ROOT = Path(__file__).parents[2]
FAULTY = ROOT / "tests" / "plugin" / "faulty_engine"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(FAULTY), str(ROOT)]),
}
CPUS = 4


@dataclass
class Machine:
    """A node of the cluster and its simulated GPUs."""

    name: str
    simulation: Simulation
    node: Any
    uuids: tuple[str, ...]


@dataclass
class Machines:
    """The cluster: a head that runs nothing, and nodes that come and go."""

    directory: Path
    library: Path
    cluster: Any = None
    nodes: dict[str, Machine] = field(default_factory=dict)

    def start(self) -> None:
        """Start the head."""
        from ray.cluster_utils import Cluster

        self.scratch.mkdir()
        os.environ.update(ENVIRONMENT)
        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "env_vars": dict(ENVIRONMENT)}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        """For `--llem-runner=ray:ADDRESS`."""
        return str(self.cluster.address)

    @property
    def leases(self) -> Path:
        """Where leases lie: the same for all, as they are one machine."""
        return self.directory / "leases"

    @property
    def scratch(self) -> Path:
        """The nodes' temporary directory."""
        return self.directory / "scratch"

    def add(
        self,
        name: str,
        gpus: int = 1,
        model: str = "H100",
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Machine:
        """A node with so many simulated GPUs of a model, which Ray knows as its accelerator type."""
        simulation = Simulation(self.directory / f"gpus-{name}", self.library, gpus)
        for index, gpu in enumerate(simulation.gpus):
            gpu.uuid = f"GPU-{name}-{index}".encode()
            gpu.name = f"NVIDIA {model} 80GB".encode()
        variables = {
            **ENVIRONMENT,
            **simulation.environment(),
            "LLEM_CALIBRATION_DIR": str(self.directory / "calibration"),
            "LLEM_LEASE_DIR": str(self.leases),
            "TMPDIR": str(self.scratch),
            "MACHINE": name,
            **(environment or {}),
        }
        node = self.cluster.add_node(
            num_cpus=CPUS,
            num_gpus=gpus,
            resources={f"accelerator_type:{model}": 1, **(resources or {})},
            env_vars=variables,
            wait=False,
        )
        uuids = tuple(gpu.uuid.decode() for gpu in simulation.gpus)
        self.nodes[name] = Machine(name, simulation, node, uuids)
        return self.nodes[name]

    def wait(self) -> None:
        """Until all nodes have joined."""
        self.cluster.wait_for_nodes(timeout=120)

    def kill(self, name: str) -> None:
        """End a node as a power cut would: its raylet is killed, and nothing is told."""
        self.cluster.remove_node(self.nodes.pop(name).node, allow_graceful=False)

    def stop(self) -> None:
        """End everything."""
        self.cluster.shutdown()


def measured(name: str | None = None) -> list[psutil.Process]:
    """The measured processes that run now, of one node or of all: by their command line and environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if _measures(process) and name in (None, process.environ().get("MACHINE")):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if "MACHINE" in _environ(process)]


def _measures(process: psutil.Process) -> bool:
    """Whether it is a worker: one of an interpreter of its own, or forked by a server, whose words it then has."""
    words, server = process.cmdline(), "pytest_llem.worker.forkserver"
    parent = process.parent() if server in words else None
    return "pytest_llem.worker" in words or (parent is not None and server in parent.cmdline())


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def run_command(arguments: Sequence[str]) -> list[str]:
    """A pytest run of its own, without the outer run's plugins."""
    return [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-p",
        "no:rerunfailures",
        *arguments,
    ]


def until(condition: Any, what: str, limit_s: float = 120.0) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {limit_s:g} s: {what}")
