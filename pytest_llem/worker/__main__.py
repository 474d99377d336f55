"""`python -m pytest_llem.worker JOB_DIR [--out NEW_DIR]`: runs one cycle, by hand or as a container's entry point.

Containers, `runners.process` and `container_forkserver` start it, the latter two where they cannot fork. Its command
line and `LLEM_CONFIG_PATH`, which may name the job file, are a contract and stay; results are never overwritten.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from pathlib import Path

from pytest_llem.job.job import JobDir
from pytest_llem.worker.entry import run_job, serve


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the job; exit code 2 when the call itself is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_llem.worker", description="Run one cycle from its job directory."
    )
    parser.add_argument("job_dir", nargs="?", type=Path, metavar="JOB_DIR", help="a directory that holds job.json")
    parser.add_argument("--out", type=Path, metavar="NEW_DIR", help="write the results there instead")
    parser.add_argument("--start-method", default="command", help=argparse.SUPPRESS)
    parser.add_argument("--isolation", default="process", help=argparse.SUPPRESS)
    parser.add_argument("--resident", type=int, metavar="FD", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.resident is not None:
        with socket.socket(fileno=options.resident) as control:
            control.set_inheritable(False)
            return serve(control, start_method=options.start_method, isolation=options.isolation)
    source = options.job_dir
    if source is None:
        config_path = os.environ.get("LLEM_CONFIG_PATH")
        if not config_path:
            parser.error("name a job directory, or set LLEM_CONFIG_PATH to a job file")
        source = Path(config_path).parent
    job_dir = JobDir(source)
    if not job_dir.job.is_file():
        parser.error(f"{job_dir.job}: no such file; a job directory holds job.json")
    target = JobDir(options.out) if options.out else job_dir
    for existing in (target.measurement, target.error, target.result):
        if existing.exists():
            parser.error(f"{existing} exists and is not overwritten; choose another directory with --out NEW_DIR")
    if target.path != job_dir.path:
        target.path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job_dir.job, target.job)
    return run_job(
        job_dir,
        target,
        start_method=options.start_method,
        isolation=options.isolation,
        mirror=bool(os.environ.get("LLEM_EVENT_PREFIX")),
    )


if __name__ == "__main__":
    sys.exit(main())
