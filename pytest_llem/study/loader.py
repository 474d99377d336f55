"""Loads a study file: reads it with its bases, checks it, and expands it into experiments.

pytest's collection calls `load_study`. All problems of a file are reported together, each at its line and column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_llem.engines import engine_names
from pytest_llem.errors import JsonValue
from pytest_llem.study import parts
from pytest_llem.study.canonical import getter, section_of, with_engine_dtype, written_out
from pytest_llem.study.declared import keys_of
from pytest_llem.study.document import KeyPath, UnreadableError, deep_merge, environment, kind
from pytest_llem.study.experiments import Experiment, Study
from pytest_llem.study.fields import (
    FlatSettings,
    WrittenSetting,
    apply,
    defaults,
    flatten,
    keyword,
    overlay,
    suggest_path,
    table,
)
from pytest_llem.study.limits import Comparison, overriding
from pytest_llem.study.model import Execution, Gates, Notice, OmittedPoint, Overrides
from pytest_llem.study.naming import shorten, slug, text_of
from pytest_llem.study.points import InactiveSetting, Points, Sweep, TooManyPointsError
from pytest_llem.study.problems import Problem, study_error, suggest_or_list
from pytest_llem.study.rules import RULES
from pytest_llem.study.schema import ExplicitExperiment, StudyDocument
from pytest_llem.study.slices import shared_slice
from pytest_llem.study.sources import Sources, read_sources
from pytest_llem.study.sweep import Axis, Exclusion, parse_exclude, parse_sweep

_ENTRY_ONLY = tuple(name for name in keys_of(ExplicitExperiment) if name not in table())
_STUDY_ONLY = tuple(name for name in keys_of(StudyDocument) if name not in table())
# Chosen: enough ids to recognise the pattern of a failing sweep, few enough for one line.
MAX_SHOWN_INVALID = 5


def load_study(
    path: Path,
    *,
    overrides: Overrides | None = None,
    env: Mapping[str, str] | None = None,
    execution: Mapping[str, JsonValue] | None = None,
) -> Study:
    """Read and expand a study file.

    `env` fills placeholders (default: the process environment); `execution` holds a user's defaults, below what the
    study sets. Raises `StudyError`, whose message begins with `FILE:LINE:COLUMN: ` and holds all problems, and
    `SettingsError` for wrong `overrides`.
    """
    try:
        sources = read_sources(Path(path), environment() if env is None else env)
    except UnreadableError as unreadable:
        raise study_error(unreadable.problems, path) from None
    return _StudyLoader(Path(path), sources, overrides or Overrides(), execution or {}).load()


@dataclass
class _Entry:
    """An entry of `experiments`, checked."""

    id: str | None
    settings: list[WrittenSetting]
    gates: Gates
    key_path: KeyPath


@dataclass
class _StudyLoader:
    """One study while it is loaded; problems gather in `sources` until later steps depend on what is wrong."""

    path: Path
    sources: Sources
    overrides: Overrides
    execution: Mapping[str, JsonValue]
    shared: FlatSettings = field(default_factory=dict)
    origins: dict[str, KeyPath] = field(default_factory=dict)
    invalid: list[OmittedPoint] = field(default_factory=list)
    duplicates: list[OmittedPoint] = field(default_factory=list)
    excluded: list[OmittedPoint] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    inactive: dict[tuple[str, str], InactiveSetting] = field(default_factory=dict)

    def load(self) -> Study:
        data, thresholds = parts.validity(self.sources.data, self.sources.report)
        top = self._study_settings(data)
        self._shared_settings(data)
        name = top.get("name")
        study_name = name if isinstance(name, str) else slug(self.path.stem)
        tags = _texts(top.get("tags"))
        gates = self._gates(data, tags)
        execution = self._execution(data)
        runners = parts.runners(_text_map(top.get("runners")), engine_names(), self.sources.report)
        docker = parts.docker(data.get("docker"), self.path.parent, self.sources.report)
        parts.follow_residual_memory(execution.residual_memory_bytes, docker, thresholds)
        ray = parts.ray(data.get("ray"), self.path.parent, self.sources.report)
        meter = parts.meter(top.get("meter"), self.sources.report)
        axes, exclusions = self._axes(data)
        entries = self._entries(data, gates)
        self._check_models(data, axes, entries)
        self._stop_if_wrong()
        if self.sources.is_older:
            text = "read as a file of LLenergyMeasure; what it leaves out has this project's defaults"
            self.notices.append(Notice("older_words", text, self.sources.locate(())))
        experiments = self._expand(data, study_name, axes, exclusions, entries, gates)
        skips_invalid = top.get("on_invalid") == "skip"
        self._judge_invalid(skips_invalid, experiments)
        self._note_inactive(experiments)
        return Study(
            name=study_name,
            path=self.path,
            title=_text(top.get("title")),
            experiments=experiments,
            execution=execution,
            runners=runners,
            docker=docker,
            ray=ray,
            meter=meter,
            thresholds=thresholds,
            tags=tags,
            excluded=self.excluded,
            invalid=self.invalid,
            duplicates=self.duplicates,
            skips_invalid=skips_invalid,
            notices=self.notices,
            locate=self.sources.locate_setting,
        )

    def _stop_if_wrong(self) -> None:
        if self.sources.problems:
            raise study_error(self.sources.problems, self.path)

    def _study_settings(self, data: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The keys of a study that are no experiment settings; unknown keys are reported here."""
        own: dict[str, JsonValue] = {}
        for key, value in data.items():
            if key in _STUDY_ONLY:
                own[key] = value
            elif key not in table() and "." not in key:
                hint = suggest_path(key, _STUDY_ONLY)
                self.sources.report((key,), f"unknown setting {key!r}", hint, True)
        plain = {
            key: own[key]
            for key in ("name", "title", "tags", "on_invalid", "runners", "meter")
            if own.get(key) is not None
        }
        checked: dict[str, JsonValue] = {}
        for key, value in plain.items():
            checked.update(parts.check_section(StudyDocument, {key: value}, self.sources.report, ()))
        return checked

    def _shared_settings(self, data: Mapping[str, JsonValue]) -> None:
        common = {key: value for key, value in data.items() if key in table() or "." in key}
        settings = flatten(common, self.sources.report)
        self._check_engines(settings)
        self.shared = {"engine": defaults()["engine"]}
        apply(self.shared, settings)
        self.origins = {setting.path: setting.origin for setting in settings}

    def _check_engines(self, settings: Sequence[WrittenSetting]) -> None:
        for setting in settings:
            if setting.path == "engine" and setting.value not in engine_names():
                hint = suggest_or_list(str(setting.value), engine_names())
                self.sources.report(setting.origin, f"unknown engine {setting.value!r}", hint, False)

    def _gates(self, data: Mapping[str, JsonValue], tags: tuple[str, ...]) -> Gates:
        gates = parts.gates(data.get("expect"), data.get("compare"), tags, self.sources.report, ())
        return self._with_overrides(gates)

    def _with_overrides(self, gates: Gates) -> Gates:
        if not self.overrides.fail_if:
            return gates
        named = {limit.metric: limit for limit in (gates.compare.fail_if if gates.compare else ())}
        for metric, text in self.overrides.fail_if.items():
            named[metric] = overriding(named.get(metric), metric, text)
        return replace(gates, compare=replace(gates.compare or Comparison(), fail_if=tuple(named.values())))

    def _execution(self, data: Mapping[str, JsonValue]) -> Execution:
        execution = parts.execution(data.get("execution"), self.execution, self.sources.report)
        return parts.overridden(execution, self.overrides)

    def _axes(self, data: Mapping[str, JsonValue]) -> tuple[list[Axis], list[Exclusion]]:
        axes: list[Axis] = []
        if "sweep" in data:
            sweep = data["sweep"]
            if not isinstance(sweep, Mapping):
                hint = "write sweep: {dtype: [float32, bfloat16]}"
                self.sources.report(("sweep",), f"sweep: expected a mapping, got {kind(sweep)}", hint)
            elif not sweep:
                self.sources.report(("sweep",), "the sweep is empty", "name an axis, or take sweep out", True)
            else:
                axes = parse_sweep(sweep, self.sources.report)
                for axis in axes:
                    for alternative in axis.alternatives:
                        self._check_engines(alternative.settings)
        exclusions: list[Exclusion] = []
        if data.get("exclude") is not None:
            exclusions = parse_exclude(data["exclude"], self.sources.report)
            if "sweep" not in data:
                self.sources.report(("exclude",), "exclude without a sweep", "take it out", True)
        return axes, exclusions

    def _entries(self, data: Mapping[str, JsonValue], shared: Gates) -> list[_Entry]:
        given = data.get("experiments")
        if "experiments" not in data:
            return []
        if not isinstance(given, list) or not given:
            hint = "write - {id: eager, transformers: {...}}, or take experiments out"
            self.sources.report(
                ("experiments",), f"experiments: expected a list of mappings, got {_empty(given)}", hint
            )
            return []
        return [self._entry(entry, index, data, shared) for index, entry in enumerate(given)]

    def _entry(self, entry: JsonValue, index: int, data: Mapping[str, JsonValue], shared: Gates) -> _Entry:
        key_path: KeyPath = ("experiments", index)
        report = self.sources.report
        if not isinstance(entry, Mapping):
            report(
                key_path, f"experiments: expected a mapping of settings, got {kind(entry)}", "write {dtype: float32}"
            )
            return _Entry(None, [], shared, key_path)
        own = {key: value for key, value in entry.items() if key in _ENTRY_ONLY}
        checked = parts.check_section(
            ExplicitExperiment,
            {key: own[key] for key in ("id", "tags") if own.get(key) is not None},
            report,
            key_path,
        )
        settings = flatten({key: value for key, value in entry.items() if key not in own}, report, key_path)
        self._check_engines(settings)
        gates = shared
        if own.keys() - {"id"}:
            gates = self._with_overrides(
                parts.gates(
                    _merged(data.get("expect"), own.get("expect")),
                    _merged(data.get("compare"), own.get("compare")),
                    (*shared.tags, *_texts(checked.get("tags"))),
                    lambda at, *rest: report((*key_path, *at), *rest),
                    (),
                )
            )
        name = checked.get("id")
        return _Entry(name if isinstance(name, str) else None, settings, gates, key_path)

    def _check_models(self, data: Mapping[str, JsonValue], axes: Sequence[Axis], entries: Sequence[_Entry]) -> None:
        if "model" in self.shared or any(problem.text.startswith("model:") for problem in self.sources.problems):
            return
        hint = "name one, for example model: builtin:tiny-llama"
        if not axes and not entries:
            self.sources.report((), "the study has no model", hint)
        elif axes:
            setters = [axis for axis in axes if "model" in axis.paths]
            if not any(all(any(s.path == "model" for s in a.settings) for a in axis.alternatives) for axis in setters):
                self.sources.report(("sweep",), "the points of the sweep have no model", hint, True)
        for entry in entries:
            if not any(setting.path == "model" for setting in entry.settings):
                self.sources.report(entry.key_path, "the experiment has no model", hint)

    def _expand(
        self,
        data: Mapping[str, JsonValue],
        name: str,
        axes: Sequence[Axis],
        exclusions: Sequence[Exclusion],
        entries: Sequence[_Entry],
        gates: Gates,
    ) -> list[Experiment]:
        experiments: list[Experiment] = []
        directory = self.path.parent
        if axes or not entries:
            try:
                points = Sweep(self.shared, self.origins, axes, exclusions, name).points()
            except TooManyPointsError as absurd:
                hint = "sweep fewer values, or list the points under experiments"
                self.sources.report(("sweep",), f"the sweep has {absurd.count:,} points: {absurd.shape}", hint, True)
                raise study_error(self.sources.problems, self.path) from None
            self._take_omitted(points)
            experiments = [Experiment(id, parts, gates, directory) for id, parts in points.kept]
        return experiments + self._explicit(entries, experiments, name)

    def _take_omitted(self, points: Points) -> None:
        locate = self.sources.locate
        self.excluded += [OmittedPoint(id, reason, locate(key_path)) for id, reason, key_path in points.excluded]
        self.invalid += [OmittedPoint(id, reason, locate(key_path)) for id, reason, key_path in points.invalid]
        self.duplicates += [OmittedPoint(id, reason, locate(key_path)) for id, reason, key_path in points.duplicates]
        self.inactive.update(points.inactive)
        for exclusion in points.unused_exclusions:
            self.notices.append(Notice("unused_exclusion", "exclude: matches no point", locate(exclusion.origin)))

    def _explicit(self, entries: Sequence[_Entry], before: list[Experiment], study_name: str) -> list[Experiment]:
        experiments: list[Experiment] = []
        names = {experiment.id for experiment in before}
        known = {experiment.config_hash: experiment.id for experiment in before} if entries else {}
        for entry in entries:
            flat = overlay(self.shared, entry.settings)
            engine = str(flat["engine"])
            part, inactive = shared_slice(flat, engine)
            own = {setting.path: setting.origin for setting in entry.settings}
            for path, why in inactive.items():
                origin = own.get(path) or self.origins.get(path, entry.key_path)
                self.inactive.setdefault((path, why), InactiveSetting(origin, section_of(path)))
            name = entry.id or _entry_name(entry, study_name)
            reason = _refusal(flat, engine)
            if reason is not None:
                key_path = next((own[path] for path in reason[1] if path in own), entry.key_path)
                self.invalid.append(OmittedPoint(name, reason[0], self.sources.locate(key_path)))
                continue
            experiment = Experiment(name, (part,), entry.gates, self.path.parent)
            other = known.get(experiment.config_hash)
            where = self.sources.locate(entry.key_path)
            if other is not None:
                self.duplicates.append(OmittedPoint(name, f"does the same as {other}", where))
                continue
            if name in names:
                if entry.id is not None:
                    self.sources.report(
                        (*entry.key_path, "id"), f"a second experiment with the id {name!r}", "rename one"
                    )
                experiment.id = name = f"{name}.{experiment.config_hash[:6]}"
            names.add(name)
            known[experiment.config_hash] = name
            experiments.append(experiment)
        self._stop_if_wrong()
        return experiments

    def _judge_invalid(self, skip: bool, experiments: Sequence[Experiment]) -> None:
        if self.invalid and not skip:
            by_reason: dict[tuple[str, str], list[OmittedPoint]] = {}
            for point in self.invalid:
                by_reason.setdefault((str(point.location), point.reason), []).append(point)
            for points in by_reason.values():
                ids = ", ".join(point.id for point in points[:MAX_SHOWN_INVALID])
                more = f" and {len(points) - MAX_SHOWN_INVALID} more" if len(points) > MAX_SHOWN_INVALID else ""
                self.sources.problems.append(Problem(points[0].location, f"invalid: {ids}{more}: {points[0].reason}"))
            last = self.sources.problems[-1]
            hint = "or exclude the points, or set on_invalid: skip"
            self.sources.problems[-1] = replace(last, fix=hint)
            self._stop_if_wrong()
        if not experiments:
            what = "excluded" if not self.invalid else "excluded or invalid"
            self.sources.report(("sweep",), f"nothing is left to run: every point is {what}", "relax exclude", True)
            self._stop_if_wrong()

    def _note_inactive(self, experiments: Sequence[Experiment]) -> None:
        engines = {str(experiment.keywords["engine"]) for experiment in experiments}
        for (label, why), inactive in self.inactive.items():
            if inactive.section not in engines or not why.startswith("with engine"):
                self.notices.append(
                    Notice("dormant", f"{label} does nothing {why}", self.sources.locate(inactive.origin))
                )
        if self.duplicates:
            first = self.duplicates[0]
            more = f", and {len(self.duplicates) - 1} more" if len(self.duplicates) > 1 else ""
            text = f"left out as a duplicate: {first.id} {first.reason}{more}"
            self.notices.append(Notice("duplicate", text, first.location))


def _refusal(flat: FlatSettings, engine: str) -> tuple[str, tuple[str, ...]] | None:
    get = getter(with_engine_dtype(written_out(flat), engine))
    for rule in RULES:
        if rule.engine in (None, engine):
            refusal = rule.check(get)
            if refusal is not None:
                return f"{refusal.text} ({refusal.fix})", rule.paths
    return None


def _entry_name(entry: _Entry, study_name: str) -> str:
    labels = [
        f"{keyword(s.path)}:{text_of(s.value if isinstance(s.value, (str, int, float, bool, list, dict)) else None)}"
        for s in entry.settings
    ]
    return shorten("-".join(labels)) or study_name


def _merged(lower: JsonValue, upper: JsonValue) -> JsonValue:
    if isinstance(lower, Mapping) and isinstance(upper, Mapping):
        return deep_merge(lower, upper)
    return lower if upper is None else upper


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, (list, tuple)) else ()


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _text_map(value: JsonValue) -> dict[str, str]:
    return {key: str(item) for key, item in value.items()} if isinstance(value, Mapping) else {}


def _empty(value: JsonValue) -> str:
    return "an empty list" if value == [] else kind(value)
