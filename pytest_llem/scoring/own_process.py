"""Runs what a user brings to score answers, an expression or a function, in a process that can be ended.

`given` starts it with `outputs_of`, once for all answers: an expression may backtrack for years, and a function may
never return, print, or end its interpreter. That process runs this file alone: it may import the standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

ANSWER_LIMIT_S = 30.0
"""Chosen: long beside any comparison of texts, and one answer that takes it is all that a run waits for."""
START_LIMIT_S = 120.0
"""Chosen: as long as an import of torch takes on a busy machine."""
# Linux, include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1


class Failed(Exception):  # noqa: N818 (not raised beyond `given`)
    """What went wrong, and at the how-manieth answer; `None` before the first."""

    def __init__(self, text: str, at: int | None = None) -> None:
        super().__init__(text)
        self.text, self.at = text, at


def outputs_of(
    what: dict[str, Any],
    answers: Sequence[tuple[str, Any, str]],
    answer_limit_s: float = ANSWER_LIMIT_S,
    start_limit_s: float = START_LIMIT_S,
) -> list[Any]:
    """What the expression or function gives for each answer, with its key and question's id. Raises `Failed`."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
        lines = [{"path": sys.path, **what}, *answers]
        asked.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        asked.seek(0)
        reads, writes = os.pipe()
        command = [sys.executable, __file__, str(writes)]
        with subprocess.Popen(
            command, stdin=asked, stdout=said, stderr=said, pass_fds=(writes,), start_new_session=True
        ) as process:
            os.close(writes)
            outputs: list[Any] = []
            try:
                replies = _lines(reads, start_limit_s, answer_limit_s)
                while len(outputs) <= len(answers):
                    line = next(replies, None)
                    reply = {"problem": _ended(process.pid, said)} if line is None else json.loads(line)
                    if "problem" in reply:
                        raise Failed(reply["problem"], len(outputs) - 1 if outputs else None)
                    outputs.append(reply["output"])
            except TimeoutError as problem:
                raise Failed(str(problem), len(outputs) - 1 if outputs else None) from None
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                os.close(reads)
    return outputs[1:]


def _ended(pid: int, said: IO[bytes]) -> str:
    """How a process ended that gave no reply; it stays a zombie, so that its group can be killed."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    how = "exit code" if ended is not None and ended.si_code == os.CLD_EXITED else "signal"
    said.seek(0)
    last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    return f"its process ended with {how} {ended.si_status if ended is not None else '?'}" + (last and f": {last}")


def _lines(descriptor: int, first_s: float, each_s: float) -> Iterator[bytes]:
    """Lines as they come, until the other end is closed; `TimeoutError` for one that takes too long."""
    ready = select.poll()  # select.select knows no descriptor above 1023
    ready.register(descriptor, select.POLLIN)
    buffer, limit_s = b"", first_s
    end_s = time.monotonic() + limit_s
    while True:
        line, found, rest = buffer.partition(b"\n")
        if found:
            yield line
            buffer, limit_s = rest, each_s
            end_s = time.monotonic() + limit_s
            continue
        if not ready.poll(max(0.0, end_s - time.monotonic()) * 1000):
            raise TimeoutError(f"it took longer than {limit_s:g} s")
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return
        buffer += chunk


def main(descriptor: int) -> None:
    """Answer each line of standard input by one on the descriptor: first whether it works at all, then the outputs."""
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:

        def reply(**line: Any) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        _end_with_parent()
        first, *answers = sys.stdin.readlines()  # all: a function may read from there as well
        what = json.loads(first)
        sys.path[:] = what["path"]
        where = what.get("file", "")
        try:
            call = _expression(what) if "regex" in what else _function(what)
        except BaseException as problem:  # noqa: BLE001 (a function may raise SystemExit)
            reply(problem=_text(problem, where))
            return
        reply(output=None)
        for line in answers:
            try:
                output = call(*json.loads(line))
            except BaseException as problem:  # noqa: BLE001 (a function may raise SystemExit)
                reply(problem=_text(problem, where))
                return
            reply(output=output)


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent; a thread cannot, since an expression holds the interpreter."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _expression(what: dict[str, Any]) -> Callable[[str, Any, str], str | None]:
    """The first group that took part in the first match, else the whole match; `None` where nothing matches."""
    expression = re.compile(what["regex"])

    def search(text: str, target: object, question: str) -> str | None:
        match = expression.search(text)
        if match is None:
            return None
        return next((group for group in match.groups() if group is not None), None if match.re.groups else match[0])

    return search


def _function(what: dict[str, Any]) -> Callable[[str, Any, str], float]:
    """The function, which must give a number from 0 to 1; `question_id` is for one that takes it."""
    if "source" in what:
        file = what["file"]
        sys.path.insert(0, str(Path(file).parent))
        module = types.ModuleType(Path(file).stem)
        module.__file__ = file
        sys.modules[module.__name__] = module
        exec(compile(base64.b64decode(what["source"]), file, "exec"), module.__dict__)
    else:
        module = importlib.import_module(what["module"])
    function: Any = module
    for part in what["function"].split("."):
        if not hasattr(function, part):
            raise Failed(f"there is no {what['function']}")
        function = getattr(function, part)
    if not callable(function):
        raise Failed(f"{what['function']} is {type(function).__name__}, no function")
    code = getattr(inspect.unwrap(function), "__code__", None)
    line = f" (line {code.co_firstlineno})" if code is not None else ""
    takes_id = False
    with contextlib.suppress(ValueError):  # one of C may have no signature
        takes_id = "question_id" in inspect.signature(function).parameters

    def score(text: str, target: object, question: str) -> float:
        value = function(text, target, **({"question_id": question} if takes_id else {}))
        try:
            number = None if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or not 0 <= number <= 1:
            raise Failed(f"{what['function']}{line} gave {value!r:.80}, no number from 0 to 1")
        return number

    return score


def _text(problem: BaseException, file: str) -> str:
    """What a problem says, behind the line of the user's file that it came from."""
    text = problem.text if isinstance(problem, Failed) else "".join(traceback.format_exception_only(problem)).strip()
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if file and frame.filename == file]
    if isinstance(problem, SyntaxError) and problem.filename == file:
        lines, text = [problem.lineno], f"SyntaxError: {problem.msg}"
    return f"{file}:{lines[-1]}: {text}" if lines else f"{file}: {text}" if file else text


if __name__ == "__main__":
    main(int(sys.argv[1]))
