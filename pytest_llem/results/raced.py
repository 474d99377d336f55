"""A study's race as far as results tell of it: what it sees of each cycle, which cycles it needs, and its record.

The session goes on with it by the cycles that it measures. Everything follows from outcomes of the rounds before, so
that any process of a run, and a run that resumes it, comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from pytest_llem.job.metric_names import ACCURACY, SLO_MET_SHARE
from pytest_llem.results.metrics import is_beyond_numbers, metric, why_absent
from pytest_llem.results.optimize_record import OptimizeRecord, RacedSetting
from pytest_llem.results.racing.answer import Race, Seen, Setting
from pytest_llem.results.racing.racing import race
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import BETWEEN_RUNS, K
from pytest_llem.results.uncertainty import systematic_rel
from pytest_llem.study.experiments import Experiment, Study
from pytest_llem.study.optimize import MIN_CYCLES, Optimize

OutcomeOf = Callable[[Experiment, int], "Outcome | None"]
"""The outcome of an experiment's cycle; `None` where it has not ended."""


def seen_of(outcome: Outcome, goal: Optimize) -> Seen:
    """What a race sees of a cycle."""
    result = outcome.result
    if result is None or not outcome.valid:
        return Seen(None, failed="; ".join(outcome.reasons()[:1]) or outcome.state)
    if result.runner.isolation in ("experiment", "load"):  # of a plain sweep that was taken over
        shared = f"its cycles shared one loaded engine (isolation: {result.runner.isolation}), and count as one"
        return Seen(None, failed=f"{shared}: leave --llem-resume out")
    limited = [budget.metric for budget in goal.subject_to]
    values = {name: metric(name).of(result) for name in (goal.metric, *limited)}
    beyond = next((name for name in values if is_beyond_numbers(metric(name), result)), None)
    if beyond is not None:
        return Seen(math.inf, failed=f"{beyond} is beyond any number: a cycle had nothing that it is per")
    for name, value in values.items():
        if value is None:  # of a limited one: a setting that cannot be held against its limit is none to recommend
            return Seen(None, failed=f"no {name}: {why_absent(name, result)}")
    questions, requests = _questions(result), _requests(result)
    for name, counted in ((ACCURACY, questions), (SLO_MET_SHARE, requests)):
        if name in limited and counted is None:
            return Seen(None, failed=f"{name} has no count that says how sure it is")
    return Seen(
        values[goal.metric],
        {name: values[name] for name in limited},
        _standard(goal.metric, result, one_board=True),
        questions if ACCURACY in limited else None,
        requests if SLO_MET_SHARE in limited else None,
        limit_errors_rel={name: _standard(name, result, one_board=False) for name in limited},
    )


def _standard(name: str, result: Result, *, one_board: bool) -> float:
    """The relative standard uncertainty that no cycle averages out; infinite, so that nothing is proven, if unknown."""
    expanded = systematic_rel(metric(name), [result], one_board=one_board)
    return math.inf if expanded is None else expanded / K


def _questions(result: Result) -> tuple[int, int] | None:
    """Right answers, rounded down, and questions; repeated answers count once."""
    quality = result.quality
    return None if quality is None or not quality.scores else (math.floor(sum(quality.scores)), len(quality.scores))


def _requests(result: Result) -> tuple[float, float] | None:
    """Good requests and all, as many as there are independent ones."""
    slo = result.slo
    if slo is None or slo.share is None or slo.effective_requests is None:
        return None
    return slo.share * slo.effective_requests, slo.effective_requests


@dataclass
class StudyRace:
    """A study's race as far as it has come: `after[n]` is where it stood when n rounds were over."""

    study: Study
    among: Sequence[Experiment]
    goal: Optimize
    left_out: Mapping[str, str] = field(default_factory=dict)
    after: list[Race] = field(init=False)
    _seen: dict[tuple[str, int], Seen] = field(default_factory=dict, init=False)
    _runs: dict[tuple[str, int], str | None] = field(default_factory=dict, init=False)
    _mixed: set[tuple[str, int]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._by_id = {experiment.id: experiment for experiment in self.among}
        titles = [axis.name for axis in self.study.axes]
        self._settings = [
            Setting(
                each.id,
                {name: value for name, value in zip(titles, self.study.point(each), strict=True) if value is not None},
            )
            for each in self.among
        ]
        order: dict[int, list[str]] = {}
        for experiment, cycle in self.study.schedule(self.goal.max_cycles):
            if experiment.id in self._by_id:
                order.setdefault(cycle, []).append(experiment.id)
        self._order = order
        self.after = [self._race(0)]

    @property
    def now(self) -> Race:
        """Where it stands."""
        return self.after[-1]

    def every_cycle(self) -> list[tuple[Experiment, int]]:
        """All cycles that it may need."""
        return [(experiment, cycle) for experiment in self.among for cycle in range(1, self.goal.max_cycles + 1)]

    def round(self) -> list[tuple[Experiment, int]]:
        """The cycles of the next round, in the study's order; none once the race is over."""
        number = len(self.after)
        return [(self._by_id[id], number) for id in self._order.get(number, ()) if id in self.now.needed]

    def go_on(self, outcome_of: OutcomeOf, rounds: int | None = None) -> bool:
        """Go on to the end, or to so many rounds, while each cycle has an outcome. Whether that took it further."""
        before = len(self.after)
        while (rounds is None or len(self.after) <= rounds) and (cycles := self.round()):
            for experiment, cycle in cycles:
                if (experiment.id, cycle) not in self._seen:
                    outcome = outcome_of(experiment, cycle)
                    if outcome is None:
                        return len(self.after) > before
                    self._seen[experiment.id, cycle] = seen_of(outcome, self.goal)
                    self._runs[experiment.id, cycle] = outcome.source_run
            self._doubt([experiment.id for experiment, _ in cycles], len(self.after))
            self.after.append(self._race(len(self.after)))
        return len(self.after) > before

    def _doubt(self, ids: Sequence[str], round: int) -> None:
        """Take settings as uncertain by what runs differ by whose cycles all come from another run than their round's.

        What two runs differ by cancels in no such round. Where a round is the only one that was cut off, it scatters.
        """
        runs = [self._runs[id, round] for id in ids]
        usual = max(runs, key=runs.count)
        self._mixed |= {(id, round) for id, run in zip(ids, runs, strict=True) if run != usual}
        for id in ids if round >= MIN_CYCLES and metric(self.goal.metric).unit != "B" else ():
            seen = self._seen[id, round]
            known = [n for n in range(1, round + 1) if (id, n) in self._seen and self._seen[id, n].value is not None]
            if known and all((id, number) in self._mixed for number in known):
                own = math.hypot(seen.own_error_rel, BETWEEN_RUNS)
                self._seen[id, round] = replace(seen, own_error_rel=own)

    def not_needed(self, id: str, cycle: int) -> str | None:
        """Why a cycle is not measured, by the rounds before it, which must be over; `None` where it is."""
        race = self.after[min(cycle, len(self.after)) - 1]
        if id in race.needed:
            return None
        fate = race.fates[id]
        if fate.reason is None or fate.state == "in":
            return f"not needed: {race.sentence}"
        return f"could not be measured: {fate.reason}" if fate.state == "failed" else fate.reason

    def _race(self, rounds: int) -> Race:
        return race(self._settings, lambda id, cycle: self._seen[id, cycle], self.goal, rounds=rounds)

    def record(self) -> OptimizeRecord:
        """Where it stands, for `optimize.json`."""
        now = self.now
        over = {key: seen for key, seen in self._seen.items() if key[1] <= now.rounds}
        values: dict[str, list[float]] = {id: [] for id in self._by_id}
        for (id, _), seen in over.items():
            if seen.value is not None and seen.value < math.inf:
                values[id].append(seen.value)
        meter = max((seen.own_error_rel for seen in over.values()), default=0.0)
        settings = {
            each.id: RacedSetting(
                self._by_id[each.id].config_hash,
                each.levels,
                fmean(values[each.id]) if values[each.id] else None,
                len(values[each.id]),
                now.fates[each.id],
            )
            for each in self._settings
        }
        course = tuple(len(before.needed) for before in self.after[:-1])
        meter_rel = meter if meter < math.inf else None
        return OptimizeRecord.of(self.study.name, self.goal, now, course, settings, meter_rel, self.left_out)
