"""Studies under pytest-xdist on one machine: a device per cycle, in order, nothing lost, nothing measured twice.

On simulated GPUs, with real workers in real processes, and an engine that sleeps.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.lease_files import is_free
from pytest_llem.machine.leases import LeaseRequest, take_lease
from tests.simulated_nvml.plugin import MakeSimulation, make_simulation, simulated_nvml_library

__all__ = ["make_simulation", "simulated_nvml_library"]

ROOT = Path(__file__).parents[2]
STUDY = """\
name: {name}
engine: parallel
model: none
workload: {{prompts: 1, input_tokens: 4, output_tokens: 2}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0}}, warmup: {{max_repeats: 0}}}}
execution: {{cycles: {cycles}, retries: 0, order: sequential, timeout_s: 120, cooldown: 0}}
{more}
"""


@pytest.fixture(autouse=True)
def engine_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)]))
    monkeypatch.setenv("COLUMNS", "300")


@dataclass(frozen=True)
class Measured:
    """One cycle of a run: which, where, and between which times (ns)."""

    id: str
    cycle: int
    devices: tuple[str, ...]
    start_ns: int
    end_ns: int
    result: Mapping[str, Any]

    @property
    def worker(self) -> int:
        """The pytest process that measured it."""
        return int(self.result["engine"]["effective"]["pytest"])


@dataclass(frozen=True)
class Run:
    """A pytest run that has ended."""

    directory: Path
    output: str
    code: int

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        manifest: Mapping[str, Any] = json.loads((self.directory / "run.json").read_text())
        return manifest

    @cached_property
    def cycles(self) -> list[Measured]:
        """What was measured, in the order of time."""
        found = []
        for path in self.directory.glob("*/*/c*/measurement.json"):
            [window] = [one for one in json.loads(path.read_text())["windows"] if one["name"] == "measure"]
            devices = json.loads((path.parent / "job.json").read_text())["devices"]
            result = json.loads((path.parent / "result.json").read_text())
            found.append(
                Measured(
                    result["experiment"]["id"],
                    result["cycle"],
                    tuple(devices["uuids"]),
                    window["start_ns"],
                    window["end_ns"],
                    result,
                )
            )
        return sorted(found, key=lambda one: one.start_ns)

    def on(self, device: str) -> list[Measured]:
        return [one for one in self.cycles if device in one.devices]

    def places(self) -> dict[tuple[str, int], int]:
        planned = [(one["experiment_id"], one["cycle"]) for one in self.manifest["studies"][0]["cycles"]]
        return {cycle: place for place, cycle in enumerate(planned)}

    def junit(self) -> dict[str, ElementTree.Element]:
        cases = ElementTree.parse(self.directory / "junit.xml").iter("testcase")
        return {case.attrib["name"]: case for case in cases}


def write(directory: Path, more: str, *, name: str = "gpus", cycles: int = 1) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(STUDY.format(name=name, more=more, cycles=cycles))
    return path


@dataclass(frozen=True)
class Started:
    """A pytest run in a process of its own, with a log and a directory of results of its own."""

    process: subprocess.Popen[bytes]
    out: Path

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".log")

    def says(self, pattern: str) -> str:
        """What the run says that matches, once it has said it."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text())
            if found:
                return found[0]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def end(self) -> Run:
        code = self.process.wait(timeout=240)
        found = [path.parent for path in self.out.glob("*/run.json")]
        assert len(found) == 1, self.log.read_text()
        return Run(found[0], self.log.read_text(), code)


def start(study: Path, *arguments: str, out: str = "out") -> Started:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llem-meter=none", f"--llem-out={out}"]
    directory = study.parent / out
    with directory.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([*command, str(study), *arguments], cwd=study.parent, stdout=log, stderr=log)
    return Started(process, directory)


def test_each_cycle_gets_a_gpu_of_its_own_in_the_studys_order(tmp_path: Path, make_simulation: MakeSimulation) -> None:
    """Eight experiments on four GPUs: as many workers as GPUs."""
    uuids = [gpu.uuid.decode() for gpu in make_simulation(4).gpus]
    run = start(write(tmp_path, "sweep: {parallel.number: {range: [1, 8, 1]}}"), "-n", "auto").end()

    assert run.code == 0, run.output
    assert "llem: 4 workers: 4 GPUs visible, an experiment needs 1\n" in run.output
    assert [(item["state"], item["attempts"]) for item in run.manifest["items"]] == [("valid", ["valid"])] * 8
    assert len(run.cycles) == len(run.junit()) == 8
    for cycle in run.cycles:
        [uuid] = cycle.devices
        assert cycle.result["engine"]["effective"]["visible"] == uuid
        assert cycle.result["runner"]["facts"]["lease"] == [uuid]
        assert cycle.result["runner"]["facts"]["concurrent_workers"] == 4
    for uuid in uuids:
        assert len({one.worker for one in run.on(uuid)}) == 1, "each worker keeps to its GPU"
        places = [run.places()[one.id, 1] for one in run.on(uuid)]
        assert places == sorted(places)
    assert_exclusive(run.cycles, uuids)
    assert all(is_free(uuid) for uuid in uuids)
    assert not list((tmp_path / "leases").glob("waiting-*"))


def assert_exclusive(cycles: Sequence[Measured], uuids: Sequence[str]) -> None:
    """No two cycles were measured on a device at a time."""
    for uuid in uuids:
        on_device = sorted((one for one in cycles if uuid in one.devices), key=lambda one: one.start_ns)
        assert all(one.end_ns < other.start_ns for one, other in pairwise(on_device))


ON_ONE_DEVICE = """\
sweep: {parallel.number: {range: [1, 5, 1]}}
expect: {output_tokens_per_s: ">= 0.000001"}
"""


def test_cycles_and_gates_of_many_workers_on_one_device(tmp_path: Path, make_simulation: MakeSimulation) -> None:
    """The first gates ask for the last cycles while these wait for the device: nobody waits for ever."""
    [uuid] = [gpu.uuid.decode() for gpu in make_simulation(1).gpus]
    with take_lease(DeviceSet("cuda", (uuid,)), timeout_s=0, request=LeaseRequest("another run")):
        started = start(write(tmp_path, ON_ONE_DEVICE), "-n4")
        for worker in ("gw0", "gw1", "gw2", "gw3"):
            started.says(
                rf"llem: \[\d/5\] \[{worker}\] waiting for {uuid}: in use by .* \(another run\).*: gpus number:\d c1"
            )
    run = started.end()

    assert run.code == 0, run.output
    assert "llem: 4 workers, of which 1 can measure at a time, the others wait: 1 GPU visible" in run.output
    assert [item["attempts"] for item in run.manifest["items"]] == [["valid"]] * 5
    assert sum(name.startswith("test_gate") for name in run.junit()) == 5
    for process in {one.worker for one in run.cycles}:
        places = [run.places()[one.id, one.cycle] for one in run.cycles if one.worker == process]
        assert places == sorted(places), "no worker is handed anything out of the study's order"
    assert_exclusive(run.cycles, [uuid])


LOSES = """
import pytest

class Special(float):
    pass

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if "special" in item.nodeid and call.when == "call":
        report.user_properties.append(("x", Special(1)))
    return report
"""


@pytest.fixture
def no_worker_left(tmp_path: Path) -> Iterator[None]:
    yield
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ())
    ]
    assert left == []


@pytest.mark.usefixtures("no_worker_left")
def test_a_worker_that_dies_costs_its_item_and_nothing_else(tmp_path: Path, make_simulation: MakeSimulation) -> None:
    """Killed by SIGKILL in the middle of a cycle: the measured process, which would sleep for an hour, is ended too."""
    make_simulation(1)
    (tmp_path / "conftest.py").write_text(LOSES)
    study = write(tmp_path, "sweep: {model: [none, crash, special, more, most]}")
    run = start(study, "-d", "--tx=2*popen").end()

    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output
    assert re.search(r"2 failed, 3 passed", run.output), run.output
    assert re.search(
        r"^1 of 5 cycles left.*\n +\S.*pytest .*--tx='?2\*popen'? .*--llem-resume$", run.output, re.MULTILINE
    )
    states = {item["experiment_id"]: item["state"] for item in run.manifest["items"]}
    assert states == {
        "model:none": "valid", "model:crash": "crashed", "model:special": "valid", "model:more": "valid",
        "model:most": "valid",
    }  # fmt: skip
    [path] = run.directory.glob("gpus/model-crash-*/c1/error.json")
    error = json.loads(path.read_text())
    assert error["category"] == "worker_crashed"
    assert re.fullmatch(r"gw[01]", error["details"]["worker"])
    assert error["details"]["worker"] in error["message"]

    cases = run.junit()
    assert len(cases) == 5
    crashed = cases["test_experiment[model:crash-c1]"]
    properties = {one.attrib["name"]: one.attrib["value"] for one in crashed.iter("property")}
    assert properties["llem_status"] == "crashed"
    assert (tmp_path / properties["llem_artifact"]).is_dir()
    [failure] = crashed.iter("failure")
    assert "crashed while running" in str(failure.text)

    # An item that xdist could not report: on its own it would be lost, and the run a success.
    [lost] = cases["test_experiment[model:special-c1]"].iter("failure")
    assert "user_properties['x'] is a conftest.Special" in str(lost.text)


def test_runs_in_two_terminals_share_the_devices(tmp_path: Path, make_simulation: MakeSimulation) -> None:
    """While a third run holds the GPUs both say for whom they wait; then no two cycles run on one device."""
    uuids = [gpu.uuid.decode() for gpu in make_simulation(2).gpus]
    more = "sweep: {parallel.number: [1]}\nexperiments: [{id: two, parallel: {tensor_parallel_size: 2}}]"
    with take_lease(DeviceSet("cuda", tuple(uuids)), timeout_s=0, request=LeaseRequest("a third run")):
        started = [
            start(write(tmp_path, more, name=name), processes, out=f"out-{name}")
            for name, processes in (("first", "-n0"), ("second", "-n1"))
        ]
        for one in started:
            one.says(rf"waiting for .*: in use by process {os.getpid()} \(a third run\)")
    runs = [one.end() for one in started]

    assert [run.code for run in runs] == [0, 0], [run.output for run in runs]
    cycles = [cycle for run in runs for cycle in run.cycles]
    found = sorted((cycle.id, len(cycle.devices)) for cycle in cycles)
    assert found == [("number:1", 1), ("number:1", 1), ("two", 2), ("two", 2)]
    assert_exclusive(cycles, uuids)


MARKED = """
import pytest

@pytest.mark.llem_study("gpus.yaml")
def test_result(llem_result):
    pass
"""


def test_a_study_that_only_a_marker_names_is_refused_once_workers_have_found_it(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "test_marked.py").write_text(MARKED)
    started = start(tmp_path / "test_marked.py", "-n1", "--dist=worksteal")
    assert started.process.wait(timeout=240) == pytest.ExitCode.USAGE_ERROR
    said = started.log.read_text()
    assert re.search(r"(?m)^ERROR: --dist=worksteal cannot be used with a study: .*\nfix: use --dist=load", said)
    assert not (tmp_path / "out").exists()
