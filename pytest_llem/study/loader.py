"""Loads a study file: reads it with its bases, checks it, and expands it into experiments.

`session.options` calls `load_study`. All problems of a file must be reported together, each at its line and column.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_llem.engines import engine_names
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import AskedKind
from pytest_llem.job.percentiles import STANDARD
from pytest_llem.study import parts
from pytest_llem.study.axes import swept_axes
from pytest_llem.study.basis import MAX_SHOWN_IDS, lacking
from pytest_llem.study.declared import keys_of
from pytest_llem.study.device_rules import KIND as DEVICE_KIND
from pytest_llem.study.device_rules import on_device
from pytest_llem.study.experiments import Experiment, Study
from pytest_llem.study.fields import (
    FlatSettings,
    Report,
    WrittenSetting,
    apply,
    defaults,
    flatten,
    suggest_path,
    table,
)
from pytest_llem.study.limits import Comparison, overriding
from pytest_llem.study.listed import Entry, Listed
from pytest_llem.study.model import Gates, Notice, Overrides
from pytest_llem.study.naming import slug
from pytest_llem.study.optimize import Optimize
from pytest_llem.study.points import MAX_POINTS, Points, Sweep, TooManyPointsError
from pytest_llem.study.problems import Location, Problem, UnreadableError, study_error, suggest_or_list
from pytest_llem.study.schema import EntryHead, ExplicitExperiment, StudyDocument, StudyHead
from pytest_llem.study.search import ARRIVAL
from pytest_llem.study.shipped import study_file
from pytest_llem.study.sources import Sources, read_sources
from pytest_llem.study.sweep import Axis, Exclusion, parse_exclude, parse_sweep
from pytest_llem.study.values import KeyPath, deep_merge, kind
from pytest_llem.study.written_optimize import check_race, raced, read_optimize

_PLAIN_KEYS = ("name", "title", "tags", "on_invalid", "percentiles", "runners", "meter")
_ENTRY_ONLY = tuple(name for name in keys_of(ExplicitExperiment) if name not in table())
_STUDY_ONLY = tuple(name for name in keys_of(StudyDocument) if name not in table())


def load_study(
    path: Path,
    *,
    overrides: Overrides | None = None,
    env: Mapping[str, str] | None = None,
    execution: Mapping[str, JsonValue] | None = None,
    validity: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = STANDARD,
) -> Study:
    """Read and expand a study: a file, or `builtin:NAME`.

    `env` fills placeholders (default: the process environment); `execution`, `validity` and `percentiles` hold a
    user's defaults, below what the study sets. Raises `StudyError`, whose message begins with `FILE:LINE:COLUMN: ` and
    holds all problems, and `SettingsError` for wrong `overrides` or an unknown `builtin:NAME`.
    """
    path = study_file(path)
    try:
        sources = read_sources(path, os.environ if env is None else env)
        loader = _StudyLoader(
            path, sources, overrides or Overrides(), execution or {}, validity or {}, tuple(percentiles)
        )
        return loader.load()
    except UnreadableError as unreadable:
        raise study_error(unreadable.problems, path) from None


@dataclass
class _StudyLoader:
    """One study while it is loaded; problems gather in `sources` until later steps depend on what is wrong."""

    path: Path
    sources: Sources
    overrides: Overrides
    execution: Mapping[str, JsonValue]
    validity: Mapping[str, float]
    percentiles: tuple[float, ...]
    shared: FlatSettings = field(default_factory=dict)
    origins: dict[str, KeyPath] = field(default_factory=dict)
    points: Points = field(default_factory=Points)
    notices: list[Notice] = field(default_factory=list)

    def load(self) -> Study:
        report, directory = self.sources.report, self.path.parent
        data, own_limits = parts.validity(self.sources.data, report)
        thresholds = {**self.validity, **own_limits}
        head = self._head(data)
        self._shared_settings(data)
        name = head.name or slug(self.path.stem)
        gates = self._gates(data.get("expect"), data.get("compare"), head.tags, report)
        execution = parts.execution(data.get("execution"), self.execution, report)
        execution = parts.overridden(execution, self.overrides)
        goal = read_optimize(data.get("optimize"), self.overrides, report, empty=self.sources.leaves_empty("optimize"))
        if goal is not None:
            execution = raced(goal, execution, data.get("execution"), self.overrides, report)
        parts.check_runners(head.runners, report)
        docker = parts.docker(data.get("docker"), directory, report)
        parts.follow_residual_memory(execution.residual_memory_bytes, docker, thresholds)
        ray = parts.ray(data.get("ray"), directory, report)
        parts.check_meter(head.meter, report)
        impact = parts.report_settings(data.get("report"), report)
        axes, exclusions = self._axes(data)
        entries = self._entries(data, gates)
        if self.overrides.device != "auto":
            axes = self._on_device(self.overrides.device, axes, entries)
        chosen = self.percentiles if data.get("percentiles") is None else head.percentiles
        every = [gates, *(entry.gates for entry in entries)]
        named = [metric for _, metric in goal.settings()] if goal is not None else []
        percentiles = parts.percentiles(chosen, [execution.headline, *named, *parts.limited(every)], report)
        self._check_models(axes, entries)
        self._stop_if_wrong()
        if self.sources.is_older:
            text = "read as a file of LLenergyMeasure; what it leaves out has this project's defaults"
            if self.sources.without_effect:
                text += f"; to no effect: {', '.join(dict.fromkeys(self.sources.without_effect))}"
            self.notices.append(Notice("older_words", text, self.sources.locate(())))
        experiments: list[Experiment] = []
        if axes or not entries:
            self._sweep(axes, exclusions, name)
            experiments = [Experiment(id, slices, gates, directory) for id, slices in self.points.kept]
        listed = Listed(self.shared, self.origins, name, directory, self.sources, self.points)
        experiments += listed.experiments(entries, experiments)
        self._stop_if_wrong()
        skips_invalid = head.on_invalid == "skip"
        self._judge_invalid(skips_invalid, experiments)
        swept = swept_axes(axes)
        if goal is not None:
            check_race(goal, experiments, swept, self.overrides, report)
        self._require_basis(experiments, goal)
        self._note_inactive(experiments)
        return Study(
            name=name,
            path=self.path,
            title=head.title,
            experiments=experiments,
            execution=execution,
            optimize=goal,
            runners=head.runners,
            docker=docker,
            ray=ray,
            meter=head.meter,
            thresholds=thresholds,
            percentiles=percentiles,
            report=impact,
            tags=head.tags,
            excluded=self.points.excluded,
            invalid=self.points.invalid,
            duplicates=self.points.duplicates,
            skips_invalid=skips_invalid,
            notices=self.notices,
            axes=swept,
            files=[document.as_read() for document in self.sources.documents],
            locate=self.sources.locate_setting,
        )

    def _stop_if_wrong(self) -> None:
        if self.sources.problems:
            raise study_error(self.sources.problems, self.path)

    def _head(self, data: Mapping[str, JsonValue]) -> StudyHead:
        """The plain keys of a study that are no experiment settings; unknown keys are reported here."""
        for key in data:
            if key not in _STUDY_ONLY and key not in table() and "." not in key:
                hint = suggest_path(key, _STUDY_ONLY)
                self.sources.report((key,), f"unknown setting {key!r}", hint, True)
        plain = {key: data[key] for key in _PLAIN_KEYS if data.get(key) is not None}
        return parts.read_section(StudyHead, plain, self.sources.report, ())

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

    def _gates(self, expect: JsonValue, compare: JsonValue, tags: tuple[str, ...], report: Report) -> Gates:
        """The gates that a study or an entry writes, with the limits of the command line."""
        gates = parts.gates(expect, compare, tags, report)
        if not self.overrides.fail_if:
            return gates
        limits = {limit.metric: limit for limit in (gates.compare.fail_if if gates.compare else ())}
        for metric, text in self.overrides.fail_if.items():
            limits[metric] = overriding(limits.get(metric), metric, text)
        return replace(gates, compare=replace(gates.compare or Comparison(), fail_if=tuple(limits.values())))

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
                axes = parse_sweep(sweep, self.sources.report, arrival=self.shared.get(ARRIVAL))
                for axis in axes:
                    for alternative in axis.alternatives:
                        self._check_engines(alternative.settings)
        exclusions: list[Exclusion] = []
        if data.get("exclude") is not None:
            exclusions = parse_exclude(data["exclude"], self.sources.report)
            if "sweep" not in data:
                self.sources.report(("exclude",), "exclude without a sweep", "take it out", True)
        return axes, exclusions

    def _entries(self, data: Mapping[str, JsonValue], shared: Gates) -> list[Entry]:
        if "experiments" not in data:
            return []
        entries = data["experiments"]
        if not isinstance(entries, list) or not entries:
            what = "an empty list" if entries == [] else kind(entries)
            hint = "write - {id: eager, transformers: {...}}, or take experiments out"
            self.sources.report(("experiments",), f"experiments: expected a list of mappings, got {what}", hint)
            return []
        if len(entries) > MAX_POINTS:
            text = f"{len(entries):,} experiments, more than {MAX_POINTS:,}"
            self.sources.report(("experiments",), text, "split the study", True)
            return []
        return [self._entry(entry, ("experiments", index), data, shared) for index, entry in enumerate(entries)]

    def _on_device(self, kind: AskedKind, axes: Sequence[Axis], entries: Sequence[Entry]) -> list[Axis]:
        """Have the kind of device of the command line wherever the study leaves it open, as if it said so itself."""
        if self.shared.get(DEVICE_KIND, "auto") == "auto":
            self.shared[DEVICE_KIND] = kind
        for entry in entries:
            entry.settings = on_device(kind, entry.settings)
        told = [
            [replace(each, settings=tuple(on_device(kind, each.settings))) for each in a.alternatives] for a in axes
        ]
        return [replace(axis, alternatives=tuple(each)) for axis, each in zip(axes, told, strict=True)]

    def _entry(self, entry: JsonValue, key_path: KeyPath, data: Mapping[str, JsonValue], shared: Gates) -> Entry:
        report = self.sources.report
        if not isinstance(entry, Mapping):
            text = f"experiments: expected a mapping of settings, got {kind(entry)}"
            report(key_path, text, "write {dtype: float32}")
            return Entry(None, [], shared, key_path)
        own = {key: value for key, value in entry.items() if key in _ENTRY_ONLY}
        plain = {key: own[key] for key in ("id", "tags") if own.get(key) is not None}
        head = parts.read_section(EntryHead, plain, report, key_path)
        settings = flatten({key: value for key, value in entry.items() if key not in own}, report, key_path)
        self._check_engines(settings)
        gates = shared
        if own.keys() - {"id"}:
            expect, compare = (_merged(data.get(key), own.get(key)) for key in ("expect", "compare"))
            gates = self._gates(expect, compare, (*shared.tags, *head.tags), parts.moved(report, key_path))
        return Entry(head.id, settings, gates, key_path)

    def _check_models(self, axes: Sequence[Axis], entries: Sequence[Entry]) -> None:
        if "model" in self.shared or any(problem.text.startswith("model:") for problem in self.sources.problems):
            return
        hint = "name one, for example model: builtin:tiny-llama"
        if not axes and not entries:
            self.sources.report((), "the study has no model", hint)
        elif axes and not any(all(_sets_model(each.settings) for each in axis.alternatives) for axis in axes):
            self.sources.report(("sweep",), "the points of the sweep have no model", hint, True)
        for entry in entries:
            if not _sets_model(entry.settings):
                self.sources.report(entry.key_path, "the experiment has no model", hint)

    def _sweep(self, axes: Sequence[Axis], exclusions: Sequence[Exclusion], name: str) -> None:
        locate = self.sources.locate
        sweep = Sweep(self.shared, self.origins, axes, exclusions, name, locate, self.points)
        try:
            sweep.expand()
        except TooManyPointsError as absurd:
            hint = "sweep fewer values, or list the points under experiments"
            self.sources.report(("sweep",), str(absurd), hint, True)
            self._stop_if_wrong()
        for origin in sweep.unused_exclusions:
            self.notices.append(Notice("unused_exclusion", "exclude: matches no point", locate(origin)))

    def _judge_invalid(self, skip: bool, experiments: Sequence[Experiment]) -> None:
        invalid = self.points.invalid
        if invalid and not skip:
            by_reason: dict[tuple[Location, str], list[str]] = {}
            for point in invalid:
                by_reason.setdefault((point.location, point.reason), []).append(point.id)
            for (location, reason), ids in by_reason.items():
                more = f" and {len(ids) - MAX_SHOWN_IDS} more" if len(ids) > MAX_SHOWN_IDS else ""
                text = f"invalid: {', '.join(ids[:MAX_SHOWN_IDS])}{more}: {reason}"
                self.sources.problems.append(Problem(location, text))
            swept = isinstance(self.sources.data.get("sweep"), Mapping)
            hint = f"{'or exclude the points, ' * swept}or set on_invalid: skip"
            if self.overrides.device != "auto":
                hint += f"; for another kind of device, leave --llem-device={self.overrides.device} out"
            self.sources.problems[-1] = replace(self.sources.problems[-1], fix=hint)
        elif not experiments:
            what = "excluded or invalid" if invalid else "excluded"
            self.sources.report(("sweep",), f"nothing is left to run: every point is {what}", "relax exclude", True)
        self._stop_if_wrong()

    def _require_basis(self, experiments: Sequence[Experiment], goal: Optimize | None) -> None:
        execution = self.sources.data.get("execution")
        headline = execution.get("headline") if isinstance(execution, Mapping) else None
        for setting, text, fix in lacking(experiments, headline, () if goal is None else goal.settings()):
            self.sources.problems.append(Problem(self.sources.locate_setting(setting), text, fix))
        self._stop_if_wrong()

    def _note_inactive(self, experiments: Sequence[Experiment]) -> None:
        engines = {experiment.engine for experiment in experiments}
        for (label, why), (origin, section) in self.points.inactive.items():
            if section not in engines or not why.startswith("with engine"):
                self.notices.append(Notice("dormant", f"{label} does nothing {why}", self.sources.locate(origin)))
        if self.points.invalid:
            first, *rest = self.points.invalid
            more = f", and {len(rest)} more" if rest else ""
            self.notices.append(Notice("invalid", f"left out: {first.id}: {first.reason}{more}", first.location))
        if self.points.duplicates:
            first, *rest = self.points.duplicates
            more = f", and {len(rest)} more" if rest else ""
            text = f"left out as a duplicate: {first.id} {first.reason}{more}"
            self.notices.append(Notice("duplicate", text, first.location))


def _sets_model(settings: Iterable[WrittenSetting]) -> bool:
    return any(setting.path == "model" for setting in settings)


def _merged(lower: JsonValue, upper: JsonValue) -> JsonValue:
    if isinstance(lower, Mapping) and isinstance(upper, Mapping):
        return deep_merge(lower, upper)
    return lower if upper is None else upper
