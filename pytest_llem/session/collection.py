"""Turns studies into test items: ids, marks, keywords and order.

`start` calls it, at the start and from pytest's hooks. Users select by ids and keywords, so they must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from pytest_llem.errors import LlemError, SettingsError
from pytest_llem.session import study_tests
from pytest_llem.session.experiment_cycle import EXPERIMENT, ExperimentCycle, experiment_cycle_of
from pytest_llem.session.run import absolute, is_builtin, named, names_study, study_path
from pytest_llem.session.session import LlemSession
from pytest_llem.study import Experiment, Study
from pytest_llem.study.shipped import study_file

_BUILTIN: pytest.StashKey[Mapping[str, set[str]]] = pytest.StashKey()


class StudyFile(pytest.Module):
    """A study file, collected as if it were a test module that holds the shipped test functions."""

    llem: LlemSession
    study: Study
    only: frozenset[str] = frozenset()
    """Names of the tests, or of the functions, that the command line selects; empty for all."""

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
        missing = set(self.only)
        for node in super().collect():
            function = getattr(node, "originalname", node.name)
            selected = not self.only or not self.only.isdisjoint((node.name, function))
            missing -= {node.name, function}
            asked = {"test_gate": gated, "test_optimum": self.study.optimize is not None}.get(function, True)
            if selected and asked:
                yield node
        if missing:
            raise self.CollectError(f"{self.nodeid} has no test {', '.join(sorted(missing))}")


def collect_study(file_path: Path, parent: pytest.Collector, session: LlemSession) -> StudyFile:
    """The collector of a study; outside rootdir its node id is its absolute path, which can be typed back."""
    if file_path.is_relative_to(parent.config.rootpath):
        node: StudyFile = StudyFile.from_parent(parent, path=file_path)
    else:
        node = StudyFile.from_parent(parent, path=file_path, nodeid=file_path.as_posix())
    node.llem = session
    return node


def builtin_studies(config: pytest.Config) -> Mapping[str, set[str]]:
    """The studies of the package that the command line names, each with the tests selected; "" stands for all."""
    return config.stash.get(_BUILTIN, {})


def collect_builtin(parent: pytest.Session, session: LlemSession) -> Iterable[StudyFile]:
    """The collectors of the studies of the package that the command line names, `builtin:NAME` being their node ids.

    pytest would walk to their files through the environment's folders, and load what configures tests there.
    """
    for name, selected in builtin_studies(parent.config).items():
        node: StudyFile = StudyFile.from_parent(parent, path=study_file(name), nodeid=name)
        node.llem, node.only = session, frozenset() if "" in selected else frozenset(selected)
        yield node


def take_in_studies(config: pytest.Config) -> None:
    """Make `--llem-study` files arguments of pytest, in place of default test paths; paths inside one select in it.

    What names a study of the package is no path, so it is taken out of them, for `collect_builtin`.
    """
    named_studies: list[str] = config.getoption("llem_study")
    builtin: dict[str, set[str]] = {}
    for name, _, inside in (each.partition("::") for each in config.args if is_builtin(each)):
        _existing(config, name)
        builtin.setdefault(name, set()).add(inside)
    studies = []
    for name in named_studies:
        path = _existing(config, name)
        if is_builtin(name):
            builtin.setdefault(name, {""})
        else:
            studies.append(path)
    if not builtin and not studies:
        return
    config.stash[_BUILTIN] = builtin
    _warn_of_moved_rootdir(config, studies)
    typed = [each for each in config.args if not is_builtin(each)]
    given = typed if config.args_source is pytest.Config.ArgsSource.ARGS else []
    selected = {absolute(config, argument.partition("::")[0]) for argument in given}
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
    fix = "check the path; it is relative to the current directory"
    with named(f"--llem-study={name}", fix):
        path = study_path(config, name)
        if path.is_file():
            if not names_study(path.name):
                raise SettingsError("a study's name ends in .yaml or .yml")
            return path
    if path.exists():
        what = "this is a directory" if path.is_dir() else "not a regular file"
        raise pytest.UsageError(f"--llem-study={name}: {what}\nfix: name a study file")
    siblings = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = get_close_matches(path.name, siblings, n=1)
    if close:
        fix = f"did you mean {path.with_name(close[0])}?"
    raise pytest.UsageError(f"--llem-study={name}: no such file\nfix: {fix}")


def parametrize(metafunc: pytest.Metafunc, session: LlemSession) -> None:
    """Parametrise a test with the cycles or experiments of its study; skip what needs more devices than there are."""
    study = _study_of(metafunc.definition, session)
    try:
        reasons = session.beyond(study)
    except LlemError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    skips = {id: pytest.mark.skip(reason=reason) for id, reason in reasons.items()}
    in_study_file = metafunc.definition.getparent(StudyFile) is not None
    cycles: Iterable[tuple[Experiment, int | None]]
    if "llem_cycle" in metafunc.fixturenames:
        shard = session.options.shard
        among = None if shard is None else frozenset(shard.split(study).part(shard.index))
        cycles = study.schedule(study.last_cycle, among=among)
    else:
        cycles = [(each, None) for each in study.experiments if not in_study_file or session.gated(each)]
    parameters = [
        _parameter(study, experiment, cycle, step, skips)
        for experiment, cycle in cycles
        for step in _steps(experiment, in_study_file and cycle is not None)
    ]
    metafunc.parametrize(EXPERIMENT, parameters, indirect=True, scope="function")


def _steps(experiment: Experiment, windows: bool) -> Iterable[int | None]:
    """The windows of a search, which are items of their own in the study's file; a user's test is about its answer."""
    search = experiment.search if windows else None
    return (None,) if search is None else range(1, search.max_windows + 1)


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
    try:
        path = definition.path.parent / study_file(marker.args[0])
        if not path.is_file():
            raise SettingsError(
                f"{definition.nodeid}: no such study: {path}", fix="the path is relative to the test file"
            )
        return session.study(path)
    except LlemError as error:
        raise pytest.Collector.CollectError(str(error)) from None


def _parameter(
    study: Study,
    experiment: Experiment,
    cycle: int | None,
    step: int | None,
    skips: Mapping[str, pytest.MarkDecorator],
) -> object:
    keywords = experiment.keywords
    numbered = {name: value for name, value in (("cycle", cycle), ("step", step)) if value is not None}
    of_experiment = skips.get(experiment.id)
    words = _words(str(keywords["model"]), str(keywords["engine"]), experiment.tags)
    value = ExperimentCycle(study, experiment, cycle, words, step)
    marks = [pytest.mark.llem(**keywords, **numbered, id=value.id), *([of_experiment] if of_experiment else [])]
    return pytest.param(value, id=value.id if cycle is None else f"{value.id}-c{cycle}", marks=marks)


@lru_cache(maxsize=1024)
def _words(model: str, engine: str, tags: tuple[str, ...]) -> tuple[str, ...]:
    """One tuple for all items that share these words."""
    return (model, engine, *tags)


def add_words(items: Iterable[pytest.Item]) -> None:
    """Let `-k` match each item's model, engine and tags."""
    for item in items:
        value = experiment_cycle_of(item)
        if value is not None:
            item.extra_keyword_matches.update(value.words)


def let_reach_network(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Exempt items that measure from plugins that keep tests from sockets: servers and daemons are reached by them."""
    marks: list[pytest.MarkDecorator] = []
    if config.getoption("disable_socket", False) or config.getoption("allow_hosts", None):  # pytest-socket
        marks.append(pytest.mark.enable_socket)
    if config.getoption("block_network", False):  # pytest-recording
        marks.append(pytest.mark.block_network(allowed_hosts=[".*"]))
    for item in items if marks else ():
        if experiment_cycle_of(item) is not None:
            for mark in marks:
                item.add_marker(mark)


def restore_order(items: list[pytest.Item], collected: Sequence[pytest.Item]) -> None:
    """Put items of study files back in the order of collection: it is the study's own setting, not a shuffler's."""
    if items == list(collected):
        return
    positions = [position for position, item in enumerate(items) if isinstance(item.parent, StudyFile)]
    ours = {items[position] for position in positions}
    ordered = [item for item in collected if item in ours]
    for position, item in zip(positions, ordered, strict=True):
        items[position] = item


def deselect(
    config: pytest.Config, items: list[pytest.Item], unwanted: Callable[[ExperimentCycle | None], bool]
) -> None:
    """Deselect the items of unwanted experiments or cycles, or of whole studies (`None`); other tests stay."""
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        cycle = experiment_cycle_of(item)
        ours = cycle is not None or isinstance(item.parent, StudyFile)
        (others if ours and unwanted(cycle) else kept).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = kept
