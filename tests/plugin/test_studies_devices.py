"""Experiments that need more devices than this machine has are told at collection, not by failures one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_llem.machine.devices

STUDY = """\
name: parallel
engine: vllm
model: owner/name
sweep:
  vllm.tensor_parallel_size: [1, 2, 4]
  vllm.pipeline_parallel_size: [1, 2]
runners: {vllm: docker}
execution: {cycles: 1}
"""


@pytest.fixture
def study(pytester: pytest.Pytester) -> Path:
    path = pytester.path / "parallel.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_llem.machine.devices, "gpu_uuids", lambda: ("GPU-1", "GPU-2"))
    monkeypatch.setattr(pytest_llem.machine.devices, "device_memory_bytes", lambda kind="auto": None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_a_study_that_needs_more_is_refused_at_the_place_of_the_setting(pytester: pytest.Pytester, study: Path) -> None:
    result = pytester.runpytest("--llem-study=parallel.yaml")

    result.stdout.fnmatch_lines(
        [
            "*parallel.yaml:5:3: * and 2 more: vllm.tensor_parallel_size needs 4 GPUs, 2 are visible*",
            "*fix: *on_invalid: skip*",
        ]
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert not list(pytester.path.glob("llem-results/*/run.json"))


@pytest.mark.usefixtures("two_gpus")
def test_a_study_that_skips_what_cannot_run_says_why(pytester: pytest.Pytester, study: Path) -> None:
    """Without `-rs` a run of nothing but skips was green and gave no reason."""
    study.write_text(STUDY + "on_invalid: skip\n")

    result = pytester.runpytest("--llem-study=parallel.yaml", "-rs", "-k", "tensor_parallel_size:4")

    result.stdout.fnmatch_lines(["llem: study parallel: 2 of 6 experiments skipped: *needs 4 GPUs, 2 are visible"])
    result.stdout.fnmatch_lines(["*SKIPPED*needs 4 GPUs, 2 are visible*", "*SKIPPED*needs 8 GPUs, 2 are visible*"])
    result.assert_outcomes(skipped=2, deselected=4)


@pytest.mark.usefixtures("two_gpus")
def test_the_plan_only_notes_it(pytester: pytest.Pytester, study: Path) -> None:
    result = pytester.runpytest("--llem-study=parallel.yaml", "--collect-only")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["*vllm: 6 experiments, runner docker (study), 1 to 8 of 2 GPUs: NOT ENOUGH"])


def test_without_a_gpu_nothing_is_refused(
    pytester: pytest.Pytester, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest_llem.machine.devices, "gpu_uuids", lambda: ())

    result = pytester.runpytest("--llem-study=parallel.yaml", "-k", "nothing")

    result.assert_outcomes(deselected=6)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
