"""Names the axes of a sweep and their values for people: columns of tables, charts, and comparisons along one axis.

`loader` calls it. Ids hold the same labels; values here are as the user wrote them, so that numbers stay numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pytest_llem.errors import JsonValue
from pytest_llem.study.fields import WrittenSetting, keyword
from pytest_llem.study.model import SweptAxis
from pytest_llem.study.naming import text_of
from pytest_llem.study.search import SEARCH
from pytest_llem.study.sweep import Alternative, Axis

NONE = "none"
"""The value of an alternative that sets nothing, as in a point's id."""


def swept_axes(axes: Sequence[Axis]) -> tuple[SweptAxis, ...]:
    """The axes of a sweep, in written order, with a short title each and the value behind each label."""
    tails = [axis.name.rpartition(".")[2] for axis in axes]
    counts = Counter(tails)
    titles = [tail if counts[tail] == 1 else axis.name for tail, axis in zip(tails, axes, strict=True)]
    return tuple(
        SweptAxis(axis.name, title, tuple(a.label for a in axis.alternatives), _values(axis))
        for axis, title in zip(axes, titles, strict=True)
    )


def _values(axis: Axis) -> tuple[JsonValue, ...]:
    """Numbers, booleans and texts as written where every alternative sets the same one setting, else texts."""
    paths = {tuple(setting.path for setting in a.settings) for a in axis.alternatives if a.settings}
    plain = len(paths) == 1 and len(next(iter(paths))) == 1
    values = [_scalar(a, axis.name) if plain else _text(a) for a in axis.alternatives]
    texts = Counter(map(str, values))
    labels = [a.label for a in axis.alternatives]
    return tuple(v if texts[str(v)] == 1 else label for v, label in zip(values, labels, strict=True))


def _scalar(alternative: Alternative, axis: str) -> JsonValue:
    if not alternative.settings:
        return NONE
    if alternative.settings[0].path == SEARCH:
        return SEARCH
    path, value, _ = alternative.settings[0]
    above, _, part = axis.rpartition(".")
    if above == path and isinstance(value, Mapping):  # an axis of one part of it
        value = value[part]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 350 W, which the setting's type has made 350.0
    return value if isinstance(value, (bool, int, float, str)) else _shown(value)


def _text(alternative: Alternative) -> str:
    """`load_in_4bit, bnb_4bit_quant_type=nf4`: what an alternative sets, by the last part of each name."""
    pairs = [pair for setting in alternative.settings for pair in _pairs(setting)]
    return ", ".join(name if value is True else f"{name}={_shown(value)}" for name, value in pairs) or NONE


def _pairs(setting: WrittenSetting) -> list[tuple[str, object]]:
    if isinstance(setting.value, Mapping):
        return list(setting.value.items())
    return [(keyword(setting.path), setting.value)]


def _shown(value: object) -> str:
    return text_of(value) if isinstance(value, (bool, int, float, str, list, dict)) else "null"
