"""What the plugin adds to a plain pytest run without any study: CPU time with it against without it.

python -m tests.benchmarks.plugin_import [--runs 15]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.collection import measure


def main() -> None:
    """Print medians of both sides and of their difference and ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "test_plain.py").write_text("def test_plain(): pass\n")
        with_plugin = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_plain.py"]
        without = [*with_plugin, "-p", "no:llem"]
        pairs = [(measure(without, directory)[0], measure(with_plugin, directory)[0]) for _ in range(options.runs)]
    sides = [statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
    difference = statistics.median(after - before for before, after in pairs)
    ratio = statistics.median(after / before for before, after in pairs)
    print(
        f"CPU s   without {sides[0]:.3f}   with {sides[1]:.3f}   difference {difference * 1e3:.1f} ms ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
