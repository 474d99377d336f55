"""The verb `llem comment`: prints what a run means for a pull request, and posts it.

`cli` calls it. A file that `--json` printed is taken in place of a run, and needs the standard library alone: the job
that may write comments installs nothing, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.job.files import open_regular, parse_object
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.comment.content import COMMENT_VERSION, Comment, markdown
from pytest_llem.results.comment.posting import from_environment, number_of_event
from pytest_llem.results.terminal import show

LARGEST = 8_000_000
"""Bytes of a file. Chosen: ten thousand gates, and no trouble for whoever reads a stranger's."""


def comment(options: argparse.Namespace) -> int:
    """`llem comment`: print the Markdown (or what it is made from), or post it; 0 whatever the verdict."""
    if options.report_url and not re.fullmatch(r"https?://[^\s<>]+", options.report_url):
        raise SettingsError(f"--report-url: {options.report_url!r} is no address", fix="write https://...")
    if options.pull_request is not None and options.pull_request < 1:
        raise SettingsError(f"--pull-request {options.pull_request}: numbers begin at 1", fix="see its address")
    if options.run_path.is_file() and options.run_path.suffix == ".json" and options.run_path.name != "run.json":
        found = read_comment(options.run_path)
    else:
        from pytest_llem.results.comment.collecting import collect

        found = collect(options.run_path, options.baseline, options.history, options.baseline_dir, options.name)
    if options.json:
        show(json.dumps(encode(found), ensure_ascii=False, allow_nan=False))
        return 0
    try:
        text = markdown(found, options.report_url)
    except (ValueError, LookupError, ArithmeticError) as problem:
        raise StoreError(f"{options.run_path}: its verdicts cannot be shown: {problem}") from None
    if not options.post:
        sys.stdout.write(text)
        return 0
    pulls = from_environment(os.environ)
    number = options.pull_request or number_of_event(os.environ, pulls)
    if number is None:
        show("no comment: the pull request has newer commits, or is closed")
        return 0
    show(f"commented: {pulls.upsert(number, found.marker, text)}")
    return 0


def read_comment(path: Path) -> Comment:
    """A comment's content from a file that may come from a stranger. Raises `StoreError` for any that is not one."""
    with open_regular(path) as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise StoreError(f"{path}: more than {LARGEST:,} bytes are no comment")
    try:
        found = parse_object(data, path)
    except ValueError as problem:
        raise StoreError(str(problem)) from None
    version = found.get("schema_version")
    if not isinstance(version, int) or version > COMMENT_VERSION:
        raise StoreError(
            f"{path}: no comment of a format that is read here, at most {COMMENT_VERSION}",
            fix="write it with llem comment RUN --json, by the same version of pytest-llem",
        )
    try:
        return decode(Comment, found, str(path))
    except ValueError as problem:
        raise StoreError(str(problem)) from None
