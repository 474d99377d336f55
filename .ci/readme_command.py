"""Print one of the README's two commands, so that CI runs what users are told to run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(name: str) -> str:
    """The one line of the shell block that follows the comment `<!-- command: NAME -->`."""
    found = re.search(rf"<!-- command: {name} -->\n+```[a-z]*\n([^\n]+)\n```", README.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{README}: no command {name!r}")
    return found[1]


if __name__ == "__main__":
    print(command(sys.argv[1]))
