"""A series of values as a line of Unicode blocks, for a terminal and for a comment on a pull request.

`show` and the comment draw by it. It is for people: nobody may read values from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

BLOCKS = "▁▂▃▄▅▆▇█"
LEAST_SPAN = 0.1
"""Of the middle value, from the lowest block to the highest. Chosen: noise of 1 % then stays within two blocks, where a
scale of its own would make a mountain range of it."""


def sparkline(values: Sequence[float], width: int) -> str:
    """A character per value, the oldest first; of more than `width` values each is the median of successive ones.

    A value that is no finite number is a blank.
    """
    count = min(len(values), max(width, 1))
    cuts = [len(values) * place // count for place in range(count + 1)] if count else [0]
    groups = [list(filter(math.isfinite, values[begin:end])) for begin, end in pairwise(cuts)]
    heights = [median(group) if group else math.nan for group in groups]
    shown = list(filter(math.isfinite, heights))
    if not shown:
        return " " * count
    low, high = min(shown), max(shown)
    missing = max(0.0, LEAST_SPAN * abs(median(shown)) - (high - low))
    low, span = low - missing / 2, high - low + missing
    if span <= 0:
        return "".join(" " if math.isnan(height) else BLOCKS[0] for height in heights)
    return "".join(
        " " if math.isnan(height) else BLOCKS[min(int((height - low) / span * len(BLOCKS)), len(BLOCKS) - 1)]
        for height in heights
    )
