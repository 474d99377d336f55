"""Whole studies against a queue of known service times: how far latencies and goodput are from what was planted.

`python tests/benchmarks/queue_proof.py` prints the Markdown table that docs/servers.md holds, best on an idle machine.
The queue is a process of its own and tells when it wrote each token. Which requests are good is known before: limits
lie in the widest gap of the latencies that follow from the times of arrival. Where others use the machine, the queue
serves fewer in time than that, and the count has to be of those.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

import pyarrow.parquet

from pytest_llem.job.config import Arrival, WorkloadSettings
from pytest_llem.job.request import Request
from pytest_llem.results.reading import read_result
from pytest_llem.workload.arrivals import schedule
from tests.queue_server import Queue, between, running

QUEUE, TOKENS, PROMPTS = Queue(places=2, prefill_s=0.02, step_s=0.005), 8, 256
CAPACITY_PER_S = QUEUE.places / QUEUE.service_s(TOKENS)
STUDY = """\
model: builtin:tiny-llama
engine: openai
openai: {{base_url: "{url}/v1", enable_prefix_caching: false}}
workload: {{prompts: {prompts}, input_tokens: 16, output_tokens: {tokens}}}
measurement: {{min_duration_s: 1, idle: {{duration_s: 0}}, warmup: {{max_repeats: 1}}}}
execution: {{cycles: 1, retries: 0}}
sweep: {{level: [{levels}]}}
"""
LEVEL = "{{workload.arrival: {{process: poisson, rate_per_s: {}}}, slo.ttft_s: {:.6f}}}"


def main() -> None:
    rates = {f"{share:g}": round(share * CAPACITY_PER_S, 3) for share in (0.3, 0.6, 0.9, 1.2, 2)}
    planted = {rate: between(planned(rate)) for rate in rates.values()}
    levels = ", ".join(LEVEL.format(rate, limit) for rate, (limit, _) in planted.items())
    print("| utilisation | ttft | tpot | e2el | good, as planned | as served | as counted | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as name, running(QUEUE) as url:
        study = Path(name, "queue.yaml")
        study.write_text(STUDY.format(url=url, tokens=TOKENS, prompts=PROMPTS, levels=levels))
        subprocess.run([sys.executable, "-m", "pytest", "-q", study], cwd=name, check=False, stdout=sys.stderr)
        with urlopen(f"{url}/served") as answer:
            served = json.load(answer)
        found = {}
        for path in Path(name).glob("llem-results/*/queue/*/c1/result.json"):
            workload: Any = read_result(path).experiment.config["workload"]
            found[workload["arrival"]["rate_per_s"]] = path
        for utilisation, rate in rates.items():
            print(f"| {utilisation} | {' | '.join(row(found[rate], served, planted[rate][1]))} |")


def planned(rate: float) -> list[float]:
    """The times to the first token that a level's arrivals have in the queue."""
    workload = WorkloadSettings(arrival=Arrival("poisson", rate_per_s=rate))
    arrived = schedule(workload, [Request(index, (1,), TOKENS) for index in range(PROMPTS)]).times_s
    return [wait + QUEUE.prefill_s for wait in QUEUE.waits_s(arrived, TOKENS)]


def row(path: Path, served: dict[str, list[list[int]]], good: int) -> list[str]:
    """How far one cycle is from the truth: medians of the differences, in ms."""
    result = read_result(path)
    requests = pyarrow.parquet.read_table(path.parent / "requests.parquet").to_pylist()
    written = sorted((times[0], times[-1]) for many in served.values() for times in many if len(times) == TOKENS)
    begin, end = requests[0]["due_ns"], max(request["last_token_ns"] for request in requests)
    written = [times for times in written if begin <= times[0] <= end]
    requests.sort(key=lambda request: request["first_token_ns"])
    assert len(written) == len(requests)
    off: dict[str, list[float]] = {"ttft": [], "tpot": [], "e2el": []}
    for request, (first, last) in zip(requests, written, strict=True):
        off["ttft"].append(request["ttft_s"] - (first - request["due_ns"]) / 1e9)
        off["tpot"].append(request["tpot_s"] - (last - first) / 1e9 / (TOKENS - 1))
        off["e2el"].append(request["e2el_s"] - (last - request["due_ns"]) / 1e9)
    slo: Any = result.experiment.config["slo"]
    in_time = sum(
        first - one["due_ns"] <= slo["ttft_s"] * 1e9 for one, (first, _) in zip(requests, written, strict=True)
    )
    counted = result.slo.good if result.slo is not None else None
    verdict = "; ".join(f"{reason.code}: {reason.message}" for reason in result.validity.reasons) or "valid"
    shown = [f"{median(map(abs, values)) * 1000:.2f} ms" for values in off.values()]
    return [*shown, str(good * result.workload.repeats), str(in_time), f"{counted} of {len(requests)}", verdict]


if __name__ == "__main__":
    main()
