"""A worker that keeps its engine: one process, one loaded engine, several jobs.

Each job has its own directory, log, events, meter, idle window and warm-up; only the engine stays. `runners.resident`
talks to it over a socket, in JSON lines, one request at a time:

    pytest: {"can_serve": JOB}         is the loaded engine one for this job?
    worker: {"obstacle": null | "..."}
    pytest: {"job_dir": JOB_DIR}       with the job's log as file descriptor
    worker: {"code": N}                as `entry.run_job` returns it

It ends, and unloads the engine, when the other end of the socket closes or a job fails.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.wire import decode
from pytest_llem.worker.channel import receive, send
from pytest_llem.worker.engine_slot import EngineSlot


def serve(channel: socket.socket, *, start_method: str, isolation: str) -> int:
    """Serve jobs from the socket until it closes; the exit code of the last one."""
    from pytest_llem.worker.entry import run_job

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
