"""The summary of a run: numbers as people read them, at any width, with what they must be read with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.results.device_optimum import Optimum
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.sections.quality import Scores
from pytest_llem.results.served import Served
from pytest_llem.results.summary import ExperimentSummary, MetricSummary
from pytest_llem.results.terminal import plus_minus, quantity, significant
from pytest_llem.session.reporting.github import summary_markdown
from pytest_llem.session.reporting.summary import MOST_OPTIMA, of_optima, resume_lines, summary_lines
from pytest_llem.study.model import SweptAxis
from pytest_llem.study.naming import text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 J"),
        (0.01234, "12.3 mJ"),
        (0.9996, "1.00 J"),
        (999.4, "999 J"),
        (999.6, "1.00 kJ"),
        (1234.5, "1.23 kJ"),
        (3.6e6, "3.60 MJ"),
        (5e-7, "500 nJ"),
        (-0.5, "-500 mJ"),
    ],
)
def test_quantities_have_three_significant_digits_and_a_prefix(value: float, text: str) -> None:
    assert quantity(value, "J") == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.12345, "0.123")])
def test_plain_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "uncertainty", "text"),
    [
        (0.41234, 0.00687, "412.3 ± 6.9 mJ"),
        (0.41234, 0.0987, "412 ± 99 mJ"),
        (0.41234, 0.00996, "412 ± 10 mJ"),
        (1234.5, 1700.0, "1.2 ± 1.7 kJ"),
        (12.3, None, "12.3 J ±?"),
        (12.3, 0.0, "12.3 J"),
        (-0.5, 0.02, "-500 ± 20 mJ"),
    ],
)
def test_an_uncertainty_has_two_digits_and_its_value_the_same_place(
    value: float, uncertainty: float | None, text: str
) -> None:
    assert quantity(value, "J", uncertainty) == text


def test_an_uncertainty_as_large_as_hundreds_takes_no_decimals() -> None:
    assert plus_minus(51234.0, 310.0) == "51234 ± 310"
    assert plus_minus(512.0, None) == "512 ±?"


def known(value: float, uncertainty: float | None, spread: float | None) -> MetricSummary:
    half = None if spread is None else spread / 2
    return MetricSummary(value, half, 3, value, uncertainty, spread, 2.0)


METRICS = {
    "joules_per_output_token": known(0.0123, 0.0004, 0.000246),
    "joules_per_request": known(0.787, 0.026, 0.01),
    "output_tokens_per_s": known(512.0, 7.3, None),
    "ttft_p50_s": known(0.0456, 0.0012, None),
    "energy_j": known(12.3, 0.41, 0.2),
    "avg_power_w": known(41.0, 1.1, 0.2),
}


def row(identity: str, **more: object) -> ExperimentSummary:
    values: dict[str, object] = {"meter": "estimate", "measured": False, "metrics": METRICS}
    values |= {"states": {"valid": 3}, "reasons": (), "engine": "transformers", "model": "m", **more}
    return ExperimentSummary(
        study="s",
        experiment_id=identity,
        config_hash="0" * 64,
        cycles_valid=3,
        cycles_total=3,
        **{"warnings": (), **values},  # type: ignore[arg-type]
    )


def plan(axes: dict[str, Sequence[JsonValue]], *points: Sequence[JsonValue], headline: str | None = None) -> StudyPlan:
    """A plan whose experiments `e0`, `e1`, ... lie at these points."""
    swept = [SweptAxis(name, name, tuple(map(text_of, values)), tuple(values)) for name, values in axes.items()]
    named = {f"e{index}": tuple(point) for index, point in enumerate(points)}
    return StudyPlan("s", None, axes=tuple(swept), points=named, headline=headline)


def lines(
    of: StudyPlan | None = None, *, width: int = 80, rows: Sequence[ExperimentSummary] | None = None
) -> list[str]:
    made = [row(name) for name in of.points] if of is not None and rows is None else rows or [row("e0")]
    return [line.text for line in summary_lines(made, [of] if of is not None else [], Path("r"), width)]


BATCHES = plan({"batch_size": [1, 16], "dtype": ["float32", "bfloat16"]}, [1, "float32"], [16, "bfloat16"])


def test_eighty_columns_hold_axes_energy_and_throughput_with_their_uncertainty() -> None:
    """At 80 columns two thirds of the width were an id, and J/token stood alone."""
    assert lines(BATCHES)[:4] == [
        "study s: m, transformers",
        "batch_size  dtype        mJ/token*  mJ/request*     tokens/s  valid  power (W)*",
        "         1  float32   12.30 ± 0.40     787 ± 26  512.0 ± 7.3    3/3  41.0 ± 1.1",
        "        16  bfloat16  12.30 ± 0.40     787 ± 26  512.0 ± 7.3    3/3  41.0 ± 1.1",
    ]
    wide = lines(BATCHES, width=160)[1].split()
    assert wide[-4:] == ["(W)*", "energy", "(J)*", "spread"]
    for width in (70, 80, 100, 160):
        assert all(len(line) <= width for line in lines(BATCHES, width=width)[1:4])


def test_a_scored_study_shows_what_a_correct_answer_cost_and_how_many_there_were() -> None:
    """Joules per token alone are lowest for answers that are wrong."""
    cost = replace(known(0.234, 0.021, 0.01), low=0.218, high=0.255)
    share = replace(known(0.62, 0.07, 0.0), low=0.55, high=0.685)
    right = {"joules_per_correct_answer": cost, "accuracy": share}
    names = ("e0", "e1")
    scored = [row(name, metrics={**METRICS, **right}, warnings=("answers_cut",)) for name in names]
    of = replace(BATCHES, headline="joules_per_correct_answer")
    shown = lines(of, rows=scored)
    assert shown[1].split()[:7] == ["batch_size", "dtype", "mJ/correct*", "accuracy", "(%)", "mJ/token*", "valid"]
    assert all(len(line) <= 80 for line in shown[1:4])
    assert "234 (218–255)  62.0 (55.0–68.5)" in shown[2]
    assert "accuracy is a lower bound in 2 experiments: output_tokens ended wrong answers" in shown
    assert not [line for line in lines(BATCHES) if "accuracy" in line or "/correct" in line]


def test_answers_without_scores_say_why_and_what_to_do() -> None:
    """The columns of accuracy were just not there."""
    why = "scorer python: grade.py:grade, question 'japan': grade.py:3: ValueError: what?"
    scores = Scores("python: grade.py:grade", "1", None, 20, 60, None, 0, why)
    shown = lines(rows=[row("e0", warnings=("answers_not_scored",), scores=scores)])
    assert f"answers NOT scored in 1 experiment: {why}" in shown
    assert [line for line in shown if "llem score RUN --write" in line]


def test_a_cost_that_no_right_answer_has_is_not_just_missing() -> None:
    """It was the headline, and its column was not there; the legend spoke of it all the same."""
    scores = Scores("contains", "1", None, 12, 12, 0.0, 0, "no answer is right, and so none has a cost")
    share = replace(known(0.0, 0.27, 0.0), low=0.0, high=0.27)
    shown = lines(rows=[row("e0", metrics={**METRICS, "accuracy": share}, scores=scores)])
    assert "no joules per correct answer in 1 experiment: no answer is right, and so none has a cost" in shown
    assert "/correct: per correct answer" not in shown


def test_what_all_experiments_share_stands_once_above() -> None:
    """A run of part of a study: an axis with one value left, model and engine took a column or were not said."""
    of = plan({"batch_size": [1, 16], "dtype": ["float32"]}, [1, "float32"], [16, "float32"])
    assert lines(of)[0] == "study s: m, transformers, dtype float32"
    assert "dtype" not in lines(of)[1]
    mixed = [row("e0"), row("e1", engine="vllm")]
    assert lines(of, rows=mixed)[0] == "study s: m, dtype float32"


def test_ids_stand_where_the_axes_do_not_tell_experiments_apart() -> None:
    of = plan({"batch_size": [1]}, [1])
    explicit = [row("batch_size:1"), row("eager")]
    assert [line.split()[0] for line in lines(of, rows=explicit)[1:4]] == ["experiment", "batch_size:1", "eager"]


def test_an_axis_without_effect_is_a_dash_and_numbers_are_set_to_the_right() -> None:
    of = plan({"top_k": [5, 50], "sampling": ["greedy", "random"]}, [None, "greedy"], [5, "random"], [50, "random"])
    assert [line[:14].rstrip() for line in lines(of)[1:5]] == [
        "top_k  samplin"[:14],
        "    -  greedy",
        "    5  random",
        "   50  random",
    ]


LONG = "a-very-long-value-of-a-setting-that-nobody-would-write-by-hand"
MANY = plan(
    {"batch_size": [1, 2], "dtype": ["float32", "bfloat16"], "attention": [f"{LONG}-{n}" for n in (1, 2)], "x": [1, 2]},
    [1, "float32", f"{LONG}-1", 1],
    [2, "bfloat16", f"{LONG}-2", 2],
)


def test_long_values_are_cut_in_the_middle_and_stay_distinct() -> None:
    of = lines(MANY, width=100)
    assert all(len(line) <= 100 for line in of[1:4])
    assert "…" in of[2]
    assert of[2].split()[2] != of[3].split()[2]
    assert "512.0 ± 7.3" in of[2]


def test_forty_columns_hold_every_figure_with_what_it_is() -> None:
    """A narrow terminal lost the columns one by one until only the id was left."""
    of = lines(MANY, width=40)
    blocks = "\n".join(of[1 : of.index("")])
    for part in (
        "batch_size 1  dtype float32",
        f"attention {LONG}-1",
        "12.30 ± 0.40 mJ/token*",
        "787 ± 26 mJ/request*",
    ):
        assert part in blocks
    assert blocks.count("512.0 ± 7.3 tokens/s") == 2
    assert max(len(line) for line in blocks.splitlines() if LONG not in line) <= 40


def test_a_single_experiment_fits_a_narrow_terminal_as_well() -> None:
    of = lines(plan({"batch_size": [1]}, [1]), width=30)
    assert of[0] == "study s: m, transformers, batch_size 1"
    assert of[1:4] == ["    12.30 ± 0.40 mJ/token*", "    787 ± 26 mJ/request*", "    512.0 ± 7.3 tokens/s"]


def test_values_that_would_be_cut_to_the_same_text_are_not_cut() -> None:
    middle = plan(
        {"x": ["a" * 30 + c + "b" * 30 for c in "12"]}, ["a" * 30 + "1" + "b" * 30], ["a" * 30 + "2" + "b" * 30]
    )
    text = "\n".join(lines(middle, width=70))
    assert "…" not in text
    assert "a1b" in text
    assert "a2b" in text


def test_the_headline_of_the_study_comes_first() -> None:
    """`execution.headline` decided when a study stops, and was not in its table."""
    of = plan({"batch_size": [1, 16]}, [1], [16], headline="ttft_p50_s")
    assert lines(of)[1].split()[:3] == ["batch_size", "ttft_p50", "(ms)"]
    assert "45.6 ± 1.2" in lines(of)[2]
    usual = plan({"batch_size": [1, 16]}, [1], [16], headline="output_tokens_per_s")
    assert lines(usual)[1].split()[:3] == ["batch_size", "tokens/s", "mJ/token*"]


def test_one_prefix_for_a_column_so_that_its_numbers_compare() -> None:
    """`999 mJ` stood below `1.23 J`."""
    small, large = ({"joules_per_output_token": known(value, value / 50, None)} for value in (0.0123, 1.23))
    of = lines(BATCHES, rows=[row("e0", metrics=small), row("e1", metrics=large)])
    assert of[1].split()[2] == "mJ/token*"
    assert (of[2].split()[2], of[3].split()[2]) == ("12.30", "1230")


def test_a_number_stands_with_its_expanded_uncertainty_and_the_spread_apart() -> None:
    """Half an interquartile range stood behind ±, which holds the true value in under half of studies."""
    of = lines(width=120)
    assert "12.30 ± 0.40" in of[2]
    assert "2.0%" in of[2]
    assert any("expanded uncertainty (95 %" in line for line in of)
    assert any("spread: interquartile range" in line for line in of)


def test_the_probability_of_being_best_comes_where_there_is_room_and_nowhere_else() -> None:
    """It is a further column: at 50 columns names and figures stay, and no note explains what is not shown."""
    of = plan({"batch_size": [1, 8]}, [1], [8])
    ranked = [replace(row("e0"), best=0.004), replace(row("e1"), best=0.996)]
    wide, narrow = lines(of, rows=ranked, width=120), lines(of, rows=ranked, width=50)
    assert "best (%)" in wide[1]
    assert [line.split("  ")[-1].strip() for line in lines(of, rows=ranked, width=70)[2:4]] == ["< 1", "> 99"]
    assert any(line.startswith("best (%): probability") for line in wide)
    assert not any("best (%)" in line for line in [*narrow, *lines(of, rows=[row("e0"), row("e1")], width=120)])


def test_an_unknown_uncertainty_and_the_boards_gain_are_said() -> None:
    metrics = {"joules_per_output_token": known(0.0123, None, None)}
    of = lines(rows=[row("e0", metrics=metrics, gain_uncertainty_rel=0.05)])
    assert "12.3 ±?" in of[2]
    assert any("±? is not known" in line for line in of)
    assert any("gain error, 5%, is apart" in line for line in of)


def test_an_estimate_is_never_shown_as_if_it_were_measured() -> None:
    """The warning stood third below the table, and nothing at the figures."""
    of = lines()
    assert "mJ/token*" in of[1]
    assert of[4].startswith("* energy NOT measured: estimate")
    measured = lines(rows=[row("e0", meter="nvml", measured=True)])
    assert "*" not in measured[1]
    assert any("measured by nvml" in line for line in measured)


def test_an_estimate_beside_a_measured_row_is_marked_by_itself() -> None:
    """A GPU's joules stood below `J/token*`, "NOT measured", because the CPU's in the row above were estimated."""
    shown = lines(plan({"kind": ["cpu", "cuda"]}, ["cpu"], ["cuda"]), rows=[row("e0"), row("e1", measured=True)])
    assert "*" not in shown[1]
    assert (shown[2].count("*"), shown[3].count("*")) == (4, 0)


def test_what_was_not_measured_is_no_column_and_a_dash_where_it_is_the_headline() -> None:
    nothing = lines(rows=[row("e0", meter="none", measured=False, metrics={})])
    assert nothing[2].split() == ["e0", "-", "3/3"]
    speed = {"output_tokens_per_s": METRICS["output_tokens_per_s"]}
    assert lines(rows=[row("e0", meter="none", measured=False, metrics=speed)])[1].split() == (
        ["experiment", "tokens/s", "valid"]
    )


def test_why_cycles_are_not_valid_is_said_without_an_option() -> None:
    """On a busy machine the table had 0/3 in each row, pytest `12 skipped`, and nothing said why."""
    invalid = {"states": {"invalid": 3}, "reasons": ("cpu_contended: the processes waited", "the worker was killed")}
    rows = [row("a", **invalid), row("b", states={"valid": 2, "invalid": 1})]
    assert "not valid: 4 cycles (cpu_contended): `pytest -rs` says more" in lines(rows=rows)
    assert not any("not valid" in line for line in lines())


def test_a_run_that_was_cut_short_says_what_is_left_and_how_to_go_on() -> None:
    """After Ctrl-C the user had to count cycles, and to find --llem-resume in the manual."""
    command = ("pytest", "--llem-study=a.yaml", "-n", "2", "-k", "dtype and not float32", "--llem-shard=2/4")
    told, again = (line.text for line in resume_lines(7, 24, command))
    assert told.startswith("7 of 24 cycles left")
    assert again.endswith("pytest --llem-study=a.yaml -n 2 -k 'dtype and not float32' --llem-shard=2/4 --llem-resume")
    resumed = resume_lines(7, 24, ("pytest", "--llem-resume", "a.yaml"))[1].text
    assert resumed.endswith("pytest --llem-resume a.yaml")
    assert resume_lines(1, 1, ("pytest", "--", "a.yaml"))[1].text.endswith("pytest --llem-resume -- a.yaml")
    assert resume_lines(0, 24, command) == []


def test_the_python_that_resumes_is_the_one_that_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`.venv/bin/python -m pytest` was to be resumed with `python`, which may be another or none."""
    monkeypatch.setattr(sys, "argv", ["/x/pytest/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert resume_lines(1, 2, ("pytest", "a.yaml"))[1].text.split()[:3] == [str(tmp_path / "python"), "-m", "pytest"]
    (tmp_path / "python").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resume_lines(1, 2, ("pytest", "a.yaml"))[1].text.split()[:3] == ["python", "-m", "pytest"]


def served_rows() -> list[ExperimentSummary]:
    """Three levels of a load: one that reached its SLO, one that did not, and a saturated one."""
    figures = {
        **METRICS,
        "good_requests_per_joule": known(1.234, 0.031, None),
        "joules_per_good_request": known(0.81, 0.02, None),
        "goodput_requests_per_s": known(3.98, 0.04, None),
    }
    limits = {"ttft_s": 0.3}
    reached = Served(limits, 0.95, 600, 594, 0.99, 0.978, 0.996, "reached")
    missed = Served(limits, 0.95, 600, 300, 0.5, 0.459, 0.541, "not reached")
    saturated = Served(limits, 0.95, 0, None, None, None, None, "saturated")
    return [
        row("e0", slo=reached, metrics=figures),
        row("e1", slo=missed, metrics=figures),
        row("e2", slo=saturated, metrics={}, states={"invalid": 3}),
    ]


@pytest.mark.parametrize("headline", [None, "good_requests_per_joule"])
def test_a_table_of_served_requests_says_whether_the_slo_is_reached(headline: str | None) -> None:
    of = plan({"rate_per_s": [2, 4, 8], "threads": [1]}, [2, 1], [4, 1], [8, 1], headline=headline)
    shown = lines(of, rows=served_rows())
    head, *body = shown[1:5]
    assert all(len(line) <= 80 for line in shown[1:5])
    assert [head.count(word) for word in ("SLO reached", "good/s", "/good")] == [1, 1, headline is None]
    for line, cell in zip(body, ("yes, 99 %", "no, 50 %", "saturated"), strict=False):
        assert cell in line
    assert "SLO: ttft ≤ 0.3 s for at least 95 % of requests; good ones keep it" in shown
    assert not any(line.startswith("undecided: ") for line in shown)
    undecided = [replace(each, slo=replace(each.slo, state="undecided")) for each in served_rows() if each.slo]
    assert "undecided: too few requests to tell (95 %); more workload.prompts decide, or another load" in lines(
        of, rows=undecided
    )
    narrow = lines(of, rows=served_rows(), width=40)
    assert "SLO reached yes, 99 %" in " ".join(narrow)


def test_rows_stand_in_the_order_of_the_sweep_whatever_order_they_were_run_in() -> None:
    """A shuffled run's limits stood as 200, 500, 300, default: nobody sees a curve in that."""
    of = plan({"power_limit_w": ["default", 500, 300]}, [300], ["default"], [500])
    cells = [line.split()[0] for line in lines(of)[2:5]]
    assert cells == ["default", "500", "300"]


OPTIMUM = Optimum(
    study="s",
    run="r",
    point={"batch_size": 1},
    metric="joules_per_output_token",
    axes=("device.power_limit_w",),
    best=(300,),
    others=(),
    reference=("default",),
    told=True,
    energy=None,
    speed=None,
    ends=(),
    sentence="least energy per output token at 300 W: 12.1 % less (10.4 to 13.8 %), 6.0 % slower (5.1 to 6.9 %) than "
    "at default",
)


def test_the_optimum_of_a_gpus_settings_stands_below_the_table_at_any_width() -> None:
    """Of a sweep of limits the table alone leaves it to the reader to find the best one and how sure that is."""
    for width in (60, 80, 200):
        text = [line.text for line in summary_lines([row("e0")], [], Path("r"), width, optima=[OPTIMUM])]
        start = next(place for place, line in enumerate(text) if line.startswith("least energy"))
        end = text.index("", start)
        assert text[start - 1] == ""
        assert " ".join(line.strip() for line in text[start:end]) == OPTIMUM.sentence
        assert max(map(len, text[start:end])) <= width


def test_optima_of_several_points_are_named_and_many_are_counted() -> None:
    many = [replace(OPTIMUM, point={"transformers.batch_size": size}) for size in range(9)]
    said = of_optima(many, "s")
    assert said[0].startswith("batch_size 0: least energy")
    assert said[MOST_OPTIMA:] == ["and 3 more in summary.json"]
    assert of_optima(many, "another") == []


def test_the_step_summary_of_github_has_the_optimum() -> None:
    text = summary_markdown([row("e0")], [], [], [], "run", [OPTIMUM])
    assert any("at 300 W: 12.1 % less" in line for line in text)
