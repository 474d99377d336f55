"""`llem bisect`: finds the commit that changed what a study measures, and says with which probability.

`cli` calls it. The order is: the pure `search` says which commit, `commits` checks it out, `attempts` builds and
measures it, `levels` reads what it measured, and `finding` tells what that comes to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from filelock import FileLock, Timeout

from pytest_llem.bisect.attempts import Attempt, Attempts, Recipe, installed_from
from pytest_llem.bisect.commits import Commit, Repository
from pytest_llem.bisect.finding import NAMED, Bisected, CommitLevel, SuspectCommits, lines, percent
from pytest_llem.bisect.levels import Cycles, Reference, cycles_at, cycles_of_history, reference
from pytest_llem.bisect.search import CommitSearch, Ending, Suspects
from pytest_llem.errors import SettingsError, visible
from pytest_llem.job.condition_names import check_condition
from pytest_llem.job.files import slug, write_json
from pytest_llem.job.metric_names import require_listed
from pytest_llem.job.wire import encode
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.metrics import Metric, metric
from pytest_llem.results.terminal import middle_cut, show, significant
from pytest_llem.study.experiments import Study
from pytest_llem.study.loader import load_study
from pytest_llem.study.written_optimize import refuse_race

TRIES = 2
"""Runs of a commit without a valid measurement after which it is skipped. Chosen: one may be an accident."""
BUILD_COST = 0.1
"""Of a checkout alone, in measurements. Chosen: next to nothing, and a commit is not left for nothing."""
STOPPED = 130
"""Exit code of what Ctrl-C ended: 128 + SIGINT, as a shell reports it."""


def bisect(options: argparse.Namespace) -> int:
    """Search, and print each step and what was found; 0 when that is a commit or a set of them, 1 when it is not."""
    study = load_study(options.study)
    refuse_race(study, "llem bisect")
    measure = metric(options.metric or study.execution.headline)
    for name in options.allow:
        check_condition(name)
    if not 0.5 < options.confidence < 1:
        raise SettingsError(f"--confidence {options.confidence:g}: not between 0.5 and 1", fix="use --confidence 0.95")
    if options.max_runs < 1:
        raise SettingsError(f"--max-runs {options.max_runs}: nothing may be measured", fix="leave it out, or give 1")
    try:
        shlex.split(options.pytest)
    except ValueError as problem:
        raise SettingsError(f"--pytest={options.pytest}: {problem}", fix="quote it as a shell takes it") from None
    repository = Repository(Path.cwd())
    commits = repository.between(options.range)
    out = (options.out or Path("llem-results") / f"bisect-{slug(study.name)}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with (
            FileLock(out / "lock", timeout=0),
            interrupted_by_sigterm(),
            repository.worktree(out / "worktree", commits[0].sha) as tree,
        ):
            found = Bisection(options, study, measure, repository, commits, tree, out).run()
    except Timeout:
        raise SettingsError(f"another llem bisect works in {out}", fix="wait for it, or name another --out") from None
    except KeyboardInterrupt:
        sys.stderr.write("llem bisect: stopped; the same command goes on from here\n")
        return STOPPED
    write_json(out / "bisect.json", encode(found))
    if options.format == "json":
        show(json.dumps(encode(found), indent=2))
    else:
        show("\n".join(["", *lines(found, measure, options), f"kept in {out / 'bisect.json'}"]))
    return int(found.ending != "found")


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Take the end of a CI job as Ctrl-C, so that the work tree is removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Bisection:
    """One search over `commits`, with `tree` to build and measure them in."""

    options: argparse.Namespace
    study: Study
    measure: Metric
    repository: Repository
    commits: Sequence[Commit]
    tree: Path
    out: Path
    skipped: dict[int, str] = field(default_factory=dict)
    stored_runs: int = 0
    noise_from: str = ""
    notes: list[str] = field(default_factory=list)
    _cycles: dict[int, Cycles] = field(default_factory=dict)
    _checked: bool = False

    def __post_init__(self) -> None:
        options = self.options
        python = options.python or sys.executable
        recipe = Recipe(str(self.study.path.resolve()), options.build, python, options.pytest, options.cycles)
        ends = {"LLEM_BISECT_GOOD": self.commits[0].sha, "LLEM_BISECT_BAD": self.commits[-1].sha}
        self.attempts = Attempts(self.out / "attempts", self.tree, self._check_out, recipe, ends)
        ids = [experiment.id for experiment in self.study.experiments]
        if options.experiment is not None:
            require_listed("experiment", options.experiment, ids)
            ids = [options.experiment]
        self.experiments = ids
        compared = (experiment.gates.compare for experiment in self.study.experiments)
        self.allow = {*options.allow, *(name for compare in compared if compare for name in compare.allow)}
        self.positions = {commit.sha: position for position, commit in enumerate(self.commits)}
        self.reference: Reference | None = None
        self.no_reference = ""
        directories = options.history or []
        self.history = [entry for each in directories for entry in read_history(each).of_study(self.study.name)]

    def run(self) -> Bisected:
        """Measure until the search ends."""
        total = len(self.commits) - 1
        self._say(f"{total} commit{'s' * (total > 1)} from {self._of(1)} to {self._of(total)}, by {self.measure.name}")
        if earlier := self._mine():
            self._say(f"{len(earlier)} attempts of earlier searches are used")
        while True:
            search = self._search()
            step = search.step()
            if isinstance(step, str):
                return self._finding(search, step)
            if len(self._mine()) >= self.options.max_runs:
                self.notes.append(f"{self.options.max_runs} attempts were made: --max-runs allows more")
                return self._finding(search, "undecided")
            self._measure(step)

    def _mine(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.usable() if attempt.commit in self.positions]

    def _of(self, position: int) -> str:
        return self.commits[position].short

    def _say(self, text: str) -> None:
        """A line of progress; JSON has standard output for itself."""
        if self.options.format == "json":
            sys.stderr.write(visible(f"llem bisect: {text}\n"))
        else:
            show(text)

    def _warn(self, text: str) -> None:
        self.notes.append(text)
        self._say(f"warning: {text}")

    def _check_out(self, commit: str) -> None:
        self.repository.check_out(self.tree, commit)

    def _measure(self, position: int) -> None:
        commit = self.commits[position]
        sys.stderr.write(visible(f"llem bisect: {commit.short}, {middle_cut(commit.subject, 50)}\n"))
        attempt = self.attempts.make(commit.sha)
        if not self._checked and attempt.outcome != "not_built":
            self._checked = True
            for name in installed_from(self.attempts.python, self.repository.top, self.tree):
                self._warn(
                    f"{self.attempts.python} has {name} from {self.repository.top}, whatever commit is measured: "
                    "build into an environment of its own (--build, --python), or set PYTHONPATH"
                )
        self._say(self._line(self._search(), attempt, position))

    def _line(self, search: CommitSearch, attempt: Attempt, position: int) -> str:
        begin = f"{attempt.number:3}  {self._of(position)}"
        subject = middle_cut(self.commits[position].subject, 50)
        level, why = self._level(attempt)
        if level is None:
            then = "skipped" if position in search.skipped else "once more"
            return f"{begin}  {why or attempt.reason}: {then}  {subject}"
        levels = search.levels()
        value = significant(math.exp(level), 4)
        ratio = percent(math.exp(level - fmean(levels[0])))
        if search.last not in levels or position in (0, search.last):
            end = "good" if position == 0 else "bad"
            return f"{begin}  {value:>8} {ratio:>7}  {end:9}  {subject}"
        leader = search.suspects()[0]
        bad = search.is_bad()[position]
        verdict = f"bad {bad:.0%}" if bad >= 0.5 else f"good {1 - bad:.0%}"
        where = f"{search.remaining()} left, {self._of(leader.last)} with {leader.probability:.0%}"
        return f"{begin}  {value:>8} {ratio:>7}  {verdict:9}  {where:30}  {subject}"

    def _read(self, attempt: Attempt) -> Cycles:
        if attempt.number not in self._cycles:
            self._cycles[attempt.number] = cycles_at(self.attempts.path(attempt), self.study.name)
        return self._cycles[attempt.number]

    def _level(self, attempt: Attempt) -> tuple[float | None, str]:
        if attempt.outcome != "measured":
            return None, attempt.reason
        cycles, why = self._read(attempt), self.no_reference
        if not cycles:
            return None, f"no cycle is valid: {self.attempts.log(attempt)}"
        return self.reference.level(cycles) if self.reference is not None else (None, why)

    def _refer(self, mine: Sequence[Attempt]) -> None:
        """The first run of the good commit decides what others must be like."""
        for attempt in mine:
            if self.reference is None and self.positions[attempt.commit] == 0 and attempt.outcome == "measured":
                cycles = self._read(attempt)
                self.reference, self.no_reference = reference(cycles, self.measure, self.allow, self.experiments)
                having = self.reference.cycles if self.reference else self.experiments
                if lost := [name for name in self.experiments if name not in having]:
                    self._warn(
                        f"without {', '.join(lost[:NAMED])}{', ...' * (len(lost) > NAMED)}: the first run of "
                        f"{self._of(0)} has no {self.measure.name} of that; remove {self.attempts.path(attempt)} to "
                        "measure it anew"
                    )

    def _search(self) -> CommitSearch:
        """The search with all that is known: this search's attempts, earlier ones, and the runs of the history."""
        mine = self._mine()
        self._refer(mine)
        search = CommitSearch(len(self.commits) - 1, confidence=self.options.confidence, build_cost=_build_cost(mine))
        if self.reference is not None:
            runs = self._history_levels(self.reference)
            levels = [level for _, level in runs]
            search.noise, self.noise_from = self.reference.noise(levels, self.study.name, self.options.baseline_dir)
            stored = [(self.positions[sha], level) for sha, level in runs if sha in self.positions]
            self.stored_runs = len(stored)
            for position, level in stored:
                search.add(position, level)
        failures: Counter[int] = Counter()
        last_failure: dict[int, Attempt] = {}
        self.skipped = {}
        for attempt in mine:
            position = self.positions[attempt.commit]
            found, why = self._level(attempt)
            if found is not None:
                search.add(position, found)
                continue
            if self.reference is None and position and attempt.outcome == "measured" and self._read(attempt):
                continue  # of an earlier search: nothing is there yet to hold it against
            failures[position] += 1
            last_failure[position] = attempt
            if attempt.outcome == "not_built" or failures[position] >= TRIES:
                self.skipped[position] = why
        for position, why in self.skipped.items():
            if position in search.levels():
                continue  # it was measured as well: what failed was an accident
            if position in (0, search.last):
                which = "good" if position == 0 else "bad"
                raise SettingsError(
                    f"the {which} commit {self._of(position)} cannot be measured: {why}",
                    fix=f"see {self.attempts.path(last_failure[position])}, and remove that folder to try again",
                )
            search.skip(position)
        search.here = self.positions.get(self.attempts.built or "")
        return search

    def _history_levels(self, first: Reference) -> list[tuple[str, float]]:
        """Commit and level of the runs of the history that may be held against `first`, in order of time."""
        own = {each.run for cycles in self._cycles.values() for each in cycles.values()}
        groups: dict[str, list[HistoryEntry]] = {}
        for entry in self.history:
            if entry.run.dirty is False and entry.run.run_id not in own:
                groups.setdefault(entry.run.run_id, []).append(entry)
        found = []
        for entries in groups.values():
            with contextlib.suppress(SettingsError):  # another machine: no run of this search's
                level, _ = first.level(cycles_of_history(entries))
                if level is not None:
                    found.append((entries[0].run.commit or "", level))
        return found

    def _finding(self, search: CommitSearch, ending: Ending) -> Bisected:
        levels = search.levels()
        good = fmean(levels.get(0, (0.0,)))
        second = search.second_step() if ending == "several" else None
        mine = self._mine()
        leader = search.suspects()[0]
        parents = self.commits[leader.last].parents
        if ending == "found" and leader.first == leader.last and len(parents) > 1:
            base = self.repository.git("merge-base", *parents[:2])[:10]
            self.notes.append(
                f"{self._of(leader.last)} is a merge: llem bisect {base}..{parents[1][:10]} searches its branch"
            )
        return Bisected(
            ending=ending,
            good=self.commits[0].sha,
            bad=self.commits[-1].sha,
            commits=search.last,
            metric=self.measure.name,
            experiments=tuple(self.reference.cycles) if self.reference else (),
            suspects=tuple(self._named(each) for each in search.suspects()[:NAMED]),
            change=search.change(),
            difference=search.difference(),
            noise=search.spread(),
            assumed_noise=search.noise.spread,
            noise_from=self.noise_from,
            builds=sum(attempt.build_s is not None for attempt in mine),
            runs=sum(attempt.outcome == "measured" for attempt in mine),
            stored_runs=self.stored_runs,
            levels=tuple(
                CommitLevel(self.commits[position].sha, len(values), math.exp(fmean(values) - good))
                for position, values in levels.items()
                if 0 in levels
            ),
            skipped={self.commits[position].sha: why for position, why in sorted(self.skipped.items())},
            second=(self.commits[second[0]].sha, self.commits[second[1]].sha) if second else None,
            notes=tuple(self.notes),
        )

    def _named(self, suspects: Suspects) -> SuspectCommits:
        commits = self.commits[suspects.first : suspects.last + 1]
        return SuspectCommits(
            tuple(commit.sha for commit in commits), tuple(commit.subject for commit in commits), suspects.probability
        )


def _build_cost(attempts: Sequence[Attempt]) -> float:
    """What a build takes, in measurements."""
    builds = [attempt.build_s for attempt in attempts if attempt.build_s is not None and attempt.outcome != "not_built"]
    measured = [attempt.measure_s for attempt in attempts if attempt.measure_s]
    return max(BUILD_COST, fmean(builds) / fmean(measured)) if builds and measured else BUILD_COST
