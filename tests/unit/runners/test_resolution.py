"""Which runner an engine gets, and who said so."""

from __future__ import annotations

import pytest

from pytest_llem.engines.info import EngineInfo
from pytest_llem.errors import SettingsError
from pytest_llem.job.report import RunnerSpec
from pytest_llem.runners import resolution
from pytest_llem.runners.resolution import (
    detect_runner,
    parse_runner_options,
    parse_runner_value,
    plan_runners,
    resolve_runner,
)

ENGINES = ("transformers", "vllm", "openai")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("local", RunnerSpec("local", "study")),
        (" docker ", RunnerSpec("docker", "study")),
        ("docker:host:5000/a/b:1@sha256:ab", RunnerSpec("docker", "study", image="host:5000/a/b:1@sha256:ab")),
        ("ray", RunnerSpec("ray", "study")),
        ("ray:10.0.0.1:6379", RunnerSpec("ray", "study", address="10.0.0.1:6379")),
    ],
)
def test_a_value_is_parsed(value: str, expected: RunnerSpec) -> None:
    assert parse_runner_value(value, "study") == expected


@pytest.mark.parametrize("value", ["", "docker:", "docker: ", "podman", "local:x", "Docker", "docker:a b", ":image"])
def test_a_wrong_value_lists_what_is_accepted(value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_runner_value(value)

    assert caught.value.fix is not None
    for accepted in ("local", "docker", "docker:IMAGE", "ray"):
        assert accepted in caught.value.fix


def test_options_are_per_engine_or_for_all() -> None:
    specs = parse_runner_options(["local", "vllm=docker:img:1", "vllm=docker:img:2"], ENGINES)

    assert specs == {
        None: RunnerSpec("local", "command line"),
        "vllm": RunnerSpec("docker", "command line", image="img:2"),
    }


def test_an_unknown_engine_in_an_option_is_an_error() -> None:
    with pytest.raises(SettingsError, match="unknown engine 'vlm'"):
        parse_runner_options(["vlm=docker"], ENGINES)


def test_the_chain_gives_way_one_by_one() -> None:
    chain = {
        "command_line": parse_runner_options(["vllm=docker:cli"], ENGINES),
        "environment": {"LLEM_RUNNER_VLLM": "docker:env"},
        "study": {"vllm": "docker:study"},
        "user_settings": {"vllm": "docker:user"},
        "detect": lambda engine: RunnerSpec("docker", "detected", image=f"found-{engine}"),
    }
    seen = []
    for link in (*chain, None):
        spec = resolve_runner("vllm", **chain)  # type: ignore[arg-type]
        seen.append((spec.source, spec.image))
        if link:
            del chain[link]

    assert seen == [
        ("command line", "cli"),
        ("environment", "env"),
        ("study", "study"),
        ("user settings", "user"),
        ("detected", "found-vllm"),
        ("default", None),
    ]


def test_an_engines_own_option_beats_the_general_one() -> None:
    options = parse_runner_options(["docker", "vllm=local"], ENGINES)

    assert resolve_runner("vllm", command_line=options).name == "local"
    assert resolve_runner("transformers", command_line=options).name == "docker"


def test_an_unset_default_does_not_hide_detection() -> None:
    """Guards against user defaults counting as explicit, which makes detection dead code."""
    found = RunnerSpec("docker", "detected")

    spec = resolve_runner(
        "vllm", environment={"LLEM_RUNNER_VLLM": ""}, study={}, user_settings={}, detect=lambda _: found
    )

    assert spec is found


def test_a_wrong_environment_variable_is_named() -> None:
    with pytest.raises(SettingsError, match="LLEM_RUNNER_VLLM"):
        resolve_runner("vllm", environment={"LLEM_RUNNER_VLLM": "podman"})


def test_detection_prefers_an_installed_engine_and_asks_the_daemon_last() -> None:
    def never() -> bool:
        raise AssertionError("the daemon was asked")

    assert detect_runner("vllm", installed=lambda _: True, daemon=never) is None
    assert detect_runner("openai", installed=lambda _: False, daemon=never) is None
    assert detect_runner("vllm", installed=lambda _: False, daemon=lambda: False) is None
    assert detect_runner("vllm", installed=lambda _: False, daemon=lambda: True) == RunnerSpec("docker", "detected")


def local(source: str = "default") -> RunnerSpec:
    return RunnerSpec("local", source)  # type: ignore[arg-type]


def test_engines_that_do_not_fit_together_are_elevated_with_one_line() -> None:
    plan = plan_runners(["vllm", "sglang"], {"vllm": local(), "sglang": local()}, installed=["vllm"], daemon=True)

    assert {spec.name for spec in plan.specs.values()} == {"docker"}
    assert {spec.source for spec in plan.specs.values()} == {"detected"}
    assert [note.code for note in plan.notices] == ["elevated_to_docker"]
    assert plan.problems == ()


def test_engines_that_are_all_installed_stay_local() -> None:
    specs = {"transformers": local(), "vllm": local(), "openai": local()}

    plan = plan_runners(list(specs), specs, installed=["transformers", "vllm"], daemon=True)

    assert plan.specs == specs
    assert plan.notices == ()


def test_without_a_daemon_there_is_guidance() -> None:
    plan = plan_runners(["vllm", "sglang"], {"vllm": local(), "sglang": local()}, installed=["vllm"], daemon=False)

    (problem,) = plan.problems
    assert "sglang" in problem.message
    assert problem.fix is not None
    assert "pip install sglang" in problem.fix


def test_an_explicit_choice_is_kept_and_the_mix_is_noticed() -> None:
    specs = {"transformers": local("study"), "vllm": local()}

    plan = plan_runners(list(specs), specs, installed=["transformers"], daemon=True)

    assert plan.specs["transformers"].name == "local"
    assert plan.specs["vllm"].name == "docker"
    assert [note.code for note in plan.notices] == ["elevated_to_docker", "mixed_runners"]


def test_a_single_engine_needs_no_elevation() -> None:
    plan = plan_runners(["openai"], {"openai": local()}, installed=["openai"], daemon=True)

    assert plan.specs["openai"].name == "local"
    assert plan.problems == ()


def test_a_client_that_is_not_installed_is_told_before_anything_runs() -> None:
    plan = plan_runners(["openai"], {"openai": local()}, installed=[], daemon=True)

    assert [problem.fix for problem in plan.problems] == ["pip install 'pytest-llem[openai]'"]


def test_an_engine_that_says_no_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice once was to run `None`."""
    monkeypatch.setattr(resolution, "engine_info", lambda name: EngineInfo(name, modules=(name,), exclusive=True))

    plan = plan_runners(["theirs"], {"theirs": local()}, installed=[], daemon=True)

    assert [problem.fix for problem in plan.problems] == ["use --llem-runner=docker, or install theirs"]
