"""`--llem-html=FILE`: the run's report, written once everything has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.errors import LlemError
from pytest_llem.session.reporting.table import short_path

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession


@dataclass(frozen=True)
class HtmlReport:
    """Whether the report was written, and a line that says where, or why not."""

    written: bool
    line: str


def report_of(session: LlemSession, out: Path) -> HtmlReport:
    """Write the report of a run that has ended; what forbids it is told, and the run's artifacts stay as they are."""
    from pytest_llem.results.report.build import write_report

    if not list(session.run_dir.glob("*/*/c*")):
        return HtmlReport(False, "--llem-html: no report, because nothing was measured")
    try:
        write_report([session.run_dir], out, baseline=_run_named(session.options.baseline))
    except LlemError as error:
        return HtmlReport(False, f"--llem-html: {error}")
    return HtmlReport(True, f"report: {short_path(out)}")


def _run_named(baseline: str | None) -> Path | None:
    """The baseline as stored results, where it is a run and not a saved baseline, whose verdicts say it all."""
    from pytest_llem.errors import StoreError
    from pytest_llem.results.reading import read_result, result_files

    if baseline is None or not Path(baseline).exists():
        return None
    try:
        read_result(result_files(Path(baseline))[0])
    except StoreError:
        return None
    return Path(baseline)
