"""Finds results of earlier runs to reuse: for each cycle the newest valid one of the same work and environment.

The session asks for them under `--llem-resume`, and `attempts` takes them over. It may only read: earlier runs stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.answers import Answered
from pytest_llem.job.files import slug
from pytest_llem.job.job import JobDir
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.percentiles import STANDARD
from pytest_llem.machine.environment import changes
from pytest_llem.results.layout import HASH_LENGTH, RESULT, CycleKey, run_directories
from pytest_llem.results.reading import read_result
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.performance import latency
from pytest_llem.results.state import read_state


@dataclass(frozen=True)
class Reuse:
    """An earlier result of a cycle with its directory, or the reason why none can be reused.

    `answers` have other scores than those in the directory.
    """

    result: Result | None
    reason: str | None
    directory: Path | None = None
    answers: Sequence[Answered] | None = None


def _with_percentiles(result: Result, directory: Path, percentiles: Sequence[float]) -> Result:
    """A result with these percentiles. `StoreError` where it lacks one, and the requests that it was of are gone."""
    if {*percentiles} <= {*STANDARD, *result.latency.percentiles}:
        return result
    requests = read_measurement(JobDir(directory).measurement).requests
    found = latency([request for request in requests if request.error is None], percentiles)
    return result.model_copy(update={"latency": found})


class EarlierRuns:
    """The runs of a results folder before the present one."""

    def __init__(self, out: Path, run_id: str) -> None:
        self._out = out
        self._run_id = run_id

    def find(
        self,
        key: CycleKey,
        identity: Mapping[str, JsonValue],
        thresholds: Mapping[str, float] | None = None,
        others: Sequence[Mapping[str, JsonValue]] = (),
        percentiles: Sequence[float] = STANDARD,
        besides: Collection[str] = (),
    ) -> Reuse:
        """The newest valid result of the key's study, configuration and cycle with the same `identity`.

        `identity` is that of the present run (`environment.identity`), or one of them where the cycle may run in
        `others` as well; `thresholds` are its limits of validity, under which an earlier result may not be valid;
        `percentiles` are those that its study states, taken from the earlier requests where the result lacks one. One
        that is invalid for reasons among `besides` alone counts as well. If there is none, the reason names what is
        missing, or what differs in the newest similar result. An unreadable result counts as none: the cycle can still
        be measured.
        """
        study = slug(key.study)
        if not any(indexed == study for indexed, _ in self._index):
            return Reuse(None, "no earlier run of this study")
        near = self._index.get((study, key.config_hash[:HASH_LENGTH]), [])
        if not near:
            return Reuse(None, "no earlier run of this configuration")
        valid: list[tuple[Result, Path]] = []
        unusable: list[str] = []
        for directory in near:
            cycle = directory.joinpath(*key.directory.parts[2:])
            try:
                state = read_state(cycle)
                if state is None or (state.study, state.config_hash) != (key.study, key.config_hash):
                    continue
                if state.state != "valid" and not (state.reasons and set(state.reasons) <= {*besides}):
                    reasons = f" ({', '.join(state.reasons)})" if state.reasons else ""
                    unusable.append(f"cycle {key.cycle} was {state.state}{reasons}")
                    continue
                valid.append((read_result(cycle / RESULT), cycle))
            except (StoreError, OSError) as problem:
                unusable.append(f"cycle {key.cycle} is unreadable: {problem}")
        if not valid:
            return Reuse(None, unusable[0] if unusable else f"no earlier cycle {key.cycle}")
        valid.sort(key=lambda each: each[0].created_at, reverse=True)
        identities = (identity, *others)
        lacking: str | None = None
        for result, directory in valid:
            facts = result.environment.comparable
            same_limits = result.validity.thresholds == (thresholds or {})
            if not same_limits or all(changes(facts, each) for each in identities):
                continue
            try:
                return Reuse(_with_percentiles(result, directory, percentiles), None, directory)
            except StoreError as problem:
                lacking = f"it does not state all of the study's percentiles: {problem}"
        differing = min((changes(valid[0][0].environment.comparable, each) for each in identities), key=len)
        return Reuse(None, "; ".join(differing) or lacking or "it was judged by other limits of validity")

    @cached_property
    def _index(self) -> dict[tuple[str, str], list[Path]]:
        """Experiment directories by study slug and by the hash at the end of their names, newest run first."""
        index: dict[tuple[str, str], list[Path]] = {}
        for run in run_directories(self._out):
            for directory in run.glob("*/*") if run.name != self._run_id else ():
                index.setdefault((directory.parent.name, directory.name[-HASH_LENGTH:]), []).append(directory)
        return index
