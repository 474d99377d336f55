"""Prefix caches as a part of the experiment: when they are emptied, and what they may give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_llem.engines.protocol import CacheState, Capabilities, Completion, Request
from pytest_llem.errors import EngineSettingError
from pytest_llem.job.config import ExperimentConfig, IdleSettings, MeasurementSettings, WarmupSettings
from pytest_llem.job.job import DeviceSet, Job
from pytest_llem.job.request import Recorded, Texts
from pytest_llem.worker.caches import hits_from_before
from tests.timed import on_a_clock
from tests.unit.worker.scripted import RecordingMeter, ScriptedEngine, codes, engine, make_job, meter, run

pytestmark = on_a_clock

__all__ = ["engine", "meter"]


def job_of(cache: str | None, **settings: object) -> Job:
    job = make_job(measurement=MeasurementSettings(0.01, WarmupSettings(2, 2, 1.0, 10.0, 2), IdleSettings(0.0)))
    workload = dataclasses.replace(job.config.workload, cache=cache)  # type: ignore[arg-type]
    config = dataclasses.replace(job.config, workload=workload, settings={**job.config.settings, **settings})  # type: ignore[dict-item]
    return dataclasses.replace(job, config=config)


def test_a_warm_cache_is_emptied_once_before_the_warm_up(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """What an earlier cycle left would else be in it, on a server or an engine that stays loaded."""
    engine.cached_tokens = 5
    measurement = run(job_of("warm"), tmp_path)
    about = [call for call in engine.calls if call in ("reset", "generate")]
    assert about == ["reset", *["generate"] * (len(about) - 1)]
    assert len(about) >= 4
    assert (codes(measurement), measurement.cache, measurement.engine.cache_reset) == ([], "warm", "kept")


def test_a_cold_cache_is_emptied_before_every_repeat_and_may_give_within_one(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    engine.cached_tokens = 0
    measurement = run(job_of("cold"), tmp_path)
    about = [call for call in engine.calls if call in ("reset", "generate")]
    assert about == ["reset", "generate"] * (len(about) // 2)
    assert (codes(measurement), measurement.cache, measurement.engine.cache_reset) == ([], "cold", "cleared")


@pytest.mark.parametrize("hits_wanted", [True, None])
def test_a_cold_cache_that_nobody_could_empty_is_not_cold(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, hits_wanted: bool | None
) -> None:
    """Answers that state their hits do not say whose they were: of this repeat, or of the one before."""
    engine.cache_state, engine.cached_tokens = "unknown", 0
    assert codes(run(job_of("cold", enable_prefix_caching=hits_wanted), tmp_path)) == ["prefix_cache_not_reset"]


def test_a_cold_cache_that_was_full_all_the_same_is_found_out(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    """llama.cpp emptied its slots and found whole prompts again in a second cache in the host's memory."""
    engine.cached_tokens = 5
    (note,) = run(job_of("cold"), tmp_path).invalid
    assert note.code == "prefix_cache_not_reset"
    assert "in another place" in note.message


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_a_rule_for_a_cache_that_is_off_is_not_kept(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, cache: str
) -> None:
    """A server that was started without one would be published as a warm one."""
    engine.cache_state = "disabled"
    assert codes(run(job_of(cache), tmp_path)) == ["prefix_cache_off"]


def test_an_engine_that_keeps_no_cache_takes_no_rule_for_it(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path
) -> None:
    engine.capabilities = Capabilities(token_times=True)
    with pytest.raises(EngineSettingError, match=r"workload\.cache cannot be combined with engine scripted"):
        run(job_of("warm"), tmp_path)
    assert "load" not in engine.calls


@pytest.mark.parametrize(("state", "cache"), [("cleared", "cold"), ("disabled", None)])
def test_sessions_and_traces_are_cold_where_there_is_a_cache(
    engine: ScriptedEngine, meter: RecordingMeter, tmp_path: Path, state: CacheState, cache: str | None
) -> None:
    """What their requests share is part of the traffic: as hits that nobody asked for they made each cycle invalid."""
    engine.cache_state, engine.cached_tokens = state, 5 if cache else 0
    job = job_of(None)
    count = job.config.workload.prompts
    recorded = tuple(Recorded(prompt_tokens=600, answer_tokens=3, blocks=(7,)) for _ in range(count))
    workload = dataclasses.replace(job.config.workload, dataset="trace.jsonl", input_tokens=None)
    config = dataclasses.replace(job.config, workload=workload)
    texts = Texts((), 0, "mooncake", recorded)
    measurement = run(dataclasses.replace(job, config=config, texts=texts), tmp_path)
    assert (codes(measurement), measurement.cache) == ([], cache)


def recorded(cache: str | None = None) -> Job:
    """A job whose four requests are the turns of two recorded sessions."""
    turns = [Recorded(session=name, turn=turn, prompt_tokens=6, answer_tokens=3) for name in "ab" for turn in (1, 2)]
    return dataclasses.replace(job_of(cache), texts=Texts((), 0, "burstgpt", tuple(turns), lines=4))


def test_recorded_traffic_is_cold_where_nobody_says_otherwise(
    engine: ScriptedEngine, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine is told as well: a server may have to be asked to look into its cache at all."""
    told: list[str | None] = []
    prepare = engine.prepare

    def listening(config: ExperimentConfig, devices: DeviceSet) -> str:
        told.append(config.workload.cache)
        return prepare(config, devices)

    monkeypatch.setattr(engine, "prepare", listening)
    measurement = run(recorded(), tmp_path)
    assert (codes(measurement), measurement.cache, told[-1]) == ([], "cold", "cold")
    assert {(r.session, r.turn) for r in measurement.requests} == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}
    engine.cached_tokens = 2
    assert run(recorded("warm"), tmp_path).cache == "warm"


A, B = tuple(range(1, 21)), (1, 2, 3, *range(70, 90))


def answers(*sent: tuple[Request, int, int, int]) -> tuple[dict[int, Request], list[Completion]]:
    """Requests with their cached tokens, when they were sent and when their answers began."""
    done = [
        Completion(
            r.index, len(r.token_ids), (9,) * 4, start, first + 5, "length", cached_tokens=n, first_token_ns=first
        )
        for r, n, start, first in sent
    ]
    return {request.index: request for request, *_ in sent}, done


def request(index: int, ids: tuple[int, ...], session: str | None = None, turn: int | None = None) -> Request:
    return Request(index, ids, 4, session=session, turn=turn)


def test_a_prompt_finds_no_more_than_it_shares_with_those_sent_before_its_answer_began() -> None:
    assert hits_from_before(*answers((request(0, A), 0, 0, 10), (request(1, B), 3, 20, 30))) == 0
    assert hits_from_before(*answers((request(0, A), 0, 0, 10), (request(1, B), 4, 20, 30))) == 1
    assert hits_from_before(*answers((request(0, A), 0, 0, 10), (request(1, A), 19, 20, 30))) == 0


def test_what_is_sent_later_gives_nothing_to_a_prompt() -> None:
    """A first turn is the beginning of the second: only their order tells that it came from the repeat before."""
    turns = request(0, A[:10], "s", 1), request(1, A, "s", 2)
    assert hits_from_before(*answers((turns[0], 10, 0, 10), (turns[1], 10, 20, 30))) == 1
    assert hits_from_before(*answers((turns[0], 0, 0, 10), (turns[1], 10, 20, 30))) == 0


def test_a_turn_may_find_the_answer_before_it() -> None:
    turns = request(0, A[:10], "s", 1), request(1, A, "s", 2)
    assert hits_from_before(*answers((turns[0], 0, 0, 10), (turns[1], 14, 20, 30))) == 0
    assert hits_from_before(*answers((turns[0], 0, 0, 10), (turns[1], 15, 20, 30))) == 1


def test_of_prompts_whose_tokens_are_unknown_the_first_one_found_nothing() -> None:
    """Requests are taken in any order, so that one of those sent before an answer began was the first."""
    text = [request(index, ()) for index in range(3)]
    sent = [(text[0], 4, 0, 20), (text[1], 0, 1, 15), (text[2], 30, 40, 60)]
    assert hits_from_before(*answers(*sent)) == 0
    assert hits_from_before(*answers((text[0], 4, 0, 20), (text[1], 4, 1, 15), sent[2])) == 2
