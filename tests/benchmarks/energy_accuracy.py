"""How far energy meters are from the truth, on one simulated sensor in one run.

    python -m tests.benchmarks.energy_accuracy [--quick] [--case NAME ...] [--json FILE]

Compares this project's NVML meter with Zeus, CodeCarbon and power polled every 100 ms. `LLEM_PEERS_PYTHON` may name an
interpreter that has the peers installed; a peer that is absent is left out, with its reason.
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
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from pytest_llem import energy
from pytest_llem.energy import calibration
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.nvml import NvmlMeter
from pytest_llem.energy.protocol import EnergyReport, Meter, Window
from pytest_llem.energy.validity import Thresholds
from pytest_llem.job import DeviceSet, MeterSettings
from tests.benchmarks import energy_accuracy_peers
from tests.benchmarks.energy_accuracy_cases import CASES, QUIET_S, Case, apply, run_load
from tests.simulated_nvml.simulation import Gpu, Simulation, build_library, preload

FULL = {0.1: 40, 0.3: 40, 1.0: 40, 3.0: 12, 10.0: 4}
HARD = {0.3: 20, 1.0: 16}
QUICK = {0.3: 8, 1.0: 8}
OURS = "pytest-llem"
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


def run_case(
    case: Case, plan: dict[float, int], library: Path, directory: Path, peers: tuple[str, ...]
) -> dict[str, Outcome]:
    """Every meter on the same windows of one simulated GPU."""
    simulation = Simulation(directory / "gpus", library)
    gpu = simulation.gpus[0]
    apply(case, gpu)
    environment = simulation.environment()
    os.environ.update(environment)
    os.environ["LLEM_CALIBRATION_DIR"] = str(directory / "calibration")
    if case.calibrated:
        calibration.save(true_calibration(simulation, gpu))
    running = [PeerProcess(name, environment) for name in peers]
    for peer in running:
        if peer.absent is not None:
            print(f"  skipped: {peer.absent}", file=sys.stderr)
    running = [peer for peer in running if peer.absent is None]
    meter = energy.open_meter(MeterSettings("nvml"), DeviceSet("cuda", (gpu.uuid.decode(),)), directory)
    assert meter is not None
    try:
        return measure(case, plan, gpu, meter, running)
    finally:
        for peer in running:
            peer.close()


def measure(
    case: Case, plan: dict[float, int], gpu: Gpu, meter: Meter, running: list[PeerProcess]
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

        start, end = run_load(gpu, length, case, mark, rng)
        truth_j = gpu.energy_between_j(start, end)
        for peer in running:
            outcomes[peer.name].errors[length].append((peer.energy_j() - truth_j) / truth_j)
        side_s = QUIET_S if case.quiet else None
        windows.append(Window("measure", start, end, len(windows), side_s, side_s))
    report = meter.stop(windows)
    outcomes[OURS].sampler_cpu_rel = float(str(report.facts["sampler_cpu_s"])) / (time.monotonic() - began)
    settle(outcomes[OURS], report, lengths, gpu)
    return outcomes


def settle(outcome: Outcome, report: EnergyReport, lengths: list[float], gpu: Gpu) -> None:
    """Compare this project's windows with the truth."""
    for length, window in zip(lengths, report.windows, strict=True):
        truth_j = gpu.energy_between_j(window.start_ns, window.end_ns)
        if window.energy_j is None or window.uncertainty_j is None:
            outcome.estimators["none"] += 1
            continue
        outcome.errors[length].append((window.energy_j - truth_j) / truth_j)
        outcome.bounds[length].append(window.uncertainty_j / truth_j)
        outcome.estimators[str(window.estimator)] += 1


def true_calibration(simulation: Simulation, gpu: Gpu) -> Calibration:
    """What calibration finds on this sensor (`tests/unit/energy/test_calibrate.py`), with the bounds it then states."""
    return Calibration(
        uuid=gpu.uuid.decode(),
        driver=simulation.machine.driver.decode(),
        period_ns=gpu.period_ns,
        jitter_ns=max(200_000, gpu.jitter_ns),
        call_latency_ns=gpu.latency_ns,
        poll_step_ns=500_000,
        ramp_ns=gpu.ramp_ns if gpu.duty >= 1 else None,
        ramp_uncertainty_ns=max(300_000, gpu.ramp_ns // 10) if gpu.duty >= 1 else None,
        counter_type="accumulating" if gpu.duty >= 1 else "part_time",
        duty=gpu.duty if gpu.duty < 1 else None,
    )


def table(case: Case, outcomes: dict[str, Outcome]) -> list[dict[str, object]]:
    """Rows for printing: one per meter and window length."""
    rows: list[dict[str, object]] = []
    limit = Thresholds().uncertainty_rel
    for name, outcome in outcomes.items():
        for length, errors in sorted(outcome.errors.items()):
            bounds = outcome.bounds.get(length)
            row: dict[str, object] = {
                "case": case.name,
                "meter": name,
                "window_s": length,
                "runs": len(errors),
                "mean_error": fmean(abs(error) for error in errors),
                "worst_error": max(abs(error) for error in errors),
            }
            if bounds:
                pairs = list(zip(errors, bounds, strict=True))
                valid = [(error, bound) for error, bound in pairs if bound <= limit]
                row["median_bound"] = median(bounds)
                row["valid"] = len(valid) / len(pairs)
                row["coverage_all"] = fmean(abs(error) <= bound for error, bound in pairs)
                row["coverage_valid"] = fmean(abs(e) <= b for e, b in valid) if valid else None
            rows.append(row)
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print a table of percentages."""
    columns = ("mean_error", "worst_error", "median_bound", "valid", "coverage_valid", "coverage_all")
    print(f"{'meter':<12} {'window':>7} {'runs':>5} " + " ".join(f"{column:>14}" for column in columns))
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            cells.append(f"{100 * value:>13.2f}%" if isinstance(value, float) else f"{'-':>14}")
        print(f"{row['meter']:<12} {row['window_s']:>6}s {row['runs']:>5} " + " ".join(cells))


def slowdown(library: Path, directory: Path, pairs: int) -> tuple[float, float]:
    """How much longer a CPU-bound decode loop takes beside the sampler: wall and CPU time, medians over `pairs`.

    The sampler is stopped and continued between short blocks, so that whatever else the machine does falls on both
    alike.
    """
    simulation = Simulation(directory / "gpus", library)
    os.environ.update(simulation.environment())
    os.environ["LLEM_CALIBRATION_DIR"] = str(directory / "calibration")
    calibration.save(true_calibration(simulation, simulation.gpus[0]))
    meter = energy.open_meter(MeterSettings("nvml"), DeviceSet("cuda"), directory)
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


def decode_s() -> tuple[float, float]:
    """Wall and CPU seconds of a loop with the CPU profile of decoding: small vector products, one after another."""
    row = [float(index % 7) for index in range(256)]
    begin, begin_cpu = time.monotonic(), time.process_time()
    for _ in range(DECODE_STEPS):
        total = sum(a * b for a, b in zip(row, row, strict=True))
        row[0] = total % 5.0
    return time.monotonic() - begin, time.process_time() - begin_cpu


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter windows")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    peers = () if options.no_peers else tuple(energy_accuracy_peers.PEERS)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="llem-accuracy-") as name:
        library = build_library(Path(name))
        preload(library)
        for case in CASES:
            if options.case and case.name not in options.case:
                continue
            directory = Path(name) / case.name
            directory.mkdir()
            plan = QUICK if options.quick else FULL if case.name == "default" else HARD
            outcomes = run_case(case, plan, library, directory, peers)
            found = table(case, outcomes)
            rows.extend(found)
            ours = outcomes[OURS]
            print(f"\n{case.name} {dict(case.settings)}; {dict(ours.estimators)}; ", end="")
            print(f"sampler {100 * (ours.sampler_cpu_rel or 0.0):.1f} % of a core")
            show(found)
        directory = Path(name) / "slowdown"
        directory.mkdir()
        wall, cpu = slowdown(library, directory, 20 if options.quick else 100)
        print(f"\na CPU-bound decode loop beside the sampler: {100 * wall:+.2f} % wall, {100 * cpu:+.2f} % CPU time")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
