"""Runs the workload: warm-up, measured repeats, unmeasured ones as padding, and the windows of single phases.

The cycle calls it between the edges of its windows. Inside an open window nothing may happen here but the engine's
work: hashing, copying and records come later (`finish_reading`, `observed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from pytest_llem.engines.protocol import CacheState, Completion, Engine, Request
from pytest_llem.errors import EngineError
from pytest_llem.job.config import WarmupSettings
from pytest_llem.job.events import EventLog
from pytest_llem.job.measurement import Interval, Repeat, RequestRecord, WarmupOutcome
from pytest_llem.job.report import Note
from pytest_llem.worker.convergence import coefficient_of_variation, latency_cv, warmup_end
from pytest_llem.worker.heartbeat import Heartbeat, ProgressReporter
from pytest_llem.worker.windows import OpenWindow, WindowRecorder
from pytest_llem.workload.build import token_hash

PREFILL, DECODE = "prefill", "decode"


CLOCK_SLACK_NS = 10_000_000
"""Chosen: far above the rounding of a clock that is read in seconds, and far below a request."""

CERTAIN = frozenset(("cleared", "disabled", "none"))
"""What `Engine.reset` may say of its caches; anything else is as good as `unknown`."""
KEPT: Literal["kept"] = "kept"
"""The state of a cache that is warm: nobody emptied it."""


@dataclass(frozen=True)
class Observed:
    """What the engine did in the measure window; `completions` are those of all repeats, in order."""

    repeats: tuple[Repeat, ...]
    records: tuple[RequestRecord, ...]
    completions: tuple[Completion, ...]
    cache_state: CacheState | Literal["kept"]
    wrong_times: int = 0
    """Answers whose times cannot be: out of order, outside of their pass, or not one per token."""

    def by_repeat(self) -> list[Sequence[Completion]]:
        """The completions of each repeat; all have as many."""
        count = len(self.completions) // max(1, len(self.repeats))
        return [self.completions[index * count : (index + 1) * count] for index in range(len(self.repeats))]

    @property
    def mean_repeat_s(self) -> float:
        """Mean duration of a repeat in seconds."""
        return sum(repeat.end_ns - repeat.start_ns for repeat in self.repeats) / 1e9 / len(self.repeats)


@dataclass(frozen=True)
class Pass:
    """One pass over the workload, as the engine returned it."""

    start_ns: int
    end_ns: int
    completions: list[Completion]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / 1e9


class RepeatRunner:
    """Runs the same requests repeatedly on one engine, emptying its caches before each pass.

    Before the first pass of a window that is done ahead of it, and between the others it is timed. `warm` caches are
    emptied before the warm-up alone, so that they hold what it left.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        events: EventLog,
        heartbeat: Heartbeat,
        *,
        warm: bool = False,
    ) -> None:
        self.requests = tuple(requests)
        self._warm = warm
        self._engine = engine
        self._events = events
        self._heartbeat = heartbeat
        self._cache_states: set[CacheState] = set()
        self.last_repeat_s: float | None = None
        self.warmup_repeats: list[Interval] = []

    def warm_up(
        self,
        settings: WarmupSettings,
        power_w: Callable[[], float | None] | None,
        has_settled: Callable[[Sequence[Interval]], bool | None] | None = None,
    ) -> WarmupOutcome:
        """Repeat until latency has converged (and power, where it can be read), or a limit is reached.

        With `has_settled` repeats then go on until it does not say no to their times, at most for `thermal_max_s`.
        """
        progress = ProgressReporter(self._events, self._heartbeat, "warmup")
        passes: list[Pass] = []
        powers: list[float] = []
        started = time.monotonic()
        cv: float | None = None
        reason = "fixed" if settings.max_repeats < 1 else None
        if self._warm:
            self._cache_states.add(self._engine.reset())
        while reason is None:
            progress.repeat = len(self.warmup_repeats)
            # What lies before the window that is judged would pile up in a long warm-up.
            passes = [*passes[-settings.window :], self._run(progress)]
            self.warmup_repeats.append(Interval(passes[-1].start_ns, passes[-1].end_ns))
            power = power_w() if power_w is not None else None
            powers += [power] if power is not None else []
            self.last_repeat_s = passes[-1].duration_s
            cv = latency_cv([p.completions for p in passes], [p.duration_s for p in passes], settings.window)
            power_cv = _power_cv(powers, settings.window)
            elapsed_s = time.monotonic() - started
            reason = warmup_end(settings, len(self.warmup_repeats), elapsed_s, cv, power_cv)
            if reason is not None and has_settled is not None and has_settled(self.warmup_repeats) is False:
                reason = "thermal_max_s" if elapsed_s >= settings.thermal_max_s else None
        converged = reason == "converged"
        judged_by = None if not converged else "latency and power" if powers else "latency"
        elapsed_s = time.monotonic() - started
        return WarmupOutcome(len(self.warmup_repeats), elapsed_s, converged, reason, cv, judged_by)

    def run_unmeasured(self, duration_s: float) -> None:
        """Run whole repeats, at least one, for at least this long: same-load padding beside a window."""
        progress = ProgressReporter(self._events, self._heartbeat, "lead")
        measured = set(self._cache_states)
        started_ns = time.monotonic_ns()
        while (self._run(progress).end_ns - started_ns) / 1e9 < duration_s:
            progress.repeat += 1
        self._cache_states = measured

    def empty_caches(self) -> None:
        """What `measure` needs done before its window opens."""
        self._cache_states = self._cache_states if self._warm else set()
        self.reset()

    def reset(self) -> None:
        """Empty the engine's caches, unless they are kept warm."""
        if not self._warm:
            self._cache_states.add(self._engine.reset())

    def measure(self, min_duration_s: float, window: OpenWindow) -> list[Pass]:
        """Run whole repeats, at least one, for at least `min_duration_s`; read them when the window is closed."""
        progress = ProgressReporter(self._events, self._heartbeat, "measure")
        started_ns = time.monotonic_ns()
        passes = [self._generate(progress)]
        while (passes[-1].end_ns - started_ns) / 1e9 < min_duration_s:
            progress.repeat = len(passes)
            with _timed_reset(window):
                self.reset()
            passes.append(self._generate(progress))
        window.repeats = len(passes)
        return passes

    def finish_reading(self, passes: Sequence[Pass]) -> list[Pass]:
        """The passes with everything that the engine left to be read; call it when no window is open."""
        return [replace(done, completions=self._engine.read(done.completions)) for done in passes]

    def observed(self, passes: Sequence[Pass]) -> Observed:
        """Records and hashes of measured passes; call it when no window is open, because that takes time.

        Raises `EngineError` where there is not exactly one answer to each request.
        """
        asked = {request.index: request for request in self.requests}
        wanted = sorted(asked)
        for done in passes:
            if sorted(completion.index for completion in done.completions) != wanted:
                raise EngineError(
                    f"the engine {self._engine.name} gave {len(done.completions)} answers to {len(wanted)} requests, "
                    "or several to one",
                    fix="its `generate` must return one completion per request, with the request's index",
                )
        return Observed(
            repeats=tuple(_repeat(index, done) for index, done in enumerate(passes)),
            records=tuple(
                _record(index, c, asked[c.index]) for index, done in enumerate(passes) for c in done.completions
            ),
            completions=tuple(c for done in passes for c in done.completions),
            cache_state=self._cache_state(),
            wrong_times=sum(not _has_possible_times(c, done) for done in passes for c in done.completions),
        )

    def _cache_state(self) -> CacheState | Literal["kept"]:
        state = next(iter(self._cache_states)) if self._cache_states <= CERTAIN else "unknown"
        return KEPT if self._warm and state in ("cleared", "unknown") else state

    def _run(self, progress: ProgressReporter) -> Pass:
        self.reset()
        return self._generate(progress)

    def _generate(self, progress: ProgressReporter) -> Pass:
        with self._heartbeat.working():
            start_ns = time.monotonic_ns()
            completions = self._engine.generate(self.requests, progress)
            return Pass(start_ns, time.monotonic_ns(), completions)


@contextmanager
def _timed_reset(window: OpenWindow) -> Iterator[None]:
    """Caches are emptied in the body, and the window says for how long."""
    started_ns = time.monotonic_ns()
    yield
    window.reset_s += (time.monotonic_ns() - started_ns) / 1e9


def measure_phases(
    engine: Engine,
    runner: RepeatRunner,
    phases: Sequence[str],
    recorder: WindowRecorder,
    heartbeat: Heartbeat,
    *,
    min_duration_s: float,
    outputs_hash: str,
) -> list[Note]:
    """Measure `prefill` (one output token each) and `decode` (split batches) in own windows; notes say why not.

    Where batches cannot be split, and the difference to prefill is decode, prefill is measured for it.
    """
    obstacle = engine.split_obstacle(runner.requests) if DECODE in phases else None
    by_difference = obstacle is not None and engine.capabilities.separable_phases
    if PREFILL in phases or by_difference:
        _measure_prefill(engine, runner, recorder, heartbeat, min_duration_s)
    if obstacle is not None:
        instead = "; it is the difference to a window of prefill" if by_difference else ""
        return [Note("decode_not_split", f"decode was not measured apart from prefill: {obstacle}{instead}")]
    if DECODE in phases:
        return _measure_decode(engine, runner, recorder, heartbeat, min_duration_s, outputs_hash)
    return []


def _measure_prefill(
    engine: Engine, runner: RepeatRunner, recorder: WindowRecorder, heartbeat: Heartbeat, min_duration_s: float
) -> None:
    single = [replace(request, max_new_tokens=1) for request in runner.requests]

    def one_pass() -> None:
        engine.generate(single, lambda _done, _total: heartbeat.tick())

    runner.reset()
    with heartbeat.working():
        one_pass()
    runner.reset()
    with recorder.window(PREFILL, engine, idle_padding=True) as window, heartbeat.working():
        started = time.monotonic()
        one_pass()
        window.repeats = 1
        while time.monotonic() - started < min_duration_s:
            with _timed_reset(window):
                runner.reset()
            one_pass()
            window.repeats += 1


def _measure_decode(
    engine: Engine,
    runner: RepeatRunner,
    recorder: WindowRecorder,
    heartbeat: Heartbeat,
    min_duration_s: float,
    outputs_hash: str,
) -> list[Note]:
    def border(name: str) -> AbstractContextManager[object]:
        heartbeat.tick()
        return recorder.window(name, engine)

    hashes: set[str] = set()
    started = time.monotonic()
    with heartbeat.working():
        while not hashes or time.monotonic() - started < min_duration_s:
            runner.reset()
            hashes.add(token_hash(engine.generate_in_phases(runner.requests, border)))
            recorder.windows[-1] = replace(recorder.windows[-1], repeats=1)
    if hashes != {outputs_hash}:
        return [Note("decode_outputs_differ", "the split windows produced other tokens than the measure window")]
    return []


def _power_cv(powers: Sequence[float], window: int) -> float | None:
    """Coefficient of the newest `window` readings; infinite while there are fewer, `None` where there is none."""
    if not powers:
        return None
    cv = coefficient_of_variation(powers[-window:]) if len(powers) >= window else None
    return inf if cv is None else cv


def _has_possible_times(completion: Completion, done: Pass) -> bool:
    times = completion.token_times_ns
    known = [completion.start_ns, *(times or ()), completion.end_ns]
    return completion.error is not None or (
        (times is None or len(times) == completion.generated)
        and known == sorted(known)
        and done.start_ns - CLOCK_SLACK_NS <= known[0]
        and known[-1] <= done.end_ns + CLOCK_SLACK_NS
    )


def _repeat(index: int, done: Pass) -> Repeat:
    in_order = sorted(done.completions, key=lambda completion: completion.index)
    return Repeat(index, done.start_ns, done.end_ns, outputs_hash(in_order))


def _record(repeat: int, completion: Completion, request: Request) -> RequestRecord:
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
        chunk_times_ns=completion.chunk_times_ns,
        due_ns=completion.due_ns,
        sent_ns=completion.sent_ns,
        retries=completion.retries,
        session=request.session,
        turn=request.turn,
    )


def outputs_hash(completions: Sequence[Completion]) -> str:
    """`token_hash` of the answers; of their UTF-8 bytes where an engine gives no more than text."""
    if any(c.text is not None and len(c.output_ids) != c.generated for c in completions):
        return token_hash([tuple((c.text or "").encode()) for c in completions])
    return token_hash([c.output_ids for c in completions])
