"""Counts of client and server over the measure window, and the warnings and reasons of invalidity that follow.

`OpenAIEngine` calls `reset` and `statistics` around a period. Notes' codes are part of the results and must stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from pytest_llem.engines.openai.client import Client
from pytest_llem.engines.openai.events import RequestFailedError
from pytest_llem.engines.openai.probe import server_apis
from pytest_llem.engines.openai.settings import ClientSettings, reuses_prefixes
from pytest_llem.engines.protocol import Completion, Request
from pytest_llem.errors import JsonValue
from pytest_llem.job.answers import before_stop
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.report import Note

BUNCHED_REL = 0.5
"""From this share on, what the client saw of the times between tokens is how they were sent or read, not made."""

FIRST_REL = 0.05
"""From this share on, tpot is worth a word. Chosen: repeats differ by about as much."""

LARGEST = 2**53
"""Above it a float tells no two counts apart (IEEE 754): such a value is none."""

STARTED = "process_start_time_seconds"
"""What Prometheus' clients say of their process, where they do."""

LATE_S = 0.05
"""From this on, a request that was sent after its time is worth a word."""

LONGEST_TOKEN = 64
"""Letters. Chosen: a server may leave a stop string in, with what its last token holds behind it; few have as many."""


class Observations:
    """Counts over a period that `reset` begins: of the client itself, and of the server where it has metrics."""

    def __init__(self, client: Client, settings: ClientSettings) -> None:
        self._client = client
        self._settings = settings
        self.has_metrics = bool(parse_metrics(self.metrics_text()))
        self.reset()

    def reset(self) -> None:
        """Begin a new period."""
        self._before = self._metrics()
        self._grown: dict[str, int | None] = {}
        self._closed = self.restarted = False
        self.answered = True
        self._generated = self._failed = self._short = self._untimed = 0
        self._given_differs = self._given_fewer = self._gone_on = 0
        self._stops: dict[int, tuple[str, ...]] = {}
        self._latencies_s: list[float] = []
        self._timings: list[Mapping[str, Any]] = []
        self._timed_tokens = self._bunched_tokens = self._cached_tokens = 0
        self._first_tokens = self._untimed_tokens = self._hidden_tokens = 0
        self._lateness_s = 0.0
        self._resent = 0

    def sent(self, requests: Sequence[Request], done: Sequence[Completion]) -> None:
        """One pass over the workload; nothing counts any more once the period's `statistics` were taken."""
        if self._closed:
            return
        self._timings += self._client.latest_timings
        self._resent += self._client.resent
        self._lateness_s = max(self._lateness_s, self._client.lateness_s)
        wanted = {request.index: request for request in requests}
        self._stops = {request.index: request.stop for request in requests if request.stop}
        for completion in done:
            if completion.error is not None:
                self._failed += 1
                continue
            request = wanted[completion.index]
            self._generated += completion.generated
            self._short += request.ignore_eos and completion.generated < request.max_new_tokens
            more = completion.input_tokens - len(request.token_ids) if request.token_ids else 0
            self._given_fewer += more < 0
            # What a server's chat template adds is no other prompt.
            self._given_differs += more < 0 or (more > 0 and self._settings.api != "chat")
            self._latencies_s.append((completion.end_ns - completion.start_ns) / 1e9)

    def read(self, done: Sequence[Completion]) -> None:
        """What the answers of a pass hold, once they were read."""
        for completion in done:
            if completion.error is None:
                times, after_first = completion.token_times_ns, max(0, completion.generated - 1)
                # Some servers end thoughts at stop strings, and some do not.
                stop = self._stops.get(completion.index, ())
                text = (completion.text if completion.said is None else completion.said) or ""
                behind = len(text) - len(before_stop(text, stop)) - max(map(len, stop), default=0)
                self._gone_on += behind > LONGEST_TOKEN
                self._cached_tokens += completion.cached_tokens or 0
                if times is None:
                    self._untimed += 1
                    self._untimed_tokens += after_first
                    self._hidden_tokens += max(0, completion.generated - len(completion.chunk_times_ns or ()))
                elif times:
                    self._timed_tokens += after_first
                    self._bunched_tokens += sum(later == earlier for earlier, later in pairwise(times))
                    self._first_tokens += times.count(times[0]) - 1

    def running(self) -> int | None:
        """Requests that the server runs or holds now, of whoever; `None` where it does not tell."""
        metrics = self._metrics()
        running, waiting = gauge(metrics, "running"), gauge(metrics, "waiting")
        return None if running is None else running + (waiting or 0)

    def metrics_text(self) -> str:
        """The server's metrics as they are; empty where it has none."""
        try:
            reply = self._client.ask(self._settings.root + "/metrics")
        except RequestFailedError:
            return ""
        return reply.text if reply.status == 200 else ""

    def _metrics(self) -> dict[str, float]:
        return parse_metrics(self.metrics_text()) if self.has_metrics else {}

    def statistics(self) -> dict[str, JsonValue]:
        """End the period; its counts, and means over requests in seconds (`server_*` by the server's clock)."""
        self._closed = True
        statistics: dict[str, JsonValue] = {}
        if self._resent:
            statistics["resent_over_closed_connections"] = self._resent
        if self._lateness_s:
            statistics["latest_sent_after_due_s"] = self._lateness_s
        if self.has_metrics:
            after = self._metrics()
            self.answered, self.restarted = bool(after), began_anew(self._before, after)
            self._grown = grown(self._before, after)
            statistics["server_counters"] = dict(self._grown)
            statistics |= {f"server_{name}_s": mean for name, mean in means(self._before, after).items()}
            statistics["running_at_begin"] = gauge(self._before, "running") or 0
        for name, field in (("server_prompt_s", "prompt_ms"), ("server_predicted_s", "predicted_ms")):
            stated = [timings.get(field) for timings in self._timings]
            values = [value for value in stated if isinstance(value, (int, float)) and 0 <= value < LARGEST]
            if values:
                statistics[name] = fmean(values) / 1e3
        if self._timings and self._latencies_s:
            statistics["client_latency_s"] = fmean(self._latencies_s)
        return statistics

    def notes(self, config: ExperimentConfig) -> tuple[list[Note], list[Note]]:
        """Why the period cannot be used, and what must be known of it; after `statistics`."""
        invalid: list[Note] = []
        warnings: list[Note] = []
        if self._short:
            invalid.append(
                Note(
                    "ignore_eos_ignored",
                    f"{self._short} answers ended before the length that was asked for: the server does not go on "
                    "after the end of sequence; set workload.ignore_eos: false, or give its own switch in openai.extra",
                )
            )
        if self._gone_on:
            invalid.append(
                Note(
                    "stop_ignored",
                    f"{self._gone_on} answers went on behind a stop string, which cost energy that the study does not "
                    "ask for: the server does not end answers there; measure one that does",
                )
            )
        theirs, hits = self._grown.get("generated_tokens") or 0, self._grown.get("prefix_cache_hit_tokens")
        if not self._failed and theirs > self._generated:
            invalid.append(
                Note(
                    "foreign_requests",
                    f"the server generated {theirs} tokens and {self._generated} of them for this measurement: "
                    "somebody else used it",
                )
            )
        elif hits and not self._cached_tokens and not reuses_prefixes(config):
            # Where the answers tell of them, they are counted there.
            invalid.append(Note("prefix_cache_hit", f"{hits} prompt tokens came from the server's prefix cache"))
        if self._untimed:
            why = "were not streamed"
            if config.settings.get("stream", True):
                why = "came in other pieces than tokens, and the server does not tell which token came when"
                hidden = self._hidden_tokens / max(1, self._untimed_tokens)
                why += f"; tpot is up to {hidden:.0%} too low, if the first piece held all that were not alone"
            warnings.append(Note("token_times_unknown", f"itl is null: {self._untimed} answers {why}"))
        bunched = self._bunched_tokens / self._timed_tokens if self._timed_tokens else 0.0
        if bunched > BUNCHED_REL:
            warnings.append(
                Note(
                    "tokens_bunched",
                    f"{bunched:.0%} of the tokens came together with the one before: itl and tpot are those of their "
                    "arrival in bunches",
                )
            )
        first = self._first_tokens / self._timed_tokens if self._timed_tokens else 0.0
        if first > FIRST_REL and bunched <= BUNCHED_REL:
            warnings.append(
                Note(
                    "tokens_bunched",
                    f"first pieces held several tokens, so that tpot, the time after the first token over the tokens "
                    f"after it, is {first:.0%} too low",
                )
            )
        if self._given_differs:
            fewer = f" ({self._given_fewer} of them shorter: does it cut prompts?)" if self._given_fewer else ""
            warnings.append(
                Note(
                    "input_tokens_differ",
                    f"the server counts other prompt lengths than were made for {self._given_differs} requests{fewer}: "
                    "its counts are those in the result",
                )
            )
        if self._lateness_s > LATE_S:
            warnings.append(
                Note("sent_late", f"a request was sent {self._lateness_s:.3f} s after its time: the client was busy")
            )
        return invalid, warnings


_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(\{.*\})?\s+(\S+)(?:\s+\d+)?$")


def parse_metrics(text: str) -> dict[str, float]:
    """Values by name in the Prometheus text format, summed over their labels; what is no number is left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match.group(3))
        except ValueError:
            continue
        found[match.group(1)] = found.get(match.group(1), 0.0) + value
    return {name: value for name, value in found.items() if abs(value) < LARGEST}


def prefix_cache_is_off(text: str) -> bool:
    """Whether metrics say that their server runs without a prefix cache."""
    patterns = [api.prefix_cache_off for api in server_apis().values() if api.prefix_cache_off is not None]
    return any(re.search(pattern, text, re.MULTILINE) for pattern in patterns)


def gauge(metrics: Mapping[str, float], name: str) -> int | None:
    """A gauge by this project's name for it; `None` where the server has no such."""
    for api in server_apis().values():
        if api.gauges.get(name) in metrics:
            return int(metrics[api.gauges[name]])
    return None


def began_anew(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether the server was started in between: one of its counters fell, or it says another time of its start."""
    apis = server_apis().values()
    counters = {name for api in apis for name in api.counters.values()}
    counters |= {f"{name}_count" for api in apis for name in api.latencies.values()}
    fell = any(after.get(name, 0.0) < before[name] for name in counters & before.keys())
    return bool(after) and (fell or before.get(STARTED) != after.get(STARTED))


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int | None]:
    """By how much each counter that the server has grew in between; all are `None` after a restart."""
    growth: dict[str, int | None] = {}
    anew = began_anew(before, after)
    for api in server_apis().values():
        for name, theirs in api.counters.items():
            if theirs in before and theirs in after:
                growth[name] = None if anew else int(after[theirs] - before[theirs])
    return growth


def means(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Means of what each histogram of a server's latencies took in in between, in seconds; none after a restart.

    Some servers have a histogram from its first value on, so that it begins at 0 where metrics were read and lack it.
    """
    found: dict[str, float] = {}
    for api in server_apis().values() if before and not began_anew(before, after) else ():
        for name, theirs in api.latencies.items():
            edges = [[metrics.get(f"{theirs}_{part}", 0.0) for part in ("sum", "count")] for metrics in (before, after)]
            took_s, count = (late - early for early, late in zip(*edges, strict=True))
            if count > 0 and took_s >= 0:
                found[name] = took_s / count
    return found
