"""pytest's hooks and options. Thin: it imports pytest and the standard library, the rest comes with the first study."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.session.stash import COLLECTED, REPORTING, RUN, SESSION, RunIdentity

pytest_plugins = ("pytest_llem.fixtures",)

INI_TWINS = {
    "llem_out": "directory of the artifacts (default: llem-results)",
    "llem_meter": "auto, a meter's name, or none",
    "llem_cycles": "cycles of every experiment, in place of the study's",
    "llem_order": "sequential, interleaved or shuffled, in place of the study's",
    "llem_strict": "true: inconclusive and not-comparable gates and invalid cycles fail instead of being skipped",
    "llem_baseline": "run directory, results file or saved baseline to gate against",
    "llem_baseline_dir": "where named baselines lie (default: llem-baselines under rootdir)",
    "llem_run": "always or explicit: whether plain pytest runs tests that need a result (default: always)",
}


MEASURED = "llem_measured"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group `llem` and their ini twins."""
    group = parser.getgroup("llem", "LLM-inference energy experiments")
    add = group.addoption
    add("--llem-study", action="append", default=[], metavar="FILE", help="study to collect (repeatable)")
    add("--llem-out", metavar="DIR", help="artifacts (default: llem-results)")
    add(
        "--llem-runner",
        action="append",
        default=[],
        metavar="SPEC",
        help="local, docker, docker:IMAGE, ray, ray:ADDRESS, or ENGINE=SPEC (repeatable)",
    )
    add("--llem-meter", metavar="NAME", help="auto, a meter's name, or none")
    add("--llem-cycles", type=_positive, metavar="N", help="cycles of every experiment")
    add("--llem-order", choices=("sequential", "interleaved", "shuffled"), help="order of the cycles")
    add("--llem-resume", action="store_true", help="reuse earlier valid results of the same settings and environment")
    add("--llem-baseline", metavar="REF", help="run directory, results file or saved baseline to gate against")
    add("--llem-save-baseline", metavar="NAME", help="save this run's results as a named baseline")
    add(
        "--llem-fail-if",
        action="append",
        default=[],
        metavar="METRIC:LIMIT",
        help="change against the baseline that fails, e.g. joules_per_output_token:5%% (repeatable)",
    )
    add("--llem-shard", metavar="K/N", help="only part K of N of every study, split by experiments and estimated time")
    add("--llem-shard-times", metavar="PATH", help="earlier runs whose times count for the split, equal for all shards")
    add("--llem-html", metavar="FILE", help="write a self-contained HTML report of this run")
    add("--llem-strict", action="store_true", help="fail where a gate cannot judge or a cycle is invalid")
    add("--llem-no-breaker", action="store_true", help="try every cycle, also after repeated failures of one cause")
    add("--llem-skip-preflight", action="store_true", help="skip preflight checks (recorded in every result)")
    for name, text in INI_TWINS.items():
        parser.addini(name, text, default=None)
    parser.addini("llem_runner", "where cycles run: one RUNNER or ENGINE=RUNNER per line", type="linelist", default=[])


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be 1 or more")
    return value


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Name the run and take in the studies; first, so that pytest's junitxml sees the run's path for its report."""
    config.addinivalue_line(
        "markers",
        "llem(**settings): an experiment's settings, for -m, e.g. -m \"llem(batch_size=4, dtype='bfloat16')\"",
    )
    config.addinivalue_line(
        "markers",
        "llem_study(path, allow_invalid=False): run this test once per cycle or experiment of a study (llem_result)",
    )
    _identify(config)
    if _names_studies(config):
        from pytest_llem.session.start import begin

        begin(config)
    elif any(value for name, value in vars(config.option).items() if name.startswith("llem_")):
        # A wrong option is a usage error here; later, in the middle of collection, it would be a traceback.
        from pytest_llem.session.start import checked

        checked(config)


def _identify(config: pytest.Config) -> None:
    """Say which run this process belongs to, once."""
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[RUN] = RunIdentity(worker_input["llem_run"], worker_input["workerid"])
    elif RUN not in config.stash:
        made = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        config.stash[RUN] = RunIdentity(f"{made}-{secrets.token_hex(4)}", None)


def names_study(argument: str) -> bool:
    """Whether a command-line argument is a study file, or a node id inside one."""
    return argument.partition("::")[0].endswith((".yaml", ".yml"))


def _names_studies(config: pytest.Config) -> bool:
    return bool(config.getoption("llem_study")) or any(names_study(argument) for argument in config.args)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Answer `-n auto` by the devices, where the command line names studies; before anything is configured."""
    if not _names_studies(config):
        return None
    _identify(config)
    from pytest_llem.session.xdist.workers import auto_workers

    return auto_workers(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which run it belongs to, and what it must refuse."""
    from pytest_llem.session.xdist.scheduling import why_unfit

    node.workerinput["llem_run"] = node.config.stash[RUN].id
    node.workerinput["llem_unfit"] = why_unfit(node.config)
    llem = node.config.stash.get(SESSION, None)
    if llem is not None:
        node.workerinput["llem_settled"] = llem.settled


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Begin in the controller when a worker's tests asked for a study that the command line does not name."""
    if SESSION not in node.config.stash and node.config.stash[RUN].lock.exists():
        from pytest_llem.session.xdist.controller import begin_late

        begin_late(node.config, ids)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Collect studies without looking for garbage among thousands of items that all stay."""
    if SESSION not in session.config.stash:
        return (yield)
    from pytest_llem.session.collection import without_garbage_collection

    with without_garbage_collection():
        return (yield)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a YAML file that was named on the command line."""
    if file_path.suffix in (".yaml", ".yml") and parent.session.isinitpath(file_path):
        from pytest_llem.session.collection import collect_study

        return collect_study(file_path, parent)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise whatever asks for an experiment or for one of its cycles."""
    if "llem_experiment" in metafunc.fixturenames:
        from pytest_llem.session.collection import parametrize

        parametrize(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the studies' order, and leave out tests that need a result where they are to be asked for explicitly."""
    llem = config.stash.get(SESSION, None)
    if llem is not None:
        config.stash[COLLECTED].restore_order(items)
        if llem.sharding is not None:
            llem.sharding.deselect(config, items)
    if llem is not None and llem.options.explicit:
        from pytest_llem.session.collection import deselect_unasked

        deselect_unasked(config, items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write down what will run, or show the plan when nothing will."""
    llem = session.config.stash.get(SESSION, None)
    if llem is not None:
        llem.collected(session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Begin what a cluster can measure before the items come to it."""
    llem = session.config.stash.get(SESSION, None)
    if llem is not None and not session.testsfailed and not session.config.getoption("setuponly", False):
        llem.prefetch(session.items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Release the runners; in the controller, write the run's manifest and summaries."""
    llem = session.config.stash.get(SESSION, None)
    if llem is not None:
        llem.close()
        if llem.run.worker is not None:
            session.config.workeroutput[MEASURED] = True  # type: ignore[attr-defined]
    if llem is not None and llem.sharding is not None and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        # The other shards have it all: an empty one has done its part.
        session.exitstatus = pytest.ExitCode.OK if llem.sharding.is_empty(llem.studies) else session.exitstatus
    reporting = session.config.stash.get(REPORTING, None)
    if reporting is not None and not reporting.finish() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if session.config.stash[RUN].in_controller:
        session.config.stash[RUN].lock.unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Report what an xdist worker's tests asked for, where no study was named: the controller collects nothing."""
    if getattr(node, "workeroutput", {}).get(MEASURED) and SESSION not in node.config.stash:
        from pytest_llem.session.start import begin

        begin(node.config)


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Print one row per experiment and where the artifacts are."""
    reporting = config.stash.get(REPORTING, None)
    if reporting is not None:
        reporting.summary()
