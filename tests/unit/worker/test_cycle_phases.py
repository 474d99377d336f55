"""Energy of prefill and decode, from windows of their own or by difference, whichever a study asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.results.energy_schema import PhaseEnergy
from pytest_llem.results.schema import Result
from tests.timed import on_a_clock
from tests.unit.worker.powered import LOAD_W, PoweredEngine, measured

pytestmark = on_a_clock
PREFILL_S, DECODE_S = 0.02, 0.04


class SplitEngine(PoweredEngine):
    """Takes 20 ms for a prefill and 40 ms to decode, in two batches when it splits them; resets cost no time."""

    obstacle: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = dataclasses.replace(self.capabilities, separable_phases=True)
        self.reset_s = 0.0

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        self.repeat_s = PREFILL_S + (DECODE_S if requests[0].max_new_tokens > 1 else 0)
        return super().generate(requests, progress)

    def decode_s(self) -> float:
        """What decoding really took, as the difference of whole repeats and prefills."""
        return self.took_s(PREFILL_S + DECODE_S) - self.took_s(PREFILL_S)

    def split_obstacle(self, requests: Sequence[Request]) -> str | None:
        return self.obstacle

    def generate_in_phases(
        self, requests: Sequence[Request], border: Callable[[str], AbstractContextManager[object]]
    ) -> list[tuple[int, ...]]:
        for _ in range(2):
            with border("first_token"):
                self.spend(PREFILL_S / 2, LOAD_W)
            with border("decode"):
                self.spend(DECODE_S / 2, LOAD_W)
        return [(7,) * request.max_new_tokens for request in requests]


def phases(result: Result) -> dict[str, PhaseEnergy]:
    return {phase.name: phase for phase in result.energy.phases}


def test_decode_alone_is_derived_from_its_own_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`phases: [decode]` measured windows of it, and derived nothing."""
    engine = SplitEngine()
    result = measured(monkeypatch, tmp_path, seconds=0.2, phases=("decode",), engine=engine)
    found = phases(result)
    prefill_s, decode_s = 2 * engine.took_s(PREFILL_S / 2), 2 * engine.took_s(DECODE_S / 2)
    assert found["prefill"].energy_per_repeat_j == pytest.approx(LOAD_W * prefill_s, rel=0.25)
    assert found["decode"].energy_per_repeat_j == pytest.approx(LOAD_W * decode_s, rel=0.25)
    assert {phase.method for phase in found.values()} == {"windows of split batches"}


def test_where_batches_cannot_be_split_it_is_the_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = SplitEngine()
    engine.obstacle = "decoding is not greedy"
    result = measured(monkeypatch, tmp_path, seconds=0.2, phases=("decode",), engine=engine)
    decode = phases(result)["decode"]
    assert decode.energy_per_repeat_j == pytest.approx(LOAD_W * engine.decode_s(), rel=0.25)
    assert decode.method == "difference"
    assert "decode_not_split" in [warning.code for warning in result.warnings]


def test_an_engine_that_mixes_phases_has_none_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = measured(monkeypatch, tmp_path, seconds=0.01, phases=("decode",))
    decode = phases(result)["decode"]
    assert (decode.energy_per_repeat_j, decode.method) == (None, "not separable in this engine")


def test_with_both_it_is_the_difference_of_long_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows of batches are short, and a counter reads them worse."""
    engine = SplitEngine()
    result = measured(monkeypatch, tmp_path, seconds=0.2, phases=("prefill", "decode"), engine=engine)
    decode = phases(result)["decode"]
    assert decode.energy_per_repeat_j == pytest.approx(LOAD_W * engine.decode_s(), rel=0.25)
    assert decode.method == "difference"
    assert [phase.name for phase in result.energy.phases] == ["prefill", "decode"]
