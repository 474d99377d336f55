"""Before anything runs, a study hears of each local path that cannot be what it takes it for, and what to write."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pytest_llem.engines.packaged_models import PACKAGED, Packaged
from pytest_llem.errors import LlemError
from pytest_llem.job.report import RunnerName
from pytest_llem.session.named_files import require_named_files
from pytest_llem.study import load_study
from tests.installed import Site

BUILTIN = "model: builtin:tiny-llama\n"
PROMPTS = BUILTIN + "workload: {{dataset: {}, prompts: {}}}\n"
OPENAI = "engine: openai\nopenai: {{{}}}\nmodel: {}\n"
SERVER = "command: [serve, '{model}', '{port}']"

Refused = Callable[..., "str | None"]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What is said about a study beside some data and models, from its position on; `None` where nothing is."""
    rows = [{"id": n, "text": f"prompt {n}", "prompts": ["no text"]} for n in range(3)]
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setitem(PACKAGED, "absent", Packaged("llm-absent", "llm_absent/a.gguf", "", 0))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    texts = "".join(f"{row['text']}\n" for row in rows)
    for name, content in {
        **dict.fromkeys(("p.jsonl", "p.ndjson", "P.JSONL"), lines),
        **dict.fromkeys(("p.txt", "p.text", "p.md", "p.tsv"), texts),
        "p.json": json.dumps(rows),
        "p.csv": "text\n" + texts,
        "broken.jsonl": lines + "{oops\n",
        "chats.jsonl": '{"messages": [{"role": "user", "content": "x"}]}\n{"messages": [{"content": "x"}]}\n' * 2,
        "trace.csv": "Timestamp,Request tokens,Response tokens\n5,1,1\n4,1,1\n",
        "broken.parquet": "no Parquet",
    }.items():
        (data / name).write_text(content)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / "p.parquet")
    for name, files in {
        "whole": {"config.json": "{}", "model.safetensors": "x", "vocab.json": "{}"},
        "base": {"config.json": "{}", "model.safetensors": "x", "vocab.json": "{}", "tokenizer_config.json": "{}"},
        "mute": {"config.json": "{}", "model.safetensors": "x"},
        "bare": {"config.json": "{}", "tokenizer.json": "{}"},
        "torn": {"config.json": "{", "model.safetensors": "x"},
        "partial": {
            "config.json": "{}",
            "a-1.safetensors": "x",
            "model.safetensors.index.json": '{"weight_map": {"w": "a-1.safetensors", "v": "a-2.safetensors"}}',
        },
        "above/inner": {"config.json": "{}", "model.safetensors": "x"},
        "adapter": {"adapter_config.json": "{}"},
    }.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "models" / name / file).write_text(content)
    (tmp_path / "models" / "m.gguf").write_bytes(b"GGUF....")
    (tmp_path / "models" / "bad.gguf").write_bytes(b"<html>")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def check(text: str, runner: RunnerName = "local") -> str | None:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        try:
            require_named_files(load_study(path, env={}), lambda engine: runner)
        except LlemError as error:
            return str(error).replace(f"{tmp_path}{os.sep}", "")
        return None

    return check


def at(text: str, part: str) -> str:
    """The position of a part of the study."""
    before = text[: text.index(part)]
    return f"study.yaml:{before.count(chr(10)) + 1}:{len(before.rpartition(chr(10))[2]) + 1}: "


FORMATS = ["p.jsonl", "p.ndjson", "P.JSONL", "p.json", "p.csv", "p.txt", "p.text", "p.md", "p.parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_found_beside_the_study_and_counted(refused: Refused, name: str) -> None:
    """`.ndjson`, `.text` and `.md` were taken for names on the hub, and Parquet was not read at all."""
    assert refused(PROMPTS.format(f"data/{name}", 3)) is None
    text = PROMPTS.format(f"data/{name}", 44)
    said = refused(text)
    assert said == (
        f"{at(text, '44')}workload.dataset 'data/{name}' has 3 prompts, and 44 were asked for\n"
        "fix: set workload.prompts to at most 3"
    )


@pytest.mark.parametrize(
    ("dataset", "part", "said"),
    [
        ("data/q.jsonl", "data/q", "no such file or directory: data/q.jsonl\nfix: did you mean 'data/p.jsonl'?"),
        ("./data/none", "./data", "no such file or directory: data/none\nfix: correct the path; a relative one starts"),
        ("./data/p.txt/q.csv", "./data", "not a directory: data/p.txt/q.csv\nfix: correct the path; a relative one"),
        ("/nowhere/q.csv", "/nowhere", "no such file or directory\nfix: correct the path"),
        ("~nobody/q.csv", "~nobody", "no such file or directory: /nonexistent/q.csv\nfix: correct the path"),
        ("data/p.tsv", "data/", "its ending .tsv is none of a data set's\nfix: use one of: .jsonl, "),
        ("./data/p.tsv", "./data", "its ending .tsv is none of a data set's\nfix: use one of: .jsonl, "),
        ("data/broken.parquet", "data/", "Parquet magic bytes not found"),
        ("./data", "./data", "is a directory, and the package 'datasets' is not installed\nfix: pip install"),
        ("data/broken.jsonl, prompts: 4", "data/", "broken.jsonl:4: not JSON"),
        ("data/p.jsonl, column: txet", "txet", "no text in column txet\nfix: did you mean 'text'?"),
        ("data/p.parquet, column: txet", "txet", "no text in column txet\nfix: did you mean 'text'?"),
        ("data/p.jsonl, column: prompts", "prompts", "fix: set workload.column to one of: text"),
        ("data/p.parquet, column: prompts", "prompts", "fix: set workload.column to one of: text"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_refused_where_it_is_written(
    refused: Refused, dataset: str, part: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    text = BUILTIN + f"workload: {{dataset: {dataset}{'' if 'prompts:' in dataset else ', prompts: 2'}}}\n"
    answer = refused(text)
    assert answer is not None
    assert answer.startswith(at(text, part))
    assert said in answer


@pytest.mark.parametrize(
    ("workload", "share", "part", "said"),
    [
        ("chats.jsonl, prompts: 2", 0, "data/", "data/chats.jsonl:2: messages[0]: role: is missing\nfix: give the"),
        ("chats.jsonl, prompts: 2", 0.2, "data/", "1 broken lines (data/chats.jsonl:2: messages[0]: role: is"),
        ("chats.jsonl, prompts: 2", "40%", "", None),
        ("chats.jsonl, prompts: 1, order: grouped", 0, "grouped", "workload.order: grouped cannot be combined with"),
        ("chats.jsonl, prompts: 1, speed: 2.5", 0, "2.5", "workload.speed: has no effect"),
        ("chats.jsonl, prompts: 9", 1, "9", "workload.dataset 'data/chats.jsonl' has 2 prompts, and 9 were asked for"),
        ("trace.csv, prompts: 2", 1, "data/", "data/trace.csv:3: timestamp: 1 s before that of data/trace.csv:2"),
    ],
)
def test_sessions_and_traces_are_looked_at_as_far_as_they_are_used(
    refused: Refused, workload: str, share: float | str, part: str, said: str | None
) -> None:
    text = f"{BUILTIN}workload: {{dataset: data/{workload}}}\n"
    found = refused(f"{text}measurement: {{validity: {{failed_requests_rel: {share}}}}}\n")
    if said is None:
        assert found is None
    else:
        assert str(found).startswith(at(text, part) + said)


def test_a_server_that_takes_a_gguf_file_gets_one(refused: Refused) -> None:
    """It would start without its model, and fail each cycle."""
    command = "command: [serve, '{gguf}', '{port}']"
    for model, said in {
        "builtin:tiny-llama": "is no GGUF file, which the server's {gguf} stands for",
        "./models/whole": "is no GGUF file, which the server's {gguf} stands for",
        "builtin:absent": "in the package llm-absent, which is not installed here",
    }.items():
        assert said in (refused(OPENAI.format(command, model)) or ""), model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("./models/non", "no such file or directory: models/non\nfix: correct the path; a relative one starts"),
        ("./models/hole", "no such file or directory: models/hole\nfix: did you mean 'models/whole'?"),
        ("/nowhere/model", "no such file or directory\nfix: correct the path"),
        ("a/b/c", "no such file or directory\nfix: correct the path"),
        ("models/whole", "fix: write ./models/whole: a relative path starts at the study"),
        ("./data", "has no config.json\nfix: name the directory that holds config.json"),
        ("./models/above", "has no config.json\nfix: did you mean 'models/above/inner'?"),
        ("./models/bare", "has no weights\nfix: finish its download, or set weights: dummy"),
        ("./models/partial", "lacks 1 files of its weights (a-2.safetensors, ...)\nfix: finish its download"),
        ("./models/mute", "has no tokenizer\nfix: save it there as well: tokenizer.save_pretrained"),
        ("./models/torn", "cannot be read: config.json: not JSON"),
        ("./data/p.txt", "is a file and no model"),
        ("./models/m.gguf", "is a GGUF file, which this engine does not load\nfix: use the engine vllm"),
        ("builtin:tiny-lama", "no built-in model 'tiny-lama'\nfix: use one of: builtin:tiny-llama"),
        (
            "builtin:absent",
            "is in the package llm-absent, which is not installed here\nfix: pip install 'pytest-llem[demo]'",
        ),
        ("builtin:tiny-llama\nlora: ./models/whole", "has no adapter_config.json"),
        ("builtin:tiny-llama\nlora: ./models/adaptr", "fix: did you mean 'models/adapter'?"),
    ],
)
def test_a_model_that_cannot_be_one_is_refused_before_an_engine_is_imported(
    refused: Refused, model: str, said: str
) -> None:
    text = f"engine: transformers\nmodel: {model}\n"
    answer = refused(text)
    assert answer is not None
    assert answer.startswith(at(text, model.rpartition(": ")[2]))
    assert said in answer


@pytest.mark.parametrize(
    "text",
    [
        "model: ./models/whole\n",
        "model: owner/name\n",
        "model: ./models/bare\nweights: dummy\n",
        "model: builtin:tiny-llama\nlora: ./models/adapter\n",
        "model: ./models/m.gguf\nengine: vllm\n",
        OPENAI.format(SERVER, "./models/m.gguf"),
        OPENAI.format("command: [serve, '{gguf}', '{port}']", "./models/m.gguf"),
        OPENAI.format("base_url: 'http://h/v1'", "builtin:absent"),
        OPENAI.format("base_url: 'http://h/v1'", "/models/of/the/server"),
        OPENAI.format("base_url: 'http://h/v1'", "llama-3.gguf"),
        OPENAI.format("base_url: 'http://h/v1'", "a/b/c"),
        OPENAI.format("image: i, server_args: ['{model}', '{port}']", "/models/in/the/image"),
    ],
)
def test_what_may_be_right_is_not_refused(refused: Refused, text: str) -> None:
    """A path of a running server, or within an image, is none of this machine's."""
    assert refused(text) is None


@pytest.mark.parametrize(
    "text", [OPENAI.format(SERVER, "./m.gguf"), OPENAI.format("base_url: 'http://h/v1'", "./tokenizer")]
)
def test_relative_paths_are_this_machines_also_for_servers(refused: Refused, text: str) -> None:
    assert "no such file" in str(refused(text))


@pytest.mark.parametrize(
    ("runner", "path", "is_refused"),
    [
        ("docker", "/data/x", False),
        ("docker", "./x", True),
        ("ray", "/data/x", False),
        ("ray", "./x", False),
        ("local", "/data/x", True),
    ],
)
def test_paths_in_images_and_on_nodes_are_not_refused(
    refused: Refused, runner: RunnerName, path: str, is_refused: bool
) -> None:
    """Nodes have their files under the same paths, and an image may bring a model of its own."""
    for text in (f"model: {path}\n", PROMPTS.format(f"{path}.jsonl", 1)):
        assert (refused(text, runner) is not None) == is_refused


def test_a_link_to_a_file_of_another_name_is_what_its_own_name_says(refused: Refused, tmp_path: Path) -> None:
    """A file in the cache of the hub or of DVC, whose name is its hash, was no data set and no model."""
    for link, target in {"linked.jsonl": "data/p.jsonl", "linked.gguf": "models/m.gguf"}.items():
        blob = (tmp_path / target).rename(tmp_path / target.replace("/", "-").replace(".", "-"))
        (tmp_path / link).symlink_to(blob)
    assert refused(PROMPTS.format("linked.jsonl", 1)) is None
    assert refused("engine: vllm\nmodel: ./linked.gguf\n") is None


def test_a_pipe_is_no_model_and_is_not_waited_for(refused: Refused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "models" / "bare" / "config.json").unlink()
    os.mkfifo(tmp_path / "models" / "bare" / "config.json")
    for model in ("./pipe.gguf", "./models/bare"):
        assert "not a regular file" in str(refused(f"engine: vllm\nmodel: {model}\n"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_what_may_not_be_read_is_told_from_what_is_not_there(refused: Refused, tmp_path: Path) -> None:
    """A directory without permission ended pytest with an internal error."""
    for path in (tmp_path / "data" / "p.csv", tmp_path / "models"):
        path.chmod(0)
    for text in (PROMPTS.format("data/p.csv", 1), "model: ./models\n", "model: ./models/whole\n"):
        assert "ermission denied" in str(refused(text))
        assert "fix: make it readable to this user" in str(refused(text))
    (tmp_path / "models").chmod(0o700)


@pytest.mark.parametrize("runner", ["local", "docker"])
@pytest.mark.parametrize(
    "name", ["./{}", "{}", "x/{}", "~{}/x", "/{}/x.gguf", "./study.yaml/x", "./loop", "..", "/", "~"]
)
def test_no_name_is_a_traceback(refused: Refused, tmp_path: Path, runner: RunnerName, name: str) -> None:
    """What the system says of a name that is too long, a loop or a file as a directory is said as an error."""
    (tmp_path / "loop").symlink_to("loop")
    for text in (f"model: '{name}'\n", f"{BUILTIN}lora: '{name}'\n", PROMPTS.format(f"'{name}'", 1)):
        refused(text.replace("{}", "n" * 300), runner)
        refused(text.replace("{}", "n" * 5000), runner)


def test_every_problem_is_said_at_once_each_at_its_own_value(refused: Refused, tmp_path: Path) -> None:
    """A swept value, one of a group, of an experiment and of a base: the key alone would not tell which it is."""
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "common.yaml").write_text("workload:\n  dataset: p.jsonl\n")
    (tmp_path / "bases" / "p.jsonl").write_text('"x"\n')
    text = (
        "base: bases/common.yaml\n"
        "sweep:\n"
        "  model: [builtin:tiny-llama, ./models/none]\n"
        "  group: [{workload.prompts: 1}, {workload: {dataset: data/zz.csv}}]\n"
        "experiments: [{model: builtin:tiny-llama, workload: {dataset: data/p.json, prompts: 77}}]\n"
    )
    said = str(refused(text))
    assert f"{at(text, './models/none')}model './models/none'" in said
    assert f"{at(text, 'data/zz.csv')}workload.dataset" in said
    assert f"{at(text, '77')}workload.dataset" in said
    assert "bases/common.yaml:2:12: workload.dataset 'p.jsonl'" in said
    assert "fix: write ./bases/p.jsonl: a relative path starts at the study" in said
    assert said.count("fix: ") == 4


def test_a_data_set_of_a_package_is_read_before_anything_runs(refused: Refused, site: Site) -> None:
    source = "def few(settings):\n    yield 'one'\n\ndef broken(settings):\n    raise KeyError('colour')\n"
    site.add("llem-few", source, datasets="few = llem_few:few\nbroken = llem_few:broken")
    assert refused(PROMPTS.format("few", 1)) is None
    assert "2:35: workload.dataset 'few' has 1 prompts, and 2 were" in str(refused(PROMPTS.format("few", 2)))
    told = str(refused(PROMPTS.format("broken", 1)))
    assert told.startswith("study.yaml:2:21: the data set 'broken' of llem-few 1.0 cannot be used: KeyError: 'colour'")


def test_a_file_is_read_once_for_the_most_prompts_that_are_asked_for(refused: Refused) -> None:
    """A sweep of a thousand numbers would read it a thousand times."""
    text = BUILTIN + "workload: {dataset: data/p.csv}\nsweep: {workload.prompts: [2, 55, 999, 77]}\n"
    said = refused(text)
    assert said is not None
    assert said.startswith(at(text, "999"))
    assert said.count("were asked for") == 1


SCHEDULE = BUILTIN + "engine: vllm\nworkload: {{prompts: {}, arrival: {{process: schedule, file: data/times.txt}}}}\n"


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ("0\n\nsoon\n", ":3: 'soon' is no time in seconds\nfix: write one number a line, such as 0.25"),
        ("0\nnan\n", ":2: 'nan' is no time in seconds\nfix: write one number a line, such as 0.25"),
        ("-0.5\n1\n", ":1: -0.5 s is before the start\nfix: write seconds from 0 on"),
        ("0\n2.5\n1\n", ":3: 1 s comes after 2.5 s\nfix: sort the times"),
    ],
)
def test_a_schedule_is_read_before_anything_runs(refused: Refused, tmp_path: Path, times: str, said: str) -> None:
    """The worker read it when the model was loaded, and each cycle failed for the same line."""
    (tmp_path / "data" / "times.txt").write_text(times)
    text = SCHEDULE.format(2)
    assert refused(text) == f"{at(text, '{process')}data/times.txt{said}"


def test_a_schedule_is_there_and_has_a_time_for_each_prompt(refused: Refused, tmp_path: Path) -> None:
    text = SCHEDULE.format(4)
    missing = f"{at(text, '{process')}workload.arrival.file 'data/times.txt': no such file or directory"
    assert str(refused(text)).startswith(missing)
    assert refused(text, "docker") is None
    (tmp_path / "data" / "times.txt").write_text("0\n0\n7.25\n")
    assert refused(text) == (
        f"{at(text, '4')}workload.arrival.file 'data/times.txt' has 3 times, and 4 were asked for\n"
        "fix: set workload.prompts to at most 3"
    )
    assert refused(SCHEDULE.format(3)) is None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (tmp_path / "data" / "s.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 3)
    assert refused(SCHEDULE.replace("prompts", "dataset: data/s.jsonl, speed: 2, prompts").format(6)) is None


def test_a_schedule_has_a_time_for_each_session_of_a_package(refused: Refused, tmp_path: Path, site: Site) -> None:
    """It was refused for lack of a time for each turn; what the hub has cannot be counted here, and was as well."""
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    site.add(
        "llem-talks", f"def talks(settings):\n    yield {{'messages': {turn * 2}}}", datasets="talks = llem_talks:talks"
    )
    (tmp_path / "data" / "times.txt").write_text("0\n")
    of_package = SCHEDULE.replace("prompts", "dataset: talks, prompts")
    assert refused(of_package.format(2)) is None
    (tmp_path / "data" / "times.txt").write_text("\n")
    assert "has 0 times, and 1 were asked for" in str(refused(of_package.format(2)))
    (tmp_path / "data" / "times.txt").write_text("0\n")
    assert refused(SCHEDULE.replace("prompts", "dataset: some/chats, prompts").format(2), "docker") is None


def test_sessions_for_a_model_without_a_chat_template_are_refused_before_it_is_loaded(refused: Refused) -> None:
    """Each cycle failed, after its model had been loaded. A server of chats has a template of its own."""
    asked = "workload: {dataset: data/chats.jsonl, prompts: 1}\n"
    text = f"model: ./models/base\n{asked}"
    said = str(refused(text))
    assert said.startswith(f"{at(text, 'data/c')}sessions are put into the model's chat template, and models/base has")
    chats = OPENAI.format("base_url: 'http://127.0.0.1:8000', api: chat", "./models/base")
    assert (refused(chats + asked), refused(BUILTIN + asked)) == (None, None)
    templated = "model: ./models/base\nworkload: {dataset: data/p.jsonl, prompts: 1, chat_template: true}\n"
    assert str(refused(templated)).startswith(f"{at(templated, 'true')}prompts are put into the model's chat template")


ASKED = BUILTIN + "workload: {{dataset: {}, column: question, prompts: {}, answer_column: {}, score: {}}}\n"


@pytest.mark.parametrize(
    ("dataset", "prompts", "column", "score", "part", "said"),
    [
        ("q.jsonl", 2, "answer", "exact", "", None),
        ("q.parquet", 2, "answer", "exact", "", None),
        ("q.jsonl", 3, "answer", "exact", "answer, score", "q.jsonl:3: no answer key for the scorer exact"),
        ("q.parquet", 3, "answer", "exact", "q.parquet", "q.parquet[2]: no answer in column answer"),
        (
            "q.jsonl",
            4,
            "answer",
            "exact",
            "q.jsonl",
            "q.jsonl:4: no answer in column answer\nfix: write the answer, or",
        ),
        ("q.csv", 1, "answer", "exact", "q.csv", "q.csv:2: no answer in column answer\nfix: write the answer"),
        (
            "q.jsonl",
            2,
            "anwser",
            "exact",
            "anwser",
            "q.jsonl:1: no column anwser, which should hold the answer\nfix: did",
        ),
        ("q.parquet", 2, "anwser", "exact", "anwser", "fix: did you mean 'answer'?"),
        (
            "part.jsonl",
            2,
            "key",
            "exact",
            "key",
            "part.jsonl:2: no column key, which should hold the answer\nfix: write it",
        ),
        ("q.jsonl", 2, "answer", "exakt", "exakt", "unknown scorer 'exakt'"),
        ("q.jsonl, order: shuffled", 2, "answer", "exact", "q.jsonl", "q.jsonl:4: no answer in column answer"),
    ],
)
def test_questions_are_looked_at_with_their_answers(
    refused: Refused, tmp_path: Path, dataset: str, prompts: int, column: str, score: str, part: str, said: str | None
) -> None:
    """Drawn ones too: each that may be asked needs a key, and the file's first rows are not those that are drawn."""
    rows = [{"question": f"q{n}", "answer": key} for n, key in enumerate(("1", ["2", "two"], {"a": "b"}, None))]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.csv").write_text("question,answer\nx,\n")
    (tmp_path / "part.jsonl").write_text('{"question": "a", "key": "b"}\n{"question": "c"}\n')
    keys = [["1"], ["2", "two"], ["3", None]]
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a", "b", "c"], "answer": keys}), tmp_path / "q.parquet")
    text = ASKED.format(dataset, prompts, column, score)

    answer = refused(text)

    if said is None:
        assert answer is None
    else:
        assert answer is not None
        assert answer.startswith(at(text, part))
        assert said in answer


def test_a_function_that_cannot_score_is_named_before_anything_is_measured(refused: Refused, tmp_path: Path) -> None:
    """It is tried with the first key; the answers of a night would have had no scores."""
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    (tmp_path / "grading.py").write_text("def grade(answer, target):\n    return 'right'\n")
    text = ASKED.format("q.jsonl", 1, "answer", "{python: 'grading.py:grade'}")

    answer = refused(text)

    assert answer is not None
    assert answer.startswith(at(text, "{python"))
    assert "gave 'right', no number from 0 to 1" in answer
