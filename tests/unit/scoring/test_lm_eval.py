"""Tasks of lm-evaluation-harness: prompts and scores are the harness's own, exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from pytest_llem.errors import LlemError, ScoringError, WorkloadError
from pytest_llem.job.config import Decoding, WorkloadSettings
from pytest_llem.job.request import Question
from pytest_llem.scoring.lm_eval import TaskScorer
from pytest_llem.workload.harness import load_task
from pytest_llem.workload.tasks import require_decoding, texts_of_task
from tests.harness_tasks import harness_result, require_harness, write_task

# Right; right with a separator and a unit; right, and no marker; another number behind the marker; nothing; a marker
# without a number; right in other words first; two markers, of which the first counts; digits of another script.
ANSWERS = (
    *("#### 3", " so\n#### $6,.0", "It is 9", "#### 13", "", "####"),
    *("12 + 13\n#### 18 ", "#### 2\n#### 4", "#### ٣"),
)


@pytest.fixture(autouse=True)
def _harness() -> None:
    require_harness()


def settings(tasks: Path, **changes: object) -> WorkloadSettings:
    given = {"task": "lm_eval:sums", "few_shot": None, "prompts": len(ANSWERS), **changes}
    return WorkloadSettings(include_path=str(tasks), input_tokens=None, output_tokens=None, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("few_shot", "system"), [(0, None), (3, None), (2, "Be brief.")])
def test_prompts_and_scores_are_those_of_the_harness(
    tmp_path: Path, chat: bool, few_shot: int, system: str | None
) -> None:
    """A score that cannot be compared with a published one would look like one that can."""
    tasks = write_task(tmp_path)
    texts = texts_of_task(settings(tasks, few_shot=few_shot, chat_template=chat, system_prompt=system))
    theirs = harness_result(tasks, ANSWERS, few_shot=few_shot, chat=chat, system=system)
    samples = [one for one in theirs["samples"]["sums"] if one["filter"] == "strict-match"]
    asked = [json.dumps(messages) for messages in texts.chats] if chat else list(texts.texts)
    assert asked == [one["arguments"][0][0] for one in samples]
    assert [question.id for question in texts.questions] == [str(one["doc_id"]) for one in samples]
    assert [question.target for question in texts.questions] == [one["target"] for one in samples]
    assert {texts.stop, texts.output_tokens} == {("Question:", "</s>"), 24}
    scorer = TaskScorer("lm_eval:sums", str(tasks))
    scores = [scorer.score(answer, question) for answer, question in zip(ANSWERS, texts.questions, strict=True)]
    assert scores == [one["exact_match"] for one in samples]
    assert fmean(scores) == theirs["results"]["sums"]["exact_match,strict-match"]
    assert set(scores) == {0.0, 1.0}
    assert scorer.name == "lm_eval:sums exact_match,strict-match"


def refused(tasks: Path, ask: Callable[[WorkloadSettings], object] = texts_of_task, **changes: object) -> LlemError:
    with pytest.raises(LlemError) as caught:
        ask(settings(tasks, **changes))
    return caught.value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_type": "loglikelihood"}, "it asks for loglikelihood of given texts, and engines here answer"),
        ({"repeats": "4"}, "it asks each question 4 times (repeats) for one score"),
        ({"unsafe_code": "true"}, "it runs answers as programs (unsafe_code)"),
        ({"generation_kwargs": "{until: [x], num_beams: 4}"}, "it generates with num_beams (generation_kwargs)"),
        ({"doc_to_image": "question"}, "it asks of pictures or sounds"),
        ({"metric_list": "[{metric: bleu}]"}, "it has bleu first, whose result is no mean over answers (bleu)"),
        (
            {"metric_list": "[{metric: exact_match, aggregation: mean, higher_is_better: false}]"},
            "it has exact_match first, of which less is better",
        ),
    ],
)
def test_a_task_that_would_score_otherwise_than_the_harness_is_refused(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    """Its mean over answers would stand beside published figures that are none."""
    tasks = write_task(tmp_path, **changes)
    assert f"workload.task lm_eval:sums cannot be scored: {said}" in refused(tasks).message


@pytest.mark.parametrize(
    ("changes", "setting", "message", "fix"),
    [
        ({"task": "lm_eval:sum"}, None, "lm_eval:sum: no such task in ", "did you mean lm_eval:sums?"),
        ({"task": "lm_eval:gsm9k"}, None, "lm-evaluation-harness 0.", "did you mean lm_eval:gsm8k?"),
        ({"task": "lm_eval:mmlu"}, None, "lm_eval:mmlu is a group of tasks", "name one of its tasks"),
        ({"task": "lm_eval:ai2_arc"}, None, "is a tag of tasks", "name one of its tasks"),
        ({"task": "sums"}, None, "'sums' is no task", "write lm_eval:NAME"),
        ({"include_path": "/none"}, "include_path", "no such directory: /none", "correct the path"),
        ({"prompts": 13}, "prompts", "has 12 questions, and 13 were asked for", "at most 12"),
        ({"few_shot": 9}, None, "prompts cannot be made: ValueError: Sample larger than population", "lower"),
    ],
)
def test_settings_that_a_task_cannot_meet_are_named_with_what_to_write(
    tmp_path: Path, changes: dict[str, object], setting: str | None, message: str, fix: str
) -> None:
    tasks = write_task(tmp_path)
    given = {"include_path": str(tasks), "task": "lm_eval:sums", "few_shot": None, "prompts": 2, **changes}
    with pytest.raises(WorkloadError) as caught:
        texts_of_task(WorkloadSettings(**given))  # type: ignore[arg-type]
    assert caught.value.details.get("setting") == (setting and f"workload.{setting}")
    assert message in caught.value.message
    assert fix in str(caught.value.fix)


def test_a_task_says_how_many_examples_and_tokens_unless_the_study_does(tmp_path: Path) -> None:
    tasks = write_task(tmp_path, num_fewshot="2", generation_kwargs="{until: '###'}")
    texts = texts_of_task(settings(tasks))
    assert texts.texts[0].count("Question:") == 3
    assert (texts.stop, texts.output_tokens) == (("###",), 256)
    none = texts_of_task(settings(tasks, few_shot=0))
    assert none.texts[0].count("Question:") == 1


def test_the_harness_keeps_to_a_task_without_examples(tmp_path: Path) -> None:
    """It passes over `num_fewshot` there, and the study would say 2 where none are."""
    tasks = write_task(tmp_path, num_fewshot="0")
    error = refused(tasks, few_shot=2)
    assert error.details["setting"] == "workload.few_shot"
    assert texts_of_task(settings(tasks, few_shot=0)) is not None


def test_a_chat_does_not_begin_the_answer(tmp_path: Path) -> None:
    tasks = write_task(tmp_path, gen_prefix="So")
    assert refused(tasks, chat_template=True).details["setting"] == "workload.chat_template"
    texts = texts_of_task(settings(tasks))
    assert texts.texts[0].endswith("Answer: So")


def test_a_file_of_the_users_that_is_no_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    """The harness passes over it, and the task would be unknown."""
    tasks = write_task(tmp_path)
    (tasks / "sums.yaml").write_text("task: sums\nmetric_list: [\n")
    error = refused(tasks)
    assert error.message.startswith(f"{tasks / 'sums.yaml'}:3:1: no YAML: ")
    assert error.details == {"setting": "workload.include_path"}


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    tasks = write_task(tmp_path)
    (tmp_path / "data" / "asked.jsonl").unlink()
    error = refused(tasks)
    assert f"({tasks / 'sums.yaml'}) cannot be loaded: FileNotFoundError: " in error.message
    assert "asked.jsonl" in error.message


@pytest.mark.parametrize(
    ("generation", "decoding", "fits"),
    [
        ("{until: [x]}", Decoding(), True),
        ("{until: [x]}", Decoding(do_sample=True), False),
        ("{until: [x], do_sample: true, temperature: 0.7, top_p: 0.9}", Decoding(), False),
        ("{until: [x], do_sample: true, temperature: 0.7}", Decoding(do_sample=True, temperature=0.7), True),
        ("{until: [x], temperature: 0.7}", Decoding(do_sample=True, temperature=0.7), True),
        ("{until: [x], temperature: 0.7}", Decoding(do_sample=True, temperature=0.8), False),
        ("{until: [x], do_sample: false, temperature: 0.7}", Decoding(do_sample=True, temperature=0), True),
        ("{until: [x], do_sample: true, temperature: 0}", Decoding(), True),
        ("{until: [x]}", Decoding(repetition_penalty=1), True),
        ("{until: [x]}", Decoding(repetition_penalty=1.2), False),
        ("{until: [x], repetition_penalty: 1.2}", Decoding(), False),
        ("{until: [x], repetition_penalty: 1.2}", Decoding(repetition_penalty=1.2), True),
        ("{until: [x], do_sample: true}", Decoding(do_sample=True), True),
        ("{until: [x], do_sample: true}", Decoding(do_sample=True, top_k=5), False),
        ("{until: [x], do_sample: true}", Decoding(do_sample=True, temperature=0.2), False),
        ("{until: [x], do_sample: true, top_p: 0.9}", Decoding(do_sample=True, top_p=0.9, top_k=0), True),
    ],
)
def test_an_experiment_draws_tokens_as_its_task_does(
    tmp_path: Path, generation: str, decoding: Decoding, fits: bool
) -> None:
    """A penalty on repetition changes greedy answers too, and a task that says no `top_k` is not sampled by one."""
    workload = settings(write_task(tmp_path, generation_kwargs=generation))
    if fits:
        require_decoding(workload, decoding)
        return
    with pytest.raises(WorkloadError, match="lm_eval:sums decodes with"):
        require_decoding(workload, decoding)


def test_an_answer_of_another_question_is_not_scored(tmp_path: Path) -> None:
    """Answers are kept for years, and the task's data may change meanwhile."""
    scorer = TaskScorer("lm_eval:sums", str(write_task(tmp_path)))
    for question in (Question("0", "4"), Question("12", "3"), Question("-1", "3")):
        with pytest.raises(ScoringError):
            scorer.score("#### 3", question)


def test_what_is_no_score_is_an_error(tmp_path: Path) -> None:
    """A task of the user's own may count in percent, and its mean would be an accuracy of 100."""
    tasks = write_task(tmp_path, process_results="!function marks.percent")
    (tasks / "marks.py").write_text("def percent(doc, results):\n    return {'exact_match': 100.0 * len(results)}\n")
    scorer = TaskScorer("lm_eval:sums", str(tasks))
    texts = texts_of_task(settings(tasks))
    with pytest.raises(ScoringError, match=r"sums\[0\]: exact_match is 100.0, and no score"):
        scorer.score("#### 3", texts.questions[0])


def test_a_version_is_that_of_what_the_task_says_wherever_it_lies(tmp_path: Path) -> None:
    versions = []
    for name, changes in (("a", {}), ("b", {}), ("c", {"doc_to_target": '"{{question}}"'})):
        (tmp_path / name).mkdir()
        versions.append(load_task("lm_eval:sums", str(write_task(tmp_path / name, **changes))).version)
    assert versions[0] == versions[1] != versions[2]
    assert versions[0].startswith("lm_eval 0.")
    assert ", task 3.0, " in versions[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class TaskManager: pass", "is too old: 0.4.9"),
        ("import nonesuch", "cannot be imported: ModuleNotFoundError: "),
    ],
)
def test_a_harness_that_cannot_be_used_is_named(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "lm_eval" / "tasks").mkdir(parents=True)
    (tmp_path / "lm_eval" / "tasks" / "__init__.py").write_text(source)
    (tmp_path / "lm_eval" / "__init__.py").touch()
    (tmp_path / "lm_eval-0.4.9.dist-info").mkdir()
    (tmp_path / "lm_eval-0.4.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.9"
    )
    ask = "from pytest_llem.workload.harness import load_task; load_task('lm_eval:gsm8k', None)"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", ask], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert f"needs lm-evaluation-harness, which {said}" in done.stderr


CLASS = """
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

class Echo(Task):
    VERSION, OUTPUT_TYPE = 7, "generate_until"
    has_test_docs = lambda self: True
    has_training_docs = has_validation_docs = lambda self: False
    download = lambda self, *given: None
    test_docs = lambda self: ({"word": word} for word in "abc")
    doc_to_text = lambda self, doc: "Say " + doc["word"]
    doc_to_target = lambda self, doc: doc["word"]
    fewshot_context = lambda self, doc, **given: self.doc_to_text(doc)
    process_results = lambda self, doc, results: {"said": results[0] == doc["word"]}
    aggregation = lambda self: {"said": mean}
    higher_is_better = lambda self: {"said": True}

    def construct_requests(self, doc, ctx, metadata, **given):
        asked = (ctx, {**self.config.generation_kwargs, "until": UNTIL})
        return [Instance("generate_until", doc, asked, 0, metadata=metadata)]
"""


def test_a_task_that_is_a_class_is_asked_as_its_configuration_says_or_not_at_all(tmp_path: Path) -> None:
    """Its requests may end elsewhere than its configuration says, and the answers would be others."""
    (tmp_path / "echo.yaml").write_text("task: echo\nclass: !function echoes.Echo\n")
    (tmp_path / "echoes.py").write_text(CLASS.replace("UNTIL", r"['\n\n']"))
    texts = texts_of_task(settings(tmp_path, task="lm_eval:echo", prompts=2))
    scorer = TaskScorer("lm_eval:echo", str(tmp_path))
    assert texts.texts == ("Say a", "Say b")
    assert [scorer.score("b", question) for question in texts.questions] == [0, 1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "echo.yaml").write_text("task: echo\nclass: !function echoes.Echo\n")
    (tmp_path / "other" / "echoes.py").write_text(CLASS.replace("UNTIL", "['.']"))
    error = refused(tmp_path / "other", task="lm_eval:echo", prompts=2)
    assert "it generates otherwise than its generation_kwargs say" in error.message
