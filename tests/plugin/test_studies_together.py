"""Several studies in one run, wherever they lie, and users' tests that ask for their results."""

from __future__ import annotations

from pathlib import Path

import pytest

FAST = """\
name: {name}
engine: faulty
workload: {{prompts: 1, input_tokens: 4, output_tokens: 2}}
measurement: {{min_duration_s: 0.02, idle: {{duration_s: 0}}, warmup: {{max_repeats: 0}}}}
sweep:
  model: [{models}]
execution: {{cycles: {cycles}, retries: 0, timeout_s: 60}}
meter: none
"""


def write(path: Path, models: str = "none", cycles: int = 1) -> Path:
    path.write_text(FAST.format(name=path.stem, models=models, cycles=cycles))
    return path


def collected(result: pytest.RunResult) -> list[str]:
    return sorted(line for line in result.outlines if "::" in line)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def test_two_studies_run_side_by_side(pytester: pytest.Pytester) -> None:
    write(pytester.path / "one.yaml")
    write(pytester.path / "two.yaml", cycles=2)

    result = pytester.runpytest("--llem-study=one.yaml", "--llem-study=two.yaml")

    result.assert_outcomes(passed=3)
    [run] = (path.parent for path in pytester.path.glob("llem-results/*/run.json"))
    assert sorted(path.name for path in run.iterdir() if path.name in ("one", "two")) == ["one", "two"]


@pytest.mark.parametrize("spelling", ["{option}={path}", "{option} {path}"], ids=["equals sign", "space"])
def test_two_studies_outside_rootdir_are_told_apart_and_can_be_typed_back(
    pytester: pytest.Pytester, elsewhere: Path, spelling: str
) -> None:
    pytester.makeini("[pytest]\n")
    studies = [write(elsewhere / name) for name in ("one.yaml", "two.yaml")]
    arguments = [word for study in studies for word in spelling.format(option="--llem-study", path=study).split(" ")]

    result = pytester.runpytest(f"--rootdir={pytester.path}", *arguments, "--collect-only", "-q")

    ids = [f"{study}::test_experiment[model:none-c1]" for study in studies]
    assert collected(result) == ids
    again = pytester.runpytest(f"--rootdir={pytester.path}", ids[1], "--collect-only", "-q")
    assert collected(again) == ids[1:]


@pytest.mark.parametrize(("spelling", "warns"), [("={path}", False), (" {path}", True)], ids=["equals sign", "space"])
def test_a_study_that_moves_rootdir_is_warned_of(
    pytester: pytest.Pytester, elsewhere: Path, spelling: str, warns: bool
) -> None:
    study = write(elsewhere / "one.yaml")
    arguments = f"--llem-study{spelling.format(path=study)}".split(" ")

    result = pytester.runpytest(*arguments, "--collect-only")

    assert ("write --llem-study=" in result.stdout.str()) is warns
    assert (f"rootdir: {pytester.path}" in result.outlines) is not warns


def test_a_study_below_the_current_directory_moves_nothing(pytester: pytest.Pytester) -> None:
    write(pytester.path / "one.yaml")

    result = pytester.runpytest("--llem-study", "one.yaml", "--collect-only")

    assert "PytestConfigWarning" not in result.stdout.str()


def test_a_users_own_fixtures_and_parametrisation_go_together_with_a_result(pytester: pytest.Pytester) -> None:
    write(pytester.path / "study.yaml", cycles=2)
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(params=[10, 20])
        def limit(request):
            return request.param

        @pytest.mark.llem_study("study.yaml")
        @pytest.mark.parametrize("factor", [1, 2])
        def test_result(llem_result, limit, factor):
            assert llem_result.tokens.output * factor < limit * 100

        @pytest.mark.llem_study("study.yaml")
        def test_results(llem_results, tmp_path):
            assert [result.cycle for result in llem_results] == [1, 2]
        """
    )

    result = pytester.runpytest("-v")

    result.assert_outcomes(passed=2 * 2 * 2 + 1)
    assert len(list(pytester.path.glob("llem-results/*/study/*/c*/result.json"))) == 2, "each cycle is measured once"


def test_a_failed_cycle_is_an_error_of_the_test_that_asks_for_it(pytester: pytest.Pytester) -> None:
    """The test itself did not fail: what it needs could not be made."""
    write(pytester.path / "study.yaml", models="none, exception")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llem_study("study.yaml")
        def test_budget(llem_result):
            pass
        """
    )

    result = pytester.runpytest()

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at setup of test_budget?model:exception-c1?*", "*the faulty engine raised*"])


INVALID = """
import pytest

@pytest.mark.llem_study("study.yaml"{option})
def test_budget(llem_result):
    assert {expected}
"""


def test_an_experiment_without_a_valid_cycle_fails_the_test_unless_that_is_allowed(pytester: pytest.Pytester) -> None:
    """The engine runs another dtype than the study asks for: skipped alone, a run without any number was green."""
    study = write(pytester.path / "study.yaml", models="lies")
    study.write_text(study.read_text() + "dtype: float16\n")
    pytester.makepyfile(
        test_strict=INVALID.format(option="", expected="llem_result.validity.valid"),
        test_lenient=INVALID.format(option=", allow_invalid=True", expected="not llem_result.validity.valid"),
    )

    result = pytester.runpytest("-rs")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*no cycle of this experiment is valid; *invalid: effective_differs*"])


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [((), False), (("test_budget.py",), True), (("-k", "budget"), True), (("-m", "llem_study"), True)],
    ids=["plain", "by path", "by keyword", "by mark"],
)
def test_explicit_runs_such_tests_only_when_they_are_asked_for(
    pytester: pytest.Pytester, arguments: tuple[str, ...], runs: bool
) -> None:
    write(pytester.path / "study.yaml")
    pytester.makeini("[pytest]\nllem_run = explicit\n")
    pytester.makepyfile(
        test_budget="""
        import pytest

        @pytest.mark.llem_study("study.yaml")
        def test_budget(llem_result):
            pass

        def test_plain_budget():
            pass
        """
    )

    result = pytester.runpytest("--collect-only", "-q", *arguments)

    assert any("test_budget[model:none-c1]" in line for line in collected(result)) is runs


def test_an_experiments_own_tags_are_found_by_keyword(pytester: pytest.Pytester) -> None:
    (pytester.path / "study.yaml").write_text(
        "model: builtin:tiny-llama\ntags: [shared]\nexecution: {cycles: 1}\n"
        "experiments:\n  - {id: a, seed: 1, tags: [special]}\n  - {id: b, seed: 2}\n"
    )

    special = pytester.runpytest("--llem-study=study.yaml", "--collect-only", "-q", "-k", "special")
    shared = pytester.runpytest("--llem-study=study.yaml", "--collect-only", "-q", "-k", "shared")

    assert collected(special) == ["study.yaml::test_experiment[a-c1]"]
    assert len(collected(shared)) == 2
