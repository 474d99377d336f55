"""Runs the quickstart and writes what the terminal shows to docs/quickstart.svg.

`python -m tests.documentation.quickstart_picture`, from the root of a checkout that has rich, on a machine that does
nothing else: a picture of a run whose cycles are not valid is refused.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "quickstart.svg"
COMMAND = "pytest --llem-study=studies/quickstart.yaml"
WIDTH = 88
"""Chosen: the figures of the quickstart with all that fits a page of documentation."""


def run() -> str:
    """The output of the quickstart, in colours, if all of its cycles are valid."""
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND.split(), "--color=yes", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(WIDTH)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "skipped" in done.stdout:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def picture(output: str) -> str:
    """The output as SVG, without names of this machine, other people's plugins, and fonts from the network."""
    output = re.sub(r"^plugins: .*$", lambda line: _own(line.group()), output, flags=re.MULTILINE)
    output = output.replace(str(ROOT), "/srv/pytest-llem")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    for line in output.strip().splitlines():
        console.print(Text.from_ansi(line), overflow="crop", no_wrap=True)
    svg = console.export_svg(title="pytest-llem: the quickstart")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("font-family: Fira Code, monospace", "font-family: ui-monospace, Menlo, Consolas, monospace")


def _own(line: str) -> str:
    return "plugins: " + ", ".join(re.findall(r"(?:llem|xdist)-[\d.]+", line))


if __name__ == "__main__":
    PICTURE.write_text(picture(run()), encoding="utf-8")
