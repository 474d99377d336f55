"""What collecting large studies must not cost: modules that only measuring, loading or data needs, order, selection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFTEST = """
import json, sys
from pathlib import Path

def pytest_collection_finish(session):
    name = getattr(session.config, "workerinput", {"workerid": "alone"})["workerid"]
    Path(f"modules-{name}.json").write_text(json.dumps(sorted(sys.modules)))
"""
NOT_FOR_ORDINARY_VALUES = {"pydantic", "pytest_llem.job.measurement"}
ONLY_FOR_LOADING = {"pydantic", "yaml", "pytest_llem.study.loader"}
ONLY_FOR_MEASURING = {
    "docker",
    "pyarrow",
    "urllib.request",
    "pytest_llem.machine.parquet",
    "pytest_llem.session.measuring",
    "pytest_llem.results.store",
}
DATA = ("arrivals", "harness", "rows", "tasks", "texts", "traffic", "traces")
ONLY_FOR_DATA = {"lm_eval", *(f"pytest_llem.workload.{name}" for name in DATA)}


def test_collection_imports_nothing_that_only_measuring_needs_and_workers_load_nothing(
    pytester: pytest.Pytester, sweep: Path
) -> None:
    """A client for the hub, imported for a name, made every process of a large study slower by a fifth.

    Readers of data sets, which this study has none of, were imported as well.
    """
    pytester.makeconftest(CONFTEST)
    alone = pytester.runpytest_subprocess("--llem-study=small.yaml", "--collect-only", "-q")
    shared = pytester.runpytest_subprocess("--llem-study=small.yaml", "-n1", "-k", "nothing", "--llem-skip-preflight")

    assert (alone.ret, shared.ret) == (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    loaded = {name: set(json.loads((pytester.path / f"modules-{name}.json").read_text())) for name in ("alone", "gw0")}
    assert loaded["alone"] & (ONLY_FOR_MEASURING | ONLY_FOR_DATA | NOT_FOR_ORDINARY_VALUES) == set()
    assert loaded["gw0"] & (ONLY_FOR_MEASURING | ONLY_FOR_LOADING) == set()


def test_a_baseline_is_read_without_what_only_measuring_needs(pytester: pytest.Pytester, sweep: Path) -> None:
    """The run's store, imported to look whether a baseline exists, cost each process of a dry run half a second."""
    pytester.makeconftest(CONFTEST)
    pytester.mkdir("llem-baselines").joinpath("main").mkdir()
    path = pytester.path / "llem-baselines" / "main" / "small.json"
    path.write_text('{"study": "small", "experiments": {}, "schema_version": 1}')
    result = pytester.runpytest_subprocess("--llem-study=small.yaml", "--llem-baseline=main", "--collect-only", "-q")

    assert result.ret == pytest.ExitCode.OK
    loaded = set(json.loads((pytester.path / "modules-alone.json").read_text()))
    assert loaded & ONLY_FOR_MEASURING == set()


def test_what_was_left_out_of_garbage_collection_comes_back(pytester: pytest.Pytester, sweep: Path) -> None:
    """Frozen items of one pytest run would stay in the memory of a process that calls pytest again and again."""
    script = pytester.makepyfile(
        """
        import gc, pytest

        assert pytest.main(["--llem-study=small.yaml", "--collect-only", "-q"]) == 0
        assert gc.get_freeze_count() == 0
        assert gc.isenabled()
        """
    )

    assert pytester.runpython(script).ret == 0
