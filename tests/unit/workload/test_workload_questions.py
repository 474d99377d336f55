"""Questions: each has its answer key and an id that stays, and what is in front of it is sent as lm-eval would."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pytest_llem.errors import EngineSettingError, WorkloadError
from pytest_llem.job.config import ExperimentConfig, ScoreBy, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings, load_job
from pytest_llem.job.request import Texts
from pytest_llem.machine.environment import input_facts
from pytest_llem.machine.parquet import parquet_texts
from pytest_llem.scoring.registry import require_keys
from pytest_llem.workload.build import build_workload
from pytest_llem.workload.texts import read_rows, texts_of_package
from pytest_llem.workload.tokenizer import TextOnly
from tests.installed import Site
from tests.unit.workload.test_workload_build import WordTokenizer
from tests.unit.workload.test_workload_replayed import ChatWords

ROWS: list[Any] = [
    {"question": "one plus one is", "answer": 2},
    {"question": "Paris lies in", "answer": ["France", "Europe"], "id": "paris"},
    {"question": "red or blue", "answer": "red", "id": 7},
    {"question": "is it", "answer": True, "id": True},
]
BASE = WorkloadSettings(
    prompts=4, input_tokens=None, ignore_eos=False, column="question", answer_column="answer", score="exact"
)


def settings(path: Path, **changes: Any) -> WorkloadSettings:
    return dataclasses.replace(BASE, dataset=str(path), **changes)


def written(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def ids(texts: Texts) -> list[str]:
    return [question.id for question in texts.questions]


def as_jsonl(path: Path) -> Path:
    return written(path / "q.jsonl")


def as_json(path: Path) -> Path:
    (path / "q.json").write_text(json.dumps(ROWS))
    return path / "q.json"


def test_a_question_has_its_key_as_the_row_holds_it_and_where_that_stands(tmp_path: Path) -> None:
    for make, second in ((as_jsonl, "q.jsonl:2"), (as_json, "q.json[1]")):
        texts = read_rows(settings(make(tmp_path)))

        assert texts.texts == ("one plus one is", "Paris lies in", "red or blue", "is it")
        assert [question.target for question in texts.questions] == [2, ["France", "Europe"], "red", True]
        assert ids(texts) == ["1", "paris", "7", "4"]
        assert texts.questions[1].where == f"{tmp_path}/{second}"


@pytest.mark.parametrize("order", ["interleaved", "grouped", "shuffled"])
@pytest.mark.parametrize("few_shot", [0, 1])
def test_an_id_stays_with_its_question_whatever_is_asked(tmp_path: Path, order: Any, few_shot: int) -> None:
    """Comparisons pair questions by their ids: a position among those that are asked would pair others."""
    path = written(tmp_path / "q.jsonl")
    whole = read_rows(settings(path))
    by_text = dict(zip(whole.texts, whole.questions, strict=True))

    some = read_rows(settings(path, order=order, prompts=2, few_shot=few_shot, seed=3))

    assert len(some.texts) == 2
    assert [by_text[text] for text in some.texts] == list(some.questions)


def test_a_csv_and_a_parquet_file_give_the_same_questions(tmp_path: Path) -> None:
    """Of Parquet only the column of the texts was read."""
    rows = [{"question": "one", "id": "a", "answer": "1"}, {"question": "two", "id": "b", "answer": "2"}]
    (tmp_path / "q.csv").write_text("question,id,answer\none,a,1\ntwo,b,2\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    read = read_rows(settings(tmp_path / "q.csv", prompts=2))

    handed_over = parquet_texts(settings(tmp_path / "q.parquet", prompts=2))

    assert handed_over is not None
    assert handed_over.texts == read.texts
    assert [(one.id, one.target) for one in handed_over.questions] == [(one.id, one.target) for one in read.questions]
    assert [one.target for one in read.questions] == ["1", "2"]


def test_questions_reach_a_worker_with_its_job(tmp_path: Path) -> None:
    """Also keys that are lists or mappings, and the examples."""
    rows = [*ROWS, {"question": "last", "answer": {"text": ["a", 1.5], "start": None}}]
    texts = read_rows(settings(written(tmp_path / "q.jsonl", rows), few_shot=1))
    job = Job(
        *("run", "study", "id", "hash", ExperimentConfig(model="m", workload=BASE), 1, 1, DeviceSet("cpu")),
        *(MeterSettings(), Deadlines(60)),
        texts=texts,
    )

    JobDir(tmp_path / "job").write_job(job)

    assert load_job(tmp_path / "job" / "job.json").texts == texts


NO_ANSWER = [{"question": "one", "answer": "1"}, {"question": "two", "answer": "2"}]
BROKEN: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "no answer": ({"question": "x"}, {}, r"q\.jsonl:3: no column answer", "question"),
    "another spelling": ({"question": "x", "answers": 1}, {}, r"q\.jsonl:3: no column answer", "mean 'answers'?"),
    "null": ({"question": "x", "answer": None}, {}, r"q\.jsonl:3: no answer in column answer", "remove the row"),
    "blank": ({"question": "x", "answer": "  "}, {}, r"q\.jsonl:3: no answer in column answer", "remove the row"),
    "no list": ({"question": "x", "answer": []}, {}, r"q\.jsonl:3: no answer in column answer", "remove the row"),
    "half a list": ({"question": "x", "answer": ["a", ""]}, {}, r"q\.jsonl:3: no answer in", "remove the row"),
    "no number": ('{"question": "x", "answer": NaN}', {}, r"q\.jsonl:3: no answer in column answer", "remove"),
    "infinite": ('{"question": "x", "answer": Infinity}', {}, r"q\.jsonl:3: the answer .* type float", "a number"),
    "no question": ({"question": None, "answer": 1}, {}, r"q\.jsonl:3: no question in column question", "remove"),
    "blank question": ({"question": " ", "answer": 1}, {}, r"q\.jsonl:3: no question in column", "write the question"),
    "no row": (None, {}, r"q\.jsonl:3: no question", "write the question"),
    "a text": ('"x"', {"column": None}, r"q\.jsonl:3: expected an object, got str", "write an object"),
    "an id twice": ({"question": "x", "answer": 1, "id": 2}, {}, r"q\.jsonl:3: the id '2' is that of .*:2 as", "own"),
    "no example": ({"question": "x", "answer": {"a": 1}}, {"few_shot": 3}, r"q\.jsonl:3: .* no example", "few_shot: 0"),
    "no answer of an example": (
        {"question": "x", "answer": ""},
        {"few_shot": 3},
        r"q\.jsonl:3: no answer in",
        "remove",
    ),
    "too few behind the examples": (NO_ANSWER[0], {"few_shot": 1}, "has 2 prompts, .* first 1 rows are exam", "most 2"),
    "sessions": ({}, {"column": "chat"}, "workload.score: cannot be combined with sessions", "data set of texts"),
    "a trace": ({}, {"column": None}, "workload.score: cannot be combined with a trace", "data set of texts"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_question_without_its_answer_is_named_and_never_left_out(tmp_path: Path, case: str) -> None:
    """Rows without a text are passed over elsewhere: here the accuracy would be that of other questions."""
    row, changes, message, fix = BROKEN[case]
    rows: list[Any] = [*NO_ANSWER, row]
    if case == "sessions":
        rows = [{"chat": [{"role": "user", "content": "x"}], "answer": 1}] * 3
    if case == "a trace":
        rows = [{"timestamp": 0, "input_length": 6, "output_length": 5, "hash_ids": [0], "answer": 1}] * 3
    path = written(tmp_path / "q.jsonl", rows)

    with pytest.raises(WorkloadError, match=message) as caught:
        read_rows(settings(path, prompts=3, **changes))

    assert fix in str(caught.value.fix)


def test_a_key_of_a_type_that_no_answer_has_is_named(tmp_path: Path) -> None:
    """Parquet holds more than JSON does: a date stopped the cycle where the job is written."""
    rows = [{"question": "when", "answer": datetime.date(2024, 1, 1)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")

    with pytest.raises(WorkloadError, match=r"q\.parquet\[0\]: the answer in column answer is of the type date"):
        parquet_texts(settings(tmp_path / "q.parquet", prompts=1))


def test_the_column_of_the_answers_is_never_taken_for_the_questions(tmp_path: Path) -> None:
    """`text` is the first column that is looked for."""
    path = written(tmp_path / "q.jsonl", [{"text": "4", "question": "two and two"}])

    texts = read_rows(settings(path, prompts=1, column=None, answer_column="text"))

    assert (texts.texts, texts.questions[0].target) == (("two and two",), "4")


def test_a_key_that_the_scorer_cannot_read_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", [*ROWS[:2], {"question": "x", "answer": {"a": 1}}])
    chosen = settings(path, prompts=3)

    with pytest.raises(WorkloadError, match=r"q\.jsonl:3: no answer key for the scorer exact"):
        require_keys(chosen, read_rows(chosen).questions)


def test_examples_stand_in_front_as_lm_eval_joins_them(tmp_path: Path) -> None:
    """Its defaults: a blank between question and answer, an empty line between blocks, of several answers the first."""
    chosen = settings(written(tmp_path / "q.jsonl"), prompts=1, few_shot=2, system_prompt="Be brief.")
    tokenizer = TextOnly("no tokens here", "none")

    (request,) = build_workload(chosen, tokenizer).requests

    assert request.text == "Be brief.\n\none plus one is 2\n\nParis lies in France\n\nred or blue"


def test_with_a_chat_template_examples_are_turns(tmp_path: Path) -> None:
    chosen = settings(
        written(tmp_path / "q.jsonl"), prompts=1, few_shot=1, system_prompt="Be brief.", chat_template=True
    )
    tokenizer = ChatWords()

    (request,) = build_workload(chosen, tokenizer).requests

    assert tokenizer.decode(request.token_ids) == (
        "<system> Be brief. <user> one plus one is <assistant> 2 <user> Paris lies in None"
    )
    assert (request.text, request.messages) == (None, None)


def test_a_server_of_chats_gets_them_as_messages(tmp_path: Path) -> None:
    """Also one whose tokenizer is not here; as one text, the server's template would make one user's turn of all."""
    chosen = settings(written(tmp_path / "q.jsonl"), prompts=1, few_shot=1, system_prompt="Be brief.")

    for tokenizer in (ChatWords(), TextOnly("no tokens here", "none")):
        (request,) = build_workload(chosen, tokenizer, as_messages=True).requests

        assert request.messages == (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one plus one is"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "Paris lies in"},
        )


def test_a_template_for_single_texts_takes_no_examples(tmp_path: Path) -> None:
    chosen = settings(written(tmp_path / "q.jsonl"), prompts=1, system_prompt="Be brief.", chat_template=True)

    with pytest.raises(EngineSettingError, match=r"workload\.chat_template: a question cannot be sent as a chat"):
        build_workload(chosen, WordTokenizer())


@pytest.mark.parametrize("tokenizer", [ChatWords(), TextOnly("no tokens here", "none")])
@pytest.mark.parametrize("as_messages", [False, True])
def test_the_hash_covers_whatever_is_sent(tmp_path: Path, as_messages: bool, tokenizer: Any) -> None:
    """And a task's own stop strings, which no setting names."""
    path = written(tmp_path / "q.jsonl")
    other = written(tmp_path / "other.jsonl", [{"question": "one plus one is", "answer": "3"}, *ROWS[1:]])

    def prompts_hash(path: Path = path, stop: tuple[str, ...] = (), **changes: Any) -> str:
        chosen = settings(path, prompts=2, **changes)
        texts = dataclasses.replace(read_rows(chosen), stop=stop)
        return build_workload(chosen, tokenizer, texts, as_messages=as_messages).prompts_hash

    hashes = [
        prompts_hash(),
        prompts_hash(few_shot=1),
        prompts_hash(other, few_shot=1),
        prompts_hash(few_shot=1, system_prompt="Be brief."),
        prompts_hash(stop=("\n\n",)),
        *(
            [prompts_hash(few_shot=1, chat_template=True)]
            if isinstance(tokenizer, ChatWords) and not as_messages
            else []
        ),
    ]

    assert len(set(hashes)) == len(hashes)
    assert prompts_hash() == prompts_hash(stop=())


def test_each_request_has_its_question_and_every_stop_string(tmp_path: Path) -> None:
    chosen = settings(written(tmp_path / "q.jsonl"), order="grouped", stop=("\n\n", "Q:"))
    texts = dataclasses.replace(read_rows(chosen), stop=("</s>", "\n\n"))

    workload = build_workload(chosen, WordTokenizer(), texts)

    assert {request.stop for request in workload.requests} == {("</s>", "\n\n", "Q:")}
    assert [
        (request.text, question.id) for request, question in zip(workload.requests, workload.questions, strict=True)
    ] == [
        ("is it", "4"),
        ("red or blue", "7"),
        ("Paris lies in", "paris"),
        ("one plus one is", "1"),
    ]


def test_the_turns_of_sessions_end_at_stop_strings_too(tmp_path: Path) -> None:
    path = written(tmp_path / "s.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    chosen = WorkloadSettings(str(path), 1, None, ignore_eos=False, stop=("Q:",))

    (request,) = build_workload(chosen, ChatWords()).requests

    assert request.stop == ("Q:",)


def test_a_question_that_an_example_answers_is_refused(tmp_path: Path) -> None:
    """The answer stood in the prompt, and any model that copies had it right."""
    path = written(tmp_path / "q.jsonl", [*ROWS, {"question": " one plus one is", "answer": 2}])

    assert len(read_rows(settings(path, prompts=5)).texts) == 5
    with pytest.raises(
        WorkloadError, match=r"q\.jsonl:5: one of the first 2 rows \(workload\.few_shot\) asks the same"
    ):
        read_rows(settings(path, prompts=3, few_shot=2))


def test_without_a_score_nothing_is_a_question(tmp_path: Path) -> None:
    """Examples are for any data set; rows without a text are passed over as before."""
    rows = [*ROWS[:1], {"question": ""}, {"question": "and now"}]
    chosen = settings(written(tmp_path / "q.jsonl", rows), prompts=1, few_shot=1, score=None)

    texts = read_rows(chosen)

    assert (texts.questions, texts.skipped, len(texts.examples)) == ((), 1, 1)
    assert build_workload(chosen, WordTokenizer(), texts).questions == ()


def test_a_task_comes_with_its_questions_or_not_at_all() -> None:
    """Its prompts would be synthetic ones: no data set is named beside a task."""
    with pytest.raises(WorkloadError, match="its questions are read where pytest runs"):
        build_workload(dataclasses.replace(BASE, task="lm_eval:gsm8k", score=None), WordTokenizer())


def test_a_data_set_of_a_package_gives_questions_to_workers_without_it(site: Site) -> None:
    """And results are measured again where the package has come to other keys."""
    chosen = dataclasses.replace(BASE, dataset="asked", prompts=2)
    config = ExperimentConfig(model="builtin:tiny-llama", workload=chosen)
    facts = []
    for source in (ASKING.replace("a{", "b{"), ASKING):
        site.add("llem-asked", source, datasets="asked = llem_asked:rows")
        texts = texts_of_package(chosen)
        facts.append(input_facts(config)["dataset_texts"])

    assert facts[0] != facts[1]
    assert texts is not None
    assert [(one.id, one.target, one.where) for one in texts.questions] == [
        ("1", "a0", "asked[0]"),
        ("2", "a1", "asked[1]"),
    ]


ASKING = """
def rows(settings):
    for number in range(settings.prompts):
        yield {"question": f"q{number}", "answer": f"a{number}"}
"""


def test_results_are_measured_again_where_a_key_has_changed(tmp_path: Path) -> None:
    """The stored answers hold the keys as they were. Another scorer scores them again, and measures nothing."""
    grading = tmp_path / "grading.py"
    path = written(tmp_path / "q.jsonl")
    facts = []
    for source, rows in (("a", ROWS), ("bb", ROWS), ("bb", ROWS[1:])):
        grading.write_text(source)
        written(path, rows)
        chosen = dataclasses.replace(BASE, dataset=str(path), score=ScoreBy(python=f"{grading}:grade"))
        facts.append(input_facts(ExperimentConfig(model="builtin:tiny-llama", workload=chosen)))

    assert facts[0] == facts[1] != facts[2]


@pytest.mark.parametrize("as_messages", [False, True])
def test_a_tasks_messages_go_as_they_are_and_get_the_template_once(as_messages: bool) -> None:
    """The system's prompt is among them, and was put in front of them again."""
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "one plus one is"})
    texts = Texts((), 0, stop=("\n",), output_tokens=7, chats=(chat,))
    asked = WorkloadSettings(
        task="lm_eval:sums",
        prompts=1,
        input_tokens=None,
        output_tokens=None,
        ignore_eos=False,
        chat_template=True,
        system_prompt="Be brief.",
        stop=("#",),
    )

    tokenizer = ChatWords()

    (request,) = build_workload(asked, tokenizer, texts, as_messages=as_messages).requests

    assert request.token_ids == tuple(tokenizer.render(chat, None))
    assert request.messages == (chat if as_messages else None)
    assert (request.stop, request.max_new_tokens) == (("\n", "#"), 7)


def test_a_tasks_text_begins_with_the_systems_prompt_once() -> None:
    texts = Texts(("Be brief.\n\none plus one is",), 0, output_tokens=7)
    asked = WorkloadSettings(task="lm_eval:sums", prompts=1, input_tokens=None, system_prompt="Be brief.")

    (request,) = build_workload(asked, WordTokenizer(), texts).requests

    assert request.text == texts.texts[0]
