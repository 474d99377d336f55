"""What a report's runs were asked for: model, prompts, protocol, command line, and the study as it was read.

`page` shows it. A reader must be able to tell from it what was measured, and how to repeat it, without the run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from html import escape

from pytest_llem.errors import JsonValue
from pytest_llem.results.carry_over import CarryOver
from pytest_llem.results.manifest import Manifest, StudyPlan
from pytest_llem.results.preregister import deviations, verdict
from pytest_llem.results.reading import Cell
from pytest_llem.results.report.content import Content, ExperimentRow
from pytest_llem.results.report.markup import count, fold, said, table, terms, text
from pytest_llem.results.schema import Result

MAX_VALUES = 12
"""Values of a setting that are listed. Chosen: more are counted, they stand in the table of experiments."""
ISOLATION = {
    "process": "a fresh process per cycle",
    "experiment": "a fresh process per experiment",
    "load": "a fresh process per loaded engine",
    "server": "a server for all cycles of an experiment",
}
ORDERS = {
    "sequential": "experiment by experiment",
    "interleaved": "one cycle of each experiment in turn",
    "shuffled": "in an order drawn from the study",
    "balanced": "in the order of a Williams design, whole or in part",
}


def asked(content: Content) -> str:
    """What each study asked for, and how each run was called."""
    names = [*content.axes, *(plan.name for each in content.manifests.values() for plan in each.studies)]
    studies = [_study(name, content) for name in dict.fromkeys(names)]
    return "".join(studies) + _runs(content.manifests)


def commit(git: object) -> str:
    """A commit in short, and whether files had changed since; empty where it is not known."""
    if not isinstance(git, Mapping) or not isinstance(git.get("commit"), str):
        return ""
    return str(git["commit"])[:10] + (" with changes" if git.get("dirty") else "")


def moment(stamp: str | None) -> str:
    """An ISO 8601 time as `2026-11-29 15:33 UTC`."""
    try:
        return datetime.fromisoformat(stamp or "").astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return stamp or ""


def _study(name: str, content: Content) -> str:
    rows = [row for row in content.experiments if row.study == name]
    results = content.results.of_study(name)
    plans = [plan for manifest in content.manifests.values() for plan in manifest.studies if plan.name == name]
    entries = [*study_facts(plans, results, rows), *_registered(name, content.manifests.values())]
    entries += _carried([each for each in content.carried if each.study == name])
    several = len({*content.axes, *(p.name for m in content.manifests.values() for p in m.studies)}) > 1
    title = f"<h3>{text(name)}</h3>" if several else ""
    return title + terms(entries) + "".join(_sources(each) for each in _distinct(plans))


def _registered(study: str, manifests: Iterable[Manifest]) -> Iterator[tuple[str, str]]:
    """The rule that was registered, and how each run deviates from the registration."""
    for manifest in manifests:
        for plan in manifest.studies:
            if plan.name == study and (registered := plan.registration) is not None:
                found = deviations(registered, manifest, plan)
                listed = f"<ul>{''.join(f'<li>{text(each)}</li>' for each in found)}</ul>" if found else ""
                when = f"{moment(registered.registered_at)}, SHA-256 {registered.sha256[:12]}"
                how = said("bad" if found else "good", verdict(found))
                yield "Registered", f"{text(registered.rule)} ({when}): {how}{listed}"


def study_facts(
    plans: Sequence[StudyPlan], results: Sequence[Result], rows: Sequence[ExperimentRow]
) -> list[tuple[str, str]]:
    """What one study asked for, and what its engines say they ran: terms, and what they mean as markup."""
    return [*(_of_settings(_Settings(rows)) if rows else ()), *_loaded(results), *_protocol(plans, results, rows)]


class _Settings:
    """The settings of a study's experiments: one value where all have it, else those that occur."""

    def __init__(self, rows: Sequence[ExperimentRow]) -> None:
        self._rows: list[Mapping[str, Cell]] = [row.settings for row in rows]
        self.names = dict.fromkeys(name.removeprefix("config.") for row in self._rows for name in row)

    def values(self, name: str) -> list[Cell]:
        """The values that occur, without those that nobody set."""
        found = {repr(value): value for row in self._rows if (value := row.get(f"config.{name}")) is not None}
        return [*found.values()]

    def said(self, name: str, unset: str = "") -> str:
        """The values as text."""
        values = [text(value) for value in self.values(name)] or [unset]
        more = [f"and {len(values) - MAX_VALUES} more"] if len(values) > MAX_VALUES else []
        return ", ".join([*values[:MAX_VALUES], *more])

    def set(self, name: str) -> bool:
        """Whether an experiment sets it to something else than nothing or `false`."""
        return any(value not in (False, 0, "", "[]") for value in self.values(name))

    def listed(self, prefix: str, besides: Iterable[str] = ()) -> str:
        """What is set below a section, `batch_size 1, 8; use_cache true`."""
        names = [name for name in self.names if name.startswith(f"{prefix}.") and name not in besides]
        return "; ".join(f"{escape(name[len(prefix) + 1 :])} {self.said(name)}" for name in names if self.values(name))


def _of_settings(settings: _Settings) -> Iterable[tuple[str, str]]:
    said = settings.said
    if not any(name.startswith("workload.") for name in settings.names):
        yield from _without_study(settings)
        return
    revision = f", revision {said('revision')}" if settings.set("revision") else ""
    lora = f", LoRA adapter {said('lora')}" if settings.set("lora") else ""
    dummy = ", random weights of its shape" if "dummy" in settings.values("weights") else ""
    yield "Model", f"{said('model')}{revision}{lora}{dummy}, dtype {said('dtype', unset='of the checkpoint')}"
    yield "Engine", f"{said('engine')}: {settings.listed('settings') or 'its defaults'}"
    of = "".join(
        f", {part} {said(f'workload.{part}')}"
        for part in ("split", "column", "revision")
        if settings.set(f"workload.{part}")
    )
    task = settings.set("workload.task")
    source = f"task {said('workload.task')}" if task else f"data set {said('workload.dataset')}{of}"
    yield "Prompts", f"{said('workload.prompts')} per repeat, {source}, seed {said('workload.seed')}"
    if front := ", ".join(_in_front(settings)):
        yield "In front of each", front
    if scored := settings.listed("workload.score") or said("workload.score"):
        yield "Scored", f"by {scored}, key in column {said('workload.answer_column')}"
    fixed = settings.set("workload.ignore_eos")
    output = f"{'' if fixed else 'up to '}{_length(settings, 'output_tokens')} output tokens"
    past = " (an end of sequence does not stop them)" if fixed else ""
    stops = f", or up to one of {said('workload.stop')}" if settings.set("workload.stop") else ""
    yield "Lengths", f"{_length(settings, 'input_tokens')} input tokens, {output}{past}{stops}"
    yield "Chat template", "the model's" if settings.set("workload.chat_template") else "none"
    if arrival := settings.listed("workload.arrival"):
        times = "" if settings.values("workload.speed") in ([], [1.0]) else f"; speed {said('workload.speed')}"
        yield "Arrival", f"{arrival}{times}"
    sampled = settings.set("decoding.do_sample")
    drawn = settings.listed("decoding", besides=["decoding.do_sample"]) if sampled else ""
    yield "Decoding", f"sampled, {drawn or 'with the defaults of the engine'}" if sampled else "greedy"
    warm = {
        name: said(f"measurement.warmup.{name}") for name in ("min_repeats", "max_repeats", "max_s", "cv", "window")
    }
    converged = f"until the last {warm['window']} vary by at most {warm['cv']} (std/mean), "
    fixed = warm["min_repeats"] == warm["max_repeats"]
    number = warm["max_repeats"] if fixed else f"{warm['min_repeats']} to {warm['max_repeats']}"
    repeats = f"{number} repeat{'s' * (number != '1')}, {'' if fixed else converged}at most {warm['max_s']} s"
    yield "Warm-up", repeats if settings.set("measurement.warmup.max_repeats") else "none"
    idle = (
        f"{said('measurement.idle.duration_s')} s idle with the model loaded"
        if settings.set("measurement.idle.duration_s")
        else "no idle power"
    )
    phases = f", phases {said('measurement.phases')}" if settings.set("measurement.phases") else ""
    yield "Windows", f"at least {said('measurement.min_duration_s')} s of whole repeats, {idle}{phases}"


def _without_study(settings: _Settings) -> Iterable[tuple[str, str]]:
    """Of a command, or another tool's benchmark, nothing is known that no file says: neither prompts nor decoding."""
    if settings.set("model"):
        yield "Model", settings.said("model")
    if settings.set("command"):
        yield "Command", f"{settings.said('command')}; measured from its start to its end, without a warm-up"
    if settings.set("server"):
        yield "Server", settings.said("server")
    if settings.set("benchmark"):
        yield "Requests", f"sent, counted and timed by {settings.said('benchmark')}, whose time the energy is of"


def _in_front(settings: _Settings) -> Iterable[str]:
    if settings.set("workload.system_prompt"):
        yield f"the system's prompt {settings.said('workload.system_prompt')}"
    if settings.set("workload.few_shot"):
        yield f"{settings.said('workload.few_shot')} examples"


def _length(settings: _Settings, name: str) -> str:
    drawn = settings.listed(f"workload.{name}")
    own = "the task's own" if settings.set("workload.task") else "the data set's own"
    return f"({drawn})" if drawn else settings.said(f"workload.{name}", unset=own)


def _loaded(results: Sequence[Result]) -> Iterable[tuple[str, str]]:
    """What the engines say they ran, which a model's name and `dtype: null` leave open."""
    names = {
        "dtype": "",
        "quantization": "quantised by ",
        "model_revision": "revision ",
        "model_fingerprint": "fingerprint ",
    }
    parts = []
    for name, before in names.items():
        found = dict.fromkeys(
            value for result in results if isinstance(value := result.engine.effective.get(name), str)
        )
        shown = [value[:12] if name == "model_fingerprint" else value for value in found][:MAX_VALUES]
        parts += [before + ", ".join(shown)] if shown else []
    if parts:
        yield "Loaded", text("; ".join(parts))


def _protocol(
    plans: Sequence[StudyPlan], results: Sequence[Result], rows: Sequence[ExperimentRow]
) -> Iterable[tuple[str, str]]:
    """As all runs asked for it; where they differ, each way is named."""
    asked = sorted({plan.required_cycles for plan in plans if plan.required_cycles})
    order = ", or ".join(dict.fromkeys(ORDERS[plan.order] for plan in plans if plan.order in ORDERS))
    most = max((row.total for row in rows), default=0)
    cycles = [*map(str, asked[:-1]), count(asked[-1] if asked else most, "cycle")]
    stated = " or ".join(cycles) + " per experiment"
    extra = f", up to {most} until the interval is narrow enough" if asked and most > asked[-1] else ""
    isolation = [ISOLATION.get(name, name) for name in dict.fromkeys(result.runner.isolation for result in results)]
    yield "Cycles", "; ".join(text(part) for part in (stated + extra, order, *isolation) if part)
    runners = dict.fromkeys(
        result.runner.name + (f" ({result.runner.image})" if result.runner.image else "") for result in results
    )
    kinds = dict.fromkeys(
        result.runner.device_kind + (f" x {len(result.runner.device_ids)}" if result.runner.device_ids else "")
        for result in results
    )
    if results:
        yield "Runner", f"{text(', '.join(runners))}, on {text(', '.join(kinds))}"
    left_out = plans[-1].left_out if plans else ()
    if left_out:
        lines = "".join(f"<li>{text(point.experiment_id)}: {text(point.reason)}</li>" for point in left_out[:200])
        yield "Not run", fold(count(len(left_out), "point") + " of the sweep", f"<ul>{lines}</ul>")


def _carried(carried: Sequence[CarryOver]) -> Iterable[tuple[str, str]]:
    """Whether what ran before changes what runs next, by run where there are several."""
    for each in carried:
        yield "Carry-over" + (f", {text(each.run)}" if len(carried) > 1 else ""), text(each.sentence)


def _distinct(plans: Sequence[StudyPlan]) -> list[StudyPlan]:
    """A plan per text, since several runs mostly are of one."""
    return [*{(plan.text, plan.bases): plan for plan in plans}.values()]


def _sources(plan: StudyPlan) -> str:
    files = [(plan.path or plan.name, plan.text), *((base.path, base.text) for base in plan.bases)]
    return "".join(
        fold(f"As it was read: {path}", f"<pre>{escape(content)}</pre>") for path, content in files if content
    )


def _runs(manifests: Mapping[str, Manifest]) -> str:
    """How each run was called, when, from which commit and by which version."""
    runs = {name: dict(_called(manifest)) for name, manifest in manifests.items()}
    if len(runs) == 1:
        return "".join(terms(called.items()) for called in runs.values())
    heads = [head for head in dict.fromkeys(head for called in runs.values() for head in called) if head != "Run"]
    rows = [(text(name), *(called.get(head, "") for head in heads)) for name, called in runs.items()]
    return table(("Run", *heads), rows, "How each run was called") if rows else ""


def _called(manifest: Manifest) -> Iterable[tuple[str, str]]:
    yield "Run", text(manifest.run_id)
    if manifest.invocation is not None:
        yield "Command", f"<code>{escape(shlex.join(manifest.invocation.command))}</code>"
        yield "In", f"<code>{escape(manifest.invocation.directory)}</code>"
    began, ended = moment(manifest.started_at), moment(manifest.finished_at)
    yield "Time", text(f"{began} to {ended.removeprefix(began[:11])}" if ended else began)
    if at := commit(manifest.environment.get("git")):
        yield "Commit", f"<code>{escape(at)}</code>"
    version: JsonValue = manifest.environment.get("pytest_llem")
    if version:
        yield "pytest-llem", text(version)
