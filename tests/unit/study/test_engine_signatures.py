"""Settings against the installed engine's own signatures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest

from pytest_llem.engines.signatures import REPORT_MARK, SignatureReport, check_all, fits, main
from pytest_llem.errors import EngineNotInstalledError
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.wire import decode, encode
from pytest_llem.study import Study

Load = Callable[..., Study]


@dataclass
class EngineArgs:
    """As an engine's release would have it in which `block_size` became `kv_block_size`."""

    model: str = ""
    kv_block_size: int | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    load_format: Literal["auto", "dummy"] = "auto"
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    disable_custom_all_reduce: bool = False
    cpu_offload_gb: float = 0


@dataclass
class SpeculativeConfig:
    """Hides its fields behind `**kwargs`, as pydantic's dataclasses do."""

    num_speculative_tokens: int = 0
    method: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class SamplingParams:
    """Keeps its fields where msgspec puts them."""

    __struct_fields__ = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_tokens", "n")
    temperature: float
    top_p: float


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    root, engine, arg_utils = ModuleType("vllm"), ModuleType("vllm.engine"), ModuleType("vllm.engine.arg_utils")
    settings = ModuleType("vllm.config")
    settings.SpeculativeConfig = SpeculativeConfig  # type: ignore[attr-defined]
    root.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    arg_utils.EngineArgs = EngineArgs  # type: ignore[attr-defined]
    for module in (root, engine, arg_utils, settings):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def problems(load: Load, text: str) -> list[tuple[str, str | None]]:
    config = load(f"model: m\nengine: vllm\n{text}").experiments[0].config
    return [(problem.path, problem.fix) for problem in check_all([config])]


@pytest.mark.usefixtures("fake_vllm")
def test_renamed_argument_is_caught_with_a_suggestion(load: Load) -> None:
    assert problems(load, "vllm: {block_size: 16, max_num_seqs: 4}\n") == [
        ("vllm.block_size", "did you mean 'kv_block_size'?")
    ]


@pytest.mark.usefixtures("fake_vllm")
def test_extra_is_checked_by_name_and_type(load: Load) -> None:
    found = problems(load, "vllm: {extra: {load_formt: auto, load_format: dummy, model: 3}}\n")

    assert found == [("vllm.extra.load_formt", "did you mean 'load_format'?"), ("vllm.extra.model", "give str")]


@pytest.mark.usefixtures("fake_vllm")
def test_fields_of_a_dataclass_count_whatever_its_constructor_says(load: Load) -> None:
    found = problems(load, "vllm: {speculative: {num_speculative_tokens: 2, method: ngram, model: d}}\n")

    assert [path for path, _ in found] == ["vllm.speculative.model"]


@pytest.mark.usefixtures("fake_vllm")
def test_decoding_is_checked_against_sampling_parameters(load: Load) -> None:
    found = problems(
        load, "decoding: {do_sample: true, temperature: 0.5, min_p: 0.1}\nvllm: {sampling: {min_tokens: 2}}\n"
    )

    assert [path for path, _ in found] == ["decoding.min_p"]


def test_engine_that_is_not_installed_is_said_so(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    config = load("model: m\nengine: sglang\n").experiments[0].config

    with pytest.raises(EngineNotInstalledError, match="sglang is not installed here"):
        check_all([config])


@pytest.mark.usefixtures("fake_vllm")
def test_command_checks_a_job_file_as_a_container_would(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load("model: m\nengine: vllm\nvllm: {block_size: 16}\n").experiments[0]
    job_dir = JobDir(tmp_path / "job")
    job_dir.write_job(
        Job(
            run_id="r",
            study="s",
            experiment_id=experiment.id,
            config_hash=experiment.config_hash,
            config=experiment.config,
            cycle=1,
            attempt=1,
            devices=DeviceSet("cpu"),
            meter=MeterSettings(),
            deadlines=Deadlines(60.0),
        )
    )

    assert main([str(job_dir.job)]) == 1
    marked = capsys.readouterr().out
    assert marked.startswith(REPORT_MARK)
    assert [p["path"] for p in json.loads(marked.removeprefix(REPORT_MARK))["problems"]] == ["vllm.block_size"]


@pytest.mark.usefixtures("fake_vllm")
def test_command_checks_several_configurations_and_names_each_problem_once(load: Load, tmp_path: Path) -> None:
    study = load(
        "model: m\nengine: vllm\nsweep: {vllm.block_size: [16, 32], vllm.max_num_seqs: [1, 2]}\n"
        "vllm: {extra: {load_formt: auto}}\n"
    )
    (tmp_path / "configs.json").write_text(json.dumps([encode(e.config) for e in study.experiments]))

    assert main([str(tmp_path / "configs.json"), str(tmp_path / "report.json")]) == 1
    report = decode(SignatureReport, json.loads((tmp_path / "report.json").read_text()))

    assert [(p.path, p.value) for p in report.problems] == [
        ("vllm.block_size", 16),
        ("vllm.extra.load_formt", "auto"),
        ("vllm.block_size", 32),
    ]
    configs = [experiment.config for experiment in study.experiments]
    assert [[p.concerns(config) for p in report.problems] for config in configs] == [
        [True, True, False],
        [True, True, False],
        [False, True, True],
        [False, True, True],
    ]


def test_command_says_why_nothing_could_be_compared(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = load("model: m\nengine: vllm\n").experiments[0].config
    (tmp_path / "configs.json").write_text(json.dumps([encode(config)]))

    assert main([str(tmp_path / "configs.json"), str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())

    assert report["problems"] == []
    assert "vllm is not installed here" in report["unchecked"]


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, True),
        (int, True, False),
        (float, 3, True),
        (str, 3, False),
        (int | None, None, True),
        (int | str, [1], False),
        (Literal["a", "b"], "c", False),
        (Annotated[bool, "help"], True, True),
        (dict[str, int], {"a": 1}, True),
        (list[int], "ab", False),
        (Any, object, None),
        (EngineArgs, {}, None),
        (EngineArgs | None, 3, None),
    ],
)
def test_fits(annotation: object, value: Any, expected: bool | None) -> None:
    assert fits(annotation, value) is expected


@pytest.mark.engine
def test_real_transformers(load: Load) -> None:
    pytest.importorskip("transformers")
    text = "model: m\ntransformers: {{num_beams: 2, quantization: {{load_in_8bit: true}}, extra: {{{extra}: 0.9}}}}\n"

    right = check_all([load(text.format(extra="typical_p")).experiments[0].config])
    wrong = check_all([load(text.format(extra="typical_q")).experiments[0].config])

    assert right == []
    assert [(problem.path, problem.fix) for problem in wrong] == [
        ("transformers.extra.typical_q", "did you mean 'typical_p'?")
    ]
