"""Workloads: the same requests from the same settings, of the lengths that were asked for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import EngineSettingError, LlemError, WorkloadError
from pytest_llem.job.config import Lengths, WorkloadSettings
from pytest_llem.job.measurement import TruncatedPrompts
from pytest_llem.workload.build import Workload, build_workload, token_hash
from pytest_llem.workload.corpus import corpus_text


class WordTokenizer:
    """A token for every word, numbered as they come."""

    def __init__(self, bos_id: int | None = 0) -> None:
        self._ids: dict[str, int] = {}
        self._bos_id = bos_id

    def encode(self, text: str) -> list[int]:
        return [self._ids.setdefault(word, len(self._ids) + 1) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        words = {number: word for word, number in self._ids.items()}
        return " ".join(words[number] for number in ids if number)

    def chat(self, text: str) -> list[int]:
        return self.encode(f"user {text} assistant")

    @property
    def bos_id(self) -> int | None:
        return self._bos_id


def settings(**changes: Any) -> WorkloadSettings:
    base = WorkloadSettings("synthetic", prompts=6, input_tokens=20, output_tokens=4, seed=0)
    return dataclasses.replace(base, **changes)


def build(**changes: Any) -> Workload:
    return build_workload(settings(**changes), WordTokenizer())


def inputs(workload: Workload) -> list[int]:
    return [len(request.token_ids) for request in workload.requests]


def texts(workload: Workload, tokenizer: WordTokenizer) -> list[str]:
    return [tokenizer.decode(request.token_ids) for request in workload.requests]


@pytest.mark.parametrize("bos_id", [None, 0])
@pytest.mark.parametrize("length", [1, 20, 50_000])
def test_synthetic_prompts_have_exactly_the_length_asked_for(bos_id: int | None, length: int) -> None:
    """The token that a model wants first counts, and the corpus is shorter than the longest prompt."""
    workload = build_workload(settings(prompts=2, input_tokens=length), WordTokenizer(bos_id))
    assert inputs(workload) == [length, length]


def test_synthetic_prompts_are_language() -> None:
    tokenizer = WordTokenizer()
    workload = build_workload(settings(), tokenizer)
    corpus = " ".join(corpus_text().split())
    assert all(text in corpus for text in texts(workload, tokenizer))


def test_synthetic_prompts_share_no_beginning() -> None:
    """A prefix cache would otherwise spare work that was meant to be measured."""
    workload = build(prompts=500, input_tokens=8)
    assert len({request.token_ids for request in workload.requests}) == 500


def test_the_same_settings_give_the_same_prompts_and_another_seed_others() -> None:
    assert build().prompts_hash == build().prompts_hash
    assert build().prompts_hash != build(seed=1).prompts_hash


def test_output_lengths_do_not_follow_input_lengths() -> None:
    lengths = Lengths("uniform", 1, 1000)
    workload = build(prompts=20, input_tokens=lengths, output_tokens=lengths)
    assert inputs(workload) != [request.max_new_tokens for request in workload.requests]


def test_prompts_hash_depends_on_where_one_prompt_ends() -> None:
    assert token_hash([[1, 2], [3]]) != token_hash([[1], [2, 3]])


def test_text_file_gives_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one two\n\nthree\nfour\n", encoding="utf-8")
    tokenizer = WordTokenizer()
    workload = build_workload(settings(dataset=str(path), prompts=2, input_tokens=None), tokenizer)
    assert texts(workload, tokenizer) == ["one two", "three"]
    assert inputs(workload) == [3, 2]


def test_input_tokens_bounds_the_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a b c d e f\ng\n", encoding="utf-8")
    assert inputs(build(dataset=str(path), prompts=2, input_tokens=4)) == [4, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.json", '[{"q": "yes", "text": "no"}]'), ("p.csv", 'text,q\nno,"yes"\n'), ("p.jsonl", '{"q": "yes"}\n')],
)
def test_every_kind_of_file_gives_its_column(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    tokenizer = WordTokenizer()
    workload = build_workload(settings(dataset=str(path), column="q", prompts=1, input_tokens=None), tokenizer)
    assert texts(workload, tokenizer) == ["yes"]


def test_orders(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("ccc\nb\naa\ndddd\n", encoding="utf-8")

    def order(name: str, prompts: int) -> list[str]:
        tokenizer = WordTokenizer()
        chosen = settings(dataset=str(path), order=name, prompts=prompts, input_tokens=None)
        return texts(build_workload(chosen, tokenizer), tokenizer)

    assert order("interleaved", 3) == ["ccc", "b", "aa"]
    assert order("grouped", 3) == ["b", "aa", "ccc"]
    assert sorted(order("shuffled", 4)) == ["aa", "b", "ccc", "dddd"]
    assert order("shuffled", 4) != order("interleaved", 4)
    assert order("shuffled", 2) == order("shuffled", 4)[:2]


def test_chat_template_wraps_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("hello\n", encoding="utf-8")
    tokenizer = WordTokenizer()
    chosen = settings(dataset=str(path), chat_template=True, prompts=1, input_tokens=None)
    assert texts(build_workload(chosen, tokenizer), tokenizer) == ["user hello assistant"]


def test_a_cut_leaves_the_template_whole(tmp_path: Path) -> None:
    """Cut after the template, a prompt lost its end of turn and the assistant's header."""
    path = tmp_path / "p.txt"
    path.write_text("a b c d e f\ng\n", encoding="utf-8")
    tokenizer = WordTokenizer()
    workload = build_workload(settings(dataset=str(path), chat_template=True, prompts=2, input_tokens=5), tokenizer)
    assert texts(workload, tokenizer) == ["user a b c assistant", "user g assistant"]
    assert [request.text for request in workload.requests] == ["a b c", "g"]
    assert workload.truncated == TruncatedPrompts(prompts=1, tokens_before=8, tokens_after=5)


def test_a_template_that_leaves_no_room_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a b c\n", encoding="utf-8")
    with pytest.raises(WorkloadError, match="the chat template alone takes 2"):
        build(dataset=str(path), chat_template=True, prompts=1, input_tokens=2)


class BytesTokenizer(WordTokenizer):
    """A token for every UTF-8 byte: most cuts fall into the middle of a letter."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def chat(self, text: str) -> list[int]:
        return self.encode(f"<{text}>")


@pytest.mark.parametrize(("limit", "shown"), [(5, "<é>"), (6, "<éé>"), (7, "<éé>"), (8, "<ééé>")])
def test_a_cut_within_a_letter_takes_the_letters_before_it(tmp_path: Path, limit: int, shown: str) -> None:
    """Half a letter decodes to the replacement character, which is more bytes than the half had."""
    path = tmp_path / "p.txt"
    path.write_text("éééé\n", encoding="utf-8")
    chosen = settings(dataset=str(path), chat_template=True, prompts=1, input_tokens=limit)
    (request,) = build_workload(chosen, BytesTokenizer(None)).requests
    assert bytes(request.token_ids).decode() == shown


def test_what_was_cut_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a b c d e f\ng\nh i j k l\n", encoding="utf-8")
    assert build(dataset=str(path), prompts=3, input_tokens=4).truncated == TruncatedPrompts(2, 13, 8)
    assert build(dataset=str(path), prompts=3, input_tokens=None).truncated == TruncatedPrompts(0, 0, 0)
    assert build().truncated == TruncatedPrompts(0, 0, 0)


def test_a_text_that_begins_with_the_first_token_gets_no_second_one(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("<s> hello\n", encoding="utf-8")
    tokenizer = WordTokenizer(bos_id=1)
    assert tokenizer.encode("<s>") == [1]
    (request,) = build_workload(settings(dataset=str(path), prompts=1, input_tokens=None), tokenizer).requests
    assert request.token_ids == (1, 2)


def test_rows_without_text_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows: list[dict[str, str | None]] = [{"text": "a"}, {"text": ""}, {"text": None}, {"text": " \t"}, {"text": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = WordTokenizer()
    workload = build_workload(settings(dataset=str(path), prompts=2, input_tokens=None), tokenizer)
    assert texts(workload, tokenizer) == ["a", "b"]
    assert workload.rows_skipped == 3
    with pytest.raises(WorkloadError, match="has 2 prompts, and 3 were asked for; 3 rows without text"):
        build(dataset=str(path), prompts=3, input_tokens=None)


def test_the_first_row_may_be_one_without_text(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows: list[dict[str, str | None]] = [{"id": "1", "text": None}, {"id": "2", "text": " "}, {"id": "3", "text": "a"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert build(dataset=str(path), prompts=1, input_tokens=None).rows_skipped == 2


def test_one_column_is_read_whatever_the_others_hold(tmp_path: Path) -> None:
    """Alpaca's `input` is empty in most rows: a column chosen row by row mixed it with `instruction`."""
    path = tmp_path / "p.jsonl"
    rows = [
        {"instruction": "one", "input": ""},
        {"instruction": "two", "input": "other"},
        {"instruction": "three", "prompt": "p"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = WordTokenizer()
    workload = build_workload(settings(dataset=str(path), prompts=3, input_tokens=None), tokenizer)
    assert texts(workload, tokenizer) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "changes", "part"),
    [
        ("p.txt", None, {}, "No such file"),
        ("p.txt", "one\n", {"prompts": 2}, "has 1 prompts, and 2"),
        ("p.jsonl", "{oops\n", {}, "p.jsonl:1: not JSON"),
        ("p.jsonl", '{"a": "x"}\n', {"column": "b"}, "no text in column b"),
        ("p.jsonl", '{"a": "x"}\n', {}, "no text in column text or prompt"),
        ("p.jsonl", "[1]\n", {}, "expected an object or a text, got list"),
        ("p.jsonl", '{"text": "x"}\n{"text": 3}\n', {"prompts": 2}, "p.jsonl:2: no text in column text"),
        ("p.jsonl", '{"text": "x"}\n{"q": "y"}\n', {"prompts": 2}, "p.jsonl:2: no text in column text"),
        ("p.json", "{}", {}, "expected a JSON list"),
        ("p.parquet", "", {}, "read where pytest runs"),
    ],
)
def test_broken_files_are_named(
    tmp_path: Path, name: str, content: str | None, changes: dict[str, Any], part: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(WorkloadError) as caught:
        build(**{"dataset": str(path), "prompts": 1, "input_tokens": None, **changes})
    assert part in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("dataset", ["nobody/nothing", "aienergyscore"])
def test_hub_data_set_out_of_reach_is_a_clear_error(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LlemError) as caught:
        build(dataset=dataset, prompts=1, input_tokens=None)
    assert "EnergyStarAI/text_generation" in caught.value.message or "nobody/nothing" in caught.value.message
    assert "synthetic" in (caught.value.fix or "")


@pytest.mark.parametrize("changes", [{"prompts": 0}, {"input_tokens": None}, {"chat_template": True}])
def test_synthetic_settings_without_a_meaning_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((WorkloadError, EngineSettingError)) as caught:
        build(**changes)
    assert caught.value.fix
