"""Prints docs/metrics.md with its lists of metrics anew, from the table in the code.

`nox -s pages` writes the page by it, and a test holds both together. What stands above the marks is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_llem.job.metric_names import METRIC_NAMES, MetricName

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
MARK = "<!-- generated: what follows is written by `nox -s pages` -->\n"
GROUPS = ("Energy", "Throughput", "Latency", "Memory, computation and start")


def group(metric: MetricName) -> str:
    if metric.energy:
        return GROUPS[0]
    if metric.name.endswith("_per_s"):
        return GROUPS[1]
    return GROUPS[2] if metric.name.startswith(("ttft", "tpot", "itl", "e2el")) else GROUPS[3]


def better(metric: MetricName) -> str:
    return "higher" if metric.higher_is_better else "lower"


def unit(metric: MetricName) -> str:
    return "none" if metric.unit == "1" else metric.unit


def overview(metrics: list[MetricName]) -> list[str]:
    rows = [
        f"| [`{each.name}`](#{each.name}) | {unit(each)} | {better(each)} | {each.description} |" for each in metrics
    ]
    return ["| metric | unit | better | what it is |", "|---|---|---|---|", *rows]


def entry(metric: MetricName) -> list[str]:
    facts = {
        "Unit": f"{unit(metric)}; {better(metric)} is better",
        "Formula": metric.formula,
        "Source": metric.source,
        "`null`": metric.absent,
    }
    return [f"### {metric.name}", "", f"{metric.description}.", "", *(f"- **{k}**: {v}" for k, v in facts.items())]


def main() -> None:
    """Print the page."""
    by_hand, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    metrics = list(METRIC_NAMES.values())
    lines = [*overview(metrics)]
    for name in GROUPS:
        lines += ["", f"## {name}"]
        for metric in metrics:
            if group(metric) == name:
                lines += ["", *entry(metric)]
    sys.stdout.write(by_hand + mark + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
