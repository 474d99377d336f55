"""Where the names of a chart's points stand, because Vega-Lite prints them over each other.

`pareto` calls it: points on the front come first, and others where there is room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llem.results.report.charts.chart import LETTER, LINE

MAX_NAMES = 24
"""Points on the front, and points off it, that are named at most. Chosen: more names hide the points."""
ANGLES = (20, -20, 160, -160, 90, -90, 50, -50, 130, -130, 0, 180)
DISTANCES = (6.0, 12.0, 20.0, 30.0, 42.0, 56.0)
HIDDEN = 1000.0
"""Weight of what a name hides of points and names, beside pixels of distance and of bars."""
LEADER = 10.0
"""Pixels between a point and its name from which on a line joins them."""

Place = tuple[float, float]
Box = tuple[float, float, float, float]


def place_names(
    places: Sequence[Place],
    names: Sequence[str],
    front: set[int],
    bars: Sequence[Box],
    frame: Place,
    font: float,
) -> dict[int, tuple[Place, Place | None]]:
    """The centre of each name that finds room, in pixels from the lower left, and the end of a line to its point.

    No name hides a point or another name, except on the front, where each has one: it stands where it hides least. A
    name over a bar is avoided where another place is near.
    """
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    others = [at for at in range(len(places)) if at not in front]
    placed: dict[int, tuple[Place, Place | None]] = {}
    for at in [*sorted(front)[:MAX_NAMES], *(others if len(others) <= MAX_NAMES else ())]:
        lines = names[at].split("\n")
        width = max(map(len, lines)) * LETTER * (font - 1) + 2
        height = len(lines) * font * LINE
        best: tuple[float, float, Box] | None = None
        near = [box for box in taken if _reaches(box, places[at], width, height)]
        crossed = [bar for bar in bars if _reaches(bar, places[at], width, height)]
        for distance in DISTANCES if at in front else DISTANCES[:3]:
            for angle in ANGLES:
                across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                x = places[at][0] + across * (distance + width / 2)
                y = places[at][1] + up * (distance + height / 2)
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                if box[0] < 0 or box[1] < 0 or box[2] > frame[0] or box[3] > frame[1]:
                    continue
                hidden = sum(_overlap(box, other) for other in near) * HIDDEN + sum(
                    _overlap(box, bar) for bar in crossed
                )
                if best is None or hidden + distance < best[0]:
                    best = (hidden + distance, distance, box)
        if best and (best[0] < HIDDEN or at in front):
            _, distance, box = best
            taken.append(box)
            x, y = places[at]
            nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            placed[at] = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), nearest if distance > LEADER else None
    return placed


def _reaches(box: Box, place: Place, width: float, height: float) -> bool:
    """Whether a name of that size, somewhere around the place, could touch the box."""
    far = DISTANCES[-1]
    across = box[0] - far - width < place[0] < box[2] + far + width
    return across and box[1] - far - height < place[1] < box[3] + far + height


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0
