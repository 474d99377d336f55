"""A study of a task of lm-evaluation-harness, and what is wrong with one before anything runs."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.harness_tasks import harness_result, require_harness, write_task

STUDY = """\
name: sums
model: builtin:tiny-llama
engine: transformers
workload:
  task: "{task}"
  include_path: tasks
  prompts: 8
  chat_template: true
  few_shot: 2
  system_prompt: Be brief.
measurement: {{min_duration_s: 0.1, idle: {{duration_s: 0}}, warmup: {{max_repeats: 0}}}}
execution: {{cycles: 1, retries: 0}}
{more}
"""
# Words of the tiny model's, whose answers are nonsense.
FOUND = "[{name: first, filter: [{function: regex, regex_pattern: '(faint|certainly|high)'}, {function: take_first}]}]"


@pytest.fixture(scope="module")
def _harness() -> None:
    """The harness, with what it evaluates by, is imported before `pytester` remembers what was: none bears a second."""
    require_harness()
    for name in ("torch", "transformers", "lm_eval.evaluator"):
        import_module(name)


def study(directory: Path, task: str = "lm_eval:sums", more: str = "") -> None:
    (directory / "study.yaml").write_text(STUDY.format(task=task, more=more))


@pytest.mark.engine
@pytest.mark.usefixtures("_harness")
def test_a_study_has_the_scores_that_the_harness_gives_for_its_answers(pytester: pytest.Pytester) -> None:
    """Question by question and in sum, of answers that an engine gave to the harness's own prompts."""
    shown = '{doc_to_target: "{{answer}}"}'
    tasks = write_task(pytester.path, filter_list=FOUND, doc_to_target="certainly", fewshot_config=shown)
    study(pytester.path)

    pytester.runpytest_subprocess("--llem-study=study.yaml").assert_outcomes(passed=1)

    (cycle,) = pytester.path.glob("llem-results/*/sums/*/c1")
    answers = [json.loads(line) for line in (cycle / "answers.jsonl").read_text().splitlines()]
    texts = json.loads((cycle / "job.json").read_text())["texts"]
    quality = json.loads((cycle / "result.json").read_text())["quality"]
    theirs = harness_result(tasks, [each["text"] for each in answers], few_shot=2, chat=True, system="Be brief.")
    samples = theirs["samples"]["sums"]
    assert [json.loads(one["arguments"][0][0]) for one in samples] == texts["chats"]
    assert [each["question"] for each in answers] == [str(one["doc_id"]) for one in samples]
    assert quality["scores"] == [each["score"] for each in answers] == [one["exact_match"] for one in samples]
    assert quality["accuracy"] == theirs["results"]["sums"]["exact_match,first"]
    assert 0 < quality["accuracy"] < 1
    assert quality["scorer"] == "lm_eval:sums exact_match,first"
    assert max(quality["output_tokens"]) <= 24  # the task's own limit


@pytest.mark.usefixtures("_harness")
def test_what_is_wrong_with_a_task_is_said_at_collection_where_it_stands(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the hub would fail each cycle, after half a minute of tries."""
    write_task(pytester.path)
    sweep = "sweep:\n  workload.task: ['lm_eval:sum', 'lm_eval:gsm8k', 'lm_eval:sums']"
    study(pytester.path, more=f"decoding: {{do_sample: true}}\n{sweep}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(pytester.path / "none"))

    result = pytester.runpytest_subprocess("--llem-study=study.yaml", "--collect-only")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    for said in (
        "15:19: workload.task lm_eval:sum: no such task in * and lm-evaluation-harness *",
        "15:34: workload.task lm_eval:gsm8k needs the data set 'openai/gsm8k' of the hub*, and cannot be fetched: *",
        "5:9: workload.task lm_eval:sums decodes with {do_sample: false}, and this experiment with {do_sample: true}",
    ):
        result.stdout.fnmatch_lines([f"*study.yaml:{said}"])


def test_without_the_harness_a_task_says_what_to_install(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest("import sys\nsys.modules['lm_eval'] = None\n")  # as if it were not installed
    (pytester.path / "tasks").mkdir()
    study(pytester.path)
    result = pytester.runpytest_subprocess("--llem-study=study.yaml", "--collect-only")
    result.stdout.fnmatch_lines(["*study.yaml:5:9: workload.task 'lm_eval:sums' needs lm-evaluation-harness*"])
    result.stdout.fnmatch_lines(["fix: pip install 'pytest-llem[[]quality[]]'"])
