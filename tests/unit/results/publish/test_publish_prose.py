"""The paragraphs of a paper: what the runs show, and no sentence beyond it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.publish.prose import Paragraph, limitations, methods, prose_as_latex, prose_as_markdown
from pytest_llem.results.registration import Registration
from pytest_llem.results.report.content import gather_content
from tests.unit.results.publish.conftest import Bench, compiled, measured

if TYPE_CHECKING:
    from tests.unit.results.conftest import Worker

    MakeWorker = Callable[..., Worker]


def said(paragraphs: list[Paragraph]) -> dict[str, str]:
    return {each.title: " ".join(each.ended) for each in paragraphs}


def test_methods_count_what_was_used_and_what_was_not(run: Path, tmp_path: Path) -> None:
    told = said(methods(gather_content([run]), tmp_path))
    assert "11 valid cycles of 4 experiments in 1 run (r1)" in told["Cycles"]
    assert "2 repeats and 0.500 s, and 11 of 11 converged" in told["Cycles"]
    assert told["Exclusions"] == "Excluded are 1 of 12 cycles, which are not valid: throttled (1)."
    assert "varies dtype (bfloat16, float32); batch_size (1, 8)" in told["Study sizes_50%"]
    assert "measured (meter rapl, scope cpu_package)" in told["Energy"]
    assert "rapl_counter, of 20 readings" in told["Energy"]
    assert "scatter over cycles; sensor; between runs, assumed" in told["Statistics"]
    assert "uncertainty of joules per output token" in told["Statistics"], "throughput has no sensor"


def test_what_several_runs_measured_is_counted_once_and_each_says_how_it_was_asked(
    run: Path, tmp_path: Path, bench: Bench, worker: MakeWorker
) -> None:
    """Two runs of four experiments were eight, in the order and the registration of the last run alone."""
    content = gather_content([run, measured(tmp_path / "out", bench, worker, name="r2")])
    ids = {row.experiment for row in content.experiments}
    at = "2000-01-01T00:00:00+00:00"
    registered = Registration("sizes_50%", "B if cheaper", at, "", dict.fromkeys(ids, "h"), {})
    asked = StudyPlan("sizes_50%", None, order="balanced", required_cycles=3, registration=registered)
    plans = {"r1": asked, "r2": replace(asked, order="interleaved", required_cycles=4, registration=None)}
    manifests = {name: replace(content.manifests[name], studies=(plan,)) for name, plan in plans.items()}
    content = replace(content, manifests=manifests)
    told, limits = said(methods(content, tmp_path)), said(limitations(content, tmp_path))
    study = told["Study sizes_50%"]
    assert "has 4 experiments" in study
    assert "3 or 4 cycles per experiment" in study
    assert "in the order of a Williams design, whole or in part, or one cycle of each experiment in turn" in study
    assert study.count("It was registered at 2000") == 1
    assert "Run r1 has" in study
    assert "Run r2 was not registered" in study
    assert "22 valid cycles of 4 experiments in 2 runs" in told["Cycles"]
    assert "1 experiment has fewer than 3 valid cycles in a run" in limits["Number of cycles and runs"]


def test_no_sentence_is_of_a_fact_that_the_run_does_not_have(run: Path, tmp_path: Path) -> None:
    """A text made of set phrases speaks of GPUs and calibrations where there were none."""
    content = gather_content([run])
    text = " ".join([*said(methods(content, tmp_path)).values(), *said(limitations(content, tmp_path)).values()])
    for word in ("GPU", "calibrat", "estimated", "temperature", "thermal state was", "arrive", "taken over", "None"):
        assert word not in text, word


def test_an_estimate_is_nowhere_called_measured(tmp_path: Path, bench: Bench, worker: MakeWorker) -> None:
    content = gather_content([measured(tmp_path / "out", bench, worker, estimated=True)])
    told, limits = said(methods(content, tmp_path)), said(limitations(content, tmp_path))
    assert "Energy is NOT measured but estimated" in told["Energy"]
    assert "sensor's" not in told["Energy"]
    assert "11 of 11 valid cycles was estimated and NOT measured" in limits["What a joule covers"]


def test_limitations_say_what_a_joule_covers_and_how_few_cycles_there_are(run: Path, tmp_path: Path) -> None:
    limits = said(limitations(gather_content([run]), tmp_path))
    assert "CPU packages of the whole machine" in limits["What a joule covers"]
    assert "1 experiment has fewer than 3 valid cycles." in limits["Number of cycles and runs"]
    assert "±" in limits["Gain of the sensors"]


def test_runs_of_two_machines_are_told_apart(tmp_path: Path, bench: Bench, worker: MakeWorker) -> None:
    for name, cpu in (("r1", "Xeon"), ("r2", "EPYC")):
        measured(tmp_path / "out", bench, worker, name=name, host={"cpu": {"model": cpu}})
    told = said(methods(gather_content([tmp_path / "out"]), tmp_path))["Machine and software"]
    assert "Machine: Xeon; transformers 5.23 (run r1)." in told
    assert "Machine: EPYC; transformers 5.23 (run r2)." in told


def test_the_paragraphs_compile(run: Path, tmp_path: Path) -> None:
    paragraphs = [*methods(gather_content([run]), tmp_path), Paragraph("A_b", ("50 % of \\{x} & #1 ~ $y",))]
    (tmp_path / "methods.tex").write_text(prose_as_latex(paragraphs))
    compiled(tmp_path / "methods.tex", tmp_path)
    assert "## A_b\n\n50 % of \\\\{x}" in prose_as_markdown("Methods", paragraphs)


@pytest.mark.parametrize("make", [methods, limitations])
def test_the_same_runs_give_the_same_text(run: Path, tmp_path: Path, make: Callable[..., list[Paragraph]]) -> None:
    assert make(gather_content([run]), tmp_path) == make(gather_content([run]), tmp_path)
