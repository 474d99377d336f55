"""Turns studies into test items: ids, marks, keywords and order.

`start.StudyPlugin` calls it from pytest's hooks. Ids and keywords are what users select by, so they do not change.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.session import study_tests
from pytest_llem.session.experiment_cycle import EXPERIMENT, ExperimentCycle, experiment_cycle_of

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession
    from pytest_llem.study import Experiment, Study
    from pytest_llem.study.model import Keyword

CYCLE = "llem_cycle"

Skips = Mapping[str, tuple[pytest.MarkDecorator, ...]]


class StudyFile(pytest.Module):
    """A study file, collected as if it were a test module that holds the shipped test functions."""

    llem: LlemSession
    study: Study

    def _getobj(self) -> ModuleType:
        # The one private touch: a Module whose module is not the file itself. See tests/plugin/test_items.py.
        return study_tests

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Load the study and collect its items; a wrong study is a collection error that names file, line and key."""
        try:
            self.study = self.llem.study(self.path)
            self.llem.require_engines(self.study)
        except LlemError as error:
            raise self.CollectError(str(error)) from None
        gated = any(self.llem.gated(experiment) for experiment in self.study.experiments)
        for node in super().collect():
            if gated or getattr(node, "originalname", None) != "test_gate":
                yield node


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off, and leave what there is at the end out of later collections (`gc.freeze`).

    Thousands of items are created at once and all stay; collections among them cost a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def collect_study(file_path: Path, parent: pytest.Collector, session: LlemSession) -> StudyFile:
    """The collector of a study; outside rootdir its node id is its absolute path, which can be typed back."""
    if file_path.is_relative_to(parent.config.rootpath):
        node: StudyFile = StudyFile.from_parent(parent, path=file_path)
    else:
        node = StudyFile.from_parent(parent, path=file_path, nodeid=file_path.as_posix())
    node.llem = session
    return node


def take_in_studies(config: pytest.Config) -> None:
    """Make the studies of `--llem-study` arguments of pytest.

    With no path given they replace the default test paths; a path that lies inside a study selects within it.
    """
    studies = [_existing(config, name) for name in config.getoption("llem_study")]
    if not studies:
        return
    _warn_of_moved_rootdir(config, studies)
    given = list(config.args) if config.args_source is pytest.Config.ArgsSource.ARGS else []
    invocation = config.invocation_params.dir
    selected = {(invocation / argument.partition("::")[0]).resolve() for argument in given}
    config.args = given + [str(study) for study in dict.fromkeys(studies) if study not in selected]
    config.args_source = pytest.Config.ArgsSource.ARGS


def _warn_of_moved_rootdir(config: pytest.Config, studies: Iterable[Path]) -> None:
    """pytest reads `--llem-study FILE` before it knows the option, and takes FILE for a path that decides rootdir."""
    here = config.invocation_params.dir
    words = list(config.invocation_params.args)
    spaced = {(here / after).resolve() for word, after in pairwise(words) if word == "--llem-study"}
    outside = [study for study in studies if study in spaced and not study.is_relative_to(here)]
    if not outside or config.getoption("rootdir") or config.getoption("inifilename"):
        return
    decided_here = config.inipath is not None and here.is_relative_to(config.inipath.parent)
    if config.rootpath != here and not decided_here:
        config.issue_config_time_warning(
            pytest.PytestConfigWarning(
                f"rootdir is {config.rootpath}, because pytest took {outside[0]} for a test path: "
                f"write --llem-study={outside[0]} with an equals sign, or give --rootdir"
            ),
            stacklevel=2,
        )


def _existing(config: pytest.Config, name: str) -> Path:
    path = (config.invocation_params.dir / name).resolve()
    if path.is_file():
        return path
    if path.is_dir():
        raise pytest.UsageError(f"--llem-study={name}: this is a directory\nfix: name a study file in it")
    siblings = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = get_close_matches(path.name, siblings, n=1)
    fix = (
        f"did you mean {path.with_name(close[0])}?"
        if close
        else "check the path; it is relative to the current directory"
    )
    raise pytest.UsageError(f"--llem-study={name}: no such file\nfix: {fix}")


def parametrize(metafunc: pytest.Metafunc, session: LlemSession) -> None:
    """Parametrise a test with a study's cycles or experiments: its own study file's, or its `llem_study` marker's."""
    study = _study_of(metafunc.definition, session)
    in_study_file = metafunc.definition.getparent(StudyFile) is not None
    beyond = _beyond(session, study)
    if CYCLE in metafunc.fixturenames:
        parameters = _cycles(study, beyond)
    else:
        parameters = _experiments(
            study, beyond, [each for each in study.experiments if not in_study_file or session.gated(each)]
        )
    metafunc.parametrize(EXPERIMENT, list(parameters), indirect=True, scope="function")


def _study_of(definition: pytest.Function, session: LlemSession) -> Study:
    file = definition.getparent(StudyFile)
    if file is not None:
        return file.study
    marker = definition.get_closest_marker("llem_study")
    if marker is None or len(marker.args) != 1:
        raise pytest.Collector.CollectError(
            f"{definition.nodeid}: a test that asks for a result needs a study\n"
            'fix: mark it with @pytest.mark.llem_study("FILE.yaml"), a path relative to the test file'
        )
    unknown = sorted(set(marker.kwargs) - {"allow_invalid"})
    if unknown:
        raise pytest.Collector.CollectError(
            f"{definition.nodeid}: the llem_study marker has no option {unknown[0]!r}\nfix: it knows allow_invalid=True"
        )
    path = definition.path.parent / marker.args[0]
    if not path.is_file():
        raise pytest.Collector.CollectError(
            f"{definition.nodeid}: no such study: {path}\nfix: the path is relative to the test file"
        )
    try:
        return session.study(path.resolve())
    except LlemError as error:
        raise pytest.Collector.CollectError(str(error)) from None


def _cycles(study: Study, beyond: Skips) -> Iterator[object]:
    llem = pytest.mark.llem
    execution = study.execution
    optional = execution.max_cycles if execution.target_ci is not None else 0
    for experiment, cycle in study.schedule(max(execution.cycles, optional)):
        keywords, id = experiment.keywords, experiment.id
        marks = llem(**keywords, cycle=cycle, id=id), *beyond.get(id, ())
        value = ExperimentCycle(study, experiment, cycle, _words(keywords, experiment))
        yield pytest.param(value, id=f"{id}-c{cycle}", marks=marks)


def _experiments(study: Study, beyond: Skips, experiments: Iterable[Experiment]) -> Iterator[object]:
    for experiment in experiments:
        keywords, id = experiment.keywords, experiment.id
        marks = pytest.mark.llem(**keywords, id=id), *beyond.get(id, ())
        value = ExperimentCycle(study, experiment, words=_words(keywords, experiment))
        yield pytest.param(value, id=id, marks=marks)


def _words(keywords: Mapping[str, Keyword], experiment: Experiment) -> tuple[str, ...]:
    return _same_words(str(keywords["model"]), str(keywords["engine"]), experiment.tags)


@lru_cache(maxsize=1024)
def _same_words(model: str, engine: str, tags: tuple[str, ...]) -> tuple[str, ...]:
    return (model, engine, *tags)


def _beyond(session: LlemSession, study: Study) -> Skips:
    """Skip marks of the experiments that need more devices than this machine has, by experiment id."""
    try:
        reasons = session.beyond(study)
    except LlemError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    return {id: (pytest.mark.skip(reason=reason),) for id, reason in reasons.items()}


class CollectionOrder:
    """The items in the order of collection, taken before any other plugin changes it."""

    def __init__(self) -> None:
        self._items: Sequence[pytest.Item] = ()

    @contextmanager
    def remembered(self, items: list[pytest.Item]) -> Iterator[None]:
        """Remember the order during a `with` block, and let `-k` match each item's model, engine and tags."""
        self._items = tuple(items)
        for item in items:
            value = experiment_cycle_of(item)
            if value is not None:
                item.extra_keyword_matches.update(value.words)
        try:
            yield
        finally:
            self._items = ()

    def restore(self, items: list[pytest.Item]) -> None:
        """Put items of study files back in the order of collection, at the positions that they hold together.

        Plugins that shuffle tests do so before any other plugin changes the list; the order of cycles is a study's own
        setting and part of the record. What reorders later (`--ff`, a plugin that sorts) does so on purpose.
        """
        if tuple(items) == self._items:
            return
        positions = [position for position, item in enumerate(items) if isinstance(item.parent, StudyFile)]
        ours = {items[position] for position in positions}
        ordered = [item for item in self._items if item in ours]
        for position, item in zip(positions, ordered, strict=True):
            items[position] = item


def deselect(config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[ExperimentCycle], bool]) -> None:
    """Deselect the items of unwanted experiments or cycles; tests without an experiment stay."""
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        cycle = experiment_cycle_of(item)
        (kept if cycle is None or not unwanted(cycle) else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = kept
