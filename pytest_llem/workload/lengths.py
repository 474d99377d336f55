"""Token lengths, drawn per prompt and the same on every machine."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Lengths


def draw_lengths(wanted: int | Lengths, count: int, seed: int) -> list[int]:
    """`count` lengths of at least 1, from one seeded stream; raises `WorkloadError` for an impossible distribution.

    Only `Random.random` is used, whose sequence Python guarantees: other methods may change between versions.
    """
    if isinstance(wanted, int):
        if wanted < 1:
            raise WorkloadError(f"a length of {wanted} tokens is not possible", fix="use 1 or more")
        return [wanted] * count
    if not 1 <= wanted.low <= wanted.high:
        raise WorkloadError(f"lengths from {wanted.low} to {wanted.high} are not possible", fix="use 1 <= low <= high")
    uniform = random.Random(seed).random
    if wanted.distribution == "uniform":
        span = wanted.high - wanted.low + 1
        return [wanted.low + int(uniform() * span) for _ in range(count)]
    if wanted.mean is None or wanted.sigma is None or wanted.mean <= 0 or wanted.sigma <= 0:
        raise WorkloadError("lognormal lengths need a positive mean and sigma", fix="give `mean` and `sigma`")
    # The mean of a lognormal is exp(mu + sigma^2 / 2): `mean` is that of the lengths, before clipping.
    normal = NormalDist(math.log(wanted.mean) - wanted.sigma**2 / 2, wanted.sigma)
    drawn = (math.exp(normal.inv_cdf(min(max(uniform(), 1e-12), 1 - 1e-12))) for _ in range(count))
    return [min(max(round(length), wanted.low), wanted.high) for length in drawn]
