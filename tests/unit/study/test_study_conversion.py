"""Files of other tools: LLenergyMeasure's load and convert, others are named as what they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import StudyError
from pytest_llem.study import load_study
from tests.hostile.report import SEED
from tests.hostile.studies import KINDS

FILES = sorted((Path(__file__).parent / "llenergymeasure").iterdir())
"""Small files with the words of LLenergyMeasure's own examples, from its first generation on."""


@pytest.mark.parametrize("file", [file for file in FILES if "campaign" not in file.stem], ids=lambda file: file.stem)
def test_file_loads_and_converts_to_the_same_experiments(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(file)
    assert [notice.code for notice in study.notices].count("older_words") == 1

    assert main(["convert", str(file), "--out", str(tmp_path / file.with_suffix(".yaml").name)]) == 0

    converted = load_study(tmp_path / file.with_suffix(".yaml").name)
    assert [(each.id, each.config_hash) for each in converted.experiments] == [
        (each.id, each.config_hash) for each in study.experiments
    ]
    assert (converted.execution, converted.runners, converted.meter) == (study.execution, study.runners, study.meter)
    assert not [notice for notice in converted.notices if notice.code == "older_words"]
    older = next(notice.message for notice in study.notices if notice.code == "older_words")
    assert older in capsys.readouterr().err


def test_whatever_loads_converts_to_the_same_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    texts = [file.read_text() for file in FILES if not file.stem.startswith("study-full")]
    file, compared = tmp_path / "file.yaml", 0
    for mutate in [*KINDS.values()] * 15:
        changed = mutate(rng.choice(texts), rng)
        file.write_bytes(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"))
        code, text = main(["convert", str(file)]), capsys.readouterr().out
        if code == 0 and "configs:" not in file.read_text():
            (tmp_path / "converted.yaml").write_text(text)
            studies = load_study(file), load_study(tmp_path / "converted.yaml")
            first, second = ([(each.id, each.config_hash) for each in study.experiments] for study in studies)
            assert first == second, file.read_text()
            compared += 1
    assert compared > 20


def test_campaign_converts_to_a_study_of_all_its_files(tmp_path: Path) -> None:
    campaign = Path(__file__).parent / "llenergymeasure" / "first-campaign.yaml"
    with pytest.raises(StudyError, match=r"configs has no counterpart here \(`llem convert FILE` makes one study"):
        load_study(campaign)

    assert main(["convert", str(campaign), "-o", str(tmp_path / "campaign.yaml")]) == 0

    study = load_study(tmp_path / "campaign.yaml")
    assert [experiment.id for experiment in study.experiments] == ["vllm-test-base", "test-tiny"]
    assert [experiment.config.workload.prompts for experiment in study.experiments] == [100, 100]
    assert [experiment.engine for experiment in study.experiments] == ["vllm", "transformers"]
    assert (study.execution.cycles, study.execution.order, study.execution.cooldown) == (5, "shuffled", 60.0)


def test_bases_are_part_of_what_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text(
        "model_name: org/m\nmax_output_tokens: 16\nnum_cycles: 7\nbaseline: {duration_sec: 9}\ndecoder: {top_k: 5}\n"
    )
    (tmp_path / "a.yaml").write_text("_extends: base.yaml\nconfig_name: same\ndecoder: {temperature: 0.7}\n")
    (tmp_path / "b.yaml").write_text("config_name: same\nmodel_name: org/k\nenergy: {backend: zeus}\n")
    (tmp_path / "c.yaml").write_text(
        "base: base.yaml\nname: null\nbaseline: {enabled: true}\ndecoder: {temperature: 0.7}\n"
    )
    (tmp_path / "campaign.yaml").write_text("campaign_name: c\nconfigs: [a.yaml, b.yaml]\n")
    (tmp_path / "out").mkdir()
    for name in ("a", "c", "campaign"):
        assert main(["convert", str(tmp_path / f"{name}.yaml"), "-o", str(tmp_path / "out" / f"{name}.yaml")]) == 0

    for name, top_k, idle_s in (("a", 5, 9.0), ("c", None, 2.0)):
        for folder in (tmp_path, tmp_path / "out"):
            [config] = [each.config for each in load_study(folder / f"{name}.yaml").experiments]
            assert (config.model, config.workload.output_tokens, config.decoding.temperature) == ("org/m", 16, 0.7)
            assert load_study(folder / f"{name}.yaml").name == {"a": "same", "c": "c"}[name]
            assert (config.decoding.top_k, config.measurement.idle.duration_s) == (top_k, idle_s)
    experiments = load_study(tmp_path / "out" / "campaign.yaml").experiments
    assert [(each.id, each.config.model) for each in experiments] == [("same", "org/m"), ("same.2", "org/k")]
    notices = capsys.readouterr().err
    assert "execution of a.yaml (the campaign's is for all), meter of b.yaml (the campaign's is for all)" in notices


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: org/m\n", "nothing to convert\nfix: it is a study of this project already"),
        ("model_name: org/m\nmin_output_tokens: 5\n", "2:1: min_output_tokens has no counterpart here"),
        ("model_name: org/m\nconfigs: 5\n", "2:10: configs: expected a list of files"),
        ("campaign_name: c\nconfigs: [there_is_none.yaml]\n", "there_is_none.yaml:1:1: cannot be read"),
        ("model_name: [\n", "YAML syntax error"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.yaml").write_text(text)

    assert main(["convert", str(tmp_path / "file.yaml")]) == 2

    captured = capsys.readouterr()
    assert says in captured.err
    assert not captured.out


def test_nothing_is_overwritten_and_a_missing_directory_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.yaml").write_text("model_name: org/m\n")
    assert main(["convert", str(tmp_path / "file.yaml"), "-o", str(tmp_path / "file.yaml")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "file.yaml"), "-o", str(tmp_path / "no" / "where.yaml")]) == 2
    assert "where.yaml: cannot be written: No such file or directory" in capsys.readouterr().err


AIPERF = {"benchmark": {"model": "m", "endpoint": {"url": "http://h:1"}, "phases": {"type": "concurrency"}}}


@pytest.mark.parametrize(
    ("data", "tool"),
    [
        ({"schemaVersion": "2.0", **AIPERF}, "AIPerf"),
        ({"apiVersion": "aiperf.nvidia.com/v1alpha1", "kind": "AIPerfJob", "spec": AIPERF}, "AIPerf"),
        ({"endpoint": {"model_names": ["m"]}, "loadgen": {"concurrency": 4}}, "AIPerf"),
        ({"target": "http://h:1", "rate_type": "sweep", "data": "prompt_tokens=256,output_tokens=128"}, "GuideLLM"),
        ({"profile": "concurrent", "data": {"prompt_tokens": 9}, "max-seconds": "600"}, "GuideLLM"),
        ({"spec": {"profile": {"kind": "sweep"}, "data": [{"kind": "synthetic_text"}]}}, "GuideLLM"),
        ([{"max_num_seqs": 32, "max_num_batched_tokens": 1024}, {"max_num_seqs": 64}], "vLLM"),
        ([{"random_input_len": 128, "random_output_len": 32}], "vLLM"),
        ({"short": {"random-input-len": 128}, "long": {"random-input-len": 2048}}, "vLLM"),
        ([{"test_name": "latency_tp1", "parameters": {"model": "m"}}], "vLLM"),
        ({"defaults": {"qps_list": ["inf"]}, "tests": [{"test_name": "serving_tp1"}]}, "vLLM"),
        ({"model": "m", "port": 8000, "tensor-parallel-size": 2, "uvicorn-log-level": "info"}, "vLLM"),
    ],
)
def test_files_of_other_tools_are_named(data: object, tool: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(data))

    with pytest.raises(StudyError, match=rf"file\.json:1:1: this is a file of {tool}.*, not a study \(docs/studies.md"):
        load_study(file)


def test_a_study_with_a_wrong_word_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("model: m\nworkload: {num_prompts: 4}\nvllm: {max_num_seqs: 4}\n")

    with pytest.raises(StudyError, match=r"2:12: unknown setting 'workload.num_prompts'"):
        load_study(tmp_path / "study.yaml")
