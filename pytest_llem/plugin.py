"""pytest's entry point: options, ini settings, and the hooks that must be there before any study is met.

pytest loads it in every run, so it must import little; `fixtures` calls `started`. Names of options and ini settings
are public. Everything else is in `session/start.py`, imported once a study is named or a test asks for a result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.session.run import STUDY_PLUGIN, names_studies, run_identity, without_garbage_collection

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession
    from pytest_llem.session.start import StudyPlugin

pytest_plugins = ("pytest_llem.fixtures",)

INI_TWINS = {
    "llem_out": "directory of the artifacts (default: llem-results)",
    "llem_meter": "auto, a meter's name, or none",
    "llem_device": "auto, cpu, cuda or rocm: the kind of device of experiments that leave device.kind auto",
    "llem_cycles": "cycles of every experiment, in place of the study's",
    "llem_order": "sequential, interleaved, shuffled or balanced, in place of the study's",
    "llem_strict": "true: inconclusive and not-comparable gates and invalid cycles fail instead of being skipped",
    "llem_baseline": "run directory, results file, saved baseline or history:DIR to gate against",
    "llem_baseline_dir": "where named baselines lie (default: llem-baselines under rootdir)",
    "llem_run": "always or explicit: whether plain pytest runs tests that need a result (default: always)",
}

MEASURED = "llem_measured"
"""The key by which an xdist worker reports that it met a study."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group `llem` and their ini twins."""
    if sys.stdout is None:  # closed: pytest fails with it, and the next file that is opened would get the output
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    group = parser.getgroup("llem", "LLM-inference energy experiments")
    add = group.addoption
    add(
        "--llem-study",
        action="append",
        default=[],
        metavar="FILE",
        help="study to collect, or builtin:NAME (repeatable)",
    )
    add("--llem-out", metavar="DIR", help="artifacts (default: llem-results)")
    add(
        "--llem-runner",
        action="append",
        default=[],
        metavar="SPEC",
        help="local, docker, docker:IMAGE, ray, ray:ADDRESS, or ENGINE=SPEC (repeatable)",
    )
    add("--llem-meter", metavar="NAME", help="auto, a meter's name, or none")
    add(
        "--llem-device",
        choices=("auto", "cpu", "cuda", "rocm"),
        help="kind of device of experiments that leave device.kind auto; those that name another are skipped",
    )
    add("--llem-cycles", type=_positive, metavar="N", help="cycles of every experiment")
    add("--llem-order", choices=("sequential", "interleaved", "shuffled", "balanced"), help="order of the cycles")
    add("--llem-resume", action="store_true", help="reuse earlier valid results of the same settings and environment")
    add(
        "--llem-baseline",
        metavar="REF",
        help="run directory, results file, saved baseline or history:DIR to gate against",
    )
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


def registered(config: pytest.Config) -> StudyPlugin | None:
    """The plugin object of this process; `None` while no study is named and no test has asked for a result."""
    plugin: StudyPlugin | None = config.pluginmanager.get_plugin(STUDY_PLUGIN)
    return plugin


def started(config: pytest.Config) -> StudyPlugin:
    """The plugin object of this process, set up by the first call."""
    plugin = registered(config)
    if plugin is None:
        with without_garbage_collection():
            from pytest_llem.session.start import start

            plugin = start(config)
    return plugin


def _validated_session(config: pytest.Config) -> LlemSession:
    from pytest_llem.session.start import validated_session

    return validated_session(config)


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
    run_identity(config)
    if names_studies(config):
        started(config)
    elif _settings_given(config):
        # A wrong setting is a usage error here; what only a study finds wrong is an error of collection.
        _validated_session(config)


def _settings_given(config: pytest.Config) -> bool:
    names = (*INI_TWINS, "llem_runner")
    return (
        any(value for name, value in vars(config.option).items() if name.startswith("llem_"))
        or any(config.getini(name) or os.environ.get(name.upper()) for name in names)
        or any(name.startswith("LLEM_RUNNER_") for name in os.environ)
    )


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Answer `-n auto` by the devices, where the command line names studies; before anything is configured."""
    if not names_studies(config) or os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):  # the user's answer to xdist
        return None
    return _validated_session(config).auto_workers()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which run it belongs to, and why it must refuse studies, if it must."""
    from pytest_llem.session.xdist.scheduling import scheduling_problem

    node.workerinput["llem_run"] = run_identity(node.config).for_workers()
    node.workerinput["llem_refusal"] = scheduling_problem(node.config)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Start in the controller when a worker's tests asked for a study that the command line does not name."""
    if registered(node.config) is None and run_identity(node.config).lock.exists():
        started(node.config).started_late(ids)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a YAML file that was named on the command line."""
    if file_path.suffix in (".yaml", ".yml") and parent.session.isinitpath(file_path):
        return started(parent.config).collect_study(file_path, parent)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise whatever asks for an experiment or for one of its cycles."""
    if "llem_experiment" in metafunc.fixturenames:
        try:
            plugin = started(metafunc.config)
        except pytest.UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from None
        plugin.parametrize(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select and order the items; here, after the hooks of plugins that shuffle, which are registered later."""
    plugin = registered(config)
    if plugin is not None:
        plugin.select(items)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Conclude the run after others' reports, also if one cannot be written; a worker tells its controller of it."""
    plugin, run = registered(session.config), run_identity(session.config)
    try:
        yield
    except OSError as problem:
        if plugin is None or plugin.reporting is None:
            raise
        plugin.reporting.lost(problem)
    if plugin is not None:
        plugin.finish(session)
        if run.worker is not None:
            session.config.workeroutput[MEASURED] = True  # type: ignore[attr-defined]
    if run.in_controller:
        run.lock.unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Report what an xdist worker's tests asked for, where no study was named: the controller collects nothing."""
    if getattr(node, "workeroutput", {}).get(MEASURED):
        started(node.config)
