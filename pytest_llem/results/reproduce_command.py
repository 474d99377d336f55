"""`llem reproduce`: measures another laboratory's study here, and judges whether its figures were reproduced.

`cli` calls it. The package is what `llem publish` wrote, a run's directory, or any folder with its results; the study
comes from there too, unless it is named. `reproduction` has the statistics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.job.files import slug, write_json, write_text, writing
from pytest_llem.job.metric_names import HEADLINE
from pytest_llem.job.redaction import REDACTED
from pytest_llem.job.wire import encode
from pytest_llem.machine.environment import changes, gather
from pytest_llem.results.comparability import POWER_LIMIT, flat_settings
from pytest_llem.results.layout import STUDIES, run_directories, study_in_package
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.metrics import Metric, metric
from pytest_llem.results.packaged import AsRegistered, as_registered, manifests_in, needed, require_as_published
from pytest_llem.results.preregister import verdict
from pytest_llem.results.reading import Results, load
from pytest_llem.results.reproduction import Figure, Reproduction, ReproductionStatus, judge_reproduction, overall
from pytest_llem.results.terminal import fitted_table, show, significant
from pytest_llem.study.loader import load_study
from pytest_llem.study.optimize import MIN_CYCLES

EXIT_CODES: Mapping[ReproductionStatus, int] = {
    "equivalent": 0, "different": 1, "inconclusive": 3, "not comparable": 3,
}  # fmt: skip
"""2 is that of wrong input, as in all verbs."""
TABLES = {"ratio": "ratio to the reference", "level": "level"}
STUDY_FILE = "study.yaml"
"""What a package calls its study."""


@dataclass(frozen=True)
class ReproductionFile:
    """`reproduction.json`: the verdict, what differs between the machines, and the figures.

    `registered` holds the original's runs against what they were registered as, where they were.
    """

    package: str
    run: str
    status: ReproductionStatus
    margin: float
    differs: Sequence[str]
    reproductions: Sequence[Reproduction]
    registered: Sequence[AsRegistered] = ()


class _Wanted(NamedTuple):
    """Experiments in the study's order, its headline, and whether they raced: then cycles agree up to a point only."""

    order: Sequence[str]
    headline: str | None
    raced: bool


def reproduce(options: argparse.Namespace) -> int:
    """Measure, or take a run that was measured, and print the verdict; its code is in `EXIT_CODES`."""
    if not 0 < options.margin < 1:
        raise SettingsError(f"--margin {options.margin:g}: not between 0 and 1", fix="use --margin 0.05 for 5 %")
    named = [metric(name) for name in options.metric]
    _words(options.pytest)
    require_as_published(options.package, "data")
    there = load(options.package).valid
    names, file = _chosen(options, sorted({result.study for result in there}))
    if file is None:
        require_as_published(options.package, STUDIES)
    there = there.where(lambda each: each.study in names)
    plans = {name: _plan(options.package, name) for name in names}
    differs = machine_differences(there)
    registered = [each for name in names for each in as_registered(options.package, name)]
    here_already = file is not None or options.run_here is not None
    absent = [] if here_already else [text for name in names for text in needed(options.package, name)]
    as_json = options.format == "json"
    if not as_json:
        said = [f"  {text}" for text in differs or ["no difference was found"]]
        show("\n".join(["this machine and theirs:", *said, *_as_registered(names, registered)]))
        if options.check and absent:
            show("\n".join(absent))
    elif options.check:
        content = {"differs": differs, "registered": [encode(each) for each in registered], "needed": absent}
        show(json.dumps(content, indent=2))
    if options.check:
        return 0
    if absent:
        raise SettingsError("\n".join(["files that the study names are not here:", *absent]), fix="then run it again")
    asked = {name: _asked(options.package, name, plans[name], file) for name in names}
    run = options.run_here or measured(options, plans, file)
    measured_here, found, measures = load(run), [], []
    for name in names:
        order, headline, raced = asked[name]
        here = measured_here.of_study(name)
        if not len(here):
            more = "" if len(names) == 1 else ", or choose one with --study NAME"
            raise StoreError(f"{run}: no result of the study {name!r}", fix=f"name a run of it with --run{more}")
        theirs = in_order_of_study(there.of_study(name), order)
        if raced:  # later cycles depend on what the earlier ones were
            theirs, here = (results.where(lambda each: each.cycle <= MIN_CYCLES) for results in (theirs, here))
        for measure in named or [metric(headline or HEADLINE)]:
            found.append(judge_reproduction(theirs, here, measure, options.margin))
            measures.append(measure)
    record = ReproductionFile(
        str(options.package), str(run), overall(found), options.margin, differs, found, registered
    )
    out = options.out / "reproduction.json"
    with writing(out):
        options.out.mkdir(parents=True, exist_ok=True)
    write_json(out, encode(record))
    if as_json:
        show(json.dumps(encode(record), indent=2))
    else:
        show("\n".join([*lines(record, measures), f"kept in {out}"]))
    return EXIT_CODES[record.status]


def _chosen(options: argparse.Namespace, names: Sequence[str]) -> tuple[Sequence[str], Path | None]:
    """The studies to reproduce, and the file that `--study` names: it chooses, as a study's name does."""
    if not names:
        raise StoreError(f"{options.package}: no valid result to reproduce", fix="llem list says what became of them")
    if options.study is None:
        return names, None
    if options.study in names:
        return [options.study], None
    file = Path(options.study)
    if not file.is_file() and not file.suffix:
        fix = f"use one of: {', '.join(names)}; or a study's file"
        raise SettingsError(f"{options.package}: no study {options.study!r}", fix=fix)
    name = load_study(file).name
    if name not in names and len(names) > 1:
        raise SettingsError(f"{file}: is none of the studies {', '.join(names)}", fix="name the file of one of them")
    return [name if name in names else names[0]], file


def _as_registered(names: Sequence[str], found: Sequence[AsRegistered]) -> Iterator[str]:
    """Whether the original was as registered, a line for each of its runs, and the rule."""
    yield from (f"study {name} was not registered" for name in names if not any(each.study == name for each in found))
    for each in found:
        more = f" from its registration: {'; '.join(each.deviations)}" if each.deviations else ""
        kept = "" if each.checked else "; the registration itself is not here"
        yield f"study {each.study}, run {each.run}: {verdict(each.deviations)}{more} ({each.sha256[:12]}{kept})"
    for study, rule, at in dict.fromkeys((each.study, each.rule, each.registered_at) for each in found):
        yield f"  rule of {study}, {at}: {rule}"


def _asked(package: Path, name: str, plan: StudyPlan | None, file: Path | None) -> _Wanted:
    """What the study asks, as the run planned it, else by its file."""
    if plan is not None:
        ids = list(dict.fromkeys(cycle.experiment_id for cycle in plan.cycles))
        return _Wanted(ids, plan.headline, plan.optimize is not None)
    file = file or _own(package, name)
    if file is None:
        return _Wanted((), None, False)
    study = load_study(file)
    ids = [experiment.id for experiment in study.experiments]
    return _Wanted(ids, study.execution.headline, study.optimize is not None)


def in_order_of_study(results: Results, order: Sequence[str]) -> Results:
    """The results with the experiments as the study has them, so that its first one is the reference."""
    places = {experiment: place for place, experiment in reversed([*enumerate(order)])}
    return Results(tuple(sorted(results, key=lambda each: (places.get(each.experiment.id, len(places)), each.cycle))))


def machine_differences(there: Results) -> list[str]:
    """In which facts this machine differs from the one of the package, a sentence each: theirs -> here."""
    theirs, ours = _facts(dict(there[0].environment.host)), _facts(gather())
    if any(flat_settings(result).get(f"device.{POWER_LIMIT}") is not None for result in there):
        theirs[POWER_LIMIT] = ours[POWER_LIMIT]  # that of each cycle, which its study sets here as well
    return changes(theirs, ours | _unsaid(theirs, ours))


def _unsaid(theirs: Mapping[str, object], ours: Mapping[str, object]) -> dict[str, object]:
    """What only this machine says is no difference."""
    return {name: theirs.get(name) for name in ours if theirs.get(name) is None}


def _facts(host: Mapping[str, object]) -> dict[str, object]:
    """What of a machine may change its joules, flat."""
    cpu, packages, gpus = host.get("cpu"), host.get("packages"), host.get("gpus")
    facts: dict[str, object] = {name: host.get(name) for name in ("kernel", "python", "pytest_llem")}
    if isinstance(cpu, Mapping):
        facts |= {f"cpu {name}": cpu.get(name) for name in ("model", "logical_cores", "governor")}
    for name, key in {"gpu": "name", "driver": "driver", "power_limit_w": "power_limit_w"}.items():
        values = [str(gpu.get(key)) for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
        facts[name] = ", ".join(sorted(set(values))) or "none"
    if isinstance(packages, Mapping):
        facts |= dict(packages)
    return facts


def measured(options: argparse.Namespace, plans: Mapping[str, StudyPlan | None], file: Path | None) -> Path:
    """Run the studies by one pytest, and return the run. Raises `SettingsError` when pytest could not."""
    studies = [file] if file else [_study(options.package, name, plan, options.out) for name, plan in plans.items()]
    runs = options.out / "runs"
    command = [sys.executable, "-m", "pytest", *(f"--llem-study={study}" for study in studies)]
    command += [f"--llem-out={runs}", "--llem-resume", "-k", "test_experiment", *_words(options.pytest)]
    said_to = sys.stderr if options.format == "json" else None  # what is printed here is the record alone
    code = subprocess.run(command, check=False, stdout=said_to).returncode
    if code not in (0, 1):
        raise SettingsError(f"pytest ended with exit code {code}", fix="see what it says above")
    return run_directories(runs)[0]


def _words(options: str) -> list[str]:
    try:
        return shlex.split(options)
    except ValueError as problem:
        fix = "quote it as a shell wants it: --pytest='-k \"a and b\"'"
        raise SettingsError(f"--pytest {options}: {problem}", fix=fix) from None


def _plan(package: Path, study: str) -> StudyPlan | None:
    plans = (plan for manifest in manifests_in(package) for plan in manifest.studies if plan.name == study)
    return next(plans, None)


def _own(package: Path, name: str) -> Path | None:
    """The study's file that a package has, of a publication or beside results."""
    return next((file for each in (STUDY_FILE, study_in_package(name)) if (file := package / each).is_file()), None)


def _study(package: Path, name: str, plan: StudyPlan | None, out: Path) -> Path:
    """The study's file: the package's, the one that the run read where it is unchanged, else the text that it kept."""
    own = _own(package, name)
    if own is not None:
        if REDACTED in own.read_text(encoding="utf-8"):
            fix = "write them in, as placeholders of environment variables, and name the file with --study"
            raise SettingsError(f"{own}: has {REDACTED} where secrets were", fix=fix)
        return own
    if plan is None or plan.text is None:
        raise SettingsError(f"{package}: holds no study", fix="name its file with --study")
    path = Path(plan.path) if plan.path else None
    if path is not None and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == plan.file_sha256:
        return path
    if plan.bases or hashlib.sha256(plan.text.encode()).hexdigest() != plan.file_sha256:
        raise SettingsError(
            f"{package}: its study rests on other files, or holds secrets that were not kept",
            fix="name the study's file with --study",
        )
    copy = out / (path.name if path else f"{slug(name)}.yaml")
    with writing(copy):
        out.mkdir(parents=True, exist_ok=True)
    write_text(copy, plan.text)
    return copy


def lines(record: ReproductionFile, measures: Sequence[Metric]) -> Iterator[str]:
    """The figures and the verdict, for a terminal."""
    for each, measure in zip(record.reproductions, measures, strict=True):
        yield ""
        yield f"{each.study}, {each.metric}, margin {each.margin:.3g}: {each.status}"
        if each.reference is not None:
            yield f"ratios are to {each.reference}, within each laboratory"
        for kind, title in TABLES.items():
            rows = [_row(figure, measure) for figure in each.figures if figure.kind == kind]
            if rows:
                yield from fitted_table([title, "theirs", "here", "here/theirs", "interval", "verdict"], rows, right=1)
        yield from (f"{figure.experiment}: {text}" for figure in each.figures if (text := _why(figure)))
        yield from (f"note: {text}" for text in each.notes)
    yield ""
    yield f"reproduction: {record.status}"


def _row(figure: Figure, measure: Metric) -> list[str]:
    unit = "" if figure.kind == "ratio" else f" {measure.unit}"
    values = [f"{significant(value)}{unit}" if value is not None else "-" for value in (figure.there, figure.here)]
    interval = f"{figure.low:.3f} to {figure.high:.3f}" if figure.low is not None and figure.high is not None else "-"
    factor = f"{figure.factor:.3f}" if figure.factor is not None else "-"
    return [figure.experiment, *values, factor, interval, figure.status]


def _why(figure: Figure) -> str:
    return "; ".join([*([figure.reason] if figure.reason else []), *(figure.differs if figure.kind == "level" else ())])
