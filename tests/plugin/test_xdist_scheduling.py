"""Which ways to spread tests are refused with a study, how many workers `-n auto` means, and what they are handed."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_llem.machine.devices
from pytest_llem.session.xdist.workers import WorkerLimit

STUDY = """\
name: study
model: builtin:tiny-llama
engine: vllm
sweep: {{vllm.tensor_parallel_size: [{sizes}]}}
execution: {{cycles: 1, isolation: {isolation}}}
runners: {{vllm: docker}}
"""


@pytest.fixture(autouse=True)
def all_devices_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def study(pytester: pytest.Pytester) -> Path:
    return write(pytester, "1")


def write(pytester: pytest.Pytester, sizes: str, isolation: str = "process") -> Path:
    path = pytester.path / "study.yaml"
    path.write_text(STUDY.format(sizes=sizes, isolation=isolation))
    return path


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(
        pytest_llem.machine.devices, "gpu_uuids", lambda: tuple(f"GPU-{index}" for index in range(gpus))
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-n2", "--dist=loadgroup"), "it changes the ids of grouped items"),
        (("-n2", "--dist=loadscope"), "it gives a whole study to one worker"),
        (("-n2", "--dist=loadfile"), "it gives a whole study to one worker"),
        (("--tx=2*popen", "--dist=worksteal"), "it gives each worker a block of the study"),
        (("--tx=2*popen", "--dist=each"), "it runs every item once per worker"),
        (("-d", "--tx=popen", "--tx=3*ssh=somewhere//python=python3"), "devices are leased, and results kept, on this"),
    ],
    ids=["loadgroup", "loadscope", "loadfile", "worksteal", "each", "another machine"],
)
def test_what_does_not_fit_is_a_usage_error_before_anything_starts(
    pytester: pytest.Pytester, study: Path, arguments: tuple[str, ...], reason: str
) -> None:
    result = pytester.runpytest("--llem-study=study.yaml", *arguments)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *cannot be used with a study: {reason}*", "fix: *"])
    assert not list(pytester.path.glob("llem-results"))


def test_workers_without_leases_would_meet_on_a_device(
    pytester: pytest.Pytester, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_LEASE_DIR", "none")

    result = pytester.runpytest("study.yaml", "-n2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: -n with several workers cannot be used with LLEM_LEASE_DIR=none*"])


BEFORE_ANY_WORKER = """
import pytest

def pytest_xdist_make_scheduler(config, log):
    pytest.exit(f"chunk {config.getoption('maxschedchunk')}, {config.getoption('dist')}")

def pytest_xdist_setupnodes(specs):
    specs.clear()
"""


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (("study.yaml",), "chunk 1, load"),
        (("study.yaml", "--maxschedchunk=5"), "chunk 5, load"),
        (("test_plain.py",), "chunk None, load"),
        (("test_plain.py", "--dist=loadfile"), "chunk None, loadfile"),
    ],
    ids=["by default", "as chosen", "not without a study", "another way without a study"],
)
def test_items_of_a_study_are_handed_out_one_by_one(
    pytester: pytest.Pytester, study: Path, arguments: tuple[str, ...], seen: str
) -> None:
    pytester.makepyfile(test_plain="def test_one(): pass")
    pytester.makeconftest(BEFORE_ANY_WORKER)

    result = pytester.runpytest("-n1", *arguments)

    result.stdout.fnmatch_lines([f"*Exit: {seen}*"])


@pytest.mark.parametrize(
    ("gpus", "sizes", "workers", "said"),
    [
        (0, "1", 1, "no GPU is visible, and measurements on the CPU would disturb each other"),
        (1, "1", 1, "1 GPU visible, an experiment needs 1"),
        (8, "2", 4, "8 GPUs visible, an experiment needs 2"),
        (4, "1, 2", 4, "4 GPUs visible, an experiment needs 1 to 2"),
        (4, "2, 8", 2, "4 GPUs visible, an experiment needs 2"),
        (5, "2, 4", 2, "5 GPUs visible, an experiment needs 2 to 4"),
    ],
)
def test_auto_means_as_many_workers_as_sets_of_devices(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, gpus: int, sizes: str, workers: int, said: str
) -> None:
    write(pytester, sizes)
    machine(monkeypatch, gpus)
    config = pytester.parseconfig("-n", "auto", "study.yaml")

    assert config.hook.pytest_xdist_auto_num_workers(config=config) == workers

    from pytest_llem.session.start import validated_session
    from pytest_llem.session.xdist.workers import worker_limit

    assert str(worker_limit(validated_session(config).studies)) == said


def test_the_users_own_answer_to_auto_counts(
    pytester: pytest.Pytester, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 4)
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    config = pytester.parseconfig("-n", "auto", "--llem-study=study.yaml")
    assert config.hook.pytest_xdist_auto_num_workers(config=config) == 3


def test_auto_without_a_study_is_xdists_own_affair(
    pytester: pytest.Pytester, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 4)
    config = pytester.parseconfig("-n", "auto", "tests")
    from_xdist = config.hook.pytest_xdist_auto_num_workers(config=config)
    assert from_xdist == pytester.parseconfig("-p", "no:llem").hook.pytest_xdist_auto_num_workers(config=config)


def test_a_study_that_is_wrong_is_left_to_collection(
    pytester: pytest.Pytester, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 4)
    study.write_text("nonsense: 1\n")
    config = pytester.parseconfig("-n", "auto", "study.yaml")
    assert config.hook.pytest_xdist_auto_num_workers(config=config) == 4


def test_engines_that_stay_loaded_are_refused_with_auto_as_with_a_number(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 2)
    path = write(pytester, "1", "experiment")
    path.write_text(path.read_text().replace("cycles: 1", "cycles: 1, order: sequential"))

    result = pytester.runpytest("study.yaml", "-n", "auto")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*execution.isolation: experiment cannot be combined with -n*"])


def test_the_limit_of_workers_is_counted_in_the_smallest_need() -> None:
    assert [WorkerLimit(7, 2, 4).workers, WorkerLimit(1, 2, 2).workers, WorkerLimit(0).workers] == [3, 1, 1]
