"""What is written of the answers to scored questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.job.answers import Answered, read_answers, without_thoughts
from pytest_llem.job.job import JobDir
from pytest_llem.job.measurement import TruncatedPrompts
from pytest_llem.job.request import Question
from pytest_llem.worker.answers import NOTHING, answered
from pytest_llem.workload.build import Workload, build_workload
from tests.timed import on_a_clock
from tests.unit.worker.scripted import LetterTokenizer, RecordingMeter, ScriptedEngine, engine, make_job, meter, run

__all__ = ["engine", "meter"]


class WithSpecials(LetterTokenizer):
    """Its end of sequence is a token with a name, as those of real tokenizers are."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).replace("\0", "</s>")

    def answer(self, ids: Sequence[int]) -> str:
        return super().decode([token for token in ids if token])


def workload(*stop: str, questions: int = 2) -> Workload:
    """Requests that stand in another order than their indices."""
    requests = [Request(index, (1, 2), 8, ignore_eos=False, stop=stop) for index in reversed(range(questions))]
    keys = [Question(f"q{index}", ["four", 4]) for index in range(questions)]
    return Workload(tuple(requests), "", "d", TruncatedPrompts(), 0, "texts", questions=tuple(keys))


def given(index: int, letters: str, **changes: Any) -> Completion:
    ids = tuple(map(ord, letters))
    return replace(Completion(index, 2, ids, 0, 1, "stop"), **changes)


def texts(answers: Sequence[Answered]) -> list[tuple[str, str | None, int]]:
    return [(answer.question, answer.text, answer.repeats) for answer in answers]


def test_an_answer_is_written_once_however_often_it_was_given() -> None:
    """A window of a thousand repeats of greedy decoding holds one answer to each question."""
    done = [given(1, "no"), given(0, "4")] * 3 + [given(0, "four"), given(1, "no")]
    answers = list(answered(workload(), done, LetterTokenizer()))
    assert texts(answers) == [("q0", "4", 3), ("q0", "four", 1), ("q1", "no", 4)]
    assert answers[0].target == ["four", 4]
    assert (answers[0].input_tokens, answers[0].output_tokens, answers[0].score) == (2, 1, None)


def test_the_same_words_that_were_cut_off_are_another_answer() -> None:
    done = [given(0, "4"), given(0, "4", finish_reason="length"), given(1, "4")]
    reasons = [answer.finish_reason for answer in answered(workload(), done, LetterTokenizer())]
    assert reasons == ["stop", "length", "stop"]


def test_a_text_ends_before_its_first_stop_string_and_has_no_special_tokens() -> None:
    """The string's own tokens were generated and count as tokens; the scorer must not see them."""
    done = [given(0, "4\n\nQ: 5"), given(1, "five\0")]
    answers = list(answered(workload("Q:", "\n\n"), done, WithSpecials()))
    assert [(answer.text, answer.output_tokens) for answer in answers] == [("4", 7), ("five", 5)]


def test_a_servers_text_is_taken_as_it_is() -> None:
    """Its ids, where it sends some, may be of a tokenizer that is not here."""
    done = [given(0, "x", text=" 4\nQ:"), given(1, "", output_tokens=3, text="\ud83d half")]
    answers = list(answered(workload("\nQ:"), done, LetterTokenizer()))
    assert [(answer.text, answer.output_tokens) for answer in answers] == [(" 4", 1), ("? half", 3)]


@pytest.mark.parametrize("as_told", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_thoughts_that_the_prompt_begins_are_none_of_the_answer(as_ids: bool, as_told: bool) -> None:
    """Cut off, they named the right answer among others, and were right; a server of chats may have left them out."""
    prompt, asked = "Why?<think>\n", workload(questions=1)
    (request,) = asked.requests
    request = replace(request, token_ids=tuple(map(ord, prompt)) if as_ids else (), text=prompt)
    done = [given(0, "4 or 5"), given(0, "4 or 5</think>5")]
    answers = answered(replace(asked, requests=(request,)), done, LetterTokenizer(), as_told=as_told)
    said = [without_thoughts(answer.text or "") for answer in answers]
    assert said == (["4 or 5", "5"] if as_told else ["", "5"])


def test_no_answer_is_an_answer_with_an_error() -> None:
    """It counts as wrong: left out, an engine that fails at the hard questions would look best."""
    done = [given(0, "", finish_reason="error", error="http_5xx: no", output_tokens=0), given(1, "", text="")]
    answers = list(answered(workload(), done, LetterTokenizer()))
    assert [(answer.text, answer.sha256, answer.error) for answer in answers] == [
        (None, None, "http_5xx: no"),
        (None, None, NOTHING),
    ]


@on_a_clock
@pytest.mark.parametrize("scored", [True, False])
def test_a_cycle_leaves_its_answers_where_they_are_scored(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    """Text is decoded once no window is open: it would be energy of the answers else."""

    class Watched(LetterTokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            assert len(meter.stops) == 1, "the meter still measured"
            return super().decode(ids)

    def generate(requests: Sequence[Request], progress: Progress) -> list[Completion]:
        return [given(r.index, "abc") for r in requests]

    def build(*values: Any, **named: Any) -> Workload:
        made = build_workload(*values, **named)
        keys = tuple(Question(f"q{r.index}", "abc") for r in made.requests)
        return replace(made, questions=keys if scored else ())

    monkeypatch.setattr(engine, "tokenizer", Watched)
    monkeypatch.setattr(engine, "generate", generate)
    monkeypatch.setattr("pytest_llem.worker.cycle.build_workload", build)
    measurement = run(make_job(), tmp_path)
    if not scored:
        assert not JobDir(tmp_path).answers.exists()
        return
    answers = read_answers(JobDir(tmp_path).answers)
    assert texts(answers) == [(f"q{index}", "abc", len(measurement.repeats)) for index in range(4)]
