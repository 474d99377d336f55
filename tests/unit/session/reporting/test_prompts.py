"""A dry run says what becomes of a data set's prompts, by the tokenizer of a model whose files are on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.session.reporting.prompts import prompt_lines
from pytest_llem.study import load_study

Lines = Callable[..., list[str]]
BUILTIN, ABSENT = "builtin:tiny-llama", "nobody/knows-it"


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """The lines for a study of a data set with these texts."""

    def of(texts: Sequence[str | None], workload: str, model: str = BUILTIN, more: str = "") -> list[str]:
        (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        path = tmp_path / "study.yaml"
        named = workload if "dataset" in workload else f"dataset: p.jsonl, {workload}"
        path.write_text(f"model: {model}\nworkload: {{{named}}}\n{more}")
        return list(prompt_lines(load_study(path, env={})))

    return of


def test_cut_prompts_are_counted_with_their_tokens(lines: Lines) -> None:
    """With the first token that this model wants, a text of 300 tokens is one of 301."""
    import tokenizers

    words = tokenizers.Tokenizer.from_file(str(builtin_path(BUILTIN) / "tokenizer.json"))
    text = "light and colour " * 40
    before = len(words.encode(text).ids)
    assert lines([text, "short"], "prompts: 2, input_tokens: 32") == [
        f"p.jsonl: 1 of 2 prompts are cut to workload.input_tokens: {before} tokens to 32"
    ]
    (least,) = lines([text, "short"], "prompts: 2, input_tokens: 32, chat_template: true")
    assert least.startswith("p.jsonl: at least 1 of 2 prompts are cut")
    assert lines([text, "short"], "prompts: 2") == []
    assert lines([text, "short"], "prompts: 2, input_tokens: 9999") == []


def test_without_a_tokenizer_the_plan_says_that_they_are_cut(lines: Lines) -> None:
    said = ["p.jsonl: longer prompts are cut to 32 tokens; how many, each result says"]
    assert lines(["a"], "prompts: 1, input_tokens: 32", ABSENT) == said
    assert lines(["a"], "prompts: 1", ABSENT) == []


def test_rows_without_text_and_too_few_of_them_are_said(lines: Lines) -> None:
    builtin_path(BUILTIN)
    assert lines(["a", None, "", "b"], "prompts: 2") == ["p.jsonl: 2 rows without text are passed over"]
    assert lines(["a", None, "b"], "prompts: 2, input_tokens: 9") == ["p.jsonl: 1 rows without text are passed over"]
    (few,) = lines(["a", None], "prompts: 2")
    assert "has 1 prompts, and 2 were asked for; 1 rows without text" in few


def test_questions_are_counted_once_however_often_they_are_scored(lines: Lines, tmp_path: Path) -> None:
    """Without a line nobody sees that `prompts` leaves some of the file out."""
    rows = (f'{{"question": "q{number}", "answer": "a", "id": null}}\n' for number in range(4))
    (tmp_path / "q.jsonl").write_text("".join(rows))
    asked = "dataset: q.jsonl, prompts: 2, few_shot: 1, answer_column: answer"
    assert lines([], asked, ABSENT, "sweep: {workload.score: [exact, contains]}\n") == [
        "q.jsonl: 2 questions, each behind 1 examples"
    ]


def test_what_is_recognised_as_recorded_is_said_with_what_is_left_out_of_it(lines: Lines, tmp_path: Path) -> None:
    """A trace that is taken for a table, or in another unit of time, would else be seen in the results alone."""
    rows = [{"timestamp": time, "input_length": 8, "output_length": size} for time, size in ((0, 1), (5, 0), (3000, 1))]
    content = "".join(json.dumps(row) + "\n" for row in (rows[0], "broken", *rows[1:]))
    (tmp_path / "t.jsonl").write_text(content)
    replayed = "dataset: t.jsonl, prompts: 2, speed: 2.0, arrival: {process: schedule}"
    assert lines([], replayed, ABSENT, "engine: vllm\n") == [
        "t.jsonl: mooncake: 2 requests, recorded over 1.5 s at speed 2",
        f"t.jsonl: 1 broken lines ({tmp_path / 't.jsonl'}:2: expected an object, got str) are left out",
        "t.jsonl: 1 rows with nothing to send are passed over",
    ]


def test_a_data_set_is_looked_at_once_and_synthetic_prompts_never(lines: Lines) -> None:
    axis = "sweep: {seed: [1, 2], workload.dataset: [synthetic, p.jsonl]}\n"
    assert len(lines(["a", None, "b"], "prompts: 2, input_tokens: 64", more=axis)) == 1
