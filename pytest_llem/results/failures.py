"""Requests that failed: how many, of which class, and whether the others may still be used."""

from __future__ import annotations

from collections import Counter

from pytest_llem.job.measurement import Measurement
from pytest_llem.job.report import Note

UNNAMED = "error"
"""The class of a failure whose engine names none."""


def failures_by_class(measurement: Measurement) -> dict[str, int]:
    """How many requests of all repeats failed, by class."""
    return dict(Counter(request.failure or UNNAMED for request in measurement.requests if request.error is not None))


def failed_share(measurement: Measurement) -> float:
    """The share of the requests that failed, from 0 to 1."""
    return sum(failures_by_class(measurement).values()) / max(1, len(measurement.requests))


def failure_note(measurement: Measurement) -> Note | None:
    """`failed_requests`, with the classes and the first one's words; `None` where none failed."""
    failed = [request for request in measurement.requests if request.error is not None]
    if not failed:
        return None
    classes = ", ".join(f"{count} {name}" for name, count in failures_by_class(measurement).items() if name != UNNAMED)
    return Note(
        "failed_requests",
        f"{len(failed)} of {len(measurement.requests)} requests failed{f' ({classes})' if classes else ''}, "
        f"first: {failed[0].error}",
    )
