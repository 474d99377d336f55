"""`--llem-shard=K/N`: one of N parts of every study, the same parts on every machine.

`options` parses it; session, `start` and `reporting` ask it. A part holds whole experiments, as gates judge all cycles
of one. The split may depend only on experiments, N and `--llem-shard-times`, so that shards and reruns fit together.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.engines import engine_info
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.study import Experiment, Study

# Chosen: rough, and the same for every experiment, because only differences between experiments move the split.
LOAD_S = 15.0  # to load an engine
STEP_S = 0.025  # for one decoding step
SETTLING_S = 300.0  # to settle, about what simulated dies take (docs/energy.md, thermal state)
SERVED_AT_ONCE = 256  # requests that a serving engine batches: the default of vLLM's max_num_seqs


@dataclass(frozen=True)
class Split:
    """A study's split: the 1-based shard of each experiment, by id, and the estimated seconds of one cycle of each."""

    shards: Mapping[str, int]
    seconds: Mapping[str, float]
    digest: str
    """Equal exactly for equal splits: shards of one digest fit together."""

    def part(self, index: int) -> list[str]:
        """The ids of a shard's experiments, in the study's order."""
        return [id for id, shard in self.shards.items() if shard == index]

    def share(self, index: int) -> float:
        """The share of a shard in the estimated time of all."""
        total = sum(self.seconds.values())
        return sum(self.seconds[id] for id in self.part(index)) / total if total else 0.0


def parse_shard(text: str) -> Shard:
    """`2/4` as the second of four shards. Raises `SettingsError`."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*/\s*([0-9]{1,6})\s*", text)
    if match is None:
        raise SettingsError(f"{text!r} is not a shard", fix="write K/N, for example 2/4 for the second of four")
    index, count = int(match.group(1)), int(match.group(2))
    if not 1 <= index <= count:
        raise SettingsError(f"there is no shard {index} of {count}", fix=f"K goes from 1 to N: 1/{count or 1}")
    return Shard(index, count)


def split(study: Study, count: int, recorded: Mapping[str, float] | None = None) -> Split:
    """Split a study's experiments into `count` parts of about the same estimated time.

    `recorded` are seconds per cycle by `config_hash`; an experiment that is not among them is estimated, at the pace
    of those that are. The longest experiment goes first, each to the part that has least so far, which is never more
    than a third above the best split (R. L. Graham, SIAM J. Appl. Math. 17, 1969).
    """
    seconds = cycle_estimates(study.experiments, recorded or {})
    start = int(study.study_hash, 16) % count
    # Many studies of few experiments each would otherwise all begin with the first part.
    parts = [(0.0, position, (start + position) % count + 1) for position in range(count)]
    shards: dict[str, int] = {}
    for experiment in sorted(study.experiments, key=lambda experiment: -seconds[experiment.id]):
        load, position, shard = heapq.heappop(parts)
        shards[experiment.id] = shard
        heapq.heappush(parts, (load + seconds[experiment.id], position, shard))
    shards = {experiment.id: shards[experiment.id] for experiment in study.experiments}
    text = json.dumps([study.study_hash, count, list(shards.values())], separators=(",", ":"))
    return Split(shards, seconds, hashlib.sha256(text.encode("ascii")).hexdigest()[:8])


def cycle_estimates(experiments: Sequence[Experiment], recorded: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a cycle of each experiment, rounded so that machines agree on what is equal."""
    estimated = {experiment.id: estimate_s(experiment) for experiment in experiments}
    measured: dict[str, float] = {}
    if recorded:  # config hashes are computed only where they are needed
        hashes = {experiment.id: experiment.config_hash for experiment in experiments}
        measured = {id: recorded[hash] for id, hash in hashes.items() if hash in recorded}
    pace = sum(measured.values()) / sum(estimated[id] for id in measured) if measured else 1.0
    return {id: round(measured.get(id, estimate * pace), 3) for id, estimate in estimated.items()}


def estimate_s(experiment: Experiment) -> float:
    """Seconds that a cycle may take, by its settings: loading, idle, warm-up and the window, a step per token."""
    from pytest_llem.study.canonical import getter

    get = getter(experiment.flat_settings)

    def number(path: str, otherwise: float = 0.0) -> float:
        value = get(path)
        return float(value) if isinstance(value, (int, float)) else otherwise

    batches = engine_info(experiment.engine).batch_size
    at_once = SERVED_AT_ONCE if batches is None else number(f"{experiment.engine}.{batches}", 1)
    tokens = number("workload.output_tokens", _mean_length(get("workload.output_tokens")))
    repeat_s = math.ceil(number("workload.prompts", 1) / at_once) * tokens * STEP_S
    warmup = min(
        number("measurement.warmup.max_repeats"),
        max(number("measurement.warmup.min_repeats"), number("measurement.warmup.window")),
    )
    settles = get("measurement.warmup.thermal") == "settled"
    settling_s = min(SETTLING_S, number("measurement.warmup.thermal_max_s")) if settles else 0.0
    windows = 1 if experiment.search is None else experiment.search.max_windows
    return windows * (
        LOAD_S
        + number("measurement.idle.duration_s")
        + max(settling_s, min(warmup * repeat_s, number("measurement.warmup.max_s") + repeat_s))
        + max(number("measurement.min_duration_s"), repeat_s)
    )


def _mean_length(lengths: JsonValue) -> float:
    """The middle of a distribution of lengths."""
    if not isinstance(lengths, Mapping):
        return 0.0
    ends = [value for name in ("low", "high") if isinstance(value := lengths.get(name), (int, float))]
    return sum(ends) / len(ends) if ends else 0.0


@dataclass(frozen=True)
class Shard:
    """Which part of how many, applied to every study of the run; `recorded` as in `split`, the same for every shard."""

    index: int
    count: int
    recorded: Mapping[str, float] = field(default_factory=dict, repr=False)
    _splits: dict[Path, Split] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def split(self, study: Study) -> Split:
        """How a study is split, computed once."""
        if study.path not in self._splits:
            self._splits[study.path] = split(study, self.count, self.recorded)
        return self._splits[study.path]

    def is_empty(self, studies: Sequence[Study]) -> bool:
        """Whether this shard holds no experiment of any of the studies."""
        return bool(studies) and not any(self.split(study).part(self.index) for study in studies)

    def holds(self, cycle: ExperimentCycle) -> bool:
        """Whether a cycle's experiment belongs to this shard."""
        return self.split(cycle.study).shards[cycle.experiment.id] == self.index

    def lines(self, studies: Sequence[Study]) -> Iterator[str]:
        """A line per study for the terminal."""
        for study in studies:
            division = self.split(study)
            part, count = len(division.part(self.index)), len(study.experiments)
            yield (
                f"shard {self} of {study.name}: {part} of {count} experiments, about "
                f"{division.share(self.index):.0%} of the time (split {division.digest})"
            )

    def facts(self, studies: Sequence[Study]) -> dict[str, JsonValue]:
        """For `run.json`: which shard this is, and of which split of each study."""
        splits: dict[str, JsonValue] = {study.name: self.split(study).digest for study in studies}
        return {"shard": {"index": self.index, "count": self.count, "splits": splits}}
