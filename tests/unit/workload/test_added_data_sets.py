"""Data sets of other packages: read where the package is, and part of the job for workers without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.containers.inputs import inputs_of, with_absolute_paths
from pytest_llem.errors import LlemError, SettingsError, WorkloadError
from pytest_llem.job.config import ExperimentConfig, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings, load_job
from pytest_llem.job.request import Texts
from pytest_llem.machine.environment import input_facts
from pytest_llem.workload.build import build_workload
from pytest_llem.workload.texts import texts_of_package
from pytest_llem.workload.tokenizer import TextOnly
from tests.installed import Site

SOURCE = """
def plain(settings):
    for number in range(settings.seed, settings.seed + 9):
        yield f"{number} and {number + 1}"

def rows(settings):
    yield {"question": "one", "answer": "1"}
    yield {"question": None, "answer": "2"}
    yield {"question": "three", "answer": "3"}

def failing(settings):
    yield "one"
    raise OSError("no disk")

def numbers(settings):
    yield 3
"""
TOKENIZER = TextOnly("a server has it", "leave it out")


@pytest.fixture
def sums(site: Site) -> Site:
    site.add("llem-sums", SOURCE, datasets="sums = llem_sums:plain")
    return site


def settings(dataset: str = "sums", prompts: int = 2, **changes: object) -> WorkloadSettings:
    return WorkloadSettings(dataset, prompts, None, 4, **changes)  # type: ignore[arg-type]


def config(workload: WorkloadSettings) -> ExperimentConfig:
    return ExperimentConfig(model="builtin:tiny-llama", workload=workload)


def test_its_texts_are_the_prompts(sums: Site) -> None:
    workload = build_workload(settings(seed=5), TOKENIZER)
    assert [request.text for request in workload.requests] == ["5 and 6", "6 and 7"]
    assert workload.prompts_hash != build_workload(settings(seed=6), TOKENIZER).prompts_hash


def test_rows_have_columns_and_blanks_are_counted(site: Site) -> None:
    site.add("llem-sums", SOURCE, datasets="sums = llem_sums:rows")
    workload = build_workload(settings(), TOKENIZER)
    assert [request.text for request in workload.requests] == ["one", "three"]
    assert workload.rows_skipped == 1
    answers = build_workload(settings(column="answer"), TOKENIZER)
    assert [request.text for request in answers.requests] == ["1", "2"]


def test_a_worker_without_the_package_gets_the_same_prompts(sums: Site, tmp_path: Path) -> None:
    """Stock images lack the package, and an image of one's own for a list of prompts is too much to ask."""
    here = build_workload(settings(), TOKENIZER)
    made = Job(
        *("run", "study", "id", "hash", config(settings()), 1, 1, DeviceSet("cpu"), MeterSettings(), Deadlines(60.0)),
        texts=texts_of_package(settings()),
    )
    JobDir(tmp_path / "job").write_job(made)
    sums.add("llem-sums", SOURCE)
    job = load_job(JobDir(tmp_path / "job").job)
    assert texts_of_package(job.config.workload) is None
    assert build_workload(job.config.workload, TOKENIZER, job.texts) == here


def test_a_file_of_its_name_is_not_taken_for_it(sums: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither read, nor mounted into a container; and nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums").write_text("not this")
    assert texts_of_package(settings()) == Texts(("0 and 1", "1 and 2"), 0)
    found = inputs_of(config(settings()))
    assert (found.mounts, found.downloads) == ((), ())
    assert with_absolute_paths(config(settings())).workload.dataset == "sums"


def test_another_texts_are_another_input(sums: Site) -> None:
    """`--llem-resume` must not take results of other prompts because the package kept its version."""
    before = input_facts(config(settings()))
    assert input_facts(config(settings())) == before
    sums.add("llem-sums", SOURCE.replace(" and ", " or "), datasets="sums = llem_sums:plain")
    assert input_facts(config(settings())).keys() == before.keys() == {"dataset_texts"}
    assert input_facts(config(settings())) != before


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("sums = llem_sums:gone", "data set 'sums' of llem-sums 1.0 cannot be used: AttributeError"),
        ("sums = llem_sums:failing", "data set 'sums' of llem-sums 1.0 cannot be used: OSError: no disk"),
        ("sums = llem_sums:numbers", r"sums\[0\]: expected an object or a text, got int"),
        ("synthetic = llem_sums:plain", "registers the data set 'synthetic', which pytest-llem itself has"),
        ("aienergyscore = llem_sums:plain", "registers the data set 'aienergyscore'"),
        ("my/sums = llem_sums:plain", "a name with . or / is that of a file"),
    ],
)
def test_a_broken_one_is_refused_by_name(site: Site, point: str, message: str) -> None:
    site.add("llem-sums", SOURCE, datasets=point)
    with pytest.raises(LlemError, match=message) as caught:
        texts_of_package(settings())
    assert caught.value.fix


def test_too_few_texts_are_counted(sums: Site) -> None:
    with pytest.raises(WorkloadError, match="'sums' has 9 prompts, and 10 were asked for"):
        texts_of_package(settings(prompts=10))


def test_the_error_of_a_clash_says_what_to_do(site: Site) -> None:
    site.add("llem-sums", SOURCE, datasets="synthetic = llem_sums:plain")
    with pytest.raises(SettingsError) as caught:
        texts_of_package(settings())
    assert caught.value.fix == (
        "give it another name in pytest_llem.datasets of its pyproject.toml, or uninstall the package"
    )
