"""Prefix caches as a part of the experiment, in whole cycles of several turns on a real server of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.engines.protocol import Completion, Request
from pytest_llem.job.job import DeviceSet
from pytest_llem.results import load
from pytest_llem.worker.caches import hits_from_before
from tests.engines.servers.configs import config_maker
from tests.engines.servers.starting import RealServer, llama_cpp

pytestmark = pytest.mark.engine

Cache = Literal["cold", "warm"]
TURN = 30
"""Tokens by which the history grows from turn to turn."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama.cpp")


@pytest.fixture(scope="module")
def llama(directory: Path) -> Iterator[RealServer]:
    """With slots that can be emptied, and without the second cache in the host's memory."""
    with llama_cpp(directory, f'slot_save_path="{directory}/"', "cache_ram_mib=0") as server:
        yield server


def sessions(count: int = 3, turns: int = 3) -> list[Request]:
    """Sessions whose every turn has the whole history before it; they share nothing but the first token."""
    text = {s: tuple((151 * s + 7 * position) % 1900 + 100 for position in range(TURN * turns)) for s in range(count)}
    places = [(turn, session) for turn in range(1, turns + 1) for session in range(count)]
    return [
        Request(index, (1, *text[session][: TURN * turn - 1]), 6, session=f"s{session}", turn=turn)
        for index, (turn, session) in enumerate(places)
    ]


def repeats(server: RealServer, cache: Cache, asked: list[Request]) -> list[tuple[str, list[Completion]]]:
    """Three passes over the requests, emptied before each as `cache` says, with what `reset` said before."""
    config = config_maker(server.url)()
    engine = open_engine("openai")
    try:
        engine.prepare(replace(config, workload=replace(config.workload, cache=cache)), DeviceSet("cpu"))
        engine.load()
        done: list[tuple[str, list[Completion]]] = []
        for index in range(3):
            state = engine.reset() if cache != "warm" or index == 0 else "kept"
            done.append((state, engine.read(engine.generate(asked, lambda _done, _total: None))))
        return done
    finally:
        engine.shutdown()


def cached(done: list[Completion], turn: int) -> list[int]:
    asked = {request.index: request for request in sessions()}
    return [c.cached_tokens if c.cached_tokens is not None else -1 for c in done if asked[c.index].turn == turn]


def test_a_cold_cache_gives_the_history_of_a_session_and_nothing_of_the_repeat_before(llama: RealServer) -> None:
    for state, done in repeats(llama, "cold", sessions()):
        assert state == "cleared"
        # The first token is common to all prompts.
        assert max(cached(done, 1)) <= 1
        for turn in (2, 3):
            assert min(cached(done, turn)) >= TURN * (turn - 1) - 1
        assert hits_from_before({request.index: request for request in sessions()}, done) == 0


def test_a_warm_cache_gives_what_the_repeat_before_left(llama: RealServer) -> None:
    (emptied, first), *later = repeats(llama, "warm", sessions())
    assert (emptied, max(cached(first, 1)) <= 1) == ("cleared", True)
    for state, done in later:
        assert state == "kept"
        assert min(cached(done, 1)) >= TURN - 1
    cold = sum(c.cached_tokens or 0 for c in first)
    assert all(sum(c.cached_tokens or 0 for c in done) > cold for _, done in later)


@pytest.mark.parametrize(("options", "state"), [((), "unknown"), (("slots",), "cleared")])
def test_a_server_that_keeps_prompts_elsewhere_is_not_cold(
    directory: Path, options: tuple[str, ...], state: str
) -> None:
    """As llama.cpp is started by default, and where its slots can be emptied: it keeps prompts in the host's memory."""
    asked = sessions(count=8)
    with llama_cpp(directory, *[f'slot_save_path="{directory}/"' for _ in options]) as server:
        passes = repeats(server, "cold", asked)
    assert {said for said, _ in passes} == {state}
    found = [hits_from_before({request.index: request for request in asked}, done) for _, done in passes]
    assert found[0] == 0 < sum(found[1:])


STUDY = """\
name: sessions
model: builtin:tiny-llama
engine: openai
openai: {{base_url: {url}/v1, api: chat}}
workload: {{dataset: sessions.jsonl, prompts: 9, speed: 2.0}}
measurement: {{min_duration_s: 0.5, idle: {{duration_s: 0.1}}, warmup: {{max_repeats: 1}}}}
sweep: {{workload.cache: [null, warm]}}
execution: {{cycles: 1, retries: 0, timeout_s: 120, order: sequential}}
"""


def test_a_study_of_sessions(
    llama: RealServer, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three sessions of three turns as they were recorded, whose histories the server's cache holds."""
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    (pytester.path / "sessions.yaml").write_text(STUDY.format(url=llama.url))
    words = "The Rays of Light differ in Colour, and the Whites of every Body are compounded of them all."
    with (pytester.path / "sessions.jsonl").open("w") as file:
        for name in "abc":
            asked = [{"role": "user", "content": f"{name}{turn}: {words}", "delay": 100} for turn in range(3)]
            told = {"role": "assistant", "content": f"So it is, {name}."}
            file.write(json.dumps({"session_id": name, "messages": [asked[0], told, asked[1], told, asked[2]]}) + "\n")
    options = ("--llem-out=out", "--llem-meter=estimate", "-p", "no:cacheprovider")
    run = pytester.runpytest_subprocess("--llem-study=sessions.yaml", *options, timeout=300)
    run.assert_outcomes(passed=2)
    results = {r.workload.cache: r for r in load(pytester.path / "out")}
    assert set(results) == {"cold", "warm"}
    for result in results.values():
        assert (result.status, result.workload.sessions, result.workload.requests) == ("valid", 3, 9)
        assert result.workload.dataset_format == "openai_messages"
        repeats = result.workload.repeats
        assert result.energy.joules_per_session == pytest.approx((result.energy.energy_j or 0) / (3 * repeats))
        # Two think times of 0.1 s a session, at twice the speed.
        assert (result.timing["repeat_s"] or 0) > 0.1
    cold, warm = (results[cache].tokens for cache in ("cold", "warm"))
    assert cold.cached_input is not None
    assert warm.cached_input is not None
    assert cold.input
    assert warm.input
    assert 0.4 < cold.cached_input / cold.input < warm.cached_input / warm.input
    assert (results["cold"].engine.cache_reset, results["warm"].engine.cache_reset) == ("cleared", "kept")
