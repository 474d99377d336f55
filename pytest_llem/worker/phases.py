"""Extra windows for the phases of inference, after the measure window.

`prefill`: the workload with one output token each, in one window of whole repeats. `decode`: where the engine can put a
border between the phases of a batch, windows `first_token` and `decode`, one each per batch; its tokens are those that
were measured. Decode energy by difference is derived later, and only for engines whose phases are separable.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from pytest_llem.engines.protocol import Engine, Request
from pytest_llem.job.report import Note
from pytest_llem.worker.heartbeat import Heartbeat
from pytest_llem.worker.windows import WindowRecorder
from pytest_llem.workload import token_hash

PREFILL, DECODE = "prefill", "decode"


def measure_phases(
    engine: Engine,
    requests: Sequence[Request],
    phases: Sequence[str],
    recorder: WindowRecorder,
    heartbeat: Heartbeat,
    *,
    min_duration_s: float,
    outputs_hash: str,
) -> list[Note]:
    """Measure each phase that was asked for; the notes say which could not be, and why."""
    notes: list[Note] = []
    if PREFILL in phases:
        _measure_prefill(engine, requests, recorder, heartbeat, min_duration_s)
    if DECODE in phases:
        notes += _measure_decode(engine, requests, recorder, heartbeat, min_duration_s, outputs_hash)
    return notes


def _measure_prefill(
    engine: Engine, requests: Sequence[Request], recorder: WindowRecorder, heartbeat: Heartbeat, min_duration_s: float
) -> None:
    single = [dataclasses.replace(request, max_new_tokens=1) for request in requests]

    def one_pass() -> None:
        engine.reset()
        engine.generate(single, lambda _done, _total: heartbeat.tick())

    with heartbeat.working():
        recorder.busy()
        one_pass()
    repeats = 0
    with recorder.window(PREFILL, engine, quiet_sides=True) as window, heartbeat.working():
        started = time.monotonic()
        while repeats == 0 or time.monotonic() - started < min_duration_s:
            one_pass()
            repeats += 1
        window.repeats = repeats


def _measure_decode(
    engine: Engine,
    requests: Sequence[Request],
    recorder: WindowRecorder,
    heartbeat: Heartbeat,
    min_duration_s: float,
    outputs_hash: str,
) -> list[Note]:
    reason = engine.split_obstacle(requests)
    if reason is not None:
        return [Note("decode_not_split", f"decode was not measured apart from prefill: {reason}")]

    def border(name: str) -> AbstractContextManager[object]:
        heartbeat.tick()
        return recorder.window(name, engine)

    hashes: set[str] = set()
    started = time.monotonic()
    with heartbeat.working():
        while not hashes or time.monotonic() - started < min_duration_s:
            engine.reset()
            hashes.add(token_hash(engine.generate_in_phases(requests, border)))
    if hashes != {outputs_hash}:
        return [Note("decode_outputs_differ", "the split windows produced other tokens than the measure window")]
    return []
