"""The trend page: what it says of a history, how large it gets, and that nobody's text becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import LlemError
from pytest_llem.results.history.changes import ChangePoint
from pytest_llem.results.history.files import History
from pytest_llem.results.history.links import commit_page, compare_page
from pytest_llem.results.history.page.data import trend_data
from pytest_llem.results.history.page.drawing import ValueScale
from pytest_llem.results.history.page.page import page_of
from pytest_llem.results.history.page.trends import Trends, gather_trends
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry
from tests.benchmarks.trend_page import made_up
from tests.browser import Opened

HEADLINE, RATE = "joules_per_output_token", "output_tokens_per_s"
REPOSITORY = "https://github.com/owner/project"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e"


def entry(day: int, experiment: str = "a", value: float = 1.0, *, verdict: str = "", **conditions: str) -> HistoryEntry:
    run = HistoryRun(
        run_id=f"r{day}",
        study="serving",
        started_at=f"2026-11-{day:02}T03:00:00+00:00",
        commit=f"{day:040x}",
        repository=REPOSITORY,
    )
    metrics = {name: MetricEntry(value, value * 0.98, value / 0.98, (value,) * 3) for name in (HEADLINE, RATE)}
    verdicts = {HEADLINE: verdict} if verdict else {}
    return HistoryEntry(run, experiment, f"hash of {experiment}", "f", conditions, {}, metrics, verdicts=verdicts)  # type: ignore[arg-type]


def history(*entries: HistoryEntry) -> History:
    return History("llem-history", tuple(entries))


def changed(trends: Trends, *changes: ChangePoint) -> Trends:
    """The same with these change points in the first segment of each panel."""
    panels = []
    for panel in trends.panels:
        first, *others = panel.series.segments
        segments = (replace(first, changes=changes), *others)
        panels.append(replace(panel, series=replace(panel.series, segments=segments)))
    return replace(trends, panels=tuple(panels))


def words(page: str) -> str:
    """What is read of the first metric and the overview, without markup."""
    text = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))


def test_twenty_experiments_and_a_thousand_runs_are_below_two_megabytes() -> None:
    """Told from four small ones: what page, run, panel and a panel's run cost. The benchmark makes the large one."""
    size = {(e, r): len(page_of(gather_trends(made_up(e, r)))) for e in (1, 4) for r in (260, 340)}
    each = {runs: (size[4, runs] - size[1, runs]) / 3 for runs in (260, 340)}
    page = {runs: size[1, runs] - each[runs] for runs in (260, 340)}
    large = [small[260] + (small[340] - small[260]) * (1000 - 260) / 80 for small in (page, each)]
    assert 1_000_000 < large[0] + 20 * large[1] < 2_000_000


def test_the_data_keep_what_is_shown() -> None:
    """Four digits are shown, of values a thousand times apart as well; what has no interval gets none."""
    values = [1.2345678, 1.2446, 987.65432, 1.0]
    entries = [entry(day, value=value) for day, value in enumerate(values, 1)]
    entries[3] = replace(entries[3], metrics={HEADLINE: MetricEntry(1.0, None, None, (1.0,))})
    data: Any = trend_data(gather_trends(history(*entries), [HEADLINE]))
    packed = data["panels"]["p0"]
    (segment,) = packed["segments"]
    wholes = list(accumulate(segment["values"]))
    assert [whole * packed["step"] for whole in wholes] == pytest.approx(values, rel=5e-5)
    highs = [high * packed["step"] for high in map(sum, zip(wholes, segment["high"], strict=True))]
    assert highs[:3] == pytest.approx([value / 0.98 for value in values[:3]], rel=5e-5)
    assert segment["high"][3] == -1
    assert segment["low"] is None, "it follows from the two others"
    uneven = replace(entries[0], metrics={HEADLINE: MetricEntry(1.0, 0.9, 1.3, (1.0,))})
    data = trend_data(gather_trends(history(uneven), [HEADLINE]))
    assert data["panels"]["p0"]["segments"][0]["low"] == [1000]


def test_a_change_point_is_named_with_the_commits_around_it() -> None:
    """The first commit after and the last before, a link to what changed between them, and better or worse."""
    entries = [entry(day, value=1.0 if day < 6 else 1.08) for day in range(1, 11)]
    trends = changed(gather_trends(history(*entries)), ChangePoint(5, 7, 1.08, 1.07, 1.09, 2, 1))
    page = page_of(trends)
    text = words(page)
    assert "✗ +8.0 % (90 % interval +7.0 % to +9.0 %) Energy per output token: a" in text
    assert "✓ +8.0 % (90 % interval +7.0 % to +9.0 %) Output token throughput: a" in text
    before, after = f"{5:040x}", f"{6:040x}"
    assert f'href="{REPOSITORY}/compare/{before}...{after}"' in page
    widest = f"{REPOSITORY}/compare/{3:040x}...{7:040x}"
    assert f', or up to <a href="{widest}">2 runs before to 1 run later</a> (95 %)' in page
    assert "1.080 J mean of 5 runs since 2026-11-06" in text
    assert '<span class="mark bad row0" data-run="5" style="--x:55.6%"' in page
    assert page.count('<path class="level k0"') == 1


def test_a_change_of_a_share_is_in_points() -> None:
    """Of an accuracy of 60 %, -1.5 % may be read as 58.5 % or as 59.1 %."""
    levels = [0.6] * 5 + [0.591] * 5
    entries = [
        replace(entry(day), metrics={"accuracy": MetricEntry(value, None, None, (value,))})
        for day, value in enumerate(levels, 1)
    ]
    trends = changed(gather_trends(history(*entries)), ChangePoint(5, 7, 0.985, 0.98, 0.99))
    assert "✗ -0.9 points (90 % interval -1.2 points to -0.6 points)" in words(page_of(trends))


def test_a_change_between_two_runs_of_one_commit_is_not_by_a_commit() -> None:
    """A link to an empty comparison said nothing, and named a commit that is innocent."""
    entries = [replace(each, run=replace(each.run, commit="c" * 40)) for each in (entry(1), entry(2, value=2.0))]
    trends = changed(gather_trends(history(*entries)), ChangePoint(1, 1, 2.0, 1.9, 2.1))
    page = page_of(trends)
    assert "before and after: not by a commit" in page
    assert "/compare/" not in page


def test_segments_are_named_by_what_differs_and_a_silent_machine_is_seen() -> None:
    """Two machines in turn are two lines; one that is gone has its last day in the table of levels."""
    entries = [entry(day, cpu_model="AB"[day % 2]) for day in range(1, 7)] + [
        entry(day, cpu_model="A") for day in (7, 8)
    ]
    page = page_of(gather_trends(history(*entries), [HEADLINE]))
    text = words(page)
    assert "2 since 2026-11-02: cpu_model: B -&gt; A" in text
    assert "2026-11-01 to 2026-11-05" in text
    assert len(re.findall('<path class="line k[01]"', page)) == 2


def test_failed_gates_and_experiments_that_ended_are_told() -> None:
    """An experiment that was renamed long ago stands last and does not look alive."""
    entries = [entry(day, "b", verdict="fail" if day == 20 else "pass") for day in range(1, 21)]
    page = page_of(gather_trends(history(*[entry(day) for day in range(1, 6)], *entries), [HEADLINE]))
    assert "✗ 1 gate failed on 2026-11-20" in words(page)
    assert page.index(">b <") < page.index(">a <")
    assert "not in the newest 15 runs" in words(page)
    assert page.count('class="ring"') == 1


@pytest.mark.parametrize("days", [0, 1])
def test_an_empty_history_and_one_run_make_a_page(
    days: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first publish of a project must not fail."""
    page = page_of(gather_trends(history(*[entry(day + 1) for day in range(days)])))
    assert ("The history has no run yet" in page) == (days == 0)
    assert ("1.000 J on 2026-11-01" in words(page)) == (days == 1)
    (tmp_path / "llem-history").mkdir()
    out = tmp_path / "site"
    assert main(["history", "page", str(tmp_path / "llem-history"), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    assert sorted(file.name for file in out.iterdir()) == [".nojekyll", "index.html"]
    assert main(["history", "page", str(tmp_path / "llem-history"), "-o", str(out / "index.html")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_metric_that_cannot_be_shown_is_refused() -> None:
    with pytest.raises(LlemError, match="did you mean 'joules_per_output_token'"):
        gather_trends(history(entry(1)), ["joule_per_output_token"])
    with pytest.raises(LlemError, match=f"(?s)no run of the history has ttft_p50_s.*name one of: {HEADLINE}, {RATE}"):
        gather_trends(history(entry(1)), ["ttft_p50_s"])


def test_metrics_with_a_limit_come_first() -> None:
    limited = replace(entry(1), verdicts={RATE: "pass", "metric_of_a_package_that_is_gone": "pass"})
    assert gather_trends(history(limited)).metrics == [RATE, HEADLINE]


def test_no_text_becomes_markup_or_a_link() -> None:
    """Whoever can push to the history's branch writes these, and the page is served from the project's own domain."""
    mean = entry(1, HOSTILE)
    run = replace(
        mean.run, study=HOSTILE, run_id=HOSTILE, commit=HOSTILE, hostname=HOSTILE, repository='https://x.y/z" onclick="'
    )
    entries = [replace(mean, run=replace(run, run_id=f"{name}{HOSTILE}")) for name in "ab"]
    entries.append(replace(entries[0], run=replace(run, run_id="c"), conditions={"engine_version": HOSTILE}))
    problems = (f"a.jsonl:2: {HOSTILE}",)
    trends = gather_trends(replace(history(*entries), problems=problems))
    page = page_of(changed(trends, ChangePoint(1, 1, 1.1, 1.0, 1.2)), title=HOSTILE)
    assert "<img" not in page
    assert "\u202e" not in page.split('id="llem-data"')[0].split("<title>")[1].split("</title>")[1]
    assert page.count("</script>") == 2
    assert all(re.match("#|https://|data:,", link) for link in re.findall(r'href="([^"]*)"', page))
    assert 'onclick="' not in page
    data = json.loads(page.split('id="llem-data">')[1].split("</script>")[0])
    assert data["runs"]["id"] == [f"a{HOSTILE}", f"b{HOSTILE}", "c"]
    assert HOSTILE in data["texts"]
    assert "script-src 'sha256-" in page
    assert "unsafe-eval" not in page


@pytest.mark.parametrize(
    ("repository", "commit", "compare"),
    [
        ("https://github.com/o/p", "https://github.com/o/p/commit/", "https://github.com/o/p/compare/{a}...{b}"),
        ("https://gitlab.com/o/g/p", "https://gitlab.com/o/g/p/-/commit/", "https://gitlab.com/o/g/p/-/compare/{a}...{b}"),
        ("https://bitbucket.org/o/p", "https://bitbucket.org/o/p/commits/", "https://bitbucket.org/o/p/branches/compare/{b}..{a}"),
        ("http://github.com/o/p", None, None),
        ("javascript:alert(1)//github.com/o/p", None, None),
        ("https://user:secret@host/o/p", None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_links_go_to_pages_of_the_repository(repository: str | None, commit: str | None, compare: str | None) -> None:
    before, after = (replace(entry(day).run, repository=repository) for day in (1, 2))
    assert commit_page(before) == (f"{commit}{before.commit}" if commit else None)
    assert compare_page(before, after) == (compare.format(a=before.commit, b=after.commit) if compare else None)
    assert commit_page(replace(before, commit="../../settings")) is None


def test_noise_is_no_mountain_and_one_wide_interval_flattens_nothing() -> None:
    calm = [MetricEntry(100 + day / 1000, 99.9, 100.1, (100.0,)) for day in range(30)]
    scale = ValueScale.of([*calm, MetricEntry(100, 1, 10_000, (100.0,))])
    assert scale.high - scale.low == pytest.approx(4, rel=0.01)
    assert 2 <= len(scale.ticks()) <= 5
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())
    one = ValueScale.of([MetricEntry(0.0, None, None, (0.0,))])
    assert one.low < 0 < one.high


def test_the_page_works_by_keyboard_on_a_phone_and_asks_for_nothing(
    tmp_path: Path, browse: Callable[..., Opened]
) -> None:
    """What the script draws is what stood there before, and a link to a panel of another metric shows it."""
    entries = [
        entry(day, name, 1 + day % 3 / 50, verdict="fail" if day == 9 else "pass", engine="x" if day < 12 else HOSTILE)
        for day in range(1, 21)
        for name in ("a", HOSTILE)
    ]
    trends = changed(gather_trends(history(*entries)), ChangePoint(5, 7, 1.08, 1.07, 1.09))
    file = tmp_path / "index.html"
    file.write_text(page_of(trends), encoding="utf-8")
    opened = browse(file, viewport={"width": 360, "height": 800}, has_touch=True)
    page = opened.page
    drawn = """() => [...document.querySelectorAll('#p0 path')].map((path) => {
      const box = path.getBBox();
      return [path.getAttribute('class'), [box.x, box.y, box.x + box.width, box.y + box.height]];
    })"""
    static, ticks = page.evaluate(drawn), page.locator("#p0 .ticks").text_content()
    assert len(static) == 10
    page.get_by_text("Show: 2 of 2 experiments").click()
    page.get_by_label("Along").select_option("time")
    page.get_by_label("Along").select_option("runs")
    assert page.evaluate(drawn) == [[kind, pytest.approx(box, abs=1)] for kind, box in static]
    assert page.locator("#p0 .ticks").text_content() == ticks
    plot = page.get_by_role("slider").first
    assert "1.04 J (1.019 to 1.061) on 2026-11-20 03:00 UTC, 0000000000, run r20" in plot.get_attribute(
        "aria-valuetext"
    )
    plot.focus()
    for key in ("Home", "ArrowRight", "PageUp", "ArrowLeft"):
        page.keyboard.press(key)
    assert "run r3," in page.locator("#p0 .at").text_content()
    assert page.locator("#p0 .at a").get_attribute("href") == f"{REPOSITORY}/commit/{3:040x}"
    page.locator("#p0 summary").click()
    page.locator("#p0 .each tbody tr").nth(19).wait_for()  # drawn when the browser says that it is open
    assert page.locator("#p0 .each tbody tr").count() == 20
    page.get_by_label("Words").fill("img")
    page.locator("#shown", has_text="1 of 2 experiments").wait_for()
    assert page.locator(".panel:visible").count() == 1
    page.locator(f'#changes a[href="#{trends.panels[2].id}"]').click()
    page.wait_for_function(
        "document.querySelector('#p2').getBoundingClientRect().top < 800 && !document.querySelector('#p2').hidden"
    )
    assert page.get_by_label("Metric").input_value() == RATE
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
