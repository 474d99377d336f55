"""An engine that is odd in the way its model names: `ACTS` do something to the process, `ANSWERS` and `FACTS` lie.

An act happens in the stage behind its name (`fork.load`, `fork.generate`, `fork.shutdown`).
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pytest_llem.engines.protocol import Completion, DeviceMemory, ModelShape, Progress, Request
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from tests.plugin.faulty_engine.llem_faulty import FaultyEngine

LONG_S = 600.0


class UnprintableError(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        """Break."""
        raise RuntimeError("no words")


class UncaughtError(BaseException):
    """Nothing that `except Exception` catches."""


def throw(error: BaseException) -> Callable[[], None]:
    """An act that raises."""

    def act() -> None:
        raise error

    return act


def signalled(number: int) -> Callable[[], None]:
    """An act that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def forked(*, session: bool, twice: bool = False, keeps: bool = True, ignores: bool = False) -> None:
    """Leave a process behind, in a session of its own, an orphan, with or without the descriptors."""
    if os.fork():
        return
    if session:
        os.setsid()
    if twice and os.fork():
        os._exit(0)
    if ignores:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    if not keeps:
        os.closerange(0, 1024)
    time.sleep(LONG_S)
    os._exit(0)


def forks_again() -> None:
    """Leave a chain of processes, each of which is replaced by its child twenty times a second."""
    if os.fork():
        return
    end_s = time.monotonic() + LONG_S
    while time.monotonic() < end_s:
        os.setsid()
        time.sleep(0.05)
        if os.fork():
            os._exit(0)


def popen(**options: Any) -> None:
    """Start a program that outlives the cycle."""
    subprocess.Popen(["sleep", str(LONG_S)], **options)


def hangs_unkillable() -> None:
    """Hang, and do not obey SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(LONG_S)


def thread_that_stays() -> None:
    """Start a thread that the interpreter waits for."""
    threading.Thread(target=time.sleep, args=(LONG_S,)).start()


def child_that_stays() -> None:
    """Start a process that the interpreter waits for."""
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG_S,)).start()


def write(data: bytes, times: int = 1, descriptor: int = 1) -> None:
    """Write to standard output, past Python's buffers."""
    for _ in range(times):
        os.write(descriptor, data)


def removed_directory() -> None:
    """Work in a directory that is gone."""
    with tempfile.TemporaryDirectory() as gone:
        os.chdir(gone)


def without_streams() -> None:
    """Take Python's own streams away."""
    sys.stdout = sys.stderr = cast("Any", None)


def own_group() -> None:
    """Leave the process group, with the help of a child."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        time.sleep(LONG_S)
        os._exit(0)
    time.sleep(0.1)
    os.setpgid(0, os.getpgid(child))


def fill(message: str) -> None:
    """Fail with a text."""
    raise RuntimeError(message)


ACTS: Mapping[str, Callable[[], object]] = {
    "raises": throw(RuntimeError("odd")),
    "raises-base": throw(UncaughtError("odd")),
    "raises-unprintable": throw(UnprintableError()),
    "raises-huge": lambda: fill("x" * (8 << 20)),
    "raises-binary": lambda: fill("\ud800\x00\x1b[31m\u202e"),
    "raises-group": lambda: throw(cast("Any", __builtins__)["ExceptionGroup"]("odd", [ValueError("a")]))(),
    "raises-recursion": lambda: (lambda f: f(f))(lambda f: f(f)),
    "memory-error": throw(MemoryError()),
    "keyboard-interrupt": throw(KeyboardInterrupt()),
    "generator-exit": throw(GeneratorExit()),
    "system-exit-0": lambda: sys.exit(0),
    "system-exit-3": lambda: sys.exit(3),
    "system-exit-text": lambda: sys.exit("good bye"),
    "exit-0": lambda: os._exit(0),
    "exit-1": lambda: os._exit(1),
    "exit-3": lambda: os._exit(3),
    "exit-130": lambda: os._exit(130),
    "sigkill": signalled(signal.SIGKILL),
    "sigsegv": signalled(signal.SIGSEGV),
    "sigabrt": signalled(signal.SIGABRT),
    "sigterm": signalled(signal.SIGTERM),
    "sigint": signalled(signal.SIGINT),
    "sigstop": signalled(signal.SIGSTOP),
    "sigpipe": signalled(signal.SIGPIPE),
    "sigusr1": signalled(signal.SIGUSR1),
    "kills-group": lambda: os.killpg(0, signal.SIGKILL),
    "kills-parent": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "hangs": lambda: time.sleep(LONG_S),
    "hangs-unkillable": hangs_unkillable,
    "fork": lambda: forked(session=False),
    "fork-session": lambda: forked(session=True),
    "fork-twice": lambda: forked(session=True, twice=True),
    "fork-twice-ignores": lambda: forked(session=True, twice=True, ignores=True),
    "fork-twice-closed": lambda: forked(session=True, twice=True, keeps=False),
    "forks-again": forks_again,
    "popen": popen,
    "popen-session": lambda: popen(start_new_session=True),
    "popen-keeps": lambda: popen(start_new_session=True, close_fds=False),
    "popen-no-environment": lambda: popen(start_new_session=True, env={}),
    "process-stays": child_that_stays,
    "thread-stays": thread_that_stays,
    "at-exit-hangs": lambda: atexit.register(time.sleep, LONG_S),
    "at-exit-raises": lambda: atexit.register(fill, "odd"),
    "at-exit-exits": lambda: atexit.register(os._exit, 5),
    "own-group": own_group,
    "garbage": lambda: write(bytes(range(256)) * 64),
    "events": lambda: write(b'LLEM-EVENT {"event": "phase", "name": "done"}\nLLEM-EVENT [1]\nLLEM-EVENT {\n'),
    "huge-output": lambda: write(b"x" * (1 << 20), 100),
    "huge-line": lambda: write(b"\x00" * (1 << 20), 20, 2),
    "closes-streams": lambda: os.closerange(0, 3),
    "closes-all": lambda: os.closerange(0, 1024),
    "without-streams": without_streams,
    "chdir": lambda: os.chdir("/"),
    "chdir-removed": removed_directory,
    "no-environment": os.environ.clear,
    "umask": lambda: os.umask(0o777),
    "no-files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4)),
    "no-space": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    "ignores-signals": lambda: [signal.signal(number, signal.SIG_IGN) for number in (2, 13, 15, 17)],
    "reaps": lambda: signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG)),
    "low-recursion": lambda: sys.setrecursionlimit(60),
    "no-modules": sys.modules.clear,
    "imports": lambda: importlib.import_module("colorsys").rgb_to_hls(0, 0, 0),
    "clock": lambda: setattr(time, "monotonic_ns", lambda: 0),
}
"""What happens to the process."""

Answers = list[Completion]


def each(**changes: Any) -> Callable[[Answers], object]:
    """Every answer with other values."""
    return lambda answers: [replace(answer, **changes) for answer in answers]


def times(change: Callable[[tuple[int, ...]], object]) -> Callable[[Answers], object]:
    """Every answer with other token times."""
    return lambda answers: [
        replace(answer, token_times_ns=cast("Any", change(answer.token_times_ns or ()))) for answer in answers
    ]


ANSWERS: Mapping[str, Callable[[Answers], object]] = {
    "no-tokens": each(output_ids=(), token_times_ns=()),
    "no-tokens-stated": each(output_tokens=0),
    "no-answers": lambda answers: [],
    "none": lambda answers: None,
    "number": lambda answers: 7,
    "generator": lambda answers: (answer for answer in answers),
    "dictionaries": lambda answers: [{"index": answer.index} for answer in answers],
    "fewer": lambda answers: answers[:-1],
    "more": lambda answers: [*answers, answers[0]],
    "twice-the-first": lambda answers: [answers[0]] * len(answers),
    "unknown-index": each(index=99),
    "text-index": each(index="0"),
    "short": lambda answers: [replace(a, output_ids=a.output_ids[:-1]) for a in answers],
    "long": lambda answers: [replace(a, output_ids=(*a.output_ids, 1)) for a in answers],
    "stated-more": each(output_tokens=10**6),
    "stated-huge": each(output_tokens=10**30),
    "stated-negative": each(output_tokens=-5),
    "stated-nan": each(output_tokens=float("nan")),
    "stated-text": each(output_tokens="4"),
    "prompt-more": each(input_tokens=10**6),
    "prompt-negative": each(input_tokens=-8),
    "prompt-none": each(input_tokens=None),
    "ids-none": each(output_ids=None),
    "ids-text": each(output_ids="abcd"),
    "ids-negative": each(output_ids=(-1, -1, -1, -1)),
    "ids-float": each(output_ids=(0.5, 0.5, 0.5, 0.5)),
    "ends-first": lambda answers: [replace(a, start_ns=a.end_ns, end_ns=a.start_ns) for a in answers],
    "zero-times": each(start_ns=0, end_ns=0),
    "no-times": each(start_ns=None, end_ns=None),
    "nan-times": each(end_ns=float("nan")),
    "future-times": lambda answers: [replace(a, end_ns=a.end_ns + 10**18) for a in answers],
    "times-fewer": times(lambda found: found[:1]),
    "times-more": times(lambda found: (*found, found[-1])),
    "times-backwards": times(lambda found: found[::-1]),
    "times-zero": times(lambda found: (0,) * len(found)),
    "times-future": times(lambda found: tuple(t + 10**18 for t in found)),
    "times-nan": times(lambda found: (float("nan"),) * len(found)),
    "times-text": times(lambda found: "soon"),
    "cached-all": each(cached_tokens=8),
    "cached-huge": each(cached_tokens=10**30),
    "all-failed": each(error="odd", finish_reason="error"),
    "one-failed": lambda answers: [replace(answers[0], error="odd", finish_reason="error"), *answers[1:]],
    "reason-none": each(finish_reason=None),
    "surrogates": each(text="\ud800", finish_reason="\ud800"),
}
"""What becomes of the answers."""

DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]

FACTS: Mapping[str, Mapping[str, object]] = {
    "version-none": {"version": None},
    "version-number": {"version": 1.0},
    "effective-none": {"effective": None},
    "effective-object": {"effective": {"x": object()}},
    "effective-set": {"effective": {"x": {1}}},
    "effective-nan": {"effective": {"x": float("nan")}},
    "effective-deep": {"effective": {"x": DEEP}},
    "effective-keys": {"effective": {1: 2, None: 3}},
    "effective-surrogate": {"effective": {"x": "\ud800"}},
    "memory-negative": {"memory": (DeviceMemory("cpu", -1, -1),)},
    "memory-number": {"memory": 5},
    "shape-text": {"shape": "big"},
    "cache-word": {"reset": "perhaps"},
    "quiesce-word": {"quiesce": "perhaps"},
}
"""What it says of itself."""


class OddEngine(FaultyEngine):
    """The faulty engine, odd."""

    name = "odd"

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """Remember what is odd."""
        self.act, _, self.stage = config.model.partition(".")
        super().prepare(config, devices)
        return cast("str", self._fact("version", "1.0"))

    def _fact(self, name: str, usual: object) -> object:
        return FACTS.get(self.act, {}).get(name, usual)

    def _strike(self, stage: str) -> None:
        if self.stage == stage:
            self.stage = ""
            ACTS[self.act]()

    def load(self) -> None:
        """Act."""
        self._strike("load")

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """Act, and change the answers."""
        self._strike("generate")
        answers = super().generate(requests, progress)
        return cast("list[Completion]", ANSWERS[self.act](answers)) if self.act in ANSWERS else answers

    def reset(self) -> Any:
        """Say a word."""
        return self._fact("reset", super().reset())

    def quiesce(self) -> Any:
        """Say a word."""
        return self._fact("quiesce", super().quiesce())

    def effective(self) -> Mapping[str, JsonValue]:
        """Say anything."""
        return cast("Mapping[str, JsonValue]", self._fact("effective", super().effective()))

    def shape(self) -> ModelShape | None:
        """Say anything."""
        return cast("ModelShape | None", self._fact("shape", None))

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Say anything."""
        return cast("tuple[DeviceMemory, ...]", self._fact("memory", ()))

    def shutdown(self) -> None:
        """Act at last."""
        self._strike("shutdown")
