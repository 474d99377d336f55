"""The paragraphs of a paper, as Markdown and LaTeX: how it was measured, and what the figures do not cover.

`command` calls it. Every sentence follows from a fact of the runs: where a fact is absent, so is its sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from statistics import median

from pytest_llem.job.metric_names import HEADLINE
from pytest_llem.results.axes import written
from pytest_llem.results.comparability import UNKNOWN_GAIN
from pytest_llem.results.impact import GRAMS, impacts, made_of
from pytest_llem.results.metrics import METRICS
from pytest_llem.results.preregister import deviations, verdict
from pytest_llem.results.publish.latex import document, escaped
from pytest_llem.results.repeatability import spreads
from pytest_llem.results.report.asked import study_facts
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.experiments import beyond_joules
from pytest_llem.results.report.markup import count
from pytest_llem.results.report.provenance import each_once, machine, measured, software, when
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.statistics import BETWEEN_RUNS
from pytest_llem.results.terminal import as_markdown, significant
from pytest_llem.results.uncertainty import ONE_RUN, budget_of_experiment

LEADS = {
    "Model": "The model is",
    "Engine": "The engine is",
    "Prompts": "Prompts:",
    "In front of each": "In front of each prompt stands",
    "Scored": "Answers are scored",
    "Lengths": "Lengths:",
    "Arrival": "Requests arrive by",
    "Decoding": "Decoding is",
    "Windows": "A cycle measures",
    "Loaded": "The engine reports",
}
"""How a sentence begins that says what a term of the report's "What was asked" means; others begin with the term."""
NEITHER = "discs, fans, losses of the power supply, cooling, or the network"
SCOPES = {
    "gpu_board": f"the boards of the GPUs that ran it, and not the host's CPUs and memory, {NEITHER}",
    "module": f"the module that GPU and CPU share, and not {NEITHER}",
    "cpu_package+dram": f"CPU packages and DRAM of the whole machine with all that runs, not accelerators, {NEITHER}",
    "cpu_package": f"CPU packages of the whole machine with all that runs, not memory, accelerators, {NEITHER}",
    "process_estimate": "what a model makes of the processes' CPU time, and no sensor was read",
}
"""What a joule of each scope covers (docs/energy.md)."""
ENOUGH_CYCLES = 3
"""Below it the scatter is known from one difference, or not at all."""


@dataclass(frozen=True)
class Paragraph:
    """A title, and sentences without their full stops."""

    title: str
    sentences: tuple[str, ...]

    @property
    def ended(self) -> list[str]:
        """The sentences with their full stops."""
        return [f"{sentence.rstrip('.')}." for sentence in self.sentences]


def methods(content: Content, baseline_dir: Path) -> list[Paragraph]:
    """How it was measured: each study, energy, what the cycles did, which were excluded, statistics, and machines."""
    return _with_text(
        [
            *(Paragraph(_title(content, study), tuple(_study(content, study))) for study in content.axes),
            Paragraph("Energy", tuple(_energy(content.results.valid))),
            Paragraph("Cycles", tuple(_cycles(content))),
            Paragraph("Exclusions", tuple(_exclusions(content))),
            Paragraph("Statistics", tuple(_statistics(content, baseline_dir))),
            Paragraph("Machine and software", tuple(_machines(content.results.valid))),
        ]
    )


def limitations(content: Content, baseline_dir: Path) -> list[Paragraph]:
    """What the figures do not cover, and what a reader must know of them."""
    return _with_text(
        [
            Paragraph("What a joule covers", tuple(_covered(content.results.valid))),
            Paragraph("Gain of the sensors", tuple(_gain(content.results.valid))),
            Paragraph("Number of cycles and runs", tuple(_few(content, baseline_dir))),
            Paragraph("Order", tuple(_order(content))),
            Paragraph("Temperature", tuple(_thermal(content.results.valid))),
            Paragraph("Deviations", tuple(_deviations(content))),
            Paragraph("Warnings of valid cycles", tuple(_warnings(content.results.valid))),
        ]
    )


def prose_as_markdown(title: str, paragraphs: Sequence[Paragraph]) -> str:
    """A heading, and one for each paragraph."""
    parts = [f"# {title}"]
    for each in paragraphs:
        parts += [f"## {as_markdown(each.title)}", " ".join(map(as_markdown, each.ended))]
    return "\n\n".join(parts) + "\n"


def prose_as_latex(paragraphs: Sequence[Paragraph]) -> str:
    """Paragraphs with run-in titles, to be `\\input` below a section's heading."""
    lines = []
    for each in paragraphs:
        lines += [rf"\paragraph{{{escaped(each.title)}}}", *map(escaped, each.ended), ""]
    return document(lines, [])


def _with_text(paragraphs: Iterable[Paragraph]) -> list[Paragraph]:
    return [each for each in paragraphs if each.sentences]


def _title(content: Content, study: str) -> str:
    plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
    return next((plan.title for plan in plans if plan.title), None) or f"Study {study}"


def _study(content: Content, study: str) -> Iterator[str]:
    rows = [row for row in content.experiments if row.study == study]
    axes = [axis for axis in content.axes[study].axes if len(axis.labels) > 1]
    if axes:
        varied = "; ".join(f"{axis.title} ({', '.join(map(written, axis.values))})" for axis in axes)
        yield f"Study {study} has {count(len({row.experiment for row in rows}), 'experiment')} and varies {varied}"
    plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
    yield from dict.fromkeys(
        f"Its settings raced in rounds of one cycle each, to {each.optimize}: a setting that could not be the best, or "
        "broke a limit, was measured no further, so that numbers of cycles differ by what was measured"
        for each in plans
        if each.optimize
    )
    yield from dict.fromkeys(
        f"It was registered at {each.registered_at} (SHA-256 {each.sha256}), with the rule: {each.rule}"
        for plan in plans
        if (each := plan.registration) is not None
    )
    for manifest in content.manifests.values():
        for plan in manifest.studies:
            if plan.name == study and plan.registration is None and any(each.registration for each in plans):
                yield f"Run {manifest.run_id} was not registered"
            elif plan.name == study and plan.registration is not None:
                found = deviations(plan.registration, manifest, plan)
                how = f"has {verdict(found)} from that: {'; '.join(found)}" if found else f"went {verdict(found)}"
                yield f"Run {manifest.run_id} {how}"
    results = content.results.of_study(study)
    for term, meaning in study_facts(plans, results, rows):
        if term != "Not run":
            yield f"{LEADS.get(term, f'{term}:')} {unescape(meaning)}"
    for carried in content.carried:
        if carried.study == study and carried.state != "unknown":
            yield f"In run {carried.run}, {carried.sentence}"
    report = beyond_joules(plans, rows)
    if said := made_of(report, {result.energy.scope for result in results.valid}):
        names = " and ".join("emissions" if each.name == GRAMS else "costs" for each in impacts(report))
        yield f"{names.capitalize()} are stated {said[0].lower()}{said[1:]}"


def _energy(valid: Sequence[Result]) -> Iterator[str]:
    yield from measured(valid)
    for source in dict.fromkeys(each.energy.source for each in valid if each.energy.source):
        yield f"The estimate's source is {source}"
    metered = [each for each in valid if each.energy.measured]
    estimators = {window.estimator for each in metered for window in each.energy.windows if window.name == MEASURE}
    if named := sorted(name for name in estimators if name):
        readings = [sum(w.samples for w in each.energy.windows if w.name == MEASURE) for each in metered]
        yield f"Energy of a window follows by {', '.join(named)}, of {median(readings):.0f} readings a cycle (median)"
    shares = [e.uncertainty_j / e.energy_j for each in metered if (e := each.energy).uncertainty_j and e.energy_j]
    if shares:
        yield f"The sensor's uncertainty of a cycle is {100 * median(shares):.2f} % (median, k = 2)"
    made = {(each.id, (each.made_at or "")[:10]) for of in metered for each in of.energy.calibrations}
    if made:
        named = [f"{id} of {day}" if day else id for id, day in sorted(made)]
        yield f"Sensors were calibrated: {', '.join(named)}"
    idle = [each.energy.idle_power_w for each in valid if each.energy.idle_power_w is not None]
    if idle:
        verb = "is" if all(each.energy.measured for each in valid) else "is taken to be"
        yield f"Idle power with the model loaded {verb} {_range(idle, 'W')}"


def _cycles(content: Content) -> Iterator[str]:
    valid = content.results.valid
    runs = sorted({each.run_id for each in content.results})
    experiments = count(len({(each.study, each.experiment.id) for each in valid}), "experiment")
    used = f"{count(len(valid), 'valid cycle')} of {experiments}"
    yield f"Values rest on {used} in {count(len(runs), 'run')} ({', '.join(runs)})"
    warm = [each.warmup for each in valid if each.warmup.repeats]
    if warm:
        repeats, seconds = [each.repeats for each in warm], [each.duration_s for each in warm]
        converged = sum(each.converged for each in warm)
        took = f"{_range(repeats, 'repeat' if max(repeats) == 1 else 'repeats')} and {_range(seconds, 's')}"
        yield f"Warm-ups took {took}, and {converged} of {len(warm)} converged"
    windows = [each.timing["measure_s"] for each in valid if each.timing.get("measure_s")]
    if windows:
        yield f"Measure windows took {_range([each for each in windows if each], 's')} a cycle"
    states = Counter(each.thermal.state for each in valid)
    if set(states) - {"unknown"}:
        told = ", ".join(f"{state} in {count(number, 'cycle')}" for state, number in sorted(states.items()))
        warmth = [each.thermal.temperature_c for each in valid if each.thermal.temperature_c is not None]
        yield f"The thermal state was {told}" + (f", at {_range(warmth, '°C')}" if warmth else "")
    reused = sum(each.source_run is not None for each in valid)
    if reused:
        yield f"{count(reused, 'cycle')} {'was' if reused == 1 else 'were'} taken over from an earlier run"


def _exclusions(content: Content) -> Iterator[str]:
    invalid = [each for each in content.results if not each.validity.valid]
    total = sum(row.total for row in content.experiments)
    codes = Counter(code for each in invalid for code in {reason.code for reason in each.validity.reasons})
    if invalid:
        told = ", ".join(f"{code} ({number})" for code, number in sorted(codes.items()))
        yield f"Excluded are {len(invalid)} of {count(total, 'cycle')}, which are not valid: {told}"
    states = Counter(item.state for item in content.problems if item.state != "invalid")
    for state, number in sorted(states.items()):
        yield f"{count(number, 'cycle')} ended {state}, without a result"
    items = [item for run in content.states for item in content.manifests[run].items]
    pending = sum(item.state in ("pending", "running") for item in items)
    if pending:
        yield f"{count(pending, 'planned cycle')} had not come to an end"
    if not invalid and not states and not pending:
        yield "No cycle was excluded"


def _statistics(content: Content, baseline_dir: Path) -> Iterator[str]:
    components = _components(content, baseline_dir)
    yield "Values are arithmetic means over the valid cycles of an experiment"
    if components:
        yield (
            "The expanded uncertainty of joules per output token (95.45 %, after JCGM 100:2008) combines, each "
            f"expanded by itself and in quadrature: {'; '.join(components)}. "
            "That of another value has the parts that concern it"
        )
    if "between runs, assumed" in components:
        yield f"For what runs differ by, a standard uncertainty of {100 * ONE_RUN:.1f} % is assumed"
    if max(Counter(row.study for row in content.experiments).values(), default=0) < 2:
        return
    yield (
        "Two settings are told apart by the 95 % interval of the ratio of their geometric means (Student's t on "
        "logarithms, Welch's and Satterthwaite's degrees of freedom, with bounds of sensor and thermal state)"
    )


def _components(content: Content, baseline_dir: Path) -> list[str]:
    """What the uncertainties of the studies' main figure consist of, the assumed ones last."""
    names: dict[str, None] = {}
    for group in _groups(content.results.valid):
        budget = budget_of_experiment(METRICS[HEADLINE], group, spreads(group, baseline_dir)(HEADLINE))
        names |= dict.fromkeys(part.name for part in budget.components if part.value is not None) if budget else {}
    return sorted(names, key=lambda name: name.endswith("assumed"))


def _groups(results: Iterable[Result]) -> list[list[Result]]:
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for each in results:
        groups.setdefault((each.run_id, each.study, each.experiment.id), []).append(each)
    return [*groups.values()]


def _machines(valid: Sequence[Result]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for each in valid:
        groups.setdefault((machine([each]), software([each])), []).append(each)
    for (where, what), group in groups.items():
        runs = f" (run {each_once([each.run_id for each in group])})" if len(groups) > 1 else ""
        yield f"{where or 'Machine: not told'}; {what}{runs}"
    yield when(valid)


def _covered(valid: Sequence[Result]) -> Iterator[str]:
    for scope in dict.fromkeys(each.energy.scope for each in valid if each.energy.scope):
        yield f"A joule covers {SCOPES.get(scope, f'what the meter calls {scope}')}"
    estimated = sum(not each.energy.measured and each.energy.meter != "none" for each in valid)
    if estimated:
        yield f"Energy of {estimated} of {count(len(valid), 'valid cycle')} was estimated and NOT measured"
    unmetered = sum(each.energy.meter == "none" for each in valid)
    if unmetered:
        yield f"No energy was measured in {count(unmetered, 'cycle')}"
    beside = sum(each.energy.host is not None for each in valid)
    if beside:
        yield f"CPU packages and DRAM were read beside it in {count(beside, 'cycle')}, and are in no sum"


def _gain(valid: Sequence[Result]) -> Iterator[str]:
    metered = [each.energy for each in valid if each.energy.measured]
    gains = {energy.gain_uncertainty_rel for energy in metered if energy.gain_uncertainty_rel is not None}
    if gains:
        yield (
            f"Each joule may be wrong by the sensor's gain error, up to ±{100 * max(gains):.2g} % (k = 2) and alike in "
            "all values of one board: no interval has it, and ratios of settings on one board do not depend on it"
        )
    if any(energy.gain_uncertainty_rel is None for energy in metered):
        yield (
            f"For some sensors no gain error is stated: intervals of absolute joules leave it out, and comparisons of "
            f"different boards assume ±{100 * UNKNOWN_GAIN:g} %"
        )
    boards = {device.id for energy in metered for device in energy.devices if device.leased and device.kind == "gpu"}
    if boards:
        yield f"All values are those of {count(len(boards), 'board')}: other boards of the kind may draw another power"


def _few(content: Content, baseline_dir: Path) -> Iterator[str]:
    run = " in a run" if len({row.run for row in content.experiments}) > 1 else ""
    few = len({(row.study, row.experiment) for row in content.experiments if 0 < row.valid < ENOUGH_CYCLES})
    if few:
        verb = "has" if few == 1 else "have"
        yield f"{count(few, 'experiment')} {verb} fewer than {ENOUGH_CYCLES} valid cycles{run}"
    none = len({(row.study, row.experiment) for row in content.experiments if not row.valid})
    if none:
        yield f"{count(none, 'experiment')} {'has' if none == 1 else 'have'} no valid cycle{run}, and so no value"
    if "between runs, assumed" in _components(content, baseline_dir):
        yield f"How much runs differ was not measured: two runs are assumed to, by {100 * BETWEEN_RUNS:g} %"


def _order(content: Content) -> Iterator[str]:
    for each in content.carried:
        if each.state == "unknown":
            yield f"Whether what ran before changes {each.metric} of what runs next is not known of run {each.run}"


def _thermal(valid: Sequence[Result]) -> Iterator[str]:
    cycles = [each for each in valid if each.runner.device_kind != "cpu"]
    for state, told in (("unsettled", "was not settled"), ("unknown", "is not known")):
        number = sum(each.thermal.state == state for each in cycles)
        if number:
            yield f"The die's temperature {told} in {number} of {count(len(cycles), 'cycle')}"


def _deviations(content: Content) -> Iterator[str]:
    for name, value in sorted({item for each in content.results for item in each.validity.thresholds.items()}):
        yield f"The study set the limit {name} to {value:g}, which is not its default"
    for study in content.axes:
        plans = [plan for each in content.manifests.values() for plan in each.studies if plan.name == study]
        for plan in plans[-1:]:
            if plan.left_out:
                why = each_once([point.reason for point in plan.left_out])
                yield f"{count(len(plan.left_out), 'point')} of the sweep of {study} were not run: {why}"
    confirming = sum(len(manifest.confirming) for manifest in content.manifests.values())
    if confirming:
        yield f"{count(confirming, 'cycle')} that confirmed a failed gate are in no value"


def _warnings(valid: Sequence[Result]) -> Iterator[str]:
    cycles: Counter[str] = Counter()
    messages: dict[str, Counter[str]] = {}
    for each in valid:
        for code in {note.code for note in each.warnings}:
            cycles[code] += 1
        for note in each.warnings:
            messages.setdefault(note.code, Counter())[note.message] += 1
    for code, number in sorted(cycles.items()):
        (message, _), *others = messages[code].most_common(2)
        example = "for example: " if others else ""
        yield f"{code} ({number} of {count(len(valid), 'cycle')}): {example}{message}"


def _range(values: Sequence[float], unit: str) -> str:
    ends = dict.fromkeys(
        significant(each) if isinstance(each, float) else f"{each}" for each in (min(values), max(values))
    )
    return f"{' to '.join(ends)} {unit}"
