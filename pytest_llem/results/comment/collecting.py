"""Collects what a comment says of a run: its verdicts, or those against another baseline, and the history behind them.

The verb `llem comment` calls it. It reads runs, studies and histories, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.baselines import Baseline, required_cycles
from pytest_llem.results.comment.content import HISTORY_OPTION, Comment, series_key
from pytest_llem.results.compared_sides import ComparedExperiment, side_of
from pytest_llem.results.gate_report import GateReport, read_gates
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.history.series import Segment, series
from pytest_llem.results.judging import judge_comparison
from pytest_llem.results.layout import MANIFEST, runs_at
from pytest_llem.results.manifest import Manifest, StudyPlan, current_manifest
from pytest_llem.results.reading import load
from pytest_llem.results.whole_runs import whole_runs
from pytest_llem.study import load_study

NO_PROBLEM = ("valid", "pending")
"""States of cycles that lack nothing: what was not begun was not asked for, or stands behind what failed."""


def collect(
    path: Path, baseline: str | None = None, history: Path | None = None, baseline_dir: Path = Path(), name: str = ""
) -> Comment:
    """What to say of the run at `path`, its shards together; of a folder of runs, the newest.

    With `baseline` the run is judged against that by its study's limits, in place of the comparisons that its gates
    made. `history` defaults to the one among its options. Raises `StoreError` where there is no run.
    """
    manifests = {manifest.run_id: (run, manifest) for run in runs_at(path) for manifest in [current_manifest(run)]}
    if not manifests:
        raise StoreError(f"{path}: no run", fix=f"name a run's directory, which has a {MANIFEST}")
    parts = [manifests[part.run_id] for part in whole_runs([manifest for _, manifest in manifests.values()])[-1]]
    gates = [gate for run, _ in parts for gate in read_gates(run)]
    if baseline is not None:
        known = open_baseline(baseline, baseline_dir)
        gates = [gate for run, manifest in parts for gate in _judged(run, manifest.studies, known, gates)]
    first = parts[0][1]
    options = first.invocation.command if first.invocation is not None else ()
    folder = history or next(
        (Path(word.removeprefix(HISTORY_OPTION)) for word in options if word.startswith(HISTORY_OPTION)), None
    )
    kept = read_history(folder).entries if folder is not None and (history or folder.is_dir()) else ()
    own = {manifest.run_id for _, manifest in parts}
    others = [entry for entry in kept if entry.run.run_id not in own]
    git = first.environment.get("git")
    commit = git.get("commit") if isinstance(git, Mapping) else None
    items = [item for _, manifest in parts for item in manifest.items]
    studies = dict.fromkeys(plan.name for _, manifest in parts for plan in manifest.studies)
    return Comment(
        name=name or ", ".join(studies),
        run_id=first.run_id,
        gates=tuple(gates),
        problems=tuple(
            f"{item.key}: {item.state}" + (f" ({', '.join(item.reasons)})" if item.reasons else "")
            for item in items
            if item.state not in NO_PROBLEM
        ),
        cycles=len(items),
        command=_as_typed(first),
        commit=commit if isinstance(commit, str) else None,
        history_branch=_branch(folder) if folder is not None else None,
        series=dict(_series(gates, others)),
    )


def _judged(
    run: Path, plans: Sequence[StudyPlan], baseline: Baseline, before: Sequence[GateReport]
) -> Iterator[GateReport]:
    """The run's experiments against a baseline by the limits of their studies, beside the budgets judged `before`."""
    side = side_of(run.name, required_cycles(run, load(run)))
    budgets = {
        (gate.study, gate.experiment_id): tuple(row for row in gate.rows if row.kind == "budget") for gate in before
    }
    for plan in plans:
        file = Path(plan.path or "")
        if not file.is_file():
            raise StoreError(
                f"{file}: no such file: the limits of study {plan.name} are in it",
                fix="run this where the study is, or leave out --baseline: the run's own verdicts are shown then",
            )
        planned = {cycle.experiment_id: cycle.config_hash for cycle in plan.cycles}
        for experiment in load_study(file).experiments:
            compare, of = experiment.gates.compare, (plan.name, experiment.id)
            if experiment.id not in planned:
                continue
            each = side.experiments.get(of, ComparedExperiment(planned[experiment.id], ()))
            rows = list(budgets.get(of, ()))
            named = None
            if compare is not None and compare.fail_if:
                full = *of, each.config_hash
                rows += judge_comparison(baseline, full, each.runs[-1] if each.runs else None, each.lost, compare)
                named = baseline.named(*full, by_id=compare.match == "id")
            if rows:
                yield GateReport(*of, tuple(rows), strict=False, baseline=named)


def _series(gates: Sequence[GateReport], entries: Sequence[HistoryEntry]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Earlier values of each judged metric and this run's, by `series_key`, of the runs that may be compared."""
    of_metric = {
        metric: {(each.study, each.experiment_id): each.segments for each in series(entries, metric)}
        for metric in {row.metric for gate in gates for row in gate.rows}
    }
    for gate in gates:
        for row in gate.rows:
            segments = of_metric[row.metric].get((gate.study, gate.experiment_id))
            if segments and row.current is not None and row.status != "not_comparable":
                earlier = _comparable(segments, gate).entries
                values = (*(entry.metrics[row.metric].value for entry in earlier), row.current)
                yield series_key(gate.study, gate.experiment_id, row.metric), values


def _comparable(segments: Sequence[Segment], gate: GateReport) -> Segment:
    """The segment with runs of the gate's baseline, else the one that was added to last."""
    held = {run.run_id for run in gate.baseline.runs} if gate.baseline is not None else set()
    with_baseline = [each for each in segments if any(entry.run.run_id in held for entry in each.entries)]
    return max(with_baseline or segments, key=lambda segment: segment.entries[-1].run.at)


def _as_typed(manifest: Manifest) -> tuple[str, ...]:
    """The command line as somebody else would type it: the program without its folder, paths from the root."""
    if manifest.invocation is None:
        return ()
    program, *options = manifest.invocation.command
    root = f"{manifest.invocation.rootdir.rstrip('/')}/"
    return (Path(program).name, *(option.replace(root, "") for option in options))


def _branch(folder: Path) -> str | None:
    """The branch that is checked out in a folder, where that is a clone."""
    head = folder / ".git" / "HEAD"
    text = head.read_text(encoding="utf-8", errors="replace").strip() if head.is_file() else ""
    return text.removeprefix("ref: refs/heads/") if text.startswith("ref: refs/heads/") else None
