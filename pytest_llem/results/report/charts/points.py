"""Names, colours and shapes of experiments in charts: what they differ by, as the axes of the sweep say it.

Every chart of experiments asks `Experiments` for them, so that a value has one colour in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import HEADLINE, known_metric
from pytest_llem.results.report.charts.chart import SHAPES, Size, Spec, colours, legend, wrapped
from pytest_llem.results.report.content import Content, ExperimentRow
from pytest_llem.study.model import SweptAxis

MAX_COLOURS = 12
"""Chosen: nobody tells more colours of one chart apart; further values are told by labels alone."""
NAME = 0.42
"""Share of a chart's width for the names of its rows. Chosen: two values on a line of a column in print."""
NO_EFFECT = "–"
"""Of an axis that has no effect on an experiment."""


@dataclass(frozen=True)
class Dimension:
    """Something by which experiments differ: an axis of a sweep, the study or the run.

    `values` has its text for each experiment of the chart by key, and `labels` all of the report, so that each has the
    same colour in every chart.
    """

    field: str
    title: str
    ordered: bool
    values: Mapping[str, str]
    labels: tuple[str, ...]

    @property
    def shown(self) -> list[str]:
        """The labels of this chart."""
        present = set(self.values.values())
        return [label for label in self.labels if label in present]

    def encoding(self, size: Size, *, shape: bool = False) -> Spec:
        """Colour by its values, or the shape."""
        marks = list(SHAPES[: len(self.labels)]) if shape else colours(len(self.labels), ordered=self.ordered)
        of = dict(zip(self.labels, marks, strict=True))
        scale: Spec = {"domain": [*self.shown], "range": [of[label] for label in self.shown]}
        key = legend(self.title, self.shown, size)
        return {"field": self.field, "type": "nominal", "title": self.title, "scale": scale, "legend": key}


@dataclass(frozen=True)
class Marks:
    """Colour by the most varied dimension and shape by the next; both by the same where there is but one.

    Without `shapes` the chart's shapes say something else.
    """

    dimensions: tuple[Dimension, ...]
    size: Size
    shapes: bool = True

    @property
    def colour(self) -> Dimension | None:
        """What the colour says."""
        return next((each for each in self.dimensions if len(each.labels) <= MAX_COLOURS), None)

    @property
    def shape(self) -> Dimension | None:
        """What the shape says."""
        if not self.shapes:
            return None
        fitting = [each for each in self.dimensions if len(each.labels) <= len(SHAPES)]
        others = [each for each in fitting if each is not self.colour]
        return next(iter(others if self.colour else fitting), next(iter(fitting), None))

    @property
    def encoding(self) -> Spec:
        """Both as channels; empty where nothing differs, or too much."""
        channels: Spec = {}
        if self.colour:
            channels["color"] = self.colour.encoding(self.size)
        if self.shape:
            channels["shape"] = self.shape.encoding(self.size, shape=True)
        return channels

    def fields(self, key: str) -> dict[str, JsonValue]:
        """What a row of an experiment needs of it."""
        return {each.field: each.values[key] for each in self.dimensions if key in each.values}

    @property
    def words(self) -> str:
        """What colour and shape mean, as part of a caption."""
        if self.colour and self.colour is self.shape:
            return f"Colour and shape: {self.colour.title}."
        said = [f"{what}: {each.title}." for what, each in (("Colour", self.colour), ("Shape", self.shape)) if each]
        others = [each.title for each in self.dimensions if each not in (self.colour, self.shape)]
        return " ".join([*said, *([f"Not marked: {', '.join(others)}."] if others else [])])


class Experiments:
    """The experiments of a report as a chart shows them, at one size."""

    def __init__(self, content: Content, size: Size) -> None:
        self.content, self.size = content, size
        self.rows = content.experiments
        self.by_key = {row.key: row for row in self.rows}
        self.studies = tuple(dict.fromkeys(row.study for row in self.rows))

    def headline(self, studies: Iterable[str] = ()) -> str:
        """The metric that the studies ask for; energy per output token where they do not agree."""
        of = set(studies or self.studies)
        plans = [plan for manifest in self.content.manifests.values() for plan in manifest.studies]
        asked = {plan.headline for plan in plans if plan.name in of and plan.headline}
        asked = {name for name in asked if known_metric(name)}
        return asked.pop() if len(asked) == 1 else HEADLINE

    def marks(self, keys: Iterable[str], *, apart: Sequence[str] = (), shapes: bool = True) -> Marks:
        """Colours and shapes for these experiments, by what they differ in apart from some axes."""
        return Marks(tuple(self.dimensions(keys, apart=apart)), self.size, shapes)

    def dimensions(self, keys: Iterable[str], *, apart: Sequence[str] = ()) -> list[Dimension]:
        """What these experiments differ by, most varied first; without the axes named in `apart`."""
        rows = [self.by_key[key] for key in dict.fromkeys(keys)]
        studies = list(dict.fromkeys(row.study for row in rows))
        axes = {axis.name: axis for study in studies for axis in self.axes(study)}
        made = [
            self._dimension(f"axis{place}", axis.title, rows, _value_on(axis), axis)
            for place, axis in enumerate(axes.values())
            if axis.name not in apart
        ]
        if set(studies) <= self._listed:
            made = [self._dimension("experiment", "experiment", rows, lambda row: row.experiment)]
        made.append(self._dimension("study", "study", rows, lambda row: row.study))
        if len({row.run for row in rows}) > len(studies):  # a run of its own per study: one of both is enough
            made.append(self._dimension("of_run", "run", rows, lambda row: self.runs[row.run]))
        varied = [dimension for dimension in made if len(dimension.shown) > 1]
        return sorted(varied, key=lambda dimension: -len(dimension.shown))

    def _dimension(
        self,
        field: str,
        title: str,
        rows: Sequence[ExperimentRow],
        text: Callable[[ExperimentRow], str],
        axis: SweptAxis | None = None,
    ) -> Dimension:
        every = {text(row) for row in self.rows}
        same = [each for study in self.studies for each in self.axes(study) if axis and each.name == axis.name]
        ordered = bool(same) and all(each.ordered for each in same)
        known: list[JsonValue] = [value for each in same for value in each.values]
        numbers = sorted(value for value in known if isinstance(value, (int, float))) if ordered else known
        first = [label for label in map(value_text, numbers) if label in every]
        labels = dict.fromkeys([*first, *sorted(every.difference(first))])
        return Dimension(field, title, ordered, {row.key: text(row) for row in rows}, tuple(labels))

    def axes(self, study: str) -> tuple[SweptAxis, ...]:
        """The axes of a study on which its experiments here have more than one value."""
        return self._axes.get(study, ())

    @cached_property
    def _listed(self) -> set[str]:
        """The studies that list their experiments and sweep nothing: what the user called one is its name."""
        plans = [plan for manifest in self.content.manifests.values() for plan in manifest.studies]
        return {plan.name for plan in plans} - {plan.name for plan in plans if plan.axes}

    @cached_property
    def _axes(self) -> dict[str, tuple[SweptAxis, ...]]:
        seen: dict[tuple[str, str], set[str]] = {}
        for row in self.rows:
            for name, value in row.point.items():
                seen.setdefault((row.study, name), set()).add(value_text(value))
        return {
            study: tuple(axis for axis in known.axes if len(seen.get((study, axis.name), ())) > 1)
            for study, known in self.content.axes.items()
        }

    def within(self, study: str, name: str) -> str:
        """A name with the study before it where the report has several."""
        return name if len(self.studies) == 1 else f"{study}-{name}"

    def without(self, metric: str, studies: Iterable[str] = (), *, besides: Collection[str] = ()) -> str:
        """A sentence on the experiments that a chart of a metric cannot show; empty where it shows all.

        `besides` are the keys of those that it shows without the metric.
        """
        of = set(studies or self.studies)
        shown = {(row.study, row.experiment) for row in self.rows if metric in row.metrics or row.key in besides}
        items = [item for manifest in self.content.manifests.values() for item in manifest.items]
        planned = {(item.study, item.experiment_id) for item in items}
        planned |= {(row.study, row.experiment) for row in self.rows}
        count = len({name for name in planned - shown if name[0] in of})
        which = f"{count} experiment{'s' * (count != 1)} without a valid cycle that measured it"
        return f" Not shown: {which}." if count else ""

    @cached_property
    def runs(self) -> dict[str, str]:
        """The runs by id, by the time in their names where that tells them apart."""
        ids = sorted({row.run for row in self.rows})
        short = [run.partition("-")[0] for run in ids]
        return dict(zip(ids, short if len(set(short)) == len(ids) else ids, strict=True))

    @cached_property
    def labels(self) -> dict[str, str]:
        """The name of each experiment by key: its values on the axes, or the id where those name another as well."""
        letters = max(12, self.size.letters(NAME))
        several_studies = len(self.studies) > 1
        repeated = len({(row.study, row.experiment) for row in self.rows}) < len(self.rows)
        named = {row.key: self._values(row) for row in self.rows}
        context = {
            row.key: ", ".join([*([row.study] if several_studies else []), *([self.runs[row.run]] if repeated else [])])
            for row in self.rows
        }
        counts = Counter((named[key], context[key]) for key in named)
        told = {
            row.key: row.experiment if counts[named[row.key], context[row.key]] > 1 else named[row.key]
            for row in self.rows
        }
        lines = {key: [*wrapped(text, letters), *wrapped(context[key], letters)] for key, text in told.items()}
        return {key: "\n".join(line for line in of if line) for key, of in lines.items()}

    @property
    def label_lines(self) -> int:
        """How many lines the longest name has."""
        return max((label.count("\n") + 1 for label in self.labels.values()), default=1)

    @property
    def longest_line(self) -> int:
        """Letters of the longest line of all names."""
        return max((len(line) for label in self.labels.values() for line in label.split("\n")), default=1)

    def _values(self, row: ExperimentRow) -> str:
        if row.study in self._listed:
            return row.experiment
        shown = [(axis, row.point[axis.name]) for axis in self.axes(row.study) if row.point.get(axis.name) is not None]
        texts = Counter(value_text(value) for _, value in shown)
        parts = [
            text if isinstance(value, str) and texts[text] == 1 and not bare(text) else f"{axis.title} {text}"
            for axis, value in shown
            for text in (value_text(value),)
        ]
        return ", ".join(parts) or row.experiment


def _value_on(axis: SweptAxis) -> Callable[[ExperimentRow], str]:
    def text(row: ExperimentRow) -> str:
        return value_text(row.point.get(axis.name))

    return text


def value_text(value: JsonValue) -> str:
    """A value of an axis as a chart shows it."""
    if value is None:
        return NO_EFFECT
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def bare(text: str) -> bool:
    """Whether a text says nothing without the name of its axis."""
    return text in ("none", "default", "auto", "true", "false") or text.replace(".", "").isdigit()


def identity(row: ExperimentRow) -> dict[str, JsonValue]:
    """The experiment's fields in each row of a chart."""
    return {"key": row.key, "experiment": row.experiment, "run": row.run}
