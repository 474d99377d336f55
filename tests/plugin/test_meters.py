"""A meter that another package registered, and that fails while something is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_llem.results.reading import read_result

METER = """
import time
from pytest_llem import Meter

class DyingMeter(Meter):
    name = "dying"
    marks = 0

    def start(self):
        pass

    def mark(self):
        self.marks += 1
        if self.marks > 3:
            raise OSError("the wattmeter hung up")
        return time.monotonic_ns()

    def stop(self, windows):
        raise KeyError("no such port")
"""


def test_the_cycle_outlives_its_meter(pytester: pytest.Pytester, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run lost all that had been measured, by a traceback of the meter's."""
    packages = pytester.mkdir("packages")
    (packages / "wattmeter.py").write_text(METER)
    about = packages / "wattmeter-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: wattmeter\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pytest_llem.meters]\ndying = wattmeter:DyingMeter\n")
    monkeypatch.setenv("PYTHONPATH", str(packages), prepend=":")

    run = pytester.run(
        sys.executable,
        *(
            "-m",
            "pytest",
            f"--llem-study={sweep}",
            "--llem-meter=dying",
            "--llem-cycles=1",
            "-k",
            "batch_size:1- and float32",
        ),
        *("-p", "no:cacheprovider"),
    )

    assert run.ret == 1
    paths = list(pytester.path.glob("llem-results/*/small/*/c1/result.json"))
    assert len(paths) == 1
    for result in map(read_result, paths):
        assert result.latency.e2el_s is not None
        assert result.energy.energy_j is None
        assert [note.code for note in result.validity.reasons] == ["sensor_gap"]
        assert "no such port" in result.validity.reasons[0].message
