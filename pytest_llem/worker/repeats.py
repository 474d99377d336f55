"""Repeats of the workload: as many as the warm-up needs, then as many as the measure window has to hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pytest_llem.engines.protocol import CacheState, Completion, Engine, Request
from pytest_llem.job.config import WarmupSettings
from pytest_llem.job.events import EventLog
from pytest_llem.job.measurement import Repeat, RequestRecord, WarmupOutcome
from pytest_llem.worker.convergence import coefficient_of_variation, latency_cv, warmup_end
from pytest_llem.worker.heartbeat import Heartbeat, ProgressReporter
from pytest_llem.workload import token_hash


@dataclass(frozen=True)
class Observed:
    """What the measure window held. `completions` are those of all repeats, in order."""

    repeats: tuple[Repeat, ...]
    records: tuple[RequestRecord, ...]
    completions: tuple[Completion, ...]
    cache_state: CacheState

    @property
    def mean_repeat_s(self) -> float:
        """Mean duration of a repeat in seconds."""
        return sum(repeat.end_ns - repeat.start_ns for repeat in self.repeats) / 1e9 / len(self.repeats)


@dataclass(frozen=True)
class Pass:
    """One pass over the workload, as it came from the engine."""

    start_ns: int
    end_ns: int
    completions: list[Completion]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / 1e9


class RepeatRunner:
    """Runs the same requests again and again on one engine, its caches emptied before each pass."""

    def __init__(self, engine: Engine, requests: Sequence[Request], events: EventLog, heartbeat: Heartbeat) -> None:
        self.requests = tuple(requests)
        self._engine = engine
        self._events = events
        self._heartbeat = heartbeat
        self._cache_states: set[CacheState] = set()
        self.last_repeat_s: float | None = None

    def warm_up(self, settings: WarmupSettings, power_w: Callable[[], float | None] | None) -> WarmupOutcome:
        """Repeat until latency, and power where it can be read, have converged, or a cap is reached."""
        progress = ProgressReporter(self._events, self._heartbeat, "warmup")
        passes: list[Pass] = []
        powers: list[float] = []
        started = time.monotonic()
        cv: float | None = None
        reason = "fixed" if settings.max_repeats < 1 else None
        while reason is None:
            progress.repeat = len(passes)
            passes.append(self._run(progress))
            power = power_w() if power_w is not None else None
            powers += [power] if power is not None else []
            self.last_repeat_s = passes[-1].duration_s
            cv = latency_cv([p.completions for p in passes], [p.duration_s for p in passes], settings.window)
            power_cv = coefficient_of_variation(powers[-settings.window :]) if powers else None
            reason = warmup_end(settings, len(passes), time.monotonic() - started, cv, power_cv)
        return WarmupOutcome(len(passes), time.monotonic() - started, reason == "converged", reason, cv)

    def lead(self, duration_s: float) -> None:
        """Whole repeats that nobody measures, at least one: the load goes on beyond the edge of a window."""
        progress = ProgressReporter(self._events, self._heartbeat, "lead")
        measured, self._cache_states = self._cache_states, set()
        started_ns = time.monotonic_ns()
        while (self._run(progress).end_ns - started_ns) / 1e9 < duration_s:
            progress.repeat += 1
        self._cache_states = measured

    def measure(self, min_duration_s: float) -> list[Pass]:
        """Whole repeats, at least one, until `min_duration_s` have passed; for `observed` when the window is closed."""
        progress = ProgressReporter(self._events, self._heartbeat, "measure")
        self._cache_states = set()
        passes: list[Pass] = []
        started_ns = time.monotonic_ns()
        while not passes or (passes[-1].end_ns - started_ns) / 1e9 < min_duration_s:
            progress.repeat = len(passes)
            passes.append(self._run(progress))
        return passes

    def whole(self, passes: Sequence[Pass]) -> list[Pass]:
        """The passes with all that their answers hold; for when no window is open."""
        return [replace(done, completions=self._engine.read(done.completions)) for done in passes]

    def observed(self, passes: Sequence[Pass]) -> Observed:
        """What measured passes held. Hashing and copying take time, which must not fall into the window."""
        return Observed(
            repeats=tuple(_repeat(index, done) for index, done in enumerate(passes)),
            records=tuple(_record(index, c) for index, done in enumerate(passes) for c in done.completions),
            completions=tuple(c for done in passes for c in done.completions),
            cache_state="unknown" if "unknown" in self._cache_states else next(iter(self._cache_states)),
        )

    def _run(self, progress: ProgressReporter) -> Pass:
        self._cache_states.add(self._engine.reset())
        with self._heartbeat.working():
            start_ns = time.monotonic_ns()
            completions = self._engine.generate(self.requests, progress)
            return Pass(start_ns, time.monotonic_ns(), completions)


def _repeat(index: int, done: Pass) -> Repeat:
    in_order = sorted(done.completions, key=lambda completion: completion.index)
    return Repeat(index, done.start_ns, done.end_ns, outputs_hash(in_order))


def _record(repeat: int, completion: Completion) -> RequestRecord:
    return RequestRecord(
        repeat=repeat,
        index=completion.index,
        input_tokens=completion.input_tokens,
        output_tokens=completion.generated,
        start_ns=completion.start_ns,
        end_ns=completion.end_ns,
        finish_reason=completion.finish_reason,
        token_times_ns=completion.token_times_ns,
        cached_tokens=completion.cached_tokens,
        error=completion.error,
        first_token_ns=completion.first_token_ns,
        failure=completion.failure,
    )


def outputs_hash(completions: Sequence[Completion]) -> str:
    """`token_hash` of the answers; of their UTF-8 bytes where an engine gives no more than text."""
    if any(c.text is not None and len(c.output_ids) != c.generated for c in completions):
        return token_hash([tuple((c.text or "").encode()) for c in completions])
    return token_hash([c.output_ids for c in completions])
