"""`--llem-shard=K/N`: the parts of a study fit together, whatever is selected, on whichever machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.results.manifest import Manifest
from pytest_llem.results.whole_runs import whole_runs
from pytest_llem.session.sharding import estimate_s, parse_shard, split
from pytest_llem.study import Study, load_study

STUDY = """\
name: sharded
engine: faulty
model: none
workload: {prompts: 2, input_tokens: 4}
measurement: {min_duration_s: 0.01, idle: {duration_s: 0}, warmup: {max_repeats: 0}}
sweep:
  workload.output_tokens: [1, 2, 3, 4]
execution: {cycles: 2, retries: 0, cooldown: 0}
expect: {output_tokens_per_s: ">= 0.001"}
"""
USERS_TEST = """\
import pytest

@pytest.mark.llem_study("sharded.yaml")
def test_result(llem_result):
    assert llem_result.tokens.output

def test_without():
    pass
"""
UNEVEN = """\
name: uneven
engine: vllm
model: owner/name
measurement: {min_duration_s: 1}
sweep:
  workload.output_tokens: [16, 4000, 32, 2000, 1000, 64, 3000, 128]
"""


@pytest.fixture
def study(pytester: pytest.Pytester) -> Path:
    path = pytester.path / "sharded.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def uneven(tmp_path: Path) -> Study:
    path = tmp_path / "uneven.yaml"
    path.write_text(UNEVEN)
    return load_study(path)


def names(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line]


def collected(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    return names(pytester.runpytest("--llem-study=sharded.yaml", "--collect-only", "-q", *arguments))


def test_every_item_is_in_one_shard_and_the_gate_with_its_cycles(pytester: pytest.Pytester, study: Path) -> None:
    whole = collected(pytester)
    parts = [collected(pytester, f"--llem-shard={index}/3") for index in (1, 2, 3)]

    assert sorted(item for part in parts for item in part) == sorted(whole)
    assert len(whole) == 12
    for part in parts:
        gates = [item for item in part if "test_gate" in item]
        assert len(part) == 3 * len(gates) > 0
        assert part == [item for item in whole if item in part]


def test_selection_within_a_shard_does_not_move_the_split(pytester: pytest.Pytester, study: Path) -> None:
    for index in (1, 2):
        shard = f"--llem-shard={index}/2"
        part = collected(pytester, shard)
        assert collected(pytester, shard, "-k", "c1") == [item for item in part if "c1" in item]
        named = [f"{study.name}::test_experiment[output_tokens:{value}-c1]" for value in (1, 2, 3, 4)]
        assert collected(pytester, shard, *named) == [item for item in named if item in part]
        assert collected(pytester, shard, "--llem-cycles=1") == [item for item in part if "c2" not in item]


def test_shards_run_apart_and_are_read_as_one_run(
    pytester: pytest.Pytester, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two shards, the second under xdist; a user's tests follow their experiments, and others run everywhere."""
    (pytester.path / "test_mine.py").write_text(USERS_TEST)
    runs, said = [], []
    for index, more in ((1, ()), (2, ("-n", "1"))):
        shard = f"--llem-shard={index}/2"
        out = f"--llem-out=shard-{index}"
        arguments = (
            "--llem-study=sharded.yaml",
            "test_mine.py",
            "--llem-meter=none",
            "--llem-cycles=1",
            shard,
            out,
            *more,
        )
        result = pytester.runpytest_subprocess(*arguments)
        said += result.outlines
        assert result.parseoutcomes() == {"passed": 5, "skipped": 2} | ({} if more else {"deselected": 6})
        (manifest,) = pytester.path.glob(f"shard-{index}/*/run.json")
        runs.append(manifest.parent)
    assert any("llem: shard 1/2 of sharded: 2 of 4 experiments, about 5" in line for line in said)
    assert any("llem: shard 2/2 of sharded: 2 of 4 experiments, about 5" in line for line in said)

    told = [json.loads((run / "run.json").read_text())["facts"]["shard"] for run in runs]
    assert [(fact["index"], fact["count"]) for fact in told] == [(1, 2), (2, 2)]
    assert told[0]["splits"] == told[1]["splits"]
    results = [json.loads(path.read_text()) for run in runs for path in run.glob("*/*/*/result.json")]
    assert len({(result["experiment"]["id"], result["cycle"]) for result in results}) == len(results) == 4
    assert {result["runner"]["facts"]["shard"] for result in results} == {"1/2", "2/2"}

    both = pytester.mkdir("both")
    for run in runs:
        run.rename(both / run.name)
    again = pytester.mkdir("again")
    for run in runs:
        copied = shutil.copytree(both / run.name, again / f"{run.name}-again")
        for path in (copied / "run.json", *copied.glob("*/*/*/result.json")):
            path.write_text(path.read_text().replace(f'"{run.name}"', f'"{run.name}-again"'))
    capsys.readouterr()
    assert main(["compare", str(both), str(again), "--metric=output_tokens_per_s"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("(all of 2 shards)") == 1
    assert sum(line.endswith("inconclusive") for line in shown.splitlines()) == 4
    assert main(["list", str(both)]) == 0
    assert "sharded (shard 2/2)" in capsys.readouterr().out


def test_recorded_times_move_the_split_and_are_named(pytester: pytest.Pytester, study: Path) -> None:
    loaded = load_study(study)
    slow, *fast = loaded.experiments
    for number, (experiment, seconds) in enumerate([(slow, 100.0), *((one, 10.0) for one in fast)]):
        path = pytester.mkdir(f"r{number}") / "result.json"
        path.write_text(
            json.dumps({"timing": {"cycle_s": seconds}, "experiment": {"config_hash": experiment.config_hash}})
        )
    times = pytester.mkdir("times")
    for number in range(4):
        (pytester.path / f"r{number}").rename(times / f"r{number}")

    parts = [collected(pytester, f"--llem-shard={index}/2", "--llem-shard-times=times") for index in (1, 2)]

    assert sorted(len(part) for part in parts) == [3, 9]
    assert min(parts, key=len)[0] == f"sharded.yaml::test_experiment[{slow.id}-c1]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--llem-shard=2",), "*--llem-shard=2: '2' is not a shard*"),
        (("--llem-shard=0/4",), "*--llem-shard=0/4: there is no shard 0 of 4*"),
        (("--llem-shard=5/4",), "*--llem-shard=5/4: there is no shard 5 of 4*"),
        (("--llem-shard=1/0",), "*there is no shard 1 of 0*"),
        (("--llem-shard-times=times",), "*--llem-shard-times without --llem-shard*"),
        (("--llem-shard=1/2", "--llem-shard-times=nowhere"), "*--llem-shard-times=nowhere: *nowhere*"),
    ],
)
def test_a_wrong_shard_is_a_usage_error(
    pytester: pytest.Pytester, study: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = pytester.runpytest("--llem-study=sharded.yaml", "--collect-only", *arguments)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message, "fix: *"])


def test_a_shard_without_experiments_is_no_failure_but_a_selection_of_nothing_is(
    pytester: pytest.Pytester, study: Path
) -> None:
    empty = [index for index in range(1, 6) if not collected(pytester, f"--llem-shard={index}/5")]

    assert len(empty) == 1
    result = pytester.runpytest("--llem-study=sharded.yaml", f"--llem-shard={empty[0]}/5")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([f"*llem: shard {empty[0]}/5 of sharded: 0 of 4 experiments*"])
    full = empty[0] % 5 + 1
    result = pytester.runpytest("--llem-study=sharded.yaml", f"--llem-shard={full}/5", "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
def test_a_split_is_balanced_by_estimated_time(uneven: Study, count: int) -> None:
    found = split(uneven, count)

    parts = [found.part(index) for index in range(1, count + 1)]
    assert sorted(id for part in parts for id in part) == sorted(one.id for one in uneven.experiments)
    loads = [sum(found.seconds[id] for id in part) for part in parts]
    bound = max(sum(loads) / count, max(found.seconds.values()))
    assert max(loads) <= 4 / 3 * bound + 0.001


def test_the_same_study_is_split_the_same_by_each_load(uneven: Study) -> None:
    again = load_study(uneven.path)

    assert split(again, 3) == split(uneven, 3)
    assert split(again, 3).digest != split(again, 4).digest


def test_more_tokens_and_smaller_batches_take_longer(uneven: Study, tmp_path: Path) -> None:
    by_tokens = {one.flat_settings.get("workload.output_tokens", 64): estimate_s(one) for one in uneven.experiments}
    assert by_tokens[4000] > by_tokens[2000] > by_tokens[1000] > by_tokens[16]
    path = tmp_path / "batches.yaml"
    path.write_text("model: builtin:tiny-llama\nsweep: {transformers.batch_size: [1, 32]}\n")
    one, many = load_study(path).experiments
    assert estimate_s(one) > estimate_s(many)
    path.write_text("model: builtin:tiny-llama\nsweep: {measurement.warmup.thermal: [settled, repeatable]}\n")
    settled, repeatable = load_study(path).experiments
    assert estimate_s(settled) > estimate_s(repeatable) + 100


def test_shards_of_other_splits_are_not_put_together() -> None:
    def run(name: str, index: int, digest: str) -> Manifest:
        return Manifest(name, "", {}, facts={"shard": {"index": index, "count": 2, "splits": {"s": digest}}})

    again = [run("a", 1, "x"), run("b", 2, "x"), run("c", 2, "x"), Manifest("d", "", {})]
    assert [[manifest.run_id for manifest in group] for group in whole_runs(again)] == [["a", "b"], ["c"], ["d"]]
    with pytest.raises(StoreError, match="split in another way"):
        whole_runs([run("a", 1, "x"), run("b", 2, "y")])


def test_a_shard_says_what_it_is() -> None:
    assert str(parse_shard(" 2 / 4 ")) == "2/4"
    with pytest.raises(SettingsError):
        parse_shard("1/2/3")
