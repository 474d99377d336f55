"""Servers that misbehave, on real sockets, and what the client of OpenAI-compatible servers makes of them.

CI runs the named cases and some mutations; `python -m tests.hostile.servers [--tries N] [--write-docs]` runs the slow
ones and N mutations, and each failing case as an experiment under pytest. It must end with no lie, traceback or hang.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pytest_llem.engines.openai.engine import OpenAIEngine
from pytest_llem.engines.protocol import Completion, Request
from pytest_llem.errors import LlemError
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.wire import encode
from pytest_llem.worker.cycle import work_notes
from tests.engines.servers.scripted import listening

from .report import SEED, table, write_docs
from .server_cases import COUNT, FAILING, HANG, RESET, SLOW, TRUE, Case, Step, models, whole

REQUESTS = [Request(index, (), COUNT, ignore_eos=True, text="four words of text") for index in range(2)]
LONGEST_S = 40.0
"""More than a case may take: four of the client's questions beside the measurement, of ten seconds each."""


class Server:
    """Serves all cases, each below a path of its own (`/NUMBER/v1`)."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)
        self.early: Sequence[Step] = ()
        self.begun_ns: list[int] = []
        self.url = ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._send(self.early, reader, writer)
            keeps = True
            while keeps:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                _, number, path = lines[0].split(" ")[1].split("/", 2)
                keeps = await self._answer(self.cases[int(number)], f"/{path}", body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, case: Case, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if not path.endswith("/completions"):
            default = models([{"id": "m"}]).aside["/v1/models"] if path == "/v1/models" else [whole({}, status="404 X")]
            await self._send(case.aside.get(path, default), reader, writer)
            return path not in case.aside
        if json.loads(body)["max_tokens"] == 1:
            one = {"text": "w"} if case.api == "completions" else {"message": {"content": "w"}}
            answer = {"choices": [{**one, "finish_reason": "length"}]}
            usage = {"completion_tokens": 1, "prompt_tokens": 4}
            await self._send([whole({**answer, "usage": usage})], reader, writer)
            return True
        self.begun_ns.append(0)
        await self._send(case.answer, reader, writer)
        return case.keeps

    async def _send(self, steps: Sequence[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif step == HANG:
                while await reader.read(65536):
                    pass
                raise ConnectionAbortedError
            elif step == RESET:
                writer.transport.abort()
                raise ConnectionAbortedError
            elif isinstance(step, bytes):
                if self.begun_ns and not self.begun_ns[-1]:
                    self.begun_ns[-1] = time.monotonic_ns()
                writer.write(step)
                await writer.drain()


@contextmanager
def serving(cases: Sequence[Case]) -> Iterator[Server]:
    """A server of these cases; its thread ends with the `with`."""
    server = Server(cases)
    with listening(server.connected) as server.url:
        yield server


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `end` is `refused`, `failed`, `invalid`, `measured`, `traceback` or `hang`."""

    name: str
    end: str
    said: str
    took_s: float
    wrong: bool
    """A lie, a true answer that was not measured, a traceback or a hang."""


class HangError(BaseException):
    """A case took too long."""


def tried(name: str, case: Case, server: Server) -> Outcome:
    """Measure one case with the real engine, in this process."""

    def too_long(_signal: int, _frame: object) -> None:
        raise HangError

    begun = time.monotonic()
    before = signal.signal(signal.SIGALRM, too_long)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    server.early, server.begun_ns = case.early, []
    engine = OpenAIEngine()
    try:
        end, said = _measured(case, f"{server.url}/{server.cases.index(case)}", engine, server)
    except LlemError as problem:
        end, said = ("failed" if "every request failed" in str(problem) else "refused"), str(problem)
        json.dumps(problem.details, allow_nan=False, ensure_ascii=False).encode()
        said.encode()
    except HangError:
        end, said = "hang", ""
    except Exception as problem:  # noqa: BLE001, any of them is a finding
        end, said = "traceback", repr(problem)
    finally:
        # pytest-timeout has the same timer.
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left_s)
        engine.shutdown()
    wrong = end in ("traceback", "hang") or (case.true is not None and (end == "measured") != case.true)
    return Outcome(name, end, said, time.monotonic() - begun, wrong)


def _measured(case: Case, url: str, engine: OpenAIEngine, server: Server) -> tuple[str, str]:
    # A true answer has time on a busy machine; how long the others take for ever is all the same.
    timeout_s = 10.0 if case.true else 0.3
    config = ExperimentConfig(
        model="nobody/knows-it",
        engine="openai",
        dtype=None,
        weights="real",
        workload=WorkloadSettings("synthetic", 2, 4, COUNT, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings={"base_url": f"{url}/v1", "concurrency": 1, "request_timeout_s": timeout_s, "api": case.api},
    )
    engine.prepare(config, DeviceSet("cpu"))
    engine.load()
    engine.reset()
    engine.reset_statistics()
    done = engine.generate(REQUESTS, lambda _done, _total: None)
    statistics = engine.statistics()
    done = engine.read(done)
    remarked, warnings = engine.remarks()
    invalid = [*remarked, *work_notes(REQUESTS, done, counts_prompts=False)]
    known = [
        statistics,
        engine.effective(),
        engine.environment(),
        [encode(each) for each in (*done, *invalid, *warnings)],
    ]
    written = json.dumps(known, allow_nan=False, ensure_ascii=False).encode()
    if len(written) > 1 << 20:
        raise AssertionError(f"a result of {len(written)} bytes")
    if failures := [completion.error for completion in done if completion.error is not None]:
        return "failed", str(failures[0])
    if invalid:
        return "invalid", invalid[0].message
    if case.true is not None:
        # One that was lost with its connection was sent again.
        for completion, begun_ns in zip(done, (server.begun_ns[0], server.begun_ns[-1]), strict=True):
            _require_true(completion, begun_ns)
    return "measured", ", ".join(note.code for note in warnings)


def _require_true(completion: Completion, begun_ns: int) -> None:
    """The text and the count are the server's, and nothing was there before the server had begun to send it."""
    if (completion.generated, completion.text) != (COUNT, "w" * COUNT):
        raise AssertionError(f"{completion.generated} tokens, {completion.text!r:.60}")
    first_ns = completion.first_token_ns
    if completion.end_ns < begun_ns or (first_ns is not None and first_ns < begun_ns):
        raise AssertionError("it was there before it was sent")


def mutations(tries: int, seed: int = SEED) -> Iterator[tuple[str, Case]]:
    """Good streams of which bytes, lines or pieces were changed, dropped, doubled or moved."""
    rng = random.Random(seed)
    good = [b"".join(step for step in TRUE[name].answer if isinstance(step, bytes)) for name in MUTATED]
    for number in range(tries):
        raw = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 3)):
            at, size = rng.randrange(len(raw)), rng.choice((1, 1, 2, 5, 40))
            piece = bytes(raw[at : at + size])
            raw[at : at + rng.choice((0, size))] = rng.choice(
                (b"", piece * 2, rng.randbytes(size), rng.choice(GRAINS), bytes(raw[at - size : at]))
            )
        yield f"mutation {number}", Case((bytes(raw),), true=None)


MUTATED = ("a good stream", "a good answer", "a good chunked stream", "CR LF", "usage in every event")
GRAINS = (
    b"null",
    b"[",
    b"{",
    b"]",
    b"}",
    b'"',
    b"1e999",
    b"-1",
    b"\n\n",
    b"\r",
    b"\\ud800",
    b"\x00",
    b"\xff",
    b"data:",
    b"0",
)


def under_pytest(cases: Mapping[str, Case]) -> dict[str, str]:
    """Measure each case as an experiment of one study, in a pytest of its own; the cases that passed, and why."""
    with serving([*cases.values()]) as server, tempfile.TemporaryDirectory() as directory:
        experiments = [
            {"id": f"n{number}", "openai": {"base_url": f"{server.url}/{number}/v1", "api": case.api}}
            for number, case in enumerate(cases.values())
        ]
        study = {
            "name": "hostile",
            "model": "builtin:tiny-llama",
            "engine": "openai",
            "workload": {"prompts": 2, "input_tokens": 4, "output_tokens": COUNT},
            "openai": {"request_timeout_s": 1.5, "concurrency": 1, "enable_prefix_caching": False},
            "measurement": {
                "min_duration_s": 0.05,
                "idle": {"duration_s": 0.05},
                "warmup": {"max_repeats": 0},
                "validity": {"cpu_contended_rel": 1.0},
            },
            "execution": {"cycles": 1, "retries": 0, "timeout_s": 120, "order": "sequential"},
            "experiments": experiments,
        }
        path = Path(directory)
        (path / "study.yaml").write_text(json.dumps(study))
        words = [
            "-m",
            "pytest",
            "--llem-study=study.yaml",
            "--llem-out=out",
            "--llem-no-breaker",
            "--junit-xml=junit.xml",
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if not (path / "junit.xml").exists():
            raise RuntimeError(ended.stdout[-2000:] + ended.stderr[-2000:])
        names = list(cases)
        items = [item for item in ElementTree.parse(path / "junit.xml").iter("testcase") if "[" in item.get("name", "")]
        results = {item.get("name", ""): [part.tag for part in item] for item in items}
        if len(results) < len(cases):
            raise RuntimeError(f"{len(results)} items for {len(cases)} cases: {ended.stdout[-1000:]}")
        return {
            next(names[int(word[1:])] for word in _words(name) if word[:1] == "n" and word[1:].isdigit()): name
            for name, parts in results.items()
            if not {"failure", "error", "skipped"} & set(parts)
        }


def _words(name: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in name).split()


def run(cases: Mapping[str, Case]) -> list[Outcome]:
    """The outcomes of cases, one after the other."""
    with serving([*cases.values()]) as server:
        return [tried(name, case, server) for name, case in cases.items()]


def main() -> int:
    """Run all, print and perhaps write the figures; 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000, help="mutations")
    parser.add_argument("--write-docs", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    named = {**FAILING, **TRUE, **SLOW}
    outcomes = run(named)
    mutated = run(dict(mutations(options.tries)))
    # The good one shows that others could have passed.
    good = "a good stream"
    passed = under_pytest({**FAILING, good: TRUE[good]})
    if good not in passed:
        raise RuntimeError("a good server did not pass under pytest")
    del passed[good]
    bad = [each for each in (*outcomes, *mutated) if each.wrong]
    for each in bad:
        print(f"{each.name}: {each.end}: {each.said[:300]}")
    print("passed under pytest:", passed)
    kinds = {"untrue answers": FAILING, "odd and true answers": TRUE, "questions that hang": SLOW}
    rows = [_row(what, [each for each in outcomes if each.name in cases]) for what, cases in kinds.items()]
    rows.append(_row("mutations of good answers", mutated))
    heads = [
        "servers",
        "tried",
        "refused",
        "failed",
        "invalid",
        "measured",
        "green lies",
        "tracebacks",
        "hangs",
        "longest (s)",
    ]
    text = table(heads, rows) + (
        f"\n\nAs experiments of a study under pytest, the {len(FAILING)} untrue answers gave {len(passed)} that passed."
    )
    print(text)
    if options.write_docs:
        write_docs("servers", text)
    return int(bool(bad or passed))


def _row(what: str, outcomes: Sequence[Outcome]) -> list[object]:
    ends = Counter(each.end for each in outcomes)
    lies = sum(each.wrong and each.end == "measured" for each in outcomes)
    counts = [ends[end] for end in ("refused", "failed", "invalid", "measured")]
    longest = max(each.took_s for each in outcomes)
    return [what, len(outcomes), *counts, lies, ends["traceback"], ends["hang"], f"{longest:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
