"""`builtin:NAME` in pytest's command line, from a folder that holds nothing. Nothing is measured here."""

from __future__ import annotations

import pytest

ITEM = "builtin:quickstart::test_experiment[batch_size:4-dtype:bfloat16-c2]"


def collected(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    result = pytester.runpytest(*arguments, "--collect-only", "-q")
    assert result.ret == 0, result.outlines
    return [line for line in result.outlines if "::" in line]


def test_its_node_ids_can_be_typed_back(pytester: pytest.Pytester) -> None:
    """As paths they were those of the environment's folders, which pytest walks through and takes conftest from."""
    items = collected(pytester, "--llem-study=builtin:quickstart")

    assert len(items) == 12
    assert ITEM in items
    assert collected(pytester, "--llem-study=builtin:quickstart", ITEM) == [ITEM]
    assert collected(pytester, "builtin:quickstart", "-k", "bfloat16 and c1 and batch_size:1") == [
        ITEM.replace(":4", ":1").replace("c2", "c1")
    ]


def test_it_goes_with_other_studies_and_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_own="def test_mine(): pass")
    (pytester.path / "own.yaml").write_text("base: builtin:quickstart\nname: own\nexecution: {cycles: 1}\n")

    items = collected(pytester, "--llem-study=builtin:quickstart", "--llem-study=own.yaml", "test_own.py")

    assert [sum(item.startswith(file) for item in items) for file in ("builtin:", "own.yaml", "test_own")] == [12, 4, 1]


def test_a_marker_may_name_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llem_study("builtin:quickstart")
        def test_mine(llem_results): pass
        """
    )
    assert len(collected(pytester)) == 4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("builtin:zzz::test_experiment", "fix: use one of: *builtin:quickstart*"),
        ("builtin:quickstart::test_nope", "*builtin:quickstart has no test test_nope*"),
    ],
)
def test_what_there_is_not_is_said(pytester: pytest.Pytester, argument: str, message: str) -> None:
    result = pytester.runpytest(argument, "--collect-only")

    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    # Usage errors go to standard error, those of collection into the report.
    pytest.LineMatcher([*result.errlines, *result.outlines]).fnmatch_lines([message])
