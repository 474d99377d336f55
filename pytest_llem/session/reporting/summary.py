"""The summary of a run for the terminal: a table per study, how to read it, and where everything is.

`Reporting` prints it, `github` writes the same notes, `plan` uses `short_path`. Texts are for people and may change.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT
from pytest_llem.job.redaction import redact_arguments
from pytest_llem.results.impact import made_of
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.terminal import UNCERTAIN, middle_cut
from pytest_llem.session.reporting.table import BEST, ESTIMATED, INDENT, LEAST_NAME, SPREAD, table_of

if TYPE_CHECKING:
    from pytest_llem.results.baselines import Saved
    from pytest_llem.results.carry_over import CarryOver
    from pytest_llem.results.device_optimum import Optimum
    from pytest_llem.results.optimize_record import OptimizeRecord
    from pytest_llem.results.search_record import SearchRecord
    from pytest_llem.results.summary import ExperimentSummary

LARGEST = "largest load under the SLO"
MOST_OPTIMA = 6
"""Sentences on optima under a table. Chosen: more fill the screen."""


class Line(NamedTuple):
    """A line for the terminal, and the colour in which pytest shows it where colours are on."""

    text: str
    colour: str | None = None


def summary_lines(
    rows: Sequence[ExperimentSummary],
    plans: Sequence[StudyPlan],
    run_dir: Path,
    width: int,
    searches: Sequence[SearchRecord] = (),
    optima: Sequence[Optimum] = (),
    carried: Sequence[CarryOver] = (),
    races: Sequence[OptimizeRecord] = (),
) -> list[Line]:
    """Lines of the tables, the notes under them, and where the artifacts are; nothing when nothing was measured."""
    if not rows:
        return []
    lines: list[Line] = []
    shown: set[str] = set()
    ranked = False
    for plan, of_study in by_study(rows, plans):
        table = table_of(of_study, plan)
        lines.append(Line(": ".join(filter(None, (f"study {plan.name}", ", ".join(table.shared))))))
        of_table = table.lines(width)
        shown.update(word for line in of_table for word in line.split())
        ranked = ranked or BEST in of_table[0]
        lines += [*map(Line, of_table), Line("")]
        found = answers([search for search in searches if search.study == plan.name], width)
        said = [
            *of_races(races, plan.name),
            *of_impact(of_study, plan),
            *of_optima(optima, plan.name),
            *of_carried(carried, plan),
        ]
        found += [line for each in said for line in wrap(each, width, subsequent_indent=INDENT)]
        lines += [*map(Line, found), Line("")] if found else []
    lines += notes(rows, spread=SPREAD in shown, unknown=f"{UNCERTAIN}?" in shown, best=ranked)
    return [*lines, Line(f"artifacts: {short_path(run_dir)}")]


def answers(searches: Sequence[SearchRecord], width: int) -> list[str]:
    """What the searches of a study found: a line, or one for each below what they looked for, cut to the width."""
    if len(searches) < 2:
        return [f"{LARGEST}: {search.line}" for search in searches]
    room = [max(LEAST_NAME, width - len(f"{INDENT}: {search.line}")) for search in searches]
    names = [middle_cut(search.name, letters) for search, letters in zip(searches, room, strict=True)]
    return [f"{LARGEST}:", *(f"{INDENT}{name}: {search.line}" for name, search in zip(names, searches, strict=True))]


def of_races(races: Sequence[OptimizeRecord], study: str) -> list[str]:
    """What a study's race for its best setting found."""
    return [line for race in races if race.study == study for line in race.lines()]


def of_optima(optima: Sequence[Optimum], study: str) -> list[str]:
    """Which setting of a GPU costs the least in a study, a sentence per point on its other axes."""
    if not optima:
        return []
    from pytest_llem.results.device_optimum import sentences  # reads results, which collection must not load

    said = sentences([optimum for optimum in optima if optimum.study == study])
    more = len(said) - MOST_OPTIMA
    return [*said[:MOST_OPTIMA], *([f"and {more} more in summary.json"] if more > 0 else [])]


def of_impact(rows: Sequence[ExperimentSummary], plan: StudyPlan) -> list[str]:
    """What grams and money are made of, where the table has them."""
    said = made_of(plan.report, {row.scope for row in rows}) if any(row.impact for row in rows) else ""
    return [said] if said else []


def of_carried(carried: Sequence[CarryOver], plan: StudyPlan) -> list[str]:
    """What a study's run tells of carry-over; why it tells nothing only where the order was meant to."""
    shown = [each for each in carried if each.study == plan.name]
    return [each.sentence for each in shown if each.state != "unknown" or plan.order == "balanced"]


def by_study(
    rows: Sequence[ExperimentSummary], plans: Sequence[StudyPlan]
) -> Iterator[tuple[StudyPlan, list[ExperimentSummary]]]:
    """The rows of each study with its plan, in order: as the axes name their values, in whatever order it was run."""
    planned = {plan.name: plan for plan in plans}
    for study in dict.fromkeys(row.study for row in rows):
        plan = planned.get(study) or StudyPlan(study, None)
        axes = plan.study_axes()
        of_study = [row for row in rows if row.study == study]
        yield plan, sorted(of_study, key=lambda row: axes.place(axes.point(row.experiment_id)))


def resume_lines(left: int, planned: int, command: Sequence[str], *, more: bool = False) -> list[Line]:
    """How many cycles of a run that was cut short are left, and how to measure them; nothing where none is.

    `more` says that nobody knows yet how many follow: those of a race.
    """
    if not left:
        return []
    arguments = redact_arguments(command[1:])
    if "--llem-resume" not in arguments:
        arguments.insert(arguments.index("--") if "--" in arguments else len(arguments), "--llem-resume")
    count = f"{'at least ' * more}{left} of {planned} cycle{'s' * (planned > 1)}"
    told = f"{count} left; to measure them, and keep what is measured:"
    return [Line(told, "yellow"), Line(f"{INDENT}{shlex.join([*_program(), *arguments])}")]


def _program() -> list[str]:
    """How this pytest was started, so that it can be typed again."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        same = (name for name in ("python", "python3") if shutil.which(name) == sys.executable)
        return [next(same, None) or short_path(Path(sys.executable)), "-m", "pytest"]
    if started.name not in ("pytest", "py.test") or shutil.which(started.name) == os.path.realpath(started):
        return ["pytest"]
    return [short_path(started)]


def saved_lines(saved: Saved) -> list[str]:
    """The files of a saved baseline, and what was left out of it."""
    lines = [f"baseline saved: {short_path(path)}" for path in saved.files]
    lines += [
        f"not in the baseline: {study} {experiment}: {reason}" for (study, experiment), reason in saved.refused.items()
    ]
    return lines


def notes(rows: Sequence[ExperimentSummary], *, spread: bool, unknown: bool, best: bool) -> list[Line]:
    """How to read the numbers, what is to be distrusted first; the switches say which of them are shown."""
    lines: list[Line] = []
    meters = dict.fromkeys((row.meter, row.measured) for row in rows if row.meter is not None)
    for meter, measured in meters:
        if meter == "none":
            lines.append(Line("no energy was measured (meter: none)", "yellow"))
        elif not measured and any(row.metrics for row in rows if row.meter == meter):
            told = f"energy NOT measured: {meter} from CPU time, for trying out, not publishing"
            lines.append(Line(f"{ESTIMATED} {told}", "yellow"))
    count = sum(row.states.get("invalid", 0) for row in rows)
    codes = dict.fromkeys(reason.partition(":")[0] for row in rows for reason in row.reasons)
    named = ", ".join(code for code in codes if code.isidentifier())
    if count:
        # pytest itself names no reasons of skips without `-rs`.
        cycles = f"{count} cycle{'s' * (count != 1)}"
        lines.append(Line(f"not valid: {cycles} ({named}): `pytest -rs` says more", "yellow"))
    lines += _of_answers(rows)
    lines += [Line(f"energy measured by {meter}") for meter, measured in meters if measured]
    if any(row.metrics for row in rows):
        lines.append(Line(f"mean of valid cycles {UNCERTAIN} expanded uncertainty (95 %): parts by `llem budget`"))
    if any("joules_per_output_token" in row.metrics for row in rows):
        lines.append(Line("/token: per output token"))
    asked = dict.fromkeys(row.slo.limits_text for row in rows if row.slo)
    lines += [Line(f"SLO: {text}; good ones keep it") for text in asked if text]
    if any(row.slo and row.slo.state == "undecided" for row in rows):
        lines.append(Line("undecided: too few requests to tell (95 %); more workload.prompts decide, or another load"))
    lines += [Line(f"{BEST}: probability of being truly the best of these in the first figure")] if best else []
    lines += [Line(f"{SPREAD}: interquartile range of the first figure")] if spread else []
    if unknown:
        lines.append(Line(f"{UNCERTAIN}? is not known, as after a single cycle: `llem budget` says why"))
    gains = dict.fromkeys(row.gain_uncertainty_rel for row in rows if row.gain_uncertainty_rel is not None)
    lines += [
        Line(f"the board's gain error, {gain:.0%}, is apart: the same in all runs on one board") for gain in gains
    ]
    return lines


def _of_answers(rows: Sequence[ExperimentSummary]) -> Iterator[Line]:
    """What must be known of accuracy, or why there is none."""
    count = Counter(code for row in rows for code in row.warnings)
    if unscored := count["answers_not_scored"]:
        where = f"{unscored} experiment{'s' * (unscored != 1)}"
        why = next((row.scores.reason for row in rows if row.scores and row.scores.reason), None)
        yield Line(f"answers NOT scored in {where}: {why or 'result.json says why'}", "yellow")
        yield Line("once that is corrected, `llem score RUN --write` scores them: nothing is measured again")
    if cut := count["answers_cut"]:
        where = f"{cut} experiment{'s' * (cut != 1)}"
        yield Line(f"accuracy is a lower bound in {where}: output_tokens ended wrong answers", "yellow")
    without = [row for row in rows if ACCURACY in row.metrics and JOULES_PER_CORRECT not in row.metrics]
    if why := next((row.scores.reason for row in without if row.scores and row.scores.reason), None):
        where = f"{len(without)} experiment{'s' * (len(without) != 1)}"
        yield Line(f"no joules per correct answer in {where}: {why}", "yellow")
    if any(JOULES_PER_CORRECT in row.metrics for row in rows):
        yield Line("/correct: per correct answer")
    if any(ACCURACY in row.metrics for row in rows):
        yield Line("in brackets: the 95 % interval for questions like these")


def short_path(path: Path) -> str:
    """A path relative to the current directory, if it is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
