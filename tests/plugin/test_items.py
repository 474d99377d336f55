"""Studies as test items: ids, selection and collection, as a user of pytest expects them. Nothing is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

IDS = [
    f"small.yaml::test_experiment[batch_size:{size}-dtype:{dtype}-c{cycle}]"
    for size in (1, 2, 16)
    for dtype in ("float32", "bfloat16")
    for cycle in (1, 2)
]


def collected(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line]


def test_items_are_named_by_what_distinguishes_them(pytester: pytest.Pytester, sweep: Path) -> None:
    result = pytester.runpytest("--llem-study=small.yaml", "--collect-only", "-q")
    assert sorted(collected(result)) == sorted(IDS)
    assert result.ret == 0


def test_a_study_given_by_option_replaces_the_default_test_paths(pytester: pytest.Pytester, sweep: Path) -> None:
    pytester.makepyfile(test_other="def test_other(): pass")
    pytester.makeini("[pytest]\ntestpaths = .")
    assert len(collected(pytester.runpytest("--llem-study=small.yaml", "--collect-only", "-q"))) == len(IDS)
    both = collected(pytester.runpytest("--llem-study=small.yaml", "test_other.py", "--collect-only", "-q"))
    assert len(both) == len(IDS) + 1


def test_a_study_can_be_named_as_a_plain_path(pytester: pytest.Pytester, sweep: Path) -> None:
    assert sorted(collected(pytester.runpytest("small.yaml", "--collect-only", "-q"))) == sorted(IDS)


def test_a_directory_of_yaml_files_is_not_a_study(pytester: pytest.Pytester) -> None:
    pytester.makefile(".yaml", config="services: {web: {image: nginx}}")
    pytester.makepyfile("def test_other(): pass")
    result = pytester.runpytest("--collect-only", "-q")
    assert collected(result) == ["test_a_directory_of_yaml_files_is_not_a_study.py::test_other"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["-m", "llem(batch_size=1)"], 4),
        (["-m", "llem(batch_size=1, dtype='bfloat16')"], 2),
        (["-m", "llem(engine='transformers')"], 12),
        (["-m", "llem(cycle=2) and not llem(batch_size=16)"], 4),
        (["-m", "llem(id='batch_size:2-dtype:float32')"], 2),
        (["-k", "bfloat16 and c1"], 3),
        (["-k", "batch_size:1-"], 4),
        (["-k", "batch_size:1"], 8),
        (["-k", "tiny-llama"], 12),
        (["-k", "transformers"], 12),
    ],
)
def test_selection_by_marker_is_exact_and_by_keyword_a_substring(
    pytester: pytest.Pytester, sweep: Path, arguments: list[str], count: int
) -> None:
    result = pytester.runpytest("--llem-study=small.yaml", "--collect-only", "-q", "--strict-markers", *arguments)
    assert len(collected(result)) == count


def test_a_node_id_beside_the_option_selects_within_the_study(pytester: pytest.Pytester, sweep: Path) -> None:
    result = pytester.runpytest("--llem-study=small.yaml", IDS[3], "--collect-only", "-q")
    assert collected(result) == [IDS[3]]
    result = pytester.runpytest(IDS[3], "--collect-only", "-q")
    assert collected(result) == [IDS[3]]


def test_a_study_outside_rootdir_has_a_node_id_that_can_be_typed_back(
    pytester: pytest.Pytester, sweep: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "study.yaml"
    outside.write_text(sweep.read_text())
    rootdir = f"--rootdir={pytester.path}"
    found = collected(pytester.runpytest(rootdir, f"--llem-study={outside}", "--collect-only", "-q"))
    assert len(found) == len(IDS)
    assert all(line.startswith(f"{outside}::test_experiment[") for line in found)
    again = pytester.runpytest(rootdir, found[0], "--collect-only", "-q")
    assert collected(again) == [found[0]]


def test_the_plan_says_what_would_run(pytester: pytest.Pytester, sweep: Path) -> None:
    sweep.write_text(sweep.read_text() + "exclude:\n  - {dtype: float32, transformers.batch_size: 16}\n")
    result = pytester.runpytest("--llem-study=small.yaml", "--collect-only")
    result.stdout.fnmatch_lines(
        ["*llem plan*", "study small: 5 experiments x 2 cycles = 10 cycles*", "*excluded: *16*"]
    )
    assert not (pytester.path / "llem-results").exists()


def test_options_override_the_study(pytester: pytest.Pytester, sweep: Path) -> None:
    result = pytester.runpytest("--llem-study=small.yaml", "--collect-only", "-q", "--llem-cycles=1")
    assert len(collected(result)) == 6
    shuffled = ["--llem-study=small.yaml", "--collect-only", "-q", "--llem-order=shuffled"]
    first, second = collected(pytester.runpytest(*shuffled)), collected(pytester.runpytest(*shuffled))
    assert first == second
    assert sorted(first) == sorted(IDS)
    assert first != IDS


def test_the_plugin_works_without_xdist(pytester: pytest.Pytester, sweep: Path) -> None:
    result = pytester.runpytest("-p", "no:xdist", "--llem-study=small.yaml", "--collect-only", "-q")
    assert result.ret == 0
    assert len(collected(result)) == len(IDS)


def test_a_module_whose_module_is_not_its_file_is_still_possible(pytester: pytest.Pytester, sweep: Path) -> None:
    """`Module._getobj` is the one private touch: were it renamed, pytest would try to import the YAML file."""
    items, _ = pytester.inline_genitems("--llem-study=small.yaml")
    assert {item.obj.__module__ for item in items} == {"pytest_llem.session.study_tests"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arguments",
    [
        ("link.yaml",),
        ("--llem-study=link.yaml",),
        ("link.yaml", "--llem-study=link.yaml"),
        ("linked/study.yaml",),
        ("--llem-study=linked/study.yaml", "linked/study.yaml"),
        ("--llem-study=here/study.yaml", "link.yaml"),
        ("link.yaml::test_experiment",),
    ],
)
def test_a_study_behind_a_link_is_the_file_it_leads_to(pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    """A link as an argument looked for bases beside itself, and one in a linked folder was a second study."""
    folder = pytester.mkdir("here")
    (folder / "common.yaml").write_text("model: builtin:tiny-llama\n")
    (folder / "study.yaml").write_text("base: common.yaml\nexecution: {cycles: 2}\n")
    (pytester.path / "link.yaml").symlink_to("here/study.yaml")
    (pytester.path / "linked").symlink_to("here")

    result = pytester.runpytest("--collect-only", "-q", *arguments)

    result.stdout.fnmatch_lines(["*.yaml::test_experiment[[]study-c1]", "2 tests collected*"])


def test_a_balanced_order_says_what_it_balances(pytester: pytest.Pytester, sweep: Path) -> None:
    """Two cycles of six experiments balance a third of the pairs: a report that claimed balance would be wrong."""
    arguments = ["--llem-study=small.yaml", "--collect-only", "--llem-order=balanced"]
    result = pytester.runpytest(*arguments)
    result.stdout.fnmatch_lines(["*note: study small: order: balanced: cycles: 2 is no multiple of*: 33 % of*"])
    whole = pytester.runpytest(*arguments, "--llem-cycles=6", "--llem-shard=1/2")
    whole.stdout.fnmatch_lines(["*note: study small: order: balanced: *each other one *"])
