"""The Markdown of a comment: what a reader sees first, and that no text of others does anything there."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pytest_llem.job.wire import decode, encode
from pytest_llem.results.comment.content import LONGEST, Comment, markdown, series_key
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow, RunOfBaseline
from pytest_llem.results.terminal import as_markdown

METRIC = "joules_per_output_token"
ROSE = "rose by 12.4 % (90 % interval +10.1 % to +14.8 %), the limit is +5 %"
WORSE = GateRow(METRIC, "comparison", "fail", "+5 %", 0.5, 0.562, 1.124, 1.101, 1.148, ROSE, 1.05, 3)
SAME = replace(WORSE, status="pass", current=0.501, ratio=1.002, ci_low=0.98, ci_high=1.03, reason="rose by 0.2 %")
BETTER = replace(SAME, current=0.45, ratio=0.9, ci_low=0.88, ci_high=0.92, reason="fell by 10 %")
OTHER = replace(
    WORSE, status="not_comparable", ratio=None, ci_low=None, ci_high=None, reason="batch_size 4 -> 1", basis="merge it"
)
MAIN = BaselineNamed("history:h", (RunOfBaseline("r", "2026-11-01T08:00:00+00:00", "4f2a91c07"),))
COMMENT = Comment(
    "energy",
    "20261130T000000Z-a",
    command=("pytest", "--llem-study=gate.yaml", "--llem-baseline=history:h"),
    commit="c" * 40,
    history_branch="llem-history",
)


def gate(name: str, *rows: GateRow, study: str = "energy") -> GateReport:
    return GateReport(study, name, rows, False, MAIN)


def text(*gates: GateReport, url: str | None = None, **changes: object) -> str:
    return markdown(replace(COMMENT, gates=gates, **changes), url)  # type: ignore[arg-type]


def test_the_verdict_comes_first_and_the_changed_experiment_below_it() -> None:
    shown = text(gate("a", SAME), gate("b", WORSE), gate("c", BETTER), url="https://x.invalid/run/1")
    lines = [line for line in shown.splitlines() if line]
    assert lines[0] == "<!-- pytest-llem: energy -->"
    assert lines[1] == "### ❌ 1 of 3 experiments is beyond its limit"
    assert lines[2] == f"**b**: {METRIC} {ROSE}"
    above, folded = shown.split("<details>", 1)
    assert (
        "| b | joules_per_output_token | ❌ failed | 0.5 J | 0.562 J | +12.4 % | +10.1 % .. +14.8 % | +5 % |" in above
    )
    assert re.search(r"^\| c .* better .*$", above, re.MULTILINE)
    assert "Passed: 1 gate of 1 experiment" in folded
    assert re.search(r"^\| a ", folded, re.MULTILINE)
    assert "[Results and report](<https://x.invalid/run/1>)" in shown


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ((gate("a", SAME), gate("b", BETTER)), "✅ All 2 experiments are within their limits"),
        ((gate("a", SAME),), "✅ The experiment is within its limits"),
        ((gate("a", SAME), gate("b", OTHER)), "⚠️ 1 of 2 experiments could not be judged; the others are within"),
        ((gate("b", OTHER),), "⚠️ 1 of 1 experiment could not be judged"),
        ((gate("a", OTHER), gate("b", WORSE)), "❌ 1 of 2 experiments is beyond its limit"),
        ((), "⚠️ Nothing was judged"),
    ],
)
def test_one_line_says_it_all(gates: tuple[GateReport, ...], said: str) -> None:
    """What could not be judged must never read as green."""
    assert text(*gates).splitlines()[1].startswith(f"### {said}")


def test_a_cycle_that_failed_is_not_green() -> None:
    shown = text(gate("a", SAME), problems=("energy[b] c1: failed (out_of_memory)",), cycles=6)
    assert shown.splitlines()[1] == "### ⚠️ The experiment is within its limits; 1 of 6 cycles did not measure"
    assert r"- energy\[b\] c1: failed (out_of_memory)" in shown


def test_what_could_not_be_judged_says_why_once_for_all_of_one_cause() -> None:
    shown = text(*(gate(f"e{n}", OTHER) for n in range(5)))
    assert "- 5 gates not comparable: batch_size 4 -\\> 1 (e0, e1, e2 and 2 more); merge it" in shown


def test_it_says_how_to_measure_it_again() -> None:
    assert (
        "```sh\n"
        f"git fetch origin {'c' * 40} && git checkout FETCH_HEAD\n"
        "git fetch origin llem-history && git worktree add --detach h FETCH_HEAD\n"
        "pytest --llem-study=gate.yaml --llem-baseline=history:h\n"
        "```"
    ) in text(gate("a", WORSE))


def test_it_says_how_often_the_gates_would_have_failed_on_equal_runs() -> None:
    """Whoever sees red asks first whether it is true."""
    known = [replace(row, would_have_failed=(failed, 20)) for row, failed in ((WORSE, 0), (SAME, 1))]
    shown = text(gate("a", known[0]), gate("b", known[1]))
    assert "On the last 20 equal runs these gates would have failed in 1 of 40 verdicts" in shown
    assert f"{ROSE}; this gate would have failed in 0 of the last 20 equal runs" in shown


def test_a_series_is_drawn_beside_its_change() -> None:
    shown = text(gate("a", WORSE), series={series_key("energy", "a", METRIC): (0.5, 0.5, 0.5, 0.7)})
    assert "| +5 % | ▁▁▁█ |" in shown


def test_two_hundred_experiments_with_long_names_fit() -> None:
    """GitHub refuses a comment of more than 65,536 characters, and the verdict would be lost with it."""
    names = [f"{'model:org/' * 10}{n}|`{'@' * 40}" for n in range(200)]
    rows = (WORSE, replace(WORSE, metric="output_tokens_per_s"), replace(OTHER, metric="ttft_p50_s", reason="x" * 9000))
    shown = text(*(gate(name, *rows, replace(SAME, metric="avg_power_w")) for name in names), cycles=600)
    assert len(shown) < LONGEST
    assert shown.splitlines()[1] == "### ❌ 200 of 200 experiments are beyond their limits"
    assert "more gates: the report has all of them." in shown
    assert "\nRun " in shown


HOSTILE = {
    "mention": "@everyone @org/team me@x.invalid",
    "reference": "fixes #12 org/repo#7 GH-9",
    "link": "https://evil.invalid www.evil.invalid [x](https://y.invalid) ![i](//z.invalid/p.png)",
    "html": "<img src=x onerror=alert(1)> </details><script>x</script> <!-- pytest-llem: energy -->",
    "table": "a | b \\| c",
    "code": "`` ` `` ```\n# head",
    "emphasis": "*a* _b_ ~~c~~ $d$ snake_case",
    "unseen": "a\u200bb\u202ec\ufeff\u00ad\U000e0041\x1b[31m\r\n\u2028::error::x",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_text_of_others_stays_text(kind: str) -> None:
    """A study's name, an engine's error or a commit could notify a team, or hide what follows it."""
    given = HOSTILE[kind]
    row = replace(WORSE, status="inconclusive", reason=given, basis=given)
    baseline = BaselineNamed(given, (RunOfBaseline("r", None, given),))
    shown = text(
        GateReport(given, given, (row, replace(row, status="fail", metric="avg_power_w")), False, baseline),
        gate("b", SAME),
        problems=(given,),
        run_id=given,
        command=("pytest", given),
        commit=given,
        history_branch=given,
        name=given,
    )
    fences = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    code = "".join(fences.findall(shown))
    assert "```" not in code
    assert len(code.splitlines()) <= 3
    prose = fences.sub("", shown).replace(shown.splitlines()[0], "").replace("&#8203;", "\0")
    assert not re.search(r"@\w|#\d|GH-\d|://\w|www\.\w", prose)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", prose)
    assert prose.count("<details>") == prose.count("</details>") == 2
    assert not re.search(r"(?<!\\)[`\[\]*~$]", prose.replace("**", ""))
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (9, 10) for line in prose.splitlines() if line.startswith("|"))
    assert not re.search("[\u200b\u202e\ufeff\u00ad\U000e0041\x1b\u2028]", shown)
    assert shown.splitlines()[0].startswith("<!-- pytest-llem: ")
    assert "-->" not in prose


def test_what_github_would_link_has_a_break_without_width_in_it() -> None:
    assert as_markdown("ask @team about #12 and GH-3 at https://x.invalid or www.x.invalid") == (
        "ask @&#8203;team about #&#8203;12 and GH-&#8203;3 at https://&#8203;x.invalid or www.&#8203;x.invalid"
    )
    assert as_markdown("snake_case 5 # 3 a @ b") == "snake_case 5 # 3 a @ b"


def test_its_content_comes_back_from_a_file_as_it_was() -> None:
    """The job that may write comments gets it as a file, and measures nothing itself."""
    whole = replace(COMMENT, gates=(gate("a", WORSE, OTHER),), series={"k": (1.0, 2.0)})
    assert decode(Comment, encode(whole)) == whole
