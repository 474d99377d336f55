from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_llem.energy import registry
from pytest_llem.energy.cpu_estimate_meter import thread_power
from pytest_llem.energy.protocol import Meter
from pytest_llem.job.job import DeviceSet, MeterSettings, ServerProcess
from pytest_llem.job.measurement import Window
from tests.timed import on_a_clock


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def opened(tmp_path: Path, server: ServerProcess | None = None) -> Meter:
    meter = registry.open_meter(MeterSettings("estimate"), DeviceSet("cpu"), tmp_path, server)
    assert meter is not None
    meter.start()
    return meter


@on_a_clock
def test_a_window_holds_the_cpu_time_spent_in_it(tmp_path: Path) -> None:
    meter = opened(tmp_path)
    start = meter.mark()
    burn(0.05)
    end = meter.mark()
    burn(0.02)

    report = meter.stop([Window("measure", start, end)])

    watts = thread_power().watts
    assert report.windows[0].energy_j == pytest.approx(0.05 * watts, rel=0.2)
    assert not report.measured
    assert report.scope == "process_estimate"
    assert report.source is not None
    assert "SPECpower" in report.source


def test_children_count_while_they_live_and_after_they_were_reaped(tmp_path: Path) -> None:
    code = (
        "import time, sys\n"
        "end = time.process_time() + 0.06\n"
        "while time.process_time() < end: pass\n"
        "print(flush=True); sys.stdin.read()"
    )
    meter = opened(tmp_path)
    start = meter.mark()
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    alive = meter.mark()
    child.communicate()
    reaped = meter.mark()

    report = meter.stop([Window("measure", start, alive), Window("after", start, reaped)])

    least_j = 0.06 * thread_power().watts
    for window in report.windows:
        assert window.energy_j is not None
        assert window.energy_j >= 0.99 * least_j


@on_a_clock
def test_cpu_time_that_leaves_the_tree_is_missed(tmp_path: Path) -> None:
    """The clock stood still until the rest of the tree had used as much again."""
    burning = "import os, sys, time\nwhile time.process_time() < 0.6: pass\nprint(flush=True); sys.stdin.read()"
    code = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-S', '-c', {burning!r}], start_new_session=True)\n"
    )
    leaving = subprocess.Popen(
        [sys.executable, "-S", "-c", code + "import time; time.sleep(1000)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert leaving.stdout is not None
    meter = opened(tmp_path)
    leaving.stdout.readline()
    start = meter.mark()
    leaving.kill()
    leaving.wait()
    lost = meter.mark()
    burn(0.05)
    end = meter.mark()
    leaving.communicate()

    report = meter.stop([Window("measure", start, lost), Window("later", lost, end)])

    assert [note.code for note in report.invalid] == ["sensor_gap"]
    assert report.windows[0].energy_j is None
    assert report.windows[1].energy_j == pytest.approx(0.05 * thread_power().watts, rel=0.3)


@on_a_clock
def test_a_server_that_is_no_child_counts_with_its_own_children(tmp_path: Path) -> None:
    """The server's parent is pytest, not the worker that measures."""
    burning = "end = time.process_time() + 0.06\nwhile time.process_time() < end: pass\n"
    nested = f"import time\n{burning}print(flush=True); input()"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-S', '-c', {nested!r}]); sys.stdin.read()"
    launcher = subprocess.Popen(
        ["setsid", "--fork", sys.executable, "-S", "-c", f"import os; print(os.getpid(), flush=True)\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    meter = opened(tmp_path, ServerProcess(pid, "command", "server.log", 0, 1.0))
    start = meter.mark()
    launcher.stdout.readline()
    burnt = meter.mark()
    launcher.communicate()

    report = meter.stop([Window("measure", start, burnt)])

    energy_j = report.windows[0].energy_j
    assert energy_j is not None
    assert energy_j >= 0.5 * 0.06 * thread_power().watts


def test_a_server_of_unknown_process_leaves_the_energy_open_instead_of_stating_a_part(tmp_path: Path) -> None:
    meter = opened(tmp_path, ServerProcess(None, "container", "server.log", 0, 1.0))
    start = meter.mark()
    burn(0.02)
    end = meter.mark()

    report = meter.stop([Window("measure", start, end)])

    assert report.windows[0].energy_j is None
    assert "server_not_counted" in {note.code for note in report.notes}


def test_an_edge_that_was_not_marked_gives_no_energy_instead_of_zero(tmp_path: Path) -> None:
    meter = opened(tmp_path)
    start = meter.mark()

    report = meter.stop([Window("measure", start, start + 1_000_000)])

    assert report.windows[0].energy_j is None
    assert report.windows[0].uncertainty_j is None


@pytest.mark.parametrize(
    ("cpuinfo", "generation"),
    [
        ("vendor_id : AuthenticAMD\ncpu family : 25\nmodel : 17\nmodel name : AMD EPYC 9654\n", "EPYC 4th Gen"),
        ("vendor_id : GenuineIntel\ncpu family : 6\nmodel : 85\nstepping : 7\nmodel name : Xeon\n", "Cascade Lake"),
        ("vendor_id : GenuineIntel\ncpu family : 6\nmodel : 85\nstepping : 4\nmodel name : Xeon\n", "Skylake"),
        ("CPU implementer : 0x41\nCPU part : 0xd40\n", "Graviton"),
        ("vendor_id : Unheard\nmodel name : New\n", None),
    ],
)
def test_the_processor_is_found_in_the_published_table(tmp_path: Path, cpuinfo: str, generation: str | None) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)

    power = thread_power(path)

    assert power.generation == generation
    assert power.low < power.watts < power.high
