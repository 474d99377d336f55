"""Least squares for the effects of axes that add up, and the choice of settings that show them best.

`additive` calls it. A setting is a `Row`: the columns that are 1 for it, the first of them the constant.

Method
    Ordinary least squares through a generalised inverse (sweep operator; Goodnight, The American Statistician 33,
    1979): a column that the rows do not tell apart from others is passed over, and what then cannot be estimated has no
    estimate. Rows are chosen one by one so that the determinant of the information grows most
    (Fedorov, "Theory of Optimal Experiments", 1972; the D-criterion).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import mul

Row = tuple[int, ...]
_ALIASED = 1e-9
"""Share of a column that others leave unexplained, below which it is rounding: entries are small whole numbers."""
_RIDGE = 1e-3
"""Weight of a prior that makes the determinant exist before the rows span the columns; a cycle has the weight 1."""


class Fit:
    """A least-squares fit of values on rows: `residual` is the sum of squares, with its `degrees` of freedom."""

    def __init__(self, rows: Sequence[Row], values: Sequence[float]) -> None:
        columns = sorted({column for row in rows for column in row})
        self._at = {column: place for place, column in enumerate(columns)}
        size = len(columns)
        gram = [[0.0] * size for _ in range(size)]
        moments = [0.0] * size
        for row, value in zip(rows, values, strict=True):
            places = [self._at[column] for column in row]
            for a in places:
                moments[a] += value
                for b in places:
                    gram[a][b] += 1
        self._inverse, rank = _generalised_inverse(gram)
        self._spans = [_product(line, gram) for line in self._inverse] if rank < size else []
        self._beta = [sum(map(mul, line, moments)) for line in self._inverse]
        self.residual = sum(
            (value - sum(self._beta[self._at[column]] for column in row)) ** 2
            for row, value in zip(rows, values, strict=True)
        )
        self.degrees = len(rows) - rank
        self._full = rank == size

    def of(self, weights: Mapping[int, float]) -> tuple[float, float] | None:
        """The estimate of a sum of columns and its variance in units of a cycle's, `None` where the rows have none."""
        try:
            sparse = [(self._at[column], weight) for column, weight in weights.items() if weight]
        except KeyError:
            return None
        if not self._full and not self._estimable(sparse):
            return None
        estimate = sum(weight * self._beta[place] for place, weight in sparse)
        return estimate, sum(w * u * self._inverse[a][b] for a, w in sparse for b, u in sparse)

    def _estimable(self, sparse: Sequence[tuple[int, float]]) -> bool:
        wanted = dict(sparse)
        return all(
            abs(sum(weight * self._spans[place][column] for place, weight in sparse) - wanted.get(column, 0.0)) < 1e-6
            for column in range(len(self._beta))
        )


def chosen(rows: Sequence[Row], count: int, given: Sequence[int] = ()) -> list[int]:
    """The places of `count` rows that show their columns best, the `given` ones among them, the earlier of equals."""
    at = {column: place for place, column in enumerate(sorted({column for row in rows for column in row}))}
    placed = [[at[column] for column in row] for row in rows]
    inverse = [[(a == b) / _RIDGE for b in range(len(at))] for a in range(len(at))]
    taken = list(given)
    for place in taken:
        _add(inverse, placed[place])
    while len(taken) < min(count, len(rows)):
        best = _most_informative(inverse, placed, taken)
        _add(inverse, placed[best])
        taken.append(best)
    return taken


def _most_informative(inverse: list[list[float]], rows: Sequence[Sequence[int]], taken: Sequence[int]) -> int:
    without = set(taken)
    return max(
        (place for place in range(len(rows)) if place not in without),
        key=lambda place: (round(_quadratic(inverse, rows[place]), 9), -place),
    )


def _quadratic(inverse: list[list[float]], row: Sequence[int]) -> float:
    return sum(inverse[a][b] for a in row for b in row)


def _add(inverse: list[list[float]], row: Sequence[int]) -> None:
    """Take in a row (Sherman and Morrison)."""
    line = [sum(each[b] for b in row) for each in inverse]
    scale = 1 / (1 + sum(line[a] for a in row))
    for a, weight in enumerate(line):
        if weight:
            inverse[a] = [value - scale * weight * other for value, other in zip(inverse[a], line, strict=True)]


def _generalised_inverse(gram: Sequence[Sequence[float]]) -> tuple[list[list[float]], int]:
    size = len(gram)
    swept = [list(line) for line in gram]
    kept = []
    for k in range(size):
        pivot = swept[k][k]
        if pivot <= _ALIASED * max(gram[k][k], 1.0):
            continue
        kept.append(k)
        top = [value / pivot for value in swept[k]]
        for i in range(size):
            if i != k and (factor := swept[i][k]):
                swept[i] = [value - factor * other for value, other in zip(swept[i], top, strict=True)]
                swept[i][k] = -factor / pivot
        top[k] = 1 / pivot
        swept[k] = top
    among = set(kept)
    inverse = [[swept[i][j] if i in among and j in among else 0.0 for j in range(size)] for i in range(size)]
    return inverse, len(kept)


def _product(line: Sequence[float], matrix: Sequence[Sequence[float]]) -> list[float]:
    total = [0.0] * len(matrix)
    for weight, other in zip(line, matrix, strict=True):
        if weight:
            total = [value + weight * each for value, each in zip(total, other, strict=True)]
    return total
