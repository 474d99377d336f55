"""Studies with questions: what belongs together, what is refused, and which defaults scored answers have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.job.config import ExperimentConfig, ScoreBy
from pytest_llem.study import Study, load_study

Load = Callable[..., Study]
SCHEDULE = {"process": "schedule"}
ASKED = "model: m\nworkload: {dataset: q.jsonl, answer_column: answer, score: exact"
TASK = "model: m\nworkload: {task: 'lm_eval:gsm8k'"

REFUSED = {
    "a score without a key": (
        "model: m\nworkload: {dataset: q.jsonl, score: exact}\n",
        "score",
        "needs .*answer_column",
    ),
    "a score of synthetic prompts": (
        "model: m\nworkload: {score: exact, answer_column: answer}\n",
        "score",
        "score exact needs questions, and synthetic",
    ),
    "two ways to score": (
        ASKED.replace("exact", "{regex: a, python: 'g.py:f'}") + "}\n",
        "score",
        "one of regex and python is needed",
    ),
    "no way to score": (ASKED.replace("exact", "{}") + "}\n", "score", "one of regex and python is needed"),
    "answers to the last token": (ASKED + ", ignore_eos: true}\n", "ignore_eos", "an answer must end"),
    "a task's to the last token": (TASK + ", ignore_eos: true}\n", "ignore_eos", "an answer must end"),
    "stop strings that stop nothing": (
        "model: m\nworkload: {stop: ['.'], ignore_eos: true}\n",
        "ignore_eos",
        "must end",
    ),
    "cut questions": (ASKED + ", input_tokens: 64}\n", "input_tokens", "what is cut is another question"),
    "a cut task": (TASK + ", input_tokens: 64}\n", "input_tokens", "what is cut is another question"),
    "cut examples": (
        "model: m\nworkload: {dataset: q.jsonl, system_prompt: x, input_tokens: 64}\n",
        "input_tokens",
        "cannot be combined with workload.system_prompt",
    ),
    "a task and a data set": (TASK + ", dataset: q.jsonl}\n", "task", "a task has its own questions"),
    "a task and a score": (TASK + ", score: exact}\n", "task", "a task has its own scoring"),
    "examples without answers": (
        "model: m\nworkload: {dataset: q.jsonl, few_shot: 2}\n",
        "few_shot",
        "needs .*answer_column",
    ),
    "a limit that only a task has": ("model: m\nworkload: {output_tokens: null}\n", "output_tokens", "write a number"),
    "examples that only a task has": (ASKED + ", few_shot: null}\n", "few_shot", "null is what a workload.task has"),
    "cycles that add no questions": (
        ASKED.replace("workload", "execution: {headline: accuracy, target_ci: 1%}\nworkload") + "}\n",
        "target_ci",
        "ask more questions",
    ),
    "questions that are their answers": (ASKED + ", column: answer}\n", "answer_column", "both answer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_score_something_else_is_refused_where_it_stands(load: Load, case: str) -> None:
    text, setting, message = REFUSED[case]
    column = text.splitlines()[1].index(f"{setting}: ") + len(f"{setting}: ") + 1

    with pytest.raises(StudyError, match=message) as caught:
        load(text)

    assert f":2:{column}:" in str(caught.value)


IDLE = {
    "a column of answers that nothing reads": "dataset: q.jsonl, answer_column: a",
    "kept answers that nobody scores": "dataset: q.jsonl, keep_answers: false",
    "examples of synthetic prompts": "few_shot: 2, answer_column: a, system_prompt: x",
    "task files without a task": "dataset: q.jsonl, include_path: ./tasks",
    "columns of a task": "task: 'lm_eval:x', column: question, answer_column: a, split: test, order: shuffled",
}


@pytest.mark.parametrize("case", IDLE)
def test_what_does_nothing_is_named_and_in_no_hash(load: Load, case: str) -> None:
    text = f"model: m\nworkload: {{{IDLE[case]}}}\n"
    needed = [part for part in IDLE[case].split(", ") if part.startswith(("dataset", "task"))]
    plain = load(f"model: m\nworkload: {{{', '.join(needed)}}}\n")

    study = load(text)

    assert study.experiments[0].config_hash == plain.experiments[0].config_hash
    assert len(study.notices) == len(IDLE[case].split(", ")) - len(needed)


def test_scored_answers_end_on_their_own_and_questions_stay_whole(load: Load) -> None:
    """Said or not, so that a study which says so is the same experiment."""
    tacit, said = (
        load(ASKED + more + "}\n").experiments[0] for more in ("", ", ignore_eos: false, input_tokens: null")
    )

    assert (tacit.config.workload.ignore_eos, tacit.config.workload.input_tokens) == (False, None)
    assert tacit.config_hash == said.config_hash
    assert load("model: m\nworkload: {dataset: q.jsonl}\n").experiments[0].config.workload.ignore_eos


def test_a_task_has_its_own_limit_and_examples_unless_the_study_says_so(load: Load) -> None:
    own, said = (load(TASK + more + "}\n").experiments[0] for more in ("", ", output_tokens: 9, few_shot: 2"))

    assert (own.config.workload.output_tokens, own.config.workload.few_shot) == (None, None)
    assert (said.config.workload.output_tokens, said.config.workload.few_shot) == (9, 2)
    assert (own.config.workload.ignore_eos, own.config.workload.input_tokens) == (False, None)


def test_in_a_sweep_each_point_has_the_defaults_of_what_it_does(load: Load) -> None:
    study = load(
        "model: m\nworkload: {dataset: q.jsonl, answer_column: answer}\n"
        "sweep: {workload.score: [null, exact, {regex: 'is (.)'}], workload.few_shot: [0, 2]}\n"
    )

    found = [
        (e.config.workload.scored, e.config.workload.few_shot, e.config.workload.ignore_eos) for e in study.experiments
    ]

    assert found == [(scored, few_shot, not scored) for scored in (False, True, True) for few_shot in (0, 2)]


def test_an_exclusion_sees_the_default_of_each_point(load: Load) -> None:
    study = load(
        "model: m\nworkload: {dataset: q.jsonl, answer_column: answer}\n"
        "sweep: {workload.score: [null, exact]}\nexclude: [{workload.ignore_eos: false}]\n"
    )

    assert [experiment.config.workload.score for experiment in study.experiments] == [None]


def test_a_written_length_stands_whatever_else_is_swept(load: Load) -> None:
    """Sweeping the order made the data set's own lengths of it, and said nothing."""
    study = load(
        "model: m\nworkload: {dataset: p.txt, input_tokens: 5}\nsweep: {workload.order: [interleaved, grouped]}\n"
    )

    both = load(
        "model: m\nworkload: {dataset: p.txt, column: c}\non_invalid: skip\n"
        "sweep: {workload.input_tokens: [5, null], workload.system_prompt: [null, x]}\n"
    )

    assert [experiment.config.workload.input_tokens for experiment in study.experiments] == [5, 5]
    assert [experiment.config.workload.input_tokens for experiment in both.experiments] == [5, None, None]


def test_own_files_are_found_from_the_study(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "s.yaml").write_text(ASKED.replace("exact", "{python: 'grading.py:grade'}") + "}\n")
    (tmp_path / "t.yaml").write_text(TASK + ", include_path: tasks}\n")

    scored, task = (load_study(tmp_path / name, env={}).experiments[0].config.workload for name in ("s.yaml", "t.yaml"))

    assert scored.score == ScoreBy(python=f"{tmp_path / 'grading.py'}:grade")
    assert task.include_path == str(tmp_path / "tasks")


def test_a_sweep_of_one_setting_of_a_task_keeps_the_others(load: Load) -> None:
    """What decides on the directory of task files went with the sweep, and the directory did nothing."""
    study = load(TASK + ", include_path: tasks}\nsweep: {workload.chat_template: [false, true]}\n")

    found = [Path(str(experiment.config.workload.include_path)).name for experiment in study.experiments]

    assert found == ["tasks", "tasks"]


BASES: dict[str, dict[str, Any]] = {
    "texts": {"dataset": "q.jsonl", "column": "c", "input_tokens": 5, "order": "grouped", "arrival": SCHEDULE},
    "questions": {
        "dataset": "q.jsonl",
        "column": "c",
        "answer_column": "a",
        "score": "exact",
        "few_shot": 2,
        "stop": ["z"],
    },
    "a task": {"task": "lm_eval:x", "include_path": "t", "chat_template": True, "output_tokens": 9, "few_shot": 2},
}
AXES: dict[str, list[Any]] = {
    "dataset": ["synthetic", "q.jsonl"],
    "task": [None, "lm_eval:x"],
    "score": [None, "exact"],
    "few_shot": [0, 3],
    "stop": [[], ["y"]],
    "ignore_eos": [True, False],
    "input_tokens": [7, 8],
    "output_tokens": [7, 8],
    "order": ["grouped", "interleaved"],
    "chat_template": [True, False],
    "system_prompt": [None, "x"],
    "keep_answers": [True, False],
    "speed": [1.0, 2.0],
    "arrival": [None, SCHEDULE],
}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("base", BASES)
def test_a_point_of_a_sweep_is_what_its_settings_are_alone(load: Load, base: str, axis: str) -> None:
    """A default that others decide on, or whether a setting does anything, was found without these by some axes."""
    shared = {name: value for name, value in BASES[base].items() if name != axis}

    def points(workload: Mapping[str, Any], **more: Any) -> list[ExperimentConfig]:
        study = {"model": "m", "engine": "vllm", "on_invalid": "skip", "workload": workload, **more}
        with suppress(StudyError):  # none of them can run
            return [experiment.config for experiment in load(json.dumps(study)).experiments]
        return []

    alone = [config for value in AXES[axis] for config in points({**shared, axis: value})]
    swept = points(shared, sweep={f"workload.{axis}": AXES[axis]})

    assert swept == [config for place, config in enumerate(alone) if config not in alone[:place]]
