"""How far energy meters are from the truth, on one simulated sensor in one run.

    python -m tests.benchmarks.energy_accuracy [--quick] [--case NAME ...] [--json FILE] [--write-docs]

First this project alone, on a virtual clock: hundreds of windows for each sensor, whatever else the machine does. Then,
in real time, its NVML meter with a real sampler process beside Zeus, CodeCarbon and power polled every 100 ms, and what
the sampler costs; that part wants an idle machine and says how busy it was. `LLEM_PEERS_PYTHON` may name an interpreter
that has the peers installed; a peer that is absent is left out, with its reason. `--write-docs` puts the tables into
docs/energy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from pytest_llem.energy import registry
from pytest_llem.energy.calibrate import save
from pytest_llem.energy.gpu_meter import NvmlMeter
from pytest_llem.energy.protocol import Meter
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import EnergyReport, Window
from tests.benchmarks import energy_accuracy_peers
from tests.benchmarks.energy_accuracy_cases import CASES, LOADS, SENSORS, Case, apply, calibration_of, run_load, side_s
from tests.benchmarks.energy_accuracy_report import (
    OURS,
    Row,
    as_json,
    matrix_table,
    own_table,
    peers_table,
    row,
    show,
    write_docs,
)
from tests.benchmarks.energy_accuracy_virtual import Run, run_virtually
from tests.simulated_nvml.simulation import Gpu, Simulation, build_library, preload

VIRTUAL = {0.1: 400, 0.3: 400, 1.0: 400, 3.0: 100, 10.0: 40}
FULL = {0.1: 40, 0.3: 40, 1.0: 40, 3.0: 12, 10.0: 4}
HARD = {0.3: 15, 1.0: 15}
QUICK = {0.3: 8, 1.0: 8}
MATRIX = {0.3: 60, 1.0: 60, 10.0: 10}
DECODE_STEPS = 2_000


class PeerProcess:
    """One peer in its own process; `absent` says why there is none."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        python = os.environ.get("LLEM_PEERS_PYTHON", sys.executable)
        self.name = name
        self._process = subprocess.Popen(
            [python, energy_accuracy_peers.__file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        self.absent = self._answer().get("absent")

    def begin(self) -> None:
        self.ask("begin")
        self._answer()

    def ask(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def energy_j(self) -> float:
        return float(str(self._answer()["energy_j"]))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, object] = json.loads(line) if line else {"absent": f"{self.name} did not start"}
        return answer


@dataclass
class Outcome:
    """One meter in one case, by window length: relative errors, and the relative bounds where it states them."""

    errors: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    bounds: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    estimators: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sampler_cpu_rel: float | None = None
    late: list[bool] = field(default_factory=list)
    missed_late: int = 0


def run_case(
    case: Case, plan: Mapping[float, int], library: Path, directory: Path, peers: tuple[str, ...]
) -> dict[str, Outcome]:
    """Every meter on the same windows of one simulated GPU."""
    simulation = Simulation(directory / "gpus", library)
    gpu = simulation.gpus[0]
    apply(case, gpu)
    environment = simulation.environment()
    os.environ.update(environment)
    os.environ["LLEM_CALIBRATION_DIR"] = str(directory / "calibration")
    preload(library)
    known = calibration_of(case, simulation, gpu)
    if known is not None:
        save(known)
    running = [PeerProcess(name, environment) for name in peers]
    for peer in running:
        if peer.absent is not None:
            print(f"  skipped: {peer.absent}", file=sys.stderr)
    running = [peer for peer in running if peer.absent is None]
    meter = registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda", (gpu.uuid.decode(),)), directory)
    assert meter is not None
    try:
        return measure(case, plan, gpu, side_s(known), meter, running)
    finally:
        for peer in running:
            peer.close()


def measure(
    case: Case, plan: Mapping[float, int], gpu: Gpu, rest_s: float, meter: Meter, running: list[PeerProcess]
) -> dict[str, Outcome]:
    """Run all windows in random order and settle every meter's error against the truth."""
    rng = random.Random(7)
    lengths = [length for length, count in plan.items() for _ in range(count)]
    rng.shuffle(lengths)
    outcomes = {name: Outcome() for name in (OURS, *(peer.name for peer in running))}
    windows: list[Window] = []
    began = time.monotonic()
    meter.start()
    for length in lengths:
        edges = iter((True, False))

        def mark(edges: object = edges) -> None:
            beginning = next(edges)  # type: ignore[call-overload]
            for peer in reversed(running):
                if beginning:
                    peer.begin()
                else:
                    peer.ask("end")

        late_before = gpu.late_steps
        start, end = run_load(gpu, length, case, rest_s, mark, rng)
        outcomes[OURS].late.append(gpu.late_steps > late_before)
        truth_j = gpu.energy_between_j(start, end)
        for peer in running:
            outcomes[peer.name].errors[length].append((peer.energy_j() - truth_j) / truth_j)
        quiet_s = rest_s if case.quiet and case.confirmed else None
        windows.append(Window("measure", start, end, len(windows), quiet_s, quiet_s))
    report = meter.stop(windows)
    outcomes[OURS].sampler_cpu_rel = float(str(report.facts["sampler_cpu_s"])) / (time.monotonic() - began)
    settle(outcomes[OURS], report, lengths, gpu)
    return outcomes


def settle(outcome: Outcome, report: EnergyReport, lengths: list[float], gpu: Gpu) -> None:
    """Compare this project's windows with the truth; counts those outside their bounds whose power steps came late."""
    for length, window, late in zip(lengths, report.windows, outcome.late, strict=True):
        truth_j = gpu.energy_between_j(window.start_ns, window.end_ns)
        if window.energy_j is None or window.uncertainty_j is None:
            outcome.estimators["none"] += 1
            continue
        outcome.errors[length].append((window.energy_j - truth_j) / truth_j)
        outcome.bounds[length].append(window.uncertainty_j / truth_j)
        outcome.estimators[str(window.estimator)] += 1
        outcome.missed_late += late and abs(window.energy_j - truth_j) > window.uncertainty_j


def rows_of(case: Case, outcomes: Mapping[str, Outcome]) -> list[Row]:
    """One row per meter and window length."""
    return [
        row(case.name, name, length, errors, outcome.bounds.get(length))
        for name, outcome in outcomes.items()
        for length, errors in sorted(outcome.errors.items())
    ]


def virtual_rows(case: Case, plan: Mapping[float, int], library: Path, directory: Path) -> list[Row]:
    """This project's estimators and sampler on a virtual clock; prints which estimators were used."""
    simulation = Simulation(directory / "virtual", library)
    os.environ.update(simulation.environment())
    found = run_virtually(case, plan, simulation)
    print(f"\n{case.name} {dict(case.settings)}, virtual clock; {dict(Counter(run.estimator for run in found))}")
    rows = []
    for length in plan:
        known = [run for run in found if run.seconds == length]
        errors = [run.error for run in known if run.error is not None]
        bounds = [run.bound for run in known if run.bound is not None]
        rows.append(row(case.name, OURS, length, errors, bounds, refused=any(run.refused for run in known)))
    show(rows)
    return rows


def matrix(library: Path, directory: Path, plan: Mapping[float, int]) -> str:
    """Sensor by load by length, on a virtual clock, as Markdown."""
    found: dict[tuple[str, str, float], list[Run]] = {}
    for sensor in SENSORS:
        for name, load in LOADS.items():
            case = replace(sensor, **load)
            simulation = Simulation(directory / "matrix", library, case.gpus)
            os.environ.update(simulation.environment())
            for run in run_virtually(case, plan, simulation):
                found.setdefault((sensor.name, name, run.seconds), []).append(run)
    return "\n\n".join(matrix_table(found, length) for length in plan)


def slowdown(library: Path, directory: Path, pairs: int) -> tuple[float, float]:
    """How much longer a CPU-bound decode loop takes beside the sampler: wall and CPU time, medians over `pairs`.

    The sampler is stopped and continued between short blocks, so that whatever else the machine does falls on both
    alike.
    """
    simulation = Simulation(directory / "gpus", library)
    os.environ.update(simulation.environment())
    os.environ["LLEM_CALIBRATION_DIR"] = str(directory / "calibration")
    known = calibration_of(CASES[0], simulation, simulation.gpus[0])
    assert known is not None
    save(known)
    meter = registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda"), directory)
    assert isinstance(meter, NvmlMeter)
    meter.start()
    pid = int(str(meter.sampler_pid))
    wall: list[float] = []
    cpu: list[float] = []
    decode_s()
    for _ in range(pairs):
        os.kill(pid, signal.SIGSTOP)
        alone = decode_s()
        os.kill(pid, signal.SIGCONT)
        beside = decode_s()
        wall.append(beside[0] / alone[0])
        cpu.append(beside[1] / alone[1])
    meter.stop([])
    return median(wall) - 1, median(cpu) - 1


def start_costs(directory: Path, starts: int = 15) -> tuple[float, float]:
    """How long the sampler takes from being started to its first reading, and its CPU time for that: medians."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(starts):
        begin = time.monotonic()
        sampler = SamplerProcess(directory / "starts.jsonl", (), ())
        wall.append(time.monotonic() - begin)
        cpu.append(sampler.cpu_time_s() or 0.0)
        sampler.stop()
    return median(wall), median(cpu)


def decode_s() -> tuple[float, float]:
    """Wall and CPU seconds of a loop with the CPU profile of decoding: small vector products, one after another."""
    row = [float(index % 7) for index in range(256)]
    begin, begin_cpu = time.monotonic(), time.process_time()
    for _ in range(DECODE_STEPS):
        total = sum(a * b for a, b in zip(row, row, strict=True))
        row[0] = total % 5.0
    return time.monotonic() - begin, time.process_time() - begin_cpu


def machine_load() -> str:
    """How busy this machine was over the last minute: real time figures are worth little on a busy one."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter windows")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--virtual-only", action="store_true", help="nothing in real time")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/energy.md")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.case or case.name in options.case]
    peers = () if options.no_peers else tuple(energy_accuracy_peers.PEERS)
    before = machine_load()
    virtual: list[Row] = []
    real: list[Row] = []
    costs = ""
    with tempfile.TemporaryDirectory(prefix="llem-accuracy-") as name:
        library = build_library(Path(name))
        preload(library)
        for case in cases:
            directory = Path(name) / case.name
            directory.mkdir()
            virtual += virtual_rows(case, QUICK if options.quick else VIRTUAL, library, directory)
        table = "" if options.case else matrix(library, Path(name), QUICK if options.quick else MATRIX)
        print(f"\n{table}")
        if not options.virtual_only:
            shares: list[float] = []
            for case in (case for case in cases if case.peers or options.case):
                plan = QUICK if options.quick else FULL if case.name == "default" else HARD
                outcomes = run_case(case, plan, library, Path(name) / case.name, peers)
                ours = outcomes[OURS]
                shares.append(ours.sampler_cpu_rel or 0.0)
                print(
                    f"\n{case.name} {dict(case.settings)}, real time; {dict(ours.estimators)}; {machine_load()}; ",
                    end="",
                )
                print(f"sampler {100 * shares[-1]:.1f} % of a core; ", end="")
                print(
                    f"{sum(ours.late)} windows whose power was set late, {ours.missed_late} of them outside their bound"
                )
                found = rows_of(case, outcomes)
                show(found)
                real += found
            directory = Path(name) / "slowdown"
            directory.mkdir()
            wall, cpu = slowdown(library, directory, 20 if options.quick else 100)
            started = start_costs(directory)
            costs = (
                f"The sampler used {100 * min(shares):.1f} to {100 * max(shares):.1f} % of a core; a CPU-bound decode "
                f"loop beside it takes {100 * wall:+.2f} % wall and {100 * cpu:+.2f} % CPU time. It starts in "
                f"{1e3 * started[0]:.0f} ms, {1e3 * started[1]:.0f} ms of them CPU time. Before: {before}; "
                f"after: {machine_load()}."
            )
            print(f"\n{costs}")
    if options.json:
        options.json.write_text(
            json.dumps({"virtual": as_json(virtual), "real": as_json(real), "costs": costs}, indent=1)
        )
    if options.write_docs:
        write_docs("accuracy", own_table(virtual))
        write_docs("accuracy matrix", table)
        if real:
            write_docs("accuracy beside others", f"{peers_table(real)}\n\n{costs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
