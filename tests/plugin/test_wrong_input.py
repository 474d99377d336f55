"""Wrong input gives one clear message with file, line, column, key and remedy, and never a traceback."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

VALID = "model: builtin:tiny-llama\nengine: transformers\n"


def run(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    (pytester.path / "wrong.yaml").write_text(text)
    result = pytester.runpytest("--llem-study=wrong.yaml", *arguments)
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert not list(pytester.path.glob("llem-results/*/run.json"))
    return result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("model: [\n", "*wrong.yaml:2:1: *", id="syntax"),
        pytest.param(VALID + "dtype: float23\n", "*wrong.yaml:3:8: *dtype*float32*", id="value"),
        pytest.param(VALID + "workload:\n  prompts: many\n", "*wrong.yaml:4:12: *workload.prompts*", id="type"),
        pytest.param(VALID + "modle: x\n", "*wrong.yaml:3:1: *modle*model*", id="unknown key"),
        pytest.param(
            VALID + "transformers:\n  batch_sise: 4\n", "*wrong.yaml:4:3: *batch_sise*batch_size*", id="unknown nested"
        ),
        pytest.param(
            VALID + "sweep:\n  transformers.batch_sise: [1]\n",
            "*wrong.yaml:4:3: *batch_sise*batch_size*",
            id="sweep key",
        ),
        pytest.param("model: m\nengine: transfomers\n", "*wrong.yaml:2:9: *transfomers*transformers*", id="engine"),
        pytest.param(
            VALID + "runners: {transformers: x}\n", "*wrong.yaml:3:25: *unknown runner 'x'*local*", id="runner"
        ),
        pytest.param(VALID + "sweep: {}\n", "*wrong.yaml:3:*sweep*empty*", id="empty sweep"),
        pytest.param(VALID + "sweep:\n  dtype: []\n", "*wrong.yaml:4:10: *dtype has no values*", id="empty axis"),
        pytest.param("", "*wrong.yaml:1:1: *empty*", id="empty file"),
        pytest.param(
            "model: ./none\nworkload: {dataset: none.csv}\n",
            "*wrong.yaml:1:8: model './none': no such file or directory: *none",
            id="files",
        ),
    ],
)
def test_a_wrong_study_is_one_located_message(pytester: pytest.Pytester, text: str, message: str) -> None:
    run(pytester, text).stdout.fnmatch_lines([message])


def test_a_missing_study_is_a_usage_error_with_a_suggestion(pytester: pytest.Pytester) -> None:
    (pytester.path / "sweep.yaml").write_text(VALID)
    result = pytester.runpytest("--llem-study=swep.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llem-study=swep.yaml: no such file*", "*did you mean *sweep.yaml*"])


def test_an_unknown_meter_is_a_usage_error_with_a_suggestion(pytester: pytest.Pytester) -> None:
    (pytester.path / "sweep.yaml").write_text(VALID)
    result = pytester.runpytest("--llem-study=sweep.yaml", "--llem-meter=nvlm")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llem-meter=nvlm: unknown meter*", "*'nvml'*"])


def test_an_unknown_runner_is_a_usage_error(pytester: pytest.Pytester) -> None:
    (pytester.path / "sweep.yaml").write_text(VALID)
    result = pytester.runpytest("--llem-study=sweep.yaml", "--llem-runner=podman")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown runner 'podman'*", "*local, docker*"])


@pytest.mark.parametrize("cycles", ["0", "-1", "two"])
def test_a_wrong_number_of_cycles_is_a_usage_error(pytester: pytest.Pytester, cycles: str) -> None:
    (pytester.path / "sweep.yaml").write_text(VALID)
    result = pytester.runpytest("--llem-study=sweep.yaml", f"--llem-cycles={cycles}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--llem-cycles" in result.stderr.str()


def test_an_engine_that_is_not_installed_is_refused_before_anything_runs(pytester: pytest.Pytester) -> None:
    result = run(pytester, "model: builtin:tiny-llama\nengine: tensorrt_llm\n", "--llem-runner=local")
    result.stdout.fnmatch_lines(["*wrong.yaml*tensorrt_llm*not installed*", "*fix: *docker*"])


def test_two_studies_of_one_name_are_an_error(pytester: pytest.Pytester) -> None:
    for name in ("one.yaml", "two.yaml"):
        (pytester.path / name).write_text("name: same\n" + VALID)
    result = pytester.runpytest("--llem-study=one.yaml", "--llem-study=two.yaml")
    result.stdout.fnmatch_lines(["*two.yaml*name 'same'*one.yaml*"])
    assert result.ret != 0


def test_a_test_that_asks_for_a_result_needs_a_study(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_budget(llem_result): pass")
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(["*a test that asks for a result needs a study*", "*pytest.mark.llem_study*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_a_marker_that_names_no_file_says_where_it_looked(pytester: pytest.Pytester) -> None:
    path = pytester.makepyfile(
        """
        import pytest
        @pytest.mark.llem_study("missing.yaml")
        def test_budget(llem_result): pass
        """
    )
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(
        [f"*no such study: {path.parent / Path('missing.yaml')}*", "*relative to the test file*"]
    )


def test_wrong_settings_are_named_also_where_only_a_marker_names_a_study(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makefile(".yaml", study="model: none\nengine: faulty\n")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.llem_study("study.yaml")
        def test_budget(llem_result): pass
        """
    )
    monkeypatch.setenv("LLEM_OUT", "/dev/null")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: LLEM_OUT=/dev/null: not a directory", "fix: *"])
    monkeypatch.delenv("LLEM_OUT")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(pytester.path))
    (pytester.mkdir("llem") / "config.yaml").write_text("meter: nvlm\n")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*config.yaml:1:8=nvlm: unknown meter", "fix: *"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize("option", ["--llem-meter=nvlm", "--llem-baseline=missing", "--llem-fail-if=nonsense:5%"])
def test_a_wrong_option_is_a_usage_error_also_without_a_study_on_the_command_line(
    pytester: pytest.Pytester, option: str
) -> None:
    pytester.makepyfile("def test_plain(): pass")
    result = pytester.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert option in result.stderr.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize(
    ("given", "arguments", "variables"),
    [
        pytest.param("--llem-out=plain", ["--llem-out=plain"], {}, id="out is a file"),
        pytest.param("LLEM_OUT=plain/below", [], {"LLEM_OUT": "plain/below"}, id="out is below a file"),
        pytest.param("LLEM_OUT=/proc/llem", [], {"LLEM_OUT": "/proc/llem"}, id="out cannot be written"),
        pytest.param("--llem-out=loop", ["--llem-out=loop"], {}, id="out is a loop of symlinks"),
        pytest.param(f"--llem-out={'n' * 300}", [f"--llem-out={'n' * 300}"], {}, id="a name too long"),
        pytest.param("LLEM_RUNNER_FAULTY=no", [], {"LLEM_RUNNER_FAULTY": "no"}, id="runner of an engine"),
        pytest.param("--llem-runner=no", ["--llem-runner=no"], {}, id="runner"),
        pytest.param("--llem-save-baseline=a/b", ["--llem-save-baseline=a/b"], {}, id="name of a baseline"),
        pytest.param("--llem-save-baseline=main", ["--llem-save-baseline=main"], {}, id="a broken file to add to"),
        pytest.param("--llem-baseline=main", ["--llem-baseline=main"], {}, id="a broken file to compare with"),
        pytest.param("--llem-html=pipe", ["--llem-html=pipe"], {}, id="report is a pipe"),
        pytest.param("--llem-html=/proc/x.html", ["--llem-html=/proc/x.html"], {}, id="report cannot be written"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_measured(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    arguments: list[str],
    variables: dict[str, str],
) -> None:
    pytester.makefile(".yaml", study="model: none\nengine: faulty\n")
    (pytester.path / "plain").touch()
    (pytester.path / "loop").symlink_to("loop")
    os.mkfifo(pytester.path / "pipe")
    broken = pytester.mkdir("llem-baselines") / "main"
    broken.mkdir()
    (broken / "study.json").write_text("{")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = pytester.runpytest("study.yaml", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {given}: *", "fix: *"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert not (pytester.path / "llem-results").exists()


def test_a_disk_without_room_for_the_results_is_found_before_the_first_cycle(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found by the first cycle that it had no room for, after hours. Ten need ten times as much."""
    monkeypatch.setattr(importlib.import_module("pytest_llem.session.start"), "CYCLE_BYTES", 2**60)
    pytester.makefile(".yaml", study=f"{VALID}execution: {{cycles: 10}}\n")
    result = pytester.runpytest_inprocess("--llem-study=study.yaml", "--llem-out=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    needed = f"{(10 * 2**60 + 2**20) / 2**20:,.1f}"
    result.stderr.fnmatch_lines([f"ERROR: --llem-out=*out: * MiB free, and the run needs about {needed} MiB", "fix: *"])
    dry = pytester.runpytest_inprocess("--llem-study=study.yaml", "--llem-out=out", "--collect-only")
    assert dry.ret == pytest.ExitCode.OK


@pytest.mark.parametrize("option", ["--llem-baseline", "--llem-shard-times"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "not JSON: nested deeper than 100 levels"),
        ('{"schema_version": 1, "a": "\\ud800"}', "not JSON: half of a character"),
        ('{"schema_version": 1, "a": NaN}', "not JSON: NaN is not a finite number"),
        ("\0", "not JSON"),
    ],
)
def test_a_broken_file_of_results_is_a_usage_error(pytester: pytest.Pytester, option: str, text: str, why: str) -> None:
    """Deep JSON was a RecursionError, as a traceback."""
    (pytester.path / "sweep.yaml").write_text(VALID)
    (pytester.path / "result.json").write_text(text)

    result = pytester.runpytest("--llem-study=sweep.yaml", f"{option}=result.json", "--llem-shard=1/2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"result.json: {why}" in result.stderr.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_pipe_is_no_study(pytester: pytest.Pytester) -> None:
    os.mkfifo(pytester.path / "pipe.yaml")

    result = pytester.runpytest("--llem-study=pipe.yaml")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--llem-study=pipe.yaml: " in result.stderr.str()
