"""What to feed an engine: data sets and synthetic prompts."""

from pytest_llem.workload.build import ALIASES, Workload, build_workload, token_hash

__all__ = ["ALIASES", "Workload", "build_workload", "token_hash"]
