"""An SLO the whole way: from a study on a server with planted latencies to its gates and its summary."""

from __future__ import annotations

import json

import pytest

from pytest_llem.results.reading import read_result
from tests import timed
from tests.engines.servers.scripted import Script, scripted

pytest_plugins = ["pytester"]

STUDY = """\
name: served
model: builtin:tiny-llama
engine: openai
openai: {{base_url: "{url}/v1", enable_prefix_caching: false}}
workload: {{prompts: 40, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0}}, warmup: {{max_repeats: 1}}}}
slo: {{ttft_s: 0.25, itl_s: 60, at: 50%}}
expect: {{slo_met_share: ">= 50%", goodput_requests_per_s: "> 1", joules_per_good_request: "< 1000"}}
compare: {{allow: [estimated_energy]}}
execution: {{cycles: 3, retries: 0, headline: goodput_requests_per_s}}
"""


@timed.on_a_clock
def test_a_study_counts_the_requests_that_were_served_in_time(pytester: pytest.Pytester) -> None:
    """Every fourth answer begins 0.3 s late. The headline, the gates and the summary are those of the other three."""
    pytest.importorskip("transformers", reason="its tokenizer makes the prompts")
    with scripted(Script(("ok", "ok", "ok", "late"))) as server:
        pytester.makefile(".yaml", served=STUDY.format(url=server.url))
        run = pytester.runpytest("served.yaml")
    run.assert_outcomes(passed=4)
    run.stdout.fnmatch_lines(["*good/s*mJ/good*", "*yes, 75 %*", "gates: 3 passed"])
    for path in pytester.path.glob("llem-results/*/served/*/c*/result.json"):
        result = read_result(path)
        assert result.slo is not None
        assert result.slo.met == {"ttft_s": 0.75, "itl_s": 1.0}
        assert result.slo.good == 0.75 * result.slo.requests == 30 * result.workload.repeats
        assert result.slo.goodput_requests_per_s == pytest.approx(0.75 * (result.throughput.requests_per_s or 0))
    (path,) = pytester.path.glob("llem-results/*/summary.json")
    row = json.loads(path.read_text())["experiments"][0]
    assert row["metrics"]["slo_met_share"]["value"] == 0.75
