"""Requests of sessions and traces: exact lengths, exactly the shared beginnings, and a hash over all that is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.containers.inputs import inputs_of
from pytest_llem.errors import EngineSettingError
from pytest_llem.job.config import Arrival, ExperimentConfig, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings, load_job
from pytest_llem.job.measurement import TruncatedPrompts
from pytest_llem.job.request import Request
from pytest_llem.machine.environment import input_facts
from pytest_llem.machine.parquet import parquet_texts
from pytest_llem.workload.build import Workload, build_workload
from pytest_llem.workload.corpus import OWN_TOKENS, CorpusRuns
from pytest_llem.workload.texts import texts_of_package
from pytest_llem.workload.tokenizer import TextOnly
from tests.installed import Site
from tests.unit.workload.test_workload_build import WordTokenizer

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "a b c"},
    {"role": "user", "content": "two"},
]


class ChatWords(WordTokenizer):
    """A token for every word, roles and tools among them."""

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        return self.encode(" ".join([f"<{one['role']}> {one['content']}" for one in messages] + [f"{tools}"]))


def build(
    path: Path, rows: Sequence[Any], tokenizer: Any = None, *, as_messages: bool = False, **changes: Any
) -> Workload:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = WorkloadSettings(
        str(path), **{"prompts": len(rows), "input_tokens": None, "output_tokens": 9, **changes}
    )
    return build_workload(settings, tokenizer or ChatWords(), as_messages=as_messages)


def row(input_length: int, *blocks: int, **more: Any) -> dict[str, Any]:
    return {"timestamp": 0, "input_length": input_length, "output_length": 5, "hash_ids": list(blocks), **more}


def shared(one: Request, other: Request) -> int:
    """How many tokens two prompts have in common from their beginning on."""
    pairs = list(zip(one.token_ids, other.token_ids, strict=False))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))


@pytest.mark.parametrize("bos_id", [None, 0])
def test_prompts_of_a_trace_have_its_lengths_and_share_its_blocks_alone(tmp_path: Path, bos_id: int | None) -> None:
    """A cache that is measured with other prefixes than the recorded ones has another hit rate."""
    rows = [
        row(1500, 7, 8, 9),
        row(1536, 7, 8, 9),
        row(1600, 7, 8, 9, 3),
        row(1400, 7, 8, 4),
        row(1024, 5, 6),
        row(600),
        row(1300, 7, 8),
    ]
    requests = build(tmp_path / "m.jsonl", rows, ChatWords(bos_id)).requests
    assert [len(one.token_ids) for one in requests] == [one["input_length"] for one in rows]
    assert all(one.token_ids[0] == bos_id for one in requests if bos_id is not None)
    alike = [[shared(one, other) for other in requests] for one in requests]
    assert alike[0][1:3] == [1500, 1500]
    assert alike[1][2] == 1536
    first = bos_id is not None
    for one, other, expected in ((0, 3, 1024), (0, 4, 0), (0, 5, 0), (0, 6, 1024), (3, 6, 1024), (4, 5, 0)):
        assert expected <= alike[one][other] - first < expected + OWN_TOKENS


def test_runs_of_many_names_begin_differently() -> None:
    """A trace has more blocks than the corpus has words."""
    runs = CorpusRuns(WordTokenizer(), 0)
    begin = {runs.run(name, 2 * OWN_TOKENS) for name in range(60_000)}
    assert len(begin) == 60_000
    assert runs.run(3, 5) == runs.run(3, 700)[:5]
    assert len(runs.run(59_999, 30_000)) == 30_000


def test_a_trace_is_the_same_on_every_machine_and_for_every_number_of_prompts(tmp_path: Path) -> None:
    rows = [row(700, 1, 2), row(800, 1, 3)]
    one, other = (build(tmp_path / "m.jsonl", rows).requests for _ in range(2))
    assert one == other
    assert build(tmp_path / "m.jsonl", rows, prompts=1).requests == one[:1]
    assert build(tmp_path / "m.jsonl", rows, seed=1).requests != one


def test_recorded_lengths_of_answers_come_before_those_of_the_study(tmp_path: Path) -> None:
    assert [one.max_new_tokens for one in build(tmp_path / "m.jsonl", [row(7), row(7, output_length=2)]).requests] == [
        5,
        2,
    ]
    workload = build(tmp_path / "s.jsonl", [{"messages": CHAT}], prompts=2)
    assert [one.max_new_tokens for one in workload.requests] == [3, 9]


def test_a_number_of_input_tokens_cuts_the_prompts_of_a_trace(tmp_path: Path) -> None:
    workload = build(tmp_path / "m.jsonl", [row(700, 1, 2), row(300, 3)], input_tokens=600)
    assert [len(one.token_ids) for one in workload.requests] == [600, 300]
    assert workload.truncated == TruncatedPrompts(1, 700, 600)


def test_speed_divides_times_and_waits(tmp_path: Path) -> None:
    waits = [*CHAT[:3], {**CHAT[3], "delay": 1000}]
    rows = [{"messages": waits, "timestamp": 500}, {"messages": waits, "timestamp": 2500}]
    requests = build(tmp_path / "s.jsonl", rows, prompts=4, speed=4.0).requests
    assert [(one.session, one.turn, one.due_s, one.think_s) for one in requests] == [
        ("1", 1, 0.0, 0.0),
        ("1", 2, None, 0.25),
        ("2", 1, 0.5, 0.0),
        ("2", 2, None, 0.25),
    ]


def test_chats_go_by_the_template_to_engines_that_take_tokens(tmp_path: Path) -> None:
    tokenizer = ChatWords()
    requests = build(tmp_path / "s.jsonl", [{"messages": CHAT}], tokenizer, prompts=2).requests
    assert tokenizer.decode(requests[1].token_ids) == ("<system> be brief <user> one <assistant> a b c <user> two None")
    assert requests[1].messages is None
    with pytest.raises(EngineSettingError, match="renders single texts only") as caught:
        build(tmp_path / "s.jsonl", [{"messages": CHAT}], WordTokenizer())
    assert caught.value.fix


def test_chats_go_as_messages_to_a_server_of_chats(tmp_path: Path) -> None:
    """Its template is the server's; what is not known of their lengths here does not stop them."""
    rows = [{"messages": CHAT[:2], "tools": [{"type": "function"}]}]
    for tokenizer, tokens in ((ChatWords(), 6), (WordTokenizer(), 0), (TextOnly("none", "none"), 0)):
        (request,) = build(tmp_path / "s.jsonl", rows, tokenizer, as_messages=True).requests
        assert request.messages == tuple(CHAT[:2])
        assert request.tools == ({"type": "function"},)
        assert (len(request.token_ids) > 0) == (tokens > 0)
    with pytest.raises(EngineSettingError, match="none"):
        build(tmp_path / "s.jsonl", [{"messages": CHAT}], TextOnly("none", "none"), as_messages=True)


def test_equal_hashes_mean_equal_work(tmp_path: Path) -> None:
    """Roles, tools, waits and which turns belong together are work as well as tokens are; names of sessions are not."""
    user = {"role": "user", "content": "one"}
    answered = [user, {"role": "assistant", "content": "a b"}, {"role": "user", "content": "two"}]

    def hashed(*rows: Any, prompts: int = 2, **changes: Any) -> str:
        return build(tmp_path / "s.jsonl", rows, as_messages=True, prompts=prompts, **changes).prompts_hash

    base = hashed({"messages": answered})
    assert hashed({"messages": answered, "session_id": "other"}) == base
    waiting = [*answered[:2], {**answered[2], "delay": 1000}]
    others = [
        hashed({"messages": [user]}, {"messages": answered[:2] + answered[2:]}),
        hashed({"messages": [{**user, "role": "system"}, user, *answered[1:]]}),
        hashed({"messages": [*answered[:1], {**answered[1], "content": "a b c"}, *answered[2:]]}),
        hashed({"messages": answered, "tools": [{}]}),
        hashed({"messages": waiting}),
        hashed({"messages": waiting}, speed=2.0),
        hashed({"messages": answered}, output_tokens=8),
    ]
    assert len({base, *others}) == len(others) + 1


def test_which_turns_belong_to_one_session_is_in_the_hash(tmp_path: Path) -> None:
    hashes = set()
    for sessions in ("uvuv", "uvvu", "abab"):
        lines = "".join(f"{time},{session},9,9\n" for time, session in enumerate(sessions))
        (tmp_path / "b.csv").write_text(f"Timestamp,Session ID,Request tokens,Response tokens\n{lines}")
        settings = WorkloadSettings(str(tmp_path / "b.csv"), prompts=4, input_tokens=None)
        workload = build_workload(settings, ChatWords())
        assert [one.turn for one in workload.requests] == [1, 1, 2, 2]
        assert not any(one.think_s for one in workload.requests)
        hashes.add(workload.prompts_hash)
    assert len(hashes) == 2


def test_times_are_in_the_hash_of_arrivals_where_they_are_kept(tmp_path: Path) -> None:
    first, second = ([row(7), row(8, timestamp=time)] for time in (100, 200))
    one, other = (build(tmp_path / "m.jsonl", rows, arrival=Arrival("schedule")) for rows in (first, second))
    assert one.prompts_hash == other.prompts_hash
    assert one.arrivals_hash != other.arrivals_hash
    assert build(tmp_path / "m.jsonl", first).arrivals_hash is None


SOURCE = """
def chats(settings):
    yield {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "a"}], "session_id": "s"}
    yield {"messages": [{"role": "user"}]}
    yield {"messages": [{"role": "user", "content": "two"}], "timestamp": None}
"""


def test_sessions_of_another_package_travel_with_the_job(site: Site, tmp_path: Path) -> None:
    site.add("llem-chats", SOURCE, datasets="chats = llem_chats:chats")
    settings = WorkloadSettings("chats", 2, None, 4)
    config = ExperimentConfig(model="builtin:tiny-llama", workload=settings)
    here = build_workload(settings, ChatWords())
    assert (here.format, here.rows_broken, [one.session for one in here.requests]) == ("openai_messages", 1, ["s", "3"])
    made = Job(
        *("run", "study", "id", "hash", config, 1, 1, DeviceSet("cpu"), MeterSettings(), Deadlines(60.0)),
        texts=texts_of_package(settings),
    )
    JobDir(tmp_path / "job").write_job(made)
    assert inputs_of(config).mounts == ()
    before = input_facts(config)
    site.add("llem-chats", SOURCE)
    job = load_job(JobDir(tmp_path / "job").job)
    assert build_workload(job.config.workload, ChatWords(), job.texts) == here
    site.add("llem-chats", SOURCE.replace('"two"', '"three"'), datasets="chats = llem_chats:chats")
    assert input_facts(config) != before


def test_parquet_holds_them_as_well(tmp_path: Path) -> None:
    """Data sets of chats are published so, with null for what a message lacks."""
    import pyarrow
    import pyarrow.parquet

    messages = [{"role": "user", "content": "one", "name": None}, {"role": "assistant", "content": "a", "name": "x"}]
    rows = [{"messages": messages, "session_id": "s"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    texts = parquet_texts(WorkloadSettings(str(tmp_path / "p.parquet"), 1, None, 4))
    assert texts is not None
    assert texts.recorded[0].messages == ({"role": "user", "content": "one"},)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(700, 1, 2)]), tmp_path / "m.parquet")
    texts = parquet_texts(WorkloadSettings(str(tmp_path / "m.parquet"), 1, None, 4))
    assert texts is not None
    assert texts.recorded[0].blocks == (1, 2)
    burst = {"Timestamp": 1.5, "Model": "m", "Request tokens": 3, "Response tokens": 4}
    azure = {"TIMESTAMP": "2023-11-16 18:17:04", "ContextTokens": 3, "GeneratedTokens": 4}
    for name, one in (("burstgpt", burst), ("azure", azure), ("mooncake", {"input_length": 3, "output_length": 4})):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([one]), tmp_path / f"{name}.parquet")
        texts = parquet_texts(WorkloadSettings(str(tmp_path / f"{name}.parquet"), 1, None, 4))
        assert texts is not None
        assert (texts.format, texts.recorded[0].prompt_tokens) == (name, 3)
