"""Decides when a warm-up has converged and when power has settled.

`repeats` ends the warm-up by it; the cycle and the cooldown between cycles (`machine.cooldown`) settle by it. The rules
are part of the measurement protocol (docs/protocol.md): a change makes cycles incomparable with earlier ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from pytest_llem.engines.protocol import Completion
from pytest_llem.job.config import WarmupSettings

SETTLE_STEP_S = 0.1
"""Period at which A100 and H100 update their power (arXiv 2312.02741); reading more often shows nothing new."""

SETTLE_READINGS = 5
"""Chosen: half a second on each side of the comparison averages the ripple of background work."""

SETTLE_DROP = 0.03
"""Chosen: three times the scatter of idle power over half a second; what still falls then, `idle_power` states as
slope."""


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Sample standard deviation divided by the mean; `None` for fewer than two values or a mean of zero."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if mean else None


def batches(completions: Sequence[Completion]) -> list[list[Completion]]:
    """Completions grouped by overlap in time, in order: static batches, or one group for a scheduler's stream."""
    groups: list[list[Completion]] = []
    end_ns = 0
    for completion in sorted(completions, key=lambda completion: completion.start_ns):
        if groups and completion.start_ns < end_ns:
            groups[-1].append(completion)
        else:
            groups.append([completion])
        end_ns = max(end_ns, completion.end_ns)
    return groups


def batch_durations(completions: Sequence[Completion]) -> list[float]:
    """Seconds of each batch, in order."""
    return [(max(c.end_ns for c in batch) - batch[0].start_ns) / 1e9 for batch in batches(completions)]


def same_size(completions: Sequence[Completion]) -> bool:
    """Whether all batches had the same token counts, so that their durations are comparable."""
    work = {tuple(sorted((c.input_tokens, c.generated) for c in batch)) for batch in batches(completions)}
    return len(work) == 1


def latency_cv(repeats: Sequence[Sequence[Completion]], durations: Sequence[float], window: int) -> float | None:
    """Coefficient of variation of the newest `window` latencies; `None` if there are fewer.

    Latencies are durations of whole repeats and, where all batches of a repeat have the same work, of batches. The
    larger coefficient counts.
    """
    coefficients = []
    if len(durations) >= window:
        coefficients.append(coefficient_of_variation(durations[-window:]))
    if repeats and same_size(repeats[-1]):
        alike = [duration for repeat in repeats if same_size(repeat) for duration in batch_durations(repeat)]
        # The very first batch includes lazy initialisation and is never judged.
        if len(alike) > window:
            coefficients.append(coefficient_of_variation(alike[-window:]))
    known = [cv for cv in coefficients if cv is not None]
    return max(known) if known else None


def warmup_end(
    settings: WarmupSettings, repeats: int, elapsed_s: float, cv: float | None, power_cv: float | None
) -> str | None:
    """Why the warm-up ends now (`converged`, `fixed`, `max_repeats`, `max_s`), or `None` to continue.

    Convergence takes `window` repeats, and that of power as well where it can be read (`power_cv` is infinite until
    there are enough readings). `max_repeats` equal to `min_repeats` is `fixed`.
    """
    if repeats < settings.min_repeats:
        return None
    if settings.max_repeats <= settings.min_repeats:
        return "fixed"
    if repeats >= settings.window and cv is not None and max(cv, power_cv or 0.0) <= settings.cv:
        return "converged"
    if repeats >= settings.max_repeats:
        return "max_repeats"
    return "max_s" if elapsed_s >= settings.max_s else None


def has_settled(powers: Sequence[float]) -> bool:
    """Whether power has stopped falling: the newest readings are at most `SETTLE_DROP` below the ones before."""
    if len(powers) < 2 * SETTLE_READINGS:
        return False
    older = statistics.fmean(powers[-2 * SETTLE_READINGS : -SETTLE_READINGS])
    newer = statistics.fmean(powers[-SETTLE_READINGS:])
    return newer >= older * (1 - SETTLE_DROP)


def settle(power_w: Callable[[], float | None], max_wait_s: float) -> tuple[float, bool | None]:
    """Wait until power has settled; the seconds waited, and whether it did (`None` without a power reading)."""
    started = time.monotonic()
    powers: list[float] = []
    while (waited := time.monotonic() - started) < max_wait_s:
        power = power_w()
        if power is None and not powers:
            return waited, None
        if power is not None:
            powers.append(power)
        if has_settled(powers):
            return waited, True
        time.sleep(SETTLE_STEP_S)
    return time.monotonic() - started, False if powers else None
