"""A CPU that others use: which share makes a result invalid, where it is only said, and what the section holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import CpuTime, Window
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from tests.unit.results.conftest import REPORT, Bench

KEY = CycleKey("study", "batch_size:1", "0123456789abcdef", 1)
CPU, GPU = DeviceSet("cpu"), DeviceSet("cuda", ("GPU-0",))


def of(bench: Bench, cpu: CpuTime | None, devices: DeviceSet = CPU, **limits: float) -> Result:
    job = replace(bench.job(KEY), devices=devices, meter=MeterSettings(thresholds=limits))
    return derive_result(job, replace(bench.measurement(), cpu=cpu), REPORT, study=KEY.study, environment={})


def codes(result: Result) -> tuple[list[str], list[str]]:
    return [note.code for note in result.validity.reasons], [note.code for note in result.warnings]


@pytest.mark.parametrize(
    ("waited_s", "reasons", "warnings"),
    [
        (0.1, [], []),  # 2.4 %: torch's two threads on a quiet machine with two CPUs had 1.3 %
        (0.4, [], ["cpu_contended"]),  # 9 %
        (1.2, ["cpu_contended"], []),  # 23 %
    ],
)
def test_the_share_of_the_demand_decides(
    bench: Bench, waited_s: float, reasons: list[str], warnings: list[str]
) -> None:
    result = of(bench, CpuTime(duration_s=2.0, ran_s=4.0, waited_s=waited_s, cpus=2))
    assert codes(result) == (reasons, warnings)
    assert result.cpu is not None
    assert result.cpu.contended_rel == pytest.approx(waited_s / (4.0 + waited_s))


def test_the_message_says_what_was_lost_and_what_helps(bench: Bench) -> None:
    (reason,) = of(bench, CpuTime(2.0, 1.0, 3.0, 2, throttled_s=0.5)).validity.reasons
    assert reason.message.startswith(
        "the measured processes ran 1.0 s and waited 3.0 s for a CPU, 0.5 s of it held back by a CPU quota: "
        "75% of what they asked of 2 CPUs"
    )
    assert "OMP_NUM_THREADS" in reason.message


def test_steal_counts_by_the_share_of_the_work(bench: Bench) -> None:
    """Of 2 s that the hypervisor took while the CPUs worked 8 s, processes that ran 4 of these lost 1 s."""
    result = of(bench, CpuTime(4.0, 4.0, 0.0, 2, busy_s=8.0, stolen_s=2.0))
    assert result.cpu is not None
    assert result.cpu.stolen_s == pytest.approx(1.0)
    assert result.cpu.steal_rel == pytest.approx(0.2)
    assert result.cpu.contended_rel == pytest.approx(0.2)
    assert codes(of(bench, CpuTime(4.0, 4.0, 0.0, 2, busy_s=8.0, stolen_s=3.0)))[0] == ["cpu_contended"]


@pytest.mark.parametrize(("duration_s", "pressure_rel"), [(12.0, 0.25), (2.9, None), (11.0, 3 / 11)])
def test_pressure_is_stated_where_the_kernel_renewed_it_often_enough(
    bench: Bench, duration_s: float, pressure_rel: float | None
) -> None:
    section = of(bench, CpuTime(duration_s, 1.0, 0.0, 2, pressure_s=3.0)).cpu
    assert section is not None
    assert section.pressure_rel == (None if pressure_rel is None else pytest.approx(pressure_rel))


def test_on_a_gpu_it_is_said_and_no_reason_against_the_result(bench: Bench) -> None:
    assert codes(of(bench, CpuTime(2.0, 1.0, 1.0, 16), GPU)) == ([], ["cpu_contended"])


def test_a_study_sets_both_limits(bench: Bench) -> None:
    cpu = CpuTime(2.0, 4.0, 1.2, 2)
    assert codes(of(bench, cpu, cpu_contended_rel=0.3)) == ([], ["cpu_contended"])
    assert codes(of(bench, cpu, cpu_contended_rel=1.0, cpu_contended_warn_rel=0.3)) == ([], [])


def test_what_hardly_runs_loses_no_more_than_it_waits(bench: Bench) -> None:
    """The client of a server elsewhere: half of its demand of 0.1 s in a window of 10 s was waiting."""
    result = of(bench, CpuTime(10.0, 0.05, 0.05, 2))
    assert codes(result) == ([], [])
    assert result.cpu is not None
    assert result.cpu.contended_rel == pytest.approx(0.5)


def test_work_of_others_on_cpus_that_were_free_is_in_the_energy_of_rapl(bench: Bench) -> None:
    """Three quarters of the work, and nobody waited: joules per token of a machine that eight processes shared."""
    cpu = CpuTime(2.0, 4.0, 0.0, 16, machine_busy_s=16.0)
    result = of(bench, cpu)
    assert codes(result) == ([], ["cpu_shared"])
    assert result.cpu is not None
    assert result.cpu.others_rel == pytest.approx(0.75)
    assert codes(of(bench, replace(cpu, machine_busy_s=4.2))) == ([], [])
    gpu = replace(bench.measurement(), cpu=cpu, energy=replace(bench.energy(), scope="gpu_board"))
    assert codes(derive_result(bench.job(KEY), gpu, REPORT, study=KEY.study, environment={}))[1] == []


def test_rest_beside_a_short_window_hides_no_waiting(bench: Bench) -> None:
    """A GPU's window of 0.3 s has 0.65 s of rest on each side: of 0.36 s that were asked for 17 % were waiting."""
    short = replace(bench.measurement(), windows=(Window("measure", 0, 300_000_000),), cpu=CpuTime(1.6, 0.3, 0.06, 16))
    job = replace(bench.job(KEY), devices=GPU)
    result = derive_result(job, short, REPORT, study=KEY.study, environment={})
    assert "cpu_contended" in codes(result)[1]


def test_unknown_is_null(bench: Bench) -> None:
    assert of(bench, None).cpu is None
    idle = of(bench, CpuTime(1.0, 0.0, 0.0, 2))
    assert codes(idle) == ([], [])
    assert idle.cpu is not None
    assert idle.cpu.contended_rel is None
