"""The figures of settings and their limits where effects add up: predicted for all, from a few that are measured.

`additive` puts them where a race without assumptions has `rivals.Figures` and `keeping.Keeping`. They are pure.

Method
    A logarithm is the sum of an effect for each level of each axis, of what its round shares, and of noise that is the
    same in every setting. Each round is fitted by itself, so that what it shares cancels. Given the rounds before it,
    what a round says of a ratio has a known variance in units of the noise, however its settings were chosen: errors
    so standardised are independent and normal. They are summed with equal weights, which results do not change, as in
    adaptive trials (Lehmacher and Wassmer, Biometrics 55, 1999). The bound is Student's t.

    As in `rivals` a setting is compared with rivals that other rounds have chosen (in the first rounds, which repeat
    one design, the others of them; later, those before), so that no error is paid for the number of settings.

    A limited metric is compared with its limit, where what a round shares does not cancel: how much rounds differ is
    part of that bound, with the degrees of freedom of so few (Satterthwaite, Biometrics Bulletin 2, 1946).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import NormalDist, fmean, variance

from pytest_llem.results.distributions import incomplete_beta, student_quantile
from pytest_llem.results.racing.answer import Bounds, Seen
from pytest_llem.results.racing.fitting import Fit, Row
from pytest_llem.results.racing.keeping import Errors, Keeping
from pytest_llem.results.racing.rivals import AgainstRivals, Figures, Others
from pytest_llem.results.statistics import half_width
from pytest_llem.study.limits import Budget

_ROUNDS = 1_000_000
"""Where the columns of rounds begin in a fit of several; no sweep has as many levels."""
Told = tuple[float, float]
"""An estimate, and its variance in units of the noise's."""


class Sums:
    """A positive quantity as sums of effects; everything is a logarithm."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self.rows = rows
        self.cells: list[dict[str, float]] = []
        self._fits: list[Fit | None] = []
        self._told: dict[tuple[int, str, str], Told | None] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in a round."""
        self.cells.append(dict(values))
        self._fits.append(Fit([self.rows[name] for name in values], list(values.values())) if values else None)

    @property
    def noise(self) -> Told:
        """The variance of a cycle, and its degrees of freedom."""
        fits = [fit for fit in self._fits if fit is not None]
        degrees = sum(fit.degrees for fit in fits)
        return (sum(fit.residual for fit in fits) / degrees if degrees else 0.0), degrees

    def ratio(self, number: int, name: str, other: str) -> Told | None:
        """What a round says of the logarithm of a ratio, `None` where it says nothing."""
        key = (number, name, other)
        if key not in self._told:
            fit = self._fits[number]
            self._told[key] = fit.of(_difference(self.rows[name], self.rows[other])) if fit else None
        return self._told[key]

    def levels(self, name: str) -> list[Told]:
        """What each round says of a setting's level."""
        weights = dict.fromkeys(self.rows[name], 1)
        return [told for fit in self._fits if fit is not None and (told := fit.of(weights)) is not None]

    def joint(self, numbers: Iterable[int]) -> Fit:
        """The fit of several rounds, with a column for what each but the first shares."""
        cells = [(name, at, value) for at in numbers for name, value in self.cells[at].items()]
        base = cells[0][1] if cells else None
        rows = [self.rows[name] if at == base else (*self.rows[name], _ROUNDS + at) for name, at, _ in cells]
        return Fit(rows, [value for *_, value in cells])

    def predicted(self, numbers: Iterable[int]) -> dict[str, float]:
        """The figures of all settings of which those rounds tell, but for a constant."""
        fit = self.joint(numbers)
        base = next((self.rows[name] for at in numbers for name in self.cells[at]), None)
        if base is None:
            return {}
        found = ((name, fit.of(_difference(row, base))) for name, row in self.rows.items())
        return {name: told[0] for name, told in found if told is not None}

    def between_rounds(self) -> float:
        """The variance of what a round shares."""
        numbers = [at for at, cells in enumerate(self.cells) if cells]
        fit = self.joint(numbers)
        told = [fit.of({_ROUNDS + at: 1}) for at in numbers[1:]]
        known = [(0.0, 0.0), *(each for each in told if each is not None)]
        noise = self.noise[0] * fmean(v for _, v in known) / 2
        return max(variance([shared for shared, _ in known]) - noise, 0.0) if len(known) > 1 else 0.0

    def misfit(self, tolerated: float) -> float:
        """The probability of settings that are so far from the sum of effects, if they are so by `tolerated` alone.

        The F test of a mean per setting against the sum of effects (Draper and Smith, "Applied Regression Analysis",
        chapter 2), whose numerator has the tolerated standard deviation of a setting.
        """
        free = self.joint(range(len(self.cells)))
        within, within_degrees = two_way(self.cells)
        degrees = free.degrees - within_degrees
        if degrees < 1 or within_degrees < 1:
            return 1.0
        repeats = sum(map(len, self.cells)) / len({name for cells in self.cells for name in cells})
        expected = within / within_degrees + repeats * tolerated**2
        if not expected:
            return 1.0 if free.residual < 1e-18 else 0.0
        ratio = (free.residual - within) / degrees / expected
        return incomplete_beta(within_degrees / 2, degrees / 2, within_degrees / (within_degrees + degrees * ratio))


class PredictedFigures(Figures):
    """The figures of all settings, lower is better: `rivals.Figures` where effects add up.

    `first` rounds repeat one design. `of` has what was measured, `own` is the largest standard uncertainty of a setting
    that no cycle averages out.
    """

    def __init__(self, rows: Mapping[str, Row], first: int) -> None:
        self.sums = Sums(rows)
        self.of: dict[str, dict[int, float]] = {}
        self._first = first
        self.own = 0.0
        self._before: list[dict[str, float]] = []
        self._now: dict[str, float] = {}

    def add(self, values: Mapping[str, float], errors: Mapping[str, float]) -> None:
        """Take in the next round, as `rivals.Figures.add`."""
        self.sums.add(values)
        self.own = max([self.own, *errors.values()])
        number = len(self.sums.cells)
        for name, value in values.items():
            self.of.setdefault(name, {})[number] = value
        if number > self._first:
            self._before.append(self._now)
        elif number == self._first:
            of_first = range(self._first)
            self._before = [self.sums.predicted([at for at in of_first if at != left]) for left in of_first]
        if number >= self._first:
            self._now = self.sums.predicted(range(number))

    def mean(self, name: str) -> float:
        """The predicted figure of a setting, infinite where there is none."""
        return self._now.get(name, math.inf)

    def compared(
        self, names: Iterable[str], rivals: Collection[str], error: float, whole: float
    ) -> dict[str, AgainstRivals]:
        """Each of the settings against its best rivals, as `rivals.Figures.compared`."""
        best = [sorted((each for each in known if each in rivals), key=known.__getitem__)[:2] for known in self._before]
        noise, degrees = self.sums.noise
        if not degrees:
            return {}
        wide = student_quantile(1 - error, degrees) * math.sqrt(noise)
        meter = NormalDist().inv_cdf(1 - whole) * self.own
        found = ((name, self._compared(name, best, wide, meter)) for name in names)
        return {name: comparison for name, comparison in found if comparison}

    def _compared(self, name: str, best: Sequence[Sequence[str]], wide: float, meter: float) -> AgainstRivals | None:
        parts: list[tuple[str, float, float]] = []
        for number, candidates in enumerate(best):
            rival = next((each for each in candidates if each != name), None)
            told = self.sums.ratio(number, name, rival) if rival is not None else None
            if rival is not None and told is not None:
                parts.append((rival, told[0], math.sqrt(told[1])))
        if not parts:
            return None
        scale = sum(1 / root for *_, root in parts)
        worse = sum(estimate / root for _, estimate, root in parts) / scale
        weights: dict[str, float] = defaultdict(float)
        for rival, _, root in parts:
            weights[rival] += 1 / root / scale
        half = math.hypot(
            wide * math.sqrt(len(parts)) / scale, meter * math.sqrt(sum(root for *_, root in parts) / scale)
        )
        return AgainstRivals(worse, half, (Others(worse, 0.0, weights, 1.0, name),))


class PredictedKeeping(Keeping):
    """Whether settings keep a limit on a positive quantity: `keeping.Keeping` where effects add up.

    `own` is the largest standard uncertainty that no cycle averages out.
    """

    def __init__(self, budget: Budget, rows: Mapping[str, Row]) -> None:
        self.budget = budget
        self.sums = Sums(rows)
        self._sign = 1 if budget.op in ("<=", "<") else -1
        self.own = 0.0
        self.not_positive: str | None = None
        """A setting with a value that is no logarithm: no sum of effects leads to it."""
        self._between = 0.0
        self._logarithmic = True

    def add(self, seen: Mapping[str, Seen]) -> None:
        """Take in a round."""
        metric = self.budget.metric
        known = {
            name: value
            for name, cycle in seen.items()
            if cycle.failed is None and (value := cycle.limited.get(metric)) is not None
        }
        self.not_positive = self.not_positive or next((name for name, value in known.items() if value <= 0), None)
        values = {name: math.log(value) for name, value in known.items() if value > 0}
        self.sums.add(values)
        self.own = max([self.own, *(seen[name].limit_errors_rel.get(metric, 0.0) for name in values)])
        self._between = self.sums.between_rounds()

    def judged(self, name: str, errors: Errors, number: int) -> tuple[Bounds | None, bool | None]:
        """Its bounds in the metric's unit, and what they prove, as `keeping.Keeping.judged`."""
        told = self.sums.levels(name)
        noise, degrees = self.sums.noise
        if not told or not degrees:
            return None, None
        count = len(told)
        mean = self._sign * (fmean(level for level, _ in told) - math.log(self.budget.limit))
        parts = [(noise * fmean(v for _, v in told) / count, degrees)]
        if len(self.sums.cells) > 1:
            parts.append((self._between / count, len(self.sums.cells) - 1))
        low = mean - self._half(parts, errors.beyond)
        high = mean + self._half(parts, errors.within / len(self.sums.rows))
        ends = [self._end(distance) for distance in (low, high)[:: self._sign]]
        return Bounds(number, self._value(mean), ends[0], ends[1]), False if low > 0 else True if high <= 0 else None

    def _half(self, parts: Sequence[Told], error: float) -> float:
        return math.hypot(half_width(parts, error), NormalDist().inv_cdf(1 - error) * self.own)


def two_way(rounds: Sequence[Mapping[str, float]]) -> Told:
    """Residual sum of squares of a mean per setting and one per round, and its degrees of freedom."""
    settings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for at, cells in enumerate(rounds):
        for name, value in cells.items():
            settings[name].append((at, value))
    shared = [0.0] * len(rounds)
    means: dict[str, float] = {}
    for _ in range(500):
        means = {name: sum([value - shared[at] for at, value in seen]) / len(seen) for name, seen in settings.items()}
        newer = [sum([v - means[name] for name, v in cells.items()]) / max(1, len(cells)) for cells in rounds]
        moved = max(map(abs, map(float.__sub__, newer, shared)))
        shared = newer
        if moved < 1e-7:
            break
    residual = sum((v - means[name] - shared[at]) ** 2 for at, cells in enumerate(rounds) for name, v in cells.items())
    apart = _apart({frozenset(at for at, _ in seen) for seen in settings.values()})
    return residual, sum(map(len, rounds)) - len(settings) - sum(map(bool, rounds)) + apart


def _apart(together: Collection[frozenset[int]]) -> int:
    """How many groups of rounds have no setting in common."""
    groups: list[frozenset[int]] = []
    for rounds in together:
        touched = [group for group in groups if group & rounds]
        groups = [group for group in groups if not group & rounds] + [rounds.union(*touched)]
    return len(groups)


def _difference(row: Row, other: Row) -> dict[int, int]:
    weights: dict[int, int] = dict.fromkeys(row, 1)
    for column in other:
        weights[column] = weights.get(column, 0) - 1
    return weights
