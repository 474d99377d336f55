"""Runs one job in this process, from `job.json` to `measurement.json` or `error.json`, or many with one loaded engine.

`python -m pytest_llem.worker` and children of the fork server call it. Exit codes and the files that it leaves are the
contract of the job directory and must stay.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pytest_llem.engines import engine_info
from pytest_llem.engines.refusals import hidden_module
from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError, OutOfMemoryError
from pytest_llem.job.events import EVENT_PREFIX, EventLog
from pytest_llem.job.job import Job, JobDir, load_job
from pytest_llem.job.measurement import write_measurement
from pytest_llem.job.wire import decode
from pytest_llem.worker.channel import receive, send
from pytest_llem.worker.engine_slot import EngineSlot
from pytest_llem.worker.pinning import pin

MESSAGE_LENGTH = 4000
"""Characters. Chosen: a terminal page; the log has all of it."""


def run_job(
    source: JobDir,
    target: JobDir,
    *,
    start_method: str,
    isolation: str,
    mirror: bool = False,
    slot: EngineSlot | None = None,
) -> int:
    """Run the job of `source`, write its files to `target`, and return the process's exit code.

    0 after a measurement, 1 after an error, 130 after an interruption. `mirror` also prints each event, prefixed by
    `EVENT_PREFIX`, for a container whose files cannot be read while it runs. `slot` keeps the engine for the next job.
    """
    faulthandler.enable()
    events = EventLog(target.events, mirror=_mirror_event if mirror else None)
    try:
        job = load_job(source.job)
        os.environ.update(job.environment)
        if not engine_info(job.config.engine).serves_over_http:  # there it is the server that is pinned
            pin(job.config.device, in_container=isolation == "container")
        from pytest_llem.worker.cycle import run_cycle

        measurement = run_cycle(job, target, events, start_method=start_method, isolation=isolation, slot=slot)
        events.emit("phase", "writing")
        write_measurement(target.measurement, measurement)
        events.emit("phase", "done")
        return 0
    except KeyboardInterrupt:
        _fail(target, events, InterruptedCycleError("the cycle was interrupted"))
        return 130
    except LlemError as error:
        _fail(target, events, error)
        return 1
    except MemoryError:
        _fail(target, events, OutOfMemoryError("the host ran out of memory", fix="use a smaller model, batch or dtype"))
        return 1
    except BaseException as error:  # noqa: BLE001  whatever an engine raises, SystemExit too, becomes error.json
        details: Mapping[str, JsonValue] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
        message = f"{type(error).__name__}: {_words(error)}".strip().rstrip(":")
        again = f"python -m pytest_llem.worker {target.path} --out DIR"
        hidden = hidden_module() if isinstance(error, (ImportError, AttributeError)) else None
        fix = hidden or f"read the traceback in {target.error}; repeat it with: {again}"
        _fail(target, events, LlemError(message, fix=fix, details=details))
        return 1
    finally:
        events.close()


def serve(channel: socket.socket, *, start_method: str, isolation: str) -> int:
    """Keep one loaded engine and run jobs from a socket until it closes or a job fails; the last job's exit code.

    Each job has its own directory, log, events, meter, idle window and warm-up. `runners.local` talks to it in JSON
    lines, one request at a time:

        pytest: {"can_serve": JOB}         is the loaded engine one for this job?
        worker: {"obstacle": null | "..."}
        pytest: {"job_dir": JOB_DIR}       with the job's log as file descriptor
        worker: {"code": N}                as `run_job` returns it
    """
    slot = EngineSlot(keeps=True)
    code = 0
    try:
        while code == 0:
            request, descriptors = receive(channel)
            if request is None:
                break
            if "can_serve" in request:
                send(channel, {"obstacle": slot.obstacle(decode(Job, request["can_serve"]))})
                continue
            for log in descriptors:
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.close(log)
            job_dir = JobDir(Path(request["job_dir"]))
            code = run_job(job_dir, job_dir, start_method=start_method, isolation=isolation, slot=slot)
            sys.stdout.flush()
            sys.stderr.flush()
            send(channel, {"code": code})
    except BrokenPipeError:
        code = 1
    finally:
        slot.unload()
    return code


def _mirror_event(line: str) -> None:
    sys.stdout.write(EVENT_PREFIX + line)
    sys.stdout.flush()


def _words(error: BaseException) -> str:
    try:
        text = _encodable(str(error))
    except Exception:  # noqa: BLE001  an error that cannot be shown is still one
        return "(its text cannot be shown)"
    return text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]} ... ({len(text):,} characters)"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _fail(target: JobDir, events: EventLog, error: LlemError) -> None:
    text = _encodable(traceback.format_exc())
    known = error.fix is not None and type(error) is not LlemError
    # The log's end is shown to the user, whom the way to a known error does not help: that is kept in `error.json`.
    # An engine may have closed or removed the stream.
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.write("" if known else text)
    target.write_error(error, phase=events.phase, traceback=text, origin="worker")
    events.emit("phase", "failed")
