"""A study that sets a GPU: refused where it stands, made for each cycle, and never left behind."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import pytest

from tests.set_board import write_sudo
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import NOBODY, Simulation

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]

STUDY = """\
name: capped
model: none
engine: faulty
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.1, idle: {{duration_s: 0.1}}, warmup: {{max_repeats: 1}}}}
sweep:
  device.power_limit_w: [{limits}]
execution: {{cycles: 1, retries: 0, cooldown: 0, order: sequential, isolation: load}}
"""


@pytest.fixture(autouse=True)
def world(simulation: Simulation, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """No zeusd, and a sudo that wants a password."""
    write_sudo(pytester.path / "bin", allows=False)
    monkeypatch.setenv("PATH", str(pytester.path / "bin"), prepend=":")
    monkeypatch.setenv("ZEUSD_SOCK_PATH", str(pytester.path / "zeusd.sock"))
    simulation.gpus[0].power_limit_mw = 650_000


def study(pytester: pytest.Pytester, limits: str, more: str = "") -> None:
    (pytester.path / "capped.yaml").write_text(STUDY.format(limits=limits) + more)


def test_each_cycle_has_its_limit_and_the_engine_stays_loaded(
    pytester: pytest.Pytester, simulation: Simulation
) -> None:
    """An engine that was loaded again for each limit would cost minutes, and be another one."""
    gpu = simulation.gpus[0]
    study(pytester, "300, default")

    pytester.runpytest_subprocess("--llem-study=capped.yaml")  # the engine is on no GPU, so that no cycle is valid

    cycles = sorted(pytester.path.glob("llem-results/*/capped/*/c1/job.json"))
    jobs = [json.loads(path.read_text())["gpu_settings"][0] for path in cycles]
    told = {str(one["requested"]): (one["applied"], one["previous"]) for one in jobs}
    assert told == {"300.0": (300.0, 650.0), "default": (700.0, 650.0)}
    results = [json.loads((path.parent / "result.json").read_text()) for path in cycles]
    assert sorted(result["runner"]["facts"]["engine_reused"] for result in results) == [False, True]
    assert (gpu.power_limit_mw, gpu.limit_sets) == (650_000, 4)
    assert not list(pytester.path.glob("leases/settings-*.json"))


def test_a_value_that_the_board_does_not_have_is_refused_where_it_stands(pytester: pytest.Pytester) -> None:
    study(pytester, "400, 900")

    done = pytester.runpytest("--llem-study=capped.yaml")

    done.stdout.fnmatch_lines(
        [
            "*capped.yaml:7:31: *device.power_limit_w 900*GPU-0000*takes limits from 200 to 700 W*",
            "*fix: choose from 200 to 700, or set on_invalid: skip*",
        ]
    )
    assert done.ret == pytest.ExitCode.INTERRUPTED


def test_without_permission_all_is_skipped_with_the_line_to_add(
    pytester: pytest.Pytester, simulation: Simulation
) -> None:
    gpu = simulation.gpus[0]
    gpu.permission = NOBODY
    study(pytester, "400, 500", "on_invalid: skip\n")

    done = pytester.runpytest("--llem-study=capped.yaml", "-rs")

    done.assert_outcomes(skipped=2)
    done.stdout.fnmatch_lines(["*SKIPPED*may set device.power_limit_w*sudo visudo*NOPASSWD: *nvidia-smi ^-i GPU-*"])
    assert (gpu.power_limit_mw, gpu.limit_sets) == (650_000, 0)


@pytest.mark.parametrize(
    ("variable", "options", "why"),
    [
        ("none", (), "LLEM_LEASE_DIR=none: without leases"),
        ("", ("--llem-meter=rapl",), "the meter rapl does not read clocks and limits"),
        ("", ("--llem-device=cpu",), "it runs on the CPU here*leave --llem-device=cpu out"),
    ],
)
def test_what_could_not_be_put_back_or_told_is_refused(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, variable: str, options: tuple[str, ...], why: str
) -> None:
    if variable:
        monkeypatch.setenv("LLEM_LEASE_DIR", variable)
    study(pytester, "400")

    done = pytester.runpytest("--llem-study=capped.yaml", *options)

    told = " ".join(done.stdout.lines)
    assert fnmatch(told, f"*capped.yaml:7:26: *device.power_limit_w*{why}*"), told


def test_a_gpu_that_is_named_is_set_where_none_is_visible(
    pytester: pytest.Pytester, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused: "it runs on the CPU here"."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study(pytester, "300", "device: {gpus: [0]}\n")

    pytester.runpytest_subprocess("--llem-study=capped.yaml")

    (job,) = (json.loads(path.read_text()) for path in pytester.path.glob("llem-results/*/capped/*/c1/job.json"))
    assert [(one["gpu"], one["applied"]) for one in job["gpu_settings"]] == [(simulation.gpus[0].uuid.decode(), 300.0)]
