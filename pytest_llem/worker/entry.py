"""Runs one job in this process: from `job.json` to `measurement.json`, or to `error.json` on any failure.

`python -m pytest_llem.worker`, children of the fork server and resident workers call it. Exit codes and the files that
it leaves are the contract of the job directory.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError, OutOfMemoryError
from pytest_llem.job.events import EventLog
from pytest_llem.job.job import JobDir, load_job
from pytest_llem.job.measurement import write_measurement

if TYPE_CHECKING:
    from pytest_llem.worker.engine_slot import EngineSlot

EVENT_PREFIX = "LLEM-EVENT "


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
    except Exception as error:  # noqa: BLE001  whatever an engine raises becomes error.json
        details: Mapping[str, JsonValue] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
        message = f"{type(error).__name__}: {error}".strip().rstrip(":")
        _fail(target, events, LlemError(message, fix=_fix_of_unknown(target), details=details))
        return 1
    finally:
        events.close()


def _mirror_event(line: str) -> None:
    sys.stdout.write(EVENT_PREFIX + line)
    sys.stdout.flush()


def _fix_of_unknown(target: JobDir) -> str:
    return f"read the traceback in {target.error}; repeat it with: python -m pytest_llem.worker {target.path} --out DIR"


def _fail(target: JobDir, events: EventLog, error: LlemError) -> None:
    text = traceback.format_exc()
    sys.stderr.write(text)
    target.write_error(error, phase=events.phase, traceback=text, origin="worker")
    events.emit("phase", "failed")
