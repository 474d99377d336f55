"""How often `llem bisect` names the right commit, and what that takes, on commits with planted levels.

`python -m tests.benchmarks.bisect_simulated [--searches N] [--write-docs]` runs the search itself many times with a
simulated meter, and the whole command with git, a work tree and processes some times. docs/bisect.md holds the output.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pytest_llem.bisect.search import CommitSearch
from tests.figures import write_figures

PAGE = Path(__file__).parents[2] / "docs" / "bisect.md"
COMMITS = 1024
MAX_RUNS = 100
"""As the command has it."""

Level = Callable[[int], float]


@dataclass(frozen=True)
class Found:
    """How a search ended, the first and last commit that it named, and what it took."""

    ending: str
    first: int
    last: int
    builds: int
    runs: int


def searched(
    rng: random.Random,
    last: int,
    level: Level,
    noise: float,
    unbuilt: frozenset[int] = frozenset(),
    *,
    heavy: bool = False,
    drift: float = 0.0,
    build_cost: float = 1.0,
) -> Found:
    """One search by the loop of the command; a build is every change to another commit, those that fail as well."""
    search = CommitSearch(last, build_cost=build_cost)
    builds = runs = 0
    while not isinstance(step := search.step(), str):
        if runs >= MAX_RUNS:
            return Found("limit", 0, 0, builds, runs)
        builds += step != search.here
        if step in unbuilt:
            search.skip(step)
            continue
        runs += 1
        tail = math.sqrt(rng.gammavariate(1.5, 2 / 3) * 3) if heavy else 1.0  # Student's t with 3 degrees of freedom
        search.add(step, level(step) + noise * rng.gauss(0, 1) / tail + drift * runs)
    leader = search.suspects()[0]
    return Found(step, leader.first, leader.last, builds, runs)


def planted(rng: random.Random, size: float = 0.08, second: int = 0, *, gradual: bool = False) -> tuple[int, Level]:
    """A culprit and the level of each position; with `second`, half the change comes so many commits later."""
    culprit = rng.randint(1, COMMITS - second)
    step = math.log1p(size)
    if gradual:
        return 0, lambda position: step * position / COMMITS
    if second:
        return 0, lambda position: step / 2 * ((position >= culprit) + (position >= culprit + second))
    return culprit, lambda position: step * (position >= culprit)


def unbuildable(rng: random.Random, share: float, stretch: int) -> frozenset[int]:
    """That share of the commits between the ends, in stretches."""
    found: set[int] = set()
    while len(found) < share * COMMITS:
        begin = rng.randint(1, COMMITS - 1)
        found |= {each for each in range(begin, begin + stretch) if each < COMMITS}
    return frozenset(found)


CASES: Mapping[str, Mapping[str, float]] = {
    "8 %, noise 2 %": {},
    "8 %, noise 2 %, a build takes a quarter of a run": {"build_cost": 0.25},
    "8 %, noise 2 %, a build takes four runs": {"build_cost": 4},
    "8 %, noise 1 %": {"noise": 0.01},
    "4 %, noise 2 %": {"size": 0.04},
    "4 %, noise 1 %": {"size": 0.04, "noise": 0.01},
    "8 %, noise 4 %, twice what is assumed": {"noise": 0.04},
    "2 %, noise 0.3 %, far less than is assumed": {"size": 0.02, "noise": 0.003},
    "8 %, heavy tails of 2 %": {"heavy": 1},
    "8 %, the machine drifts by 2 % in 20 runs": {"drift": 0.001},
    "8 %, one commit in ten does not build": {"share": 0.1, "stretch": 1},
    "8 %, a fifth do not build, 20 in a row": {"share": 0.2, "stretch": 20},
}
NO_CULPRIT: Mapping[str, Mapping[str, float]] = {
    "no difference": {"size": 0},
    "no difference, heavy tails": {"size": 0, "heavy": 1},
    "8 % over all commits, evenly": {"gradual": 1},
    "4 %, and 4 % more 200 commits later": {"second": 200},
    "8 %, and 8 % more 200 commits later": {"second": 200, "size": 0.16},
}


def run(case: Mapping[str, float], searches: int) -> list[tuple[int, Found]]:
    """The culprit of each search, and what was found."""
    found = []
    for seed in range(searches):
        rng = random.Random(seed)
        culprit, level = planted(
            rng, case.get("size", 0.08), int(case.get("second", 0)), gradual=bool(case.get("gradual"))
        )
        unbuilt = unbuildable(rng, case["share"], int(case["stretch"])) if "share" in case else frozenset()
        found.append(
            (
                culprit,
                searched(
                    rng,
                    COMMITS,
                    level,
                    case.get("noise", 0.02),
                    unbuilt,
                    heavy=bool(case.get("heavy")),
                    drift=case.get("drift", 0.0),
                    build_cost=case.get("build_cost", 1.0),
                ),
            )
        )
    return found


def spread(values: list[int]) -> str:
    """Mean and 95th percentile."""
    return f"{fmean(values):.1f} ({sorted(values)[int(0.95 * len(values))]})"


def culprits(searches: int) -> str:
    """Of searches with one culprit: how many name it, or a set with it."""
    lines = [
        "| the change | right | wrong | not decided | builds | runs | named |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in CASES.items():
        began = time.monotonic()
        found = run(case, searches)
        named = [(culprit, each) for culprit, each in found if each.ending == "found"]
        right = sum(each.first <= culprit <= each.last for culprit, each in named)
        shares = [right, len(named) - right, searches - len(named)]
        sizes = fmean(each.last - each.first + 1 for _, each in named)
        cells = [name, *(f"{count / searches:.1%}".replace("%", " %") for count in shares)]
        cells += [spread([each.builds for _, each in found]), spread([each.runs for _, each in found]), f"{sizes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], f"{time.monotonic() - began:.0f} s", flush=True)
    return "\n".join(lines)


def without(searches: int) -> str:
    """Of searches without a single culprit: what they say."""
    words = ("no_difference", "several", "found", "limit")
    lines = [
        "| the levels | no difference | several | a commit | not decided | builds | runs |",
        "|:---" + "|---:" * 6 + "|",
    ]
    for name, case in NO_CULPRIT.items():
        found = [each for _, each in run(case, searches)]
        endings = Counter(each.ending for each in found)
        cells = [name, *(f"{endings[word] / searches:.1%}".replace("%", " %") for word in words)]
        cells += [spread([each.builds for each in found]), spread([each.runs for each in found])]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def whole(searches: int) -> str:
    """The command itself on a repository, with the stand-in for the interpreter that measures."""
    from pytest_llem.cli import main as llem
    from tests.planted_commits import STUDY, finding, repository, stub

    right = 0
    took: list[tuple[int, int]] = []
    before = Path.cwd()
    for seed in range(searches):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            culprit, level = planted(random.Random(seed))
            repository(place / "repository", [level(position) for position in range(COMMITS + 1)])
            (place / "study.yaml").write_text(STUDY, encoding="utf-8")
            command = stub(place, noise=0.02, seed=str(seed))
            os.chdir(place / "repository")
            options = ["--study", str(place / "study.yaml"), "--python", str(command), "--out", str(place / "out")]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                llem(["bisect", f"HEAD~{COMMITS}..HEAD", "--build", "true", *options])
            os.chdir(before)
            found = finding(place / "out")
        right += found["ending"] == "found" and found["suspects"][0]["subjects"] == [f"commit {culprit}"]
        took.append((found["builds"], found["runs"]))
    builds, runs = (spread([each[place] for each in took]) for place in (0, 1))
    return f"right in {right} of {searches} searches; builds {builds}, runs {runs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--whole", type=int, default=20, help="searches by the whole command")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    tables = {"culprits": culprits(options.searches), "without": without(options.searches)}
    if options.write_docs:
        for name, table in tables.items():
            write_figures(name, table, PAGE)
    if options.whole:
        print(whole(options.whole))


if __name__ == "__main__":
    main()
