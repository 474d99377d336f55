"""Sums what vLLM's scheduler reports of each of its steps over a period.

`VLLMEngine` registers it as a statistics logger. The keys stand in results and must stay.
"""

from __future__ import annotations

from typing import Any

from pytest_llem.errors import JsonValue


class SchedulerStatistics:
    """A logger of vLLM's statistics, no stable interface: what a version does not have is left out."""

    def __init__(self) -> None:
        self._attached = False
        self.reset()

    def attach(self, engine: Any) -> None:
        """Receive what a `vllm.v1.engine.LLMEngine` hands to its loggers from now on, where it has such."""
        loggers = getattr(getattr(engine, "logger_manager", None), "stat_loggers", None)
        if isinstance(loggers, list):
            loggers.append(self)
            self._attached = True

    def reset(self) -> None:
        """Start a new period."""
        self._steps = 0
        self._running = self._waiting = 0
        self._running_sum = 0
        self._usage = self._usage_sum = 0.0
        self._preemptions = 0
        self._prefix_queries = self._prefix_hits = 0
        self._drafts = self._draft_tokens = self._accepted_tokens = 0
        self._speculates = False

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Called by vLLM after each step."""
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs
        if scheduler_stats is None:
            return
        self._steps += 1
        self._running = max(self._running, scheduler_stats.num_running_reqs)
        self._running_sum += scheduler_stats.num_running_reqs
        self._waiting = max(self._waiting, scheduler_stats.num_waiting_reqs)
        self._usage = max(self._usage, scheduler_stats.kv_cache_usage)
        self._usage_sum += scheduler_stats.kv_cache_usage
        prefix = scheduler_stats.prefix_cache_stats
        if prefix is not None:
            self._prefix_queries += prefix.queries
            self._prefix_hits += prefix.hits
        speculation = scheduler_stats.spec_decoding_stats
        if speculation is not None:
            self._speculates = True
            self._drafts += speculation.num_drafts
            self._draft_tokens += speculation.num_draft_tokens
            self._accepted_tokens += speculation.num_accepted_tokens

    def read(self) -> dict[str, JsonValue]:
        """Counts, means and peaks since `reset`, shares of the cache from 0 to 1; empty where vLLM hands out none."""
        if not self._attached:
            return {}
        found: dict[str, JsonValue] = {
            "steps": self._steps,
            "running_requests_max": self._running,
            "running_requests_mean": self._running_sum / self._steps if self._steps else None,
            "waiting_requests_max": self._waiting,
            "kv_cache_usage_max": self._usage,
            "kv_cache_usage_mean": self._usage_sum / self._steps if self._steps else None,
            "preemptions": self._preemptions,
            "prefix_cache_queried_tokens": self._prefix_queries,
            "prefix_cache_hit_tokens": self._prefix_hits,
        }
        if self._speculates:
            found["speculative"] = {
                "drafts": self._drafts,
                "draft_tokens": self._draft_tokens,
                "accepted_tokens": self._accepted_tokens,
                "acceptance_rate": self._accepted_tokens / self._draft_tokens if self._draft_tokens else None,
            }
        return found

    def log(self) -> None:
        """Called by vLLM from time to time: nothing is printed."""

    def log_engine_initialized(self) -> None:
        """Called by vLLM when a logger is added early."""

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        """Called by vLLM when it sleeps, which it is never told to do here."""

    def record_admission_rejection(self, *_: Any, **__: Any) -> None:
        """Called by vLLM's server, which is not used here."""
