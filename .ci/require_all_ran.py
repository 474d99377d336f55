"""Fail unless every test of the files named ran: `require_all_ran.py JUNIT.xml TEST_FILE...`.

A test that is skipped because its engine is missing looks like one that passed; where the engine was installed for
it, that is an error.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import PurePath


def complaints(report: str, files: list[str]) -> list[str]:
    """What was skipped, and which files had no test at all."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    found = []
    for file in files:
        module = ".".join(PurePath(file).with_suffix("").parts)
        own = [case for case in cases if f"{case.get('classname', '')}.".startswith(f"{module}.")]
        if not own:
            found.append(f"{file}: no test ran")
        for case in own:
            for skip in case.iter("skipped"):
                found.append(f"{file}::{case.get('name')}: skipped: {skip.get('message')}")
    return found


if __name__ == "__main__":
    problems = complaints(sys.argv[1], sys.argv[2:])
    print("\n".join(problems) or f"every test of {len(sys.argv) - 2} files ran")
    sys.exit(bool(problems))
