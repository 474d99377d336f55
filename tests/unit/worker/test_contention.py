"""What the measured processes waited for a CPU: by counters that are written here, and by three that share one CPU."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_llem.job.config import IdleSettings, MeasurementSettings, WarmupSettings
from pytest_llem.job.job import ServerProcess
from pytest_llem.worker.contention import CpuWatch
from tests.timed import on_a_clock
from tests.unit.worker.scripted import RecordingMeter, ScriptedEngine, make_job, meter, run

pytestmark = on_a_clock

__all__ = ["meter"]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CPU = min(os.sched_getaffinity(0))
OWN, CHILD, FOREIGN = 100, 101, 200


class Kernel:
    """A directory like /proc, with a process, its child, and one of somebody else."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        for pid, parent in ((OWN, 1), (CHILD, OWN), (FOREIGN, 1)):
            self._write(f"{pid}/stat", f"{pid} (a (b) c) S {parent} 1 1")
            self._write(f"{pid}/cgroup", "0::/box\n" if pid == OWN else "0::/other\n")
            self.thread(pid, pid, 0.0, 0.0)

    def thread(self, pid: int, tid: int, ran_s: float, waited_s: float) -> None:
        self._write(f"{pid}/task/{tid}/schedstat", f"{ran_s * 1e9:.0f} {waited_s * 1e9:.0f} 7\n")

    def machine(self, busy_s: float, stolen_s: float) -> None:
        fields = [busy_s, 0, 0, 500, 9, 0, 0, stolen_s, busy_s, 0]
        row, whole = (" ".join(f"{cpus * seconds / TICK_S:.0f}" for seconds in fields) for cpus in (1, 2))
        self._write("stat", f"cpu  {whole}\ncpu{CPU} {row}\ncpu9999 {row}\nintr 1\n")

    def pressure(self, seconds: float) -> None:
        averages = "avg10=9.99 avg60=9.99 avg300=9.99"
        self._write("pressure/cpu", f"some {averages} total={seconds * 1e6:.0f}\nfull {averages} total=99999999\n")

    def throttled(self, seconds: float) -> None:
        path = self.cgroups / "box" / "cpu.stat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"usage_usec 5\nnr_throttled 3\nthrottled_usec {seconds * 1e6:.0f}\n")

    def watch(self) -> CpuWatch:
        return CpuWatch(OWN, proc=self.proc, cgroups=self.cgroups)

    def _write(self, name: str, text: str) -> None:
        path = self.proc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_all_threads_of_the_tree_count_and_no_others(kernel: Kernel) -> None:
    kernel.thread(OWN, OWN, 50.0, 40.0)
    kernel.thread(OWN, 150, 1.0, 0.5)
    with kernel.watch() as cpu:
        kernel.thread(OWN, OWN, 53.0, 41.0)
        kernel.thread(OWN, 150, 2.0, 0.75)
        kernel.thread(OWN, 151, 0.5, 0.25)  # began meanwhile
        kernel.thread(CHILD, CHILD, 4.0, 2.0)
        kernel.thread(FOREIGN, FOREIGN, 9.0, 9.0)

    assert cpu.time is not None
    assert cpu.time.ran_s == pytest.approx(3.0 + 1.0 + 0.5 + 4.0)
    assert cpu.time.waited_s == pytest.approx(1.0 + 0.25 + 0.25 + 2.0)
    assert cpu.time.cpus == len(os.sched_getaffinity(0))


def test_a_process_that_has_ended_is_no_error(kernel: Kernel) -> None:
    with kernel.watch() as cpu:
        kernel.thread(OWN, OWN, 1.0, 0.0)
        (kernel.proc / str(CHILD) / "task" / str(CHILD) / "schedstat").unlink()

    assert cpu.time is not None
    assert cpu.time.ran_s == pytest.approx(1.0)


def test_steal_of_the_allowed_cpus_pressure_and_quotas_are_read(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {CPU})
    kernel.machine(busy_s=100.0, stolen_s=10.0)
    kernel.pressure(7.0)
    kernel.throttled(1.0)
    with kernel.watch() as cpu:
        kernel.machine(busy_s=108.0, stolen_s=12.0)
        kernel.pressure(8.5)
        kernel.throttled(1.25)

    seen = cpu.time
    assert seen is not None
    found = [seen.busy_s, seen.stolen_s, seen.pressure_s, seen.throttled_s]
    assert found == pytest.approx([8.0, 2.0, 1.5, 0.25])
    assert seen.machine_busy_s == pytest.approx(16.0)


def test_what_the_kernel_does_not_tell_is_unknown(kernel: Kernel) -> None:
    """PSI, quotas and steal are absent on many kernels; without the times of threads nothing can be said."""
    with kernel.watch() as cpu:
        kernel.thread(OWN, OWN, 1.0, 1.0)
    assert cpu.time is not None
    assert (cpu.time.busy_s, cpu.time.stolen_s, cpu.time.pressure_s, cpu.time.throttled_s) == (None,) * 4

    for pid in (OWN, CHILD):
        (kernel.proc / str(pid) / "task" / str(pid) / "schedstat").unlink()
    with kernel.watch() as silent:
        pass
    assert silent.time is None


def _spin(until_s: float) -> None:
    os.sched_setaffinity(0, {CPU})
    while time.monotonic() < until_s:
        pass


@contextmanager
def busy_beside(count: int, seconds: float) -> Iterator[list[int]]:
    """Processes that compute on one CPU; their ids."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_spin, args=(time.monotonic() + seconds,), daemon=True) for _ in range(count)]
    for process in running:
        process.start()
    yield [process.pid or 0 for process in running]
    for process in running:
        process.kill()
        process.join()


def test_three_that_share_a_cpu_wait_two_thirds_of_their_time() -> None:
    """Other work on that CPU only raises the share; an idle process beside them waits for nothing."""
    with busy_beside(3, 60.0) as (first, *_):
        _until_it_runs(first)
        with CpuWatch(first) as cpu, CpuWatch(os.getpid(), first) as whole:
            time.sleep(1.5)

    assert cpu.time is not None
    assert whole.time is not None
    demand_s = cpu.time.ran_s + cpu.time.waited_s
    assert demand_s == pytest.approx(cpu.time.duration_s, rel=0.1)
    assert cpu.time.waited_s / demand_s > 0.5
    assert whole.time.ran_s >= cpu.time.ran_s


def _until_it_runs(pid: int) -> None:
    """Wait until a process uses its CPU, and so has set its affinity."""
    stat = Path(f"/proc/{pid}/schedstat")
    deadline = time.monotonic() + 30.0
    while int(stat.read_text().split()[0]) < 0.3e9 and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_cycle_counts_its_local_server(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine here sleeps: nearly all of the CPU time is that of the server."""
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: ScriptedEngine())
    alone = make_job(measurement=MeasurementSettings(0.5, WarmupSettings(1, 1), IdleSettings(0.0)))
    with busy_beside(1, 60.0) as (server,):
        _until_it_runs(server)
        served = run(dataclasses.replace(alone, server=ServerProcess(server, "command", "log", 0, 1.0)), tmp_path)

    assert served.cpu is not None
    assert served.cpu.ran_s + served.cpu.waited_s > 0.9 * served.cpu.duration_s > 0.4
    assert served.cpu.duration_s >= served.windows[-1].duration_s
