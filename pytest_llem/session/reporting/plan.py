"""The plan that `--collect-only` prints: what would run, where, how long, in how much memory, and what is left out.

`Reporting` prints it. Its lines are for people and may change; nothing may be measured, made or downloaded for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_llem.engines import engine_info
from pytest_llem.job.config import AskedKind
from pytest_llem.machine.devices import asked_kind, device_memory_bytes, gpus_needed, visible_if_any
from pytest_llem.results.terminal import duration_text
from pytest_llem.servers.plan import server_notice
from pytest_llem.session.reporting.footprint import (
    Footprint,
    UnknownModelError,
    footprint,
    model_facts,
    settings_that_matter,
)
from pytest_llem.session.reporting.forecast import estimate_time
from pytest_llem.session.reporting.prompts import prompt_lines
from pytest_llem.session.reporting.summary import short_path
from pytest_llem.session.session import LlemSession
from pytest_llem.study import Experiment, Study
from pytest_llem.study.canonical import getter

SHOWN = 10
"""Lines of one kind that are printed at most. Chosen: a plan should fit a screen."""

GIB = 2**30  # bytes


def plan_lines(session: LlemSession) -> list[str]:
    """A paragraph per study."""
    return [line for study in session.studies for line in _study(session, study)]


def _study(session: LlemSession, study: Study) -> Iterator[str]:
    count, cycles, order = len(study.experiments), study.execution.cycles, study.execution.order
    if study.optimize is None:
        yield f"study {study.name}: {count} experiments x {cycles} cycles = {count * cycles} cycles, {order}"
    else:
        most = study.last_cycle
        yield f"study {study.name}: {count} settings race in up to {most} cycles each = {count * most} at most, {order}"
        yield f"  optimize: {study.optimize.told}"
    searches = [search for experiment in study.experiments if (search := experiment.search) is not None]
    if searches:
        yield f"  {len(searches)} of them search a load, in up to {searches[0].max_windows} windows a cycle"
    if session.options.shard is not None:
        yield from (f"  {line}" for line in session.options.shard.lines([study]))
    gates = sum(session.gated(experiment) for experiment in study.experiments)
    if study.execution.confirm and gates:
        yield f"  confirm: {cycles} more cycles for each gate that fails, up to {gates * cycles}"
    engines = Counter(experiment.engine for experiment in study.experiments)
    for engine, number in engines.items():
        spec = session.runner_plans.spec(engine, study)
        image = f":{spec.image}" if spec.image else ""
        yield f"  {engine}: {number} experiments, runner {spec.name}{image} ({spec.source}), {_devices(study, engine)}"
    yield f"  time: {_time(study, session.options.out)}"
    yield from (f"  memory: {line}" for line in _bounded(list(_memory(study))))
    yield from (f"  prompts: {line}" for line in _bounded(list(prompt_lines(study))))
    left_out = (
        [f"{id}: {reason}" for id, reason in session.beyond(study).items()] if session.options.only_device else []
    )
    yield from (f"  skipped: {line}" for line in _bounded(left_out))
    for title, points in (("excluded", study.excluded), ("invalid", study.invalid), ("duplicate", study.duplicates)):
        yield from (f"  {title}: {line}" for line in _bounded([f"{point.id}: {point.reason}" for point in points]))
    further = (server_notice(study), session.order_notice(study))
    notes = [*map(str, study.notices), *(note for note in further if note is not None)]
    yield from (f"  note: {line}" for line in _bounded(notes))


def _bounded(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"{len(lines) - SHOWN} more"


def _devices(study: Study, engine: str) -> str:
    """How many devices an engine's experiments take, of those that are visible."""
    if engine_info(engine).serves_over_http:
        return "devices of its server"
    wanted: dict[AskedKind, set[int]] = {}
    for experiment in study.experiments:
        if experiment.engine == engine:
            wanted.setdefault(asked_kind(experiment), set()).add(gpus_needed(experiment))
    return ", ".join(dict.fromkeys(_of_kind(kind, sorted(needs)) for kind, needs in wanted.items()))


def _of_kind(kind: AskedKind, wanted: Sequence[int]) -> str:
    if kind == "cpu":
        return "CPU"
    visible = len(visible_if_any(kind))
    if not visible and kind == "auto":
        return "CPU" if wanted[-1] == 1 else f"CPU (the settings ask for up to {wanted[-1]} devices)"
    range_ = str(wanted[-1]) if len(wanted) == 1 else f"{wanted[0]} to {wanted[-1]}"
    missing = ": NOT ENOUGH" if wanted[-1] > visible else ""
    return f"{range_} of {visible} GPU{'s' if visible != 1 else ''}{missing}"


def _time(study: Study, out: Path) -> str:
    estimate = estimate_time(study, out)
    if study.optimize is not None:
        known = estimate.seconds is not None
        seconds = estimate.seconds if estimate.seconds is not None else estimate.at_least_s
        return f"{duration_text(seconds)} for all cycles{' in windows alone' * (not known)}; the race takes less"
    least = f"at least {duration_text(estimate.at_least_s)} in windows alone"
    if estimate.seconds is None:
        return f"{least}; not measured before in {short_path(out)}"
    count = len(study.experiments)
    rest = "" if estimate.covered == count else "; the others taken as their mean"
    return (
        f"about {duration_text(estimate.seconds)}, by earlier results of {estimate.covered} of {count} "
        f"experiments{rest} ({least})"
    )


def _memory(study: Study) -> Iterator[str]:
    """Per engine and model the largest estimate, then the experiments that need more than a device has."""
    available: dict[AskedKind, int | None] = {}
    largest: dict[tuple[str, str, AskedKind], Footprint | str] = {}
    estimates: dict[tuple[str, ...], Footprint | str] = {}
    beyond: list[str] = []
    for experiment in study.experiments:
        if engine_info(experiment.engine).serves_over_http:
            continue
        get = getter(experiment.flat_settings)
        kind = asked_kind(experiment)
        if kind not in available:
            available[kind] = device_memory_bytes(kind) if kind in ("auto", "cpu") or visible_if_any(kind) else None
        key = (
            experiment.engine,
            kind,
            str(gpus_needed(experiment)),
            *(repr(get(path)) for path in settings_that_matter(experiment.engine)),
        )
        estimate = estimates.get(key)
        if estimate is None:
            estimate = estimates[key] = _estimate(study, experiment)
        name = (experiment.engine, experiment.model, kind)
        before = largest.get(name)
        if isinstance(estimate, str):
            largest.setdefault(name, estimate)
        elif not isinstance(before, Footprint) or (estimate.total_bytes or 0) > (before.total_bytes or 0):
            largest[name] = estimate
        there = available[kind]
        if isinstance(estimate, Footprint) and there and (estimate.total_bytes or 0) > there:
            beyond.append(experiment.id)
    for (engine, model, kind), estimate in largest.items():
        there, on = available[kind], "" if len(available) == 1 else f" on {kind}"
        of = f" of {there / GIB:.1f} GiB" if there else ""
        text = estimate if isinstance(estimate, str) else f"{_sizes(estimate)} per device{of}"
        yield f"{engine} {model}{on}: {text}"
    if beyond:
        more = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
        yield f"MORE THAN THERE IS: {', '.join(beyond[:SHOWN])}{more}"


def _estimate(study: Study, experiment: Experiment) -> Footprint | str:
    get = getter(experiment.flat_settings)
    revision = get(f"{experiment.engine}.revision") or get("revision")
    try:
        facts = model_facts(experiment.model, study.path.parent, str(revision) if revision is not None else None)
    except UnknownModelError as problem:
        return f"unknown: {problem}"
    leased = gpus_needed(experiment) if visible_if_any(asked_kind(experiment)) else 0
    return footprint(facts, experiment.engine, get, leased)


def _sizes(footprint: Footprint) -> str:
    weights = "unknown" if footprint.weights_bytes is None else _size(footprint.weights_bytes)
    cache = "unknown" if footprint.kv_cache_bytes is None else _size(footprint.kv_cache_bytes)
    return f"weights {weights} + KV cache {cache}"


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
