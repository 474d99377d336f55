"""The plan that `--collect-only` shows: what would run, where, how long, in how much memory, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.devices import device_memory_bytes, parallel_product, visible_gpus
from pytest_llem.reporting.earlier import duration_text, estimate_time
from pytest_llem.reporting.footprint import Footprint, footprint, settings_that_matter
from pytest_llem.reporting.model_facts import UnknownModelError, model_facts
from pytest_llem.serving.plan import server_notice
from pytest_llem.study.canonical import getter

if TYPE_CHECKING:
    from pytest_llem.session import LlemSession
    from pytest_llem.study import Experiment, Study

SHOWN = 10
GIB = 2**30


def plan_lines(session: LlemSession) -> list[str]:
    """A paragraph per study."""
    return [line for study in session.studies for line in _study(session, study)]


def _study(session: LlemSession, study: Study) -> Iterator[str]:
    count, cycles, order = len(study.experiments), study.execution.cycles, study.execution.order
    yield f"study {study.name}: {count} experiments x {cycles} cycles = {count * cycles} cycles, {order}"
    if session.sharding is not None:
        yield from (f"  {line}" for line in session.sharding.lines([study]))
    engines = Counter(experiment.engine for experiment in study.experiments)
    for engine, number in engines.items():
        spec = session.runner_spec(engine, study)
        image = f":{spec.image}" if spec.image else ""
        yield f"  {engine}: {number} experiments, runner {spec.name}{image} ({spec.source}), {_devices(study, engine)}"
    yield f"  time: {_time(study, session.options.out)}"
    yield from (f"  memory: {line}" for line in _bounded(list(_memory(study))))
    for title, points in (("excluded", study.excluded), ("invalid", study.invalid), ("duplicate", study.duplicates)):
        yield from (f"  {title}: {line}" for line in _bounded([f"{point.id}: {point.reason}" for point in points]))
    starts = server_notice(study)
    notes = [str(notice) for notice in study.notices] + ([] if starts is None else [starts])
    yield from (f"  note: {line}" for line in _bounded(notes))


def _bounded(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"{len(lines) - SHOWN} more"


def _devices(study: Study, engine: str) -> str:
    """The devices that an engine's experiments take, of those that there are."""
    if engine == "openai":
        return "devices of its server"
    there = len(visible_gpus())
    wanted = sorted({_wanted(experiment) for experiment in study.experiments if experiment.engine == engine})
    if not there:
        return "CPU" if wanted[-1] == 1 else f"CPU (the settings ask for up to {wanted[-1]} devices)"
    range_ = str(wanted[-1]) if len(wanted) == 1 else f"{wanted[0]} to {wanted[-1]}"
    missing = ": NOT ENOUGH" if wanted[-1] > there else ""
    return f"{range_} of {there} GPU{'s' if there > 1 else ''}{missing}"


def _wanted(experiment: Experiment) -> int:
    get = getter(experiment.leaves)
    return parallel_product(lambda name: get(f"{experiment.engine}.{name}"))


def _time(study: Study, out: Path) -> str:
    found = estimate_time(study, out)
    least = f"at least {duration_text(found.at_least_s)} in windows alone"
    if found.seconds is None:
        return f"{least}; not measured before in {_shown(out)}"
    rest = "" if found.covered == found.experiments else "; the others taken as their mean"
    return (
        f"about {duration_text(found.seconds)}, by earlier results of {found.covered} of {found.experiments} "
        f"experiments{rest} ({least})"
    )


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _memory(study: Study) -> Iterator[str]:
    """Per engine and model the largest estimate, then the experiments that need more than a device has."""
    available = device_memory_bytes()
    largest: dict[tuple[str, str], Footprint | str] = {}
    known: dict[tuple[str, ...], Footprint | str] = {}
    beyond: list[str] = []
    for experiment in study.experiments:
        if experiment.engine == "openai":
            continue
        get = getter(experiment.leaves)
        key = (experiment.engine, *(repr(get(path)) for path in settings_that_matter(experiment.engine)))
        found = known.get(key)
        if found is None:
            found = known[key] = _estimate(study, experiment)
        name = (experiment.engine, experiment.model)
        before = largest.get(name)
        if isinstance(found, str):
            largest.setdefault(name, found)
        elif not isinstance(before, Footprint) or (found.total_bytes or 0) > (before.total_bytes or 0):
            largest[name] = found
        if isinstance(found, Footprint) and available and (found.total_bytes or 0) > available:
            beyond.append(experiment.id)
    of = f" of {available / GIB:.1f} GiB" if available else ""
    for (engine, model), found in largest.items():
        yield f"{engine} {model}: " + (found if isinstance(found, str) else f"{_sizes(found)} per device{of}")
    if beyond:
        more = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
        yield f"MORE THAN THERE IS: {', '.join(beyond[:SHOWN])}{more}"


def _estimate(study: Study, experiment: Experiment) -> Footprint | str:
    get = getter(experiment.leaves)
    revision = get(f"{experiment.engine}.revision") or get("revision")
    try:
        facts = model_facts(experiment.model, study.path.parent, str(revision) if revision is not None else None)
    except UnknownModelError as problem:
        return f"unknown: {problem}"
    return footprint(facts, experiment.engine, get, len(visible_gpus()))


def _sizes(found: Footprint) -> str:
    weights = "unknown" if found.weights_bytes is None else _size(found.weights_bytes)
    cache = "unknown" if found.kv_cache_bytes is None else _size(found.kv_cache_bytes)
    return f"weights {weights} + KV cache {cache}"


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
