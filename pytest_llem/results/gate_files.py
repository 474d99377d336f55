"""`gate.json`: the verdicts on an experiment, beside its cycles' directories."""

from __future__ import annotations

from pathlib import Path

from pytest_llem.decode import decode, encode
from pytest_llem.errors import StoreError
from pytest_llem.job import read_json, write_json
from pytest_llem.results.judging import GateReport

GATE = "gate.json"


def write_gate(experiment_directory: Path, report: GateReport) -> None:
    """Write an experiment's verdicts; the directory is made where no cycle has made it."""
    experiment_directory.mkdir(parents=True, exist_ok=True)
    write_json(experiment_directory / GATE, encode(report))


def read_gates(run_dir: Path) -> list[GateReport]:
    """The verdicts of a run, by study and experiment; empty where nothing was judged. `StoreError` for a broken one."""
    found = []
    for path in sorted(run_dir.glob(f"*/*/{GATE}")):
        try:
            found.append(decode(GateReport, read_json(path)))
        except ValueError as problem:
            raise StoreError(f"{path}: {problem}") from None
    return found
